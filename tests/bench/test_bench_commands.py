"""`anabranch bench`: what the commands promise, on a model that computes nothing much."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from anabranch.bench.alone import serve
from anabranch.bench.measure import Report
from anabranch.bench.scale import AXES, Breadth, breadths, growth, scale
from anabranch.bench.train import exercise, ours, plain, products_of, tables
from anabranch.bench.workloads import bench_recipe, load_learner
from anabranch.cli.main import app
from anabranch.train.clock import Clock

HEAVY = ("torch", "transformers")


def bench(command: str, model: str, path: Path, *options: str) -> dict:
    small = ["--model", model, "--dtype", "float32", "--threads", "1", "--json", str(path)]
    sizes = ["--answers", "2", "--tokens", "5", "--prompt-tokens", "60", "--repeats", "2", *options]
    done = CliRunner().invoke(app, ["bench", command, *small, *sizes, "prompt.instruction=", "model.device=cpu"])
    assert done.exit_code == 0, done.output
    return {**json.loads(path.read_text()), "printed": done.output}


@pytest.mark.parametrize("command", [["bench"], ["bench", "step"], ["bench", "scale"]])
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys\nfrom anabranch.cli.main import main\n"
        f"try:\n    main()\nexcept SystemExit:\n    print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.endswith("\n[]\n")


def test_generate_reports_speed_and_phases(tiny_model, tmp_path):
    found = bench("generate", tiny_model, tmp_path / "g.json", "--prompts", "3")
    run = found["runs"][0]
    assert run["tokens_per_second"] * run["seconds"] == pytest.approx(3 * 2 * 5)
    assert {"time/prefill", "time/decode", "time/draw", "memory_peak_mb"} <= set(run)
    assert sum(run[name] for name in run if name.startswith("time/")) == pytest.approx(run["seconds"])
    assert all(name in found["printed"] for name in found["summary"])
    assert found["settings"]["recipe"]["rollout"]["max_new_tokens"] == 5


def test_step_reports_the_phases_of_a_steps_record(tiny_model, tmp_path):
    found = bench("step", tiny_model, tmp_path / "s.json", "--prompts", "3")
    run = found["runs"][0]
    assert run["samples_per_second"] * run["seconds"] == pytest.approx(3 * 2)
    phases = {"prefill", "decode", "draw", "pack", "forward", "backward", "optimizer", "other"}
    assert {f"time/{phase}" for phase in phases} <= set(run)
    assert sum(run[name] for name in run if name.startswith("time/")) == pytest.approx(run["seconds"])
    assert all(name in found["printed"] for name in found["summary"])


def test_train_reports_both_sides_their_shares_and_their_ratio(tiny_model, tmp_path):
    found = bench("train", tiny_model, tmp_path / "t.json", "--prompts", "3", "--plain-answers", "4")
    run = found["runs"][0]
    for side, computed in (("ours", 3 * 60 + 6 * 5), ("plain", 6 * 65)):  # prompts are shared, or repeated
        assert run[f"{side}/tokens_per_second"] * run[f"{side}/seconds"] == pytest.approx(6 * 5)
        assert run[f"{side}/computed_tokens_per_second"] * run[f"{side}/seconds"] == pytest.approx(computed)
        share = run[f"{side}/products_seconds"] / run[f"{side}/seconds"]
        assert run[f"{side}/products_share"] == pytest.approx(share)
        assert sum(found["roofline"][side].values()) == pytest.approx(1)
        calls = sum(product["calls"] for product in found["products"][side])
        assert calls > 2 * 3 * 7  # forward, dx and dW of 7 linear maps in 2 layers
    ratio = run["ours/tokens_per_second"] / run["plain/tokens_per_second"]
    assert run["ratio/tokens_per_second"] == pytest.approx(ratio)
    for name in found["summary"]:
        assert name.partition("/")[2] in found["printed"]
    for side in ("ours", "plain"):
        assert all(name in found["printed"] for name in found["roofline"][side])


@pytest.fixture(scope="module")
def trainee(tiny_model):
    quiet = ["prompt.instruction=", "model.device=cpu", "train.row_tokens=80"]
    sizes = {"prompts": 2, "answers": 3, "tokens": 5}
    return load_learner(bench_recipe(model=tiny_model, dtype="float32", threads=1, overrides=quiet, **sizes))


def test_both_sides_of_bench_train_compute_the_same_gradient(trainee):
    experience, lesson = exercise(trainee, 60)
    sides = (ours(trainee, lesson), plain(trainee.recipe, experience, lesson, answers=2))
    for side in sides:
        side.compute(Clock())
    first, second = (dict(side.model.named_parameters()) for side in sides)
    for name, parameter in first.items():
        torch.testing.assert_close(parameter.grad, second[name].grad, rtol=1e-3, atol=1e-6)
    for side in sides:
        side.forget()
        assert all(parameter.grad is None for parameter in side.model.parameters())
    assert torch.are_deterministic_algorithms_enabled()  # again, after the plain side


def test_the_plain_sides_products_are_those_of_every_token_of_every_answer(trainee):
    experience, lesson = exercise(trainee, 60)
    products = products_of("plain", plain(trainee.recipe, experience, lesson, answers=3))
    # (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 32) * 2 layers + 16 * 100 of the head; 6 answers of 65 tokens; fwd, dx, dW
    weights = (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 32) * 2 + 16 * len(trainee.tokenizer)
    assert sum(product.flops for product in products) == 3 * 2 * 6 * 65 * weights


def test_an_unfinished_report_shows_what_is_there():
    report = Report("train", {}, {"dtype": "float32", "threads": 1}, tables=tables)
    report.add({"ours/seconds": 1.0, "plain/seconds": 2.0})
    (table,) = tables(report)
    assert table.rows == (("seconds", "1 (1 - 1)", "2 (2 - 2)", "", "seconds"),)


# ----------------------------------------------------------------------------------------------------------- scale


@pytest.mark.parametrize(
    ("axis", "sizes"),
    [
        ("answers", [(2, 6), (2, 12), (2, 24)]),
        ("prompts", [(4, 3), (8, 3), (16, 3)]),
        ("samples", [(2, 6), (4, 6), (4, 12)]),
    ],
)
def test_what_doubles(axis, sizes):
    assert [AXES[axis](2, 3, times) for times in (1, 2, 3)] == sizes
    assert [prompts * answers for prompts, answers in sizes] == [12, 24, 48]


def test_growth_compares_with_the_base_of_the_same_turn():
    sides = {"base": ([1.0, 2.0, 1.0], 100.0), "grown": ([2.2, 4.0, 2.1], 110.0)}
    runs = [
        {f"growth/2x4/{side}/seconds": seconds[turn] for side, (seconds, _) in sides.items()}
        | {f"growth/2x4/{side}/memory_peak_mb": memory for side, (_, memory) in sides.items()}
        for turn in range(3)
    ]
    found = growth(runs, (2, 2), ["answers", "prompts"], doublings=2)
    (row,) = found["answers"]  # 2 x 8 was not measured
    assert found["prompts"] == []
    assert (row["prompts"], row["answers"], row["factor"]) == (2, 4, 2)
    assert row["time_against_linear"] == pytest.approx(0.05)  # the median of 2.2 / 2, 4 / 4 and 2.1 / 2, less 1
    assert row["memory_against_base"] == pytest.approx(0.1)


def test_sizes_are_measured_in_processes_of_their_own(tiny_model, tmp_path):
    overrides = ["prompt.instruction=", "model.device=cpu"]
    sizes = {"prompts": 1, "answers": 2, "tokens": 3}
    recipe = bench_recipe(model=tiny_model, dtype="float32", threads=1, overrides=overrides, **sizes)
    path = tmp_path / "scale.json"
    scale(recipe, prompt_tokens=60, axes=["answers"], doublings=1, breadth=None, repeats=1, path=path)
    stored = json.loads(path.read_text())
    (row,) = stored["growth"]["answers"]
    (run,) = stored["runs"]
    assert "breadth" not in stored
    assert row["seconds"]["median"] == run["growth/1x4/grown/seconds"]
    assert run["growth/1x4/base/memory_peak_mb"] > 0
    assert stored["complete"]


def test_breadth_has_a_row_for_every_kind_and_length_that_was_measured():
    sides = {"wide": (8.0, 1000.0), "narrow": (4.0, 1500.0)}
    runs = [
        {f"breadth/step/16/{side}/samples_per_second": speed for side, (speed, _) in sides.items()}
        | {f"breadth/step/16/{side}/computed_tokens": tokens for side, (_, tokens) in sides.items()}
        | {"ratio/breadth/step/16/samples_per_second": ratio}
        for ratio in (2.0, 2.0, 2.5)
    ]
    (row,) = breadths(runs, [64, 16])
    assert (row["kind"], row["tokens"]) == ("step", 16)
    assert (row["wide"]["median"], row["narrow"]["median"], row["ratio"]["max"]) == (8, 4, 2.5)
    assert row["computed_ratio"] == 1.5  # 1500 / 1000


def test_breadth_is_measured_with_answers_of_every_length(tiny_model, tmp_path, capsys):
    overrides = ["prompt.instruction=", "model.device=cpu"]
    recipe = bench_recipe(model=tiny_model, dtype="float32", threads=1, overrides=overrides, answers=2)
    path = tmp_path / "scale.json"
    breadth = Breadth(wide=4, narrow=2, prompt_tokens=60, tokens=[3])
    scale(recipe, prompt_tokens=60, axes=[], doublings=0, breadth=breadth, repeats=1, path=path)
    stored = json.loads(path.read_text())
    assert stored["settings"]["breadth"] == {"wide": 4, "narrow": 2, "prompt_tokens": 60, "tokens": [3]}
    generated, step = stored["breadth"]
    assert (generated["kind"], step["kind"]) == ("generate", "step")
    # 4 answers of 3 tokens: 2 prompts of 60 against one; a step computes all of it a second time in training
    assert generated["computed_ratio"] == step["computed_ratio"] == (120 + 12) / (60 + 12)
    run = {name: value for run in stored["runs"] for name, value in run.items()}
    assert run["breadth/step/3/wide/computed_tokens"] == 2 * (60 + 12)
    printed = capsys.readouterr().out
    assert "tokens computed, narrow/wide" in printed
    assert "breadth, generate/3" in printed


def test_a_process_says_what_went_wrong_and_ends(tiny_model):
    recipe = bench_recipe(model=tiny_model, dtype="float32", threads=1, answers=2, tokens=3)
    settings = {"kind": "generate", "recipe": recipe.model_dump(mode="json"), "prompt_tokens": 2}
    answers = io.StringIO()
    serve(io.StringIO(json.dumps(settings) + "\n"), answers)
    error = json.loads(answers.getvalue())["error"]
    assert error.startswith("DataError: prompt tokens: found 2, but the shortest prompt has")


def test_breadth_needs_as_many_answers_on_both_sides(tiny_model, tmp_path):
    arguments = ["bench", "scale", "--model", tiny_model, "--wide", "10", "--narrow", "4"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "--wide: found 10" in done.output
