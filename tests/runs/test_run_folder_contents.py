"""What a run leaves behind: a recipe that gives the same run again, and records that are complete and in order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from anabranch.errors import DataError
from anabranch.presets import load
from anabranch.recipe.io import from_yaml
from anabranch.tracking.checkpoints import complete
from anabranch.tracking.jsonl import read_jsonl
from anabranch.tracking.lock import FolderLock
from anabranch.tracking.metrics import METRICS, find, validate
from anabranch.tracking.rollouts import RolloutRecord
from anabranch.train.run import start


@pytest.fixture(scope="module")
def recipe(make_recipe):
    return make_recipe("steps=4", "evaluation.every=2", "save.every=2", "model.threads=0", "model.dtype=auto")


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("contents") / "run"
    start(recipe, folder)
    return folder


def records(run: Path, log: str) -> list[dict]:
    return list(read_jsonl(run / f"{log}.jsonl"))


def test_the_folder_holds_what_was_promised(run):
    assert {path.name for path in run.iterdir()} == {
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "rollouts.jsonl",
        "evaluations.jsonl",
        "checkpoints",
        "curve.svg",
        "lock",
    }
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000004", "step-000006"]
    FolderLock(run / "lock").release()  # nobody holds it any more


def test_the_recipe_file_is_the_recipe_with_nothing_left_to_choose(run, recipe):
    written = from_yaml(run / "recipe.yaml")
    assert written.but(model=recipe.model) == recipe
    assert written.model.threads > 0
    assert written.model.dtype in ("float32", "bfloat16")
    assert written.model.device == "cpu"


def test_the_recipe_file_gives_the_same_run_again(run, same_run, tmp_path):
    start(load(str(run / "recipe.yaml")), tmp_path / "again")
    assert (tmp_path / "again" / "recipe.yaml").read_bytes() == (run / "recipe.yaml").read_bytes()
    same_run(run, tmp_path / "again")


def test_another_seed_gives_another_run(run, tmp_path):
    start(load(str(run / "recipe.yaml")).but(seed=1, evaluation=None, cold_start=None, steps=1), tmp_path / "other")
    questions = [[r["question"] for r in records(folder, "rollouts")[:16]] for folder in (run, tmp_path / "other")]
    assert questions[0] != questions[1]


def test_steps_are_recorded_in_order_stage_after_stage(run):
    found = [(record["stage"], record["step"]) for record in records(run, "metrics")]
    assert found == [("cold_start", 1), ("cold_start", 2), ("rl", 1), ("rl", 2), ("rl", 3), ("rl", 4)]
    versions = [record["policy_version"] for record in records(run, "metrics")]
    assert versions == [0, 1, 2, 3, 4, 5]  # one optimizer step each


def test_an_rl_record_has_every_metric_that_applies(run):
    optional = {"time/save", "time/evaluate", "time/score", "kl_ref", "loss_kl", "clip_dual"}
    optional |= {"loss_entropy", "advantage_clipped", "mismatch_gap", "mismatch_bounded", "mismatch_dropped"}
    optional |= {"reference_age", "reference_reset", "repeat_ratio"}
    optional |= {"dropped_rollouts", "groups_drawn", "groups_kept", "groups_surplus", "sampling_rounds"}
    others = ("values", "asynchronous", "environment", "mass balance", "pass@k")
    optional |= {"time/wait", "time/diagnose", *(name for name, metric in METRICS.items() if metric.group in others)}
    plain = {name for name, metric in METRICS.items() if metric.family is None}
    for record in records(run, "metrics")[2:]:
        validate(record)
        assert plain - set(record) <= optional
        assert {name for name in record if find(name).family == "reward/"} == {"reward/accuracy", "reward/format"}


def test_saving_and_evaluating_are_timed_in_the_step_after(run):
    timed = [{"time/save", "time/evaluate"} & set(record) for record in records(run, "metrics")]
    both = {"time/save", "time/evaluate"}
    # evaluated before the cold start, after it (and saved), and after RL step 2 (and saved)
    assert timed == [{"time/evaluate"}, set(), both, set(), both, set()]


def test_a_supervised_record_says_nothing_about_answers(run):
    for record in records(run, "metrics")[:2]:
        validate(record)
        assert {"loss", "entropy", "grad_norm", "lr", "trained_tokens", "packed_tokens", "time/step"} <= set(record)
        assert {"time/pack", "time/forward", "time/backward", "time/optimizer"} <= set(record)
        assert not {"reward", "accuracy", "sampled_tokens", "generated_rollouts", "truncated"} & set(record)


def test_every_answer_is_recorded_with_its_verdict_in_order(run, recipe):
    answers = records(run, "rollouts")
    assert len(answers) == 4 * 16
    assert [answer["step"] for answer in answers] == sorted(answer["step"] for answer in answers)
    weights = {term.term: term.weight for term in recipe.reward}
    for number, answer in enumerate(answers):
        sometimes = {"prompt", "dropped", "begun", "turns"}
        assert set(answer) | sometimes == set(RolloutRecord.__annotations__)
        assert answer["sample"] == number % recipe.rollout.per_problem
        assert answer["stage"] == "rl"
        assert answer["reward"] == sum(weights[name] * value for name, value in answer["parts"].items())
        assert answer["parts"]["accuracy"] == float(answer["verdict"] == "correct")
        assert answer["parts"]["format"] == float(answer["extracted"] is not None)
        assert (answer["verdict"] == "no_answer") == (answer["extracted"] is None)
        a, b = answer["question"].rstrip("=").split("+")
        assert int(a) + int(b) == int(answer["gold"])
        assert answer["stop"] in ("eos", "length")
        assert (answer["stop"] == "length") <= (answer["tokens"] == recipe.rollout.max_new_tokens)
        assert answer["policy_versions"] == [1 + answer["step"]]  # two optimizer steps came before
    groups = [answers[start : start + 4] for start in range(0, len(answers), 4)]
    assert all(len({answer["key"] for answer in group}) == 1 for group in groups)
    for step in range(1, 5):
        assert len({answer["key"] for answer in answers if answer["step"] == step}) == recipe.rollout.prompts


def test_evaluations_are_recorded_at_the_borders_of_stages_and_where_they_are_due(run):
    found = records(run, "evaluations")
    assert [(record["stage"], record["step"]) for record in found] == [
        ("before", 0),
        ("cold_start", 2),
        ("rl", 2),
        ("rl", 4),
    ]
    assert [record["policy_version"] for record in found] == [0, 2, 4, 6]
    for record in found:
        assert (record["num_problems"], record["num_samples"], record["level"]) == (4, 8, 0.95)
        assert list(record["estimates"]) == ["mean@2", "pass@1", "pass@2"]
        for estimate in record["estimates"].values():
            assert 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 1
        mean = sum(record["per_problem"]) / 4
        assert record["estimates"]["mean@2"]["value"] == pytest.approx(mean, abs=1e-12)
    assert "change" not in found[0]
    assert [record["change"]["since"] for record in found[1:]] == ["before", "cold_start", "cold_start"]


def test_the_moments_of_the_cold_start_are_not_carried_into_rl(run):
    moments = load_file(run / "checkpoints" / "step-000006" / "optimizer.safetensors")
    counts = {float(value) for name, value in moments.items() if name.endswith(".step")}
    assert counts == {4.0}  # of 2 + 4 optimizer steps


def test_held_out_problems_are_not_trained_on(run, sums):
    held_out = {json.loads(line)["question"] for line in (sums / "held_out.jsonl").read_text().splitlines()}
    assert not held_out & {answer["question"] for answer in records(run, "rollouts")}


def test_worked_examples_with_held_out_questions_are_left_out(make_recipe, sums, tmp_path):
    held_out, both = sums / "held_out.jsonl", tmp_path / "both.jsonl"
    both.write_text("".join(path.read_text() for path in (sums / "train.jsonl", held_out)))
    small = ("steps=0", f"evaluation={{problems: 64, samples: 1, data: {{kind: jsonl, path: {held_out}}}}}")
    start(make_recipe("cold_start=null", *small, f"sft={{path: {both}, steps: 1, batch: 4}}"), tmp_path / "run")
    last = complete(tmp_path / "run" / "checkpoints")[-1]
    sampler = json.loads((last / "state.json").read_text())["state"]["sampler"]
    questions = [{json.loads(line)["question"] for line in path.read_text().splitlines()} for path in (both, held_out)]
    assert sampler["num_problems"] == len(questions[0] - questions[1]) < len(questions[0])
    with pytest.raises(DataError, match=r"sft\.path: found all 11 questions among the held-out ones"):
        start(make_recipe("cold_start=null", *small, f"sft={{path: {held_out}, steps: 1}}"), tmp_path / "none")


def test_the_environment_is_described_without_secrets(run, recipe):
    environment = json.loads((run / "environment.json").read_text())
    assert environment["recipe"] == recipe.name
    assert environment["packages"]["torch"]
    assert {"started", "python", "platform", "cpu", "cores", "git_commit", "command"} <= set(environment)
    assert "environ" not in environment
