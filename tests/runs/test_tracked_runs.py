"""Runs that keep the value of every problem: what their numbers promise, killed, resumed, and from offline values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anabranch.algo.value_tracker import Prior, init, look_up, update
from anabranch.errors import DataError
from anabranch.evaluation import held_out
from anabranch.evaluation.values_command import sample_values
from anabranch.recipe.io import to_yaml
from anabranch.recipe.overrides import apply
from anabranch.recipe.tree import Recipe
from anabranch.tracking.jsonl import read_jsonl
from anabranch.tracking.metrics import validate
from anabranch.train import run as running
from anabranch.train.run import start
from anabranch.train.values import Values

KILLED = -9
SINGLE = (
    "reward=[{term: accuracy, weight: 0.5}, {term: format, weight: 0.5}]",
    "rollout.prompts=8",
    "rollout.per_problem=1",
    "data.limit=12",
    "train.minibatches=2",
    "steps=4",
    "save={every: 2, keep: 9}",
)
"""8 of 12 problems a step: most come again."""


def metrics(run: Path) -> list[dict]:
    found = list(read_jsonl(run / "metrics.jsonl"))
    for record in found:
        validate(record)
    return found


def values_of(run: Path, number: int) -> Values:
    return Values.load(run / "checkpoints" / f"step-{number:06d}" / "values.safetensors")


@pytest.fixture(scope="module")
def single(make_recipe) -> Recipe:
    return make_recipe(*SINGLE, preset="spo")


@pytest.fixture(scope="module")
def done(single, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("single") / "run"
    start(single, folder)
    return folder


# -------------------------------------------------------------------------------------------------- what a run promises


def test_every_answer_of_the_log_is_in_the_values_of_the_checkpoint(done, single):
    """The tracker, run again over rollouts.jsonl with the recorded rho where that is the same for all problems."""
    records, answers = metrics(done), list(read_jsonl(done / "rollouts.jsonl"))
    tracker = values_of(done, 4).tracker
    visits = {key: sum(answer["key"] == key for answer in answers) for key in tracker.keys}
    assert dict(zip(tracker.keys, tracker.visits_P.tolist(), strict=True)) == visits
    state, prior = init("beta", [], [], 1), Prior(0.5, 1.0)
    step = [answer for answer in answers if answer["step"] == 1]
    state = update(
        state,
        [answer["key"] for answer in step],
        [answer["reward"] for answer in step],
        [0.96] * 8,  # first visits
        prior=prior,
        duplicates="last",
    )
    second = [answer for answer in answers if answer["step"] == 2]
    expected = look_up(state, [answer["key"] for answer in second], prior)
    assert records[0]["value_mean"] == 0.5
    assert records[1]["value_mean"] == pytest.approx(expected.value_K.mean(), abs=1e-12)
    assert records[1]["first_visits"] == (expected.visits_K == 0).mean()


def test_numbers_about_values_fit_together(done):
    first, *later = metrics(done)
    assert (first["first_visits"], first["rho"], first["rho_high"], first["rho_low"]) == (1, 0.96, 1, 0)
    assert "divergence" not in first
    for record in later:
        assert record["divergence"] > 0
        assert 0.875 <= record["rho"] <= 0.96
        assert record["draw_spread"] < 1
    for record in (first, *later):
        assert "dead_groups" not in record  # a single answer cannot disagree
        for family in ("drawn", "problems"):
            shares = [share for name, share in record.items() if name.startswith(f"{family}/")]
            assert sum(shares) == pytest.approx(1)
        tenths = [name.partition("/")[2] for name in record if name.startswith("predicted/")]
        for tenth in tenths:
            assert int(tenth) / 10 <= record[f"predicted/{tenth}"] <= int(tenth) / 10 + 0.1
        error = sum(
            record[f"drawn/{tenth}"] * abs(record[f"predicted/{tenth}"] - record[f"observed/{tenth}"])
            for tenth in tenths
        )
        assert record["calibration_error"] == pytest.approx(error)


def test_advantages_are_those_of_the_values_before_the_step(done):
    answers = [answer for answer in read_jsonl(done / "rollouts.jsonl") if answer["step"] == 1]
    (first, *_) = metrics(done)
    assert first["advantage_mean"] == pytest.approx(sum(answer["reward"] - 0.5 for answer in answers) / 8)


def test_problems_of_a_step_are_different(done):
    for step in range(1, 5):
        keys = [answer["key"] for answer in read_jsonl(done / "rollouts.jsonl") if answer["step"] == step]
        assert len(set(keys)) == len(keys) == 8


def test_last_answers_are_kept_with_their_log_probs(done):
    newest = {answer["key"]: answer for answer in read_jsonl(done / "rollouts.jsonl")}
    last = values_of(done, 4).last
    assert last.keys() == newest.keys()
    for key, answer in last.items():
        assert len(answer.tokens) == len(answer.trained) == len(answer.logprob) == newest[key]["tokens"]
        assert (answer.logprob < 0).all()


@pytest.mark.parametrize("when", ["before_update", "after_update"])
def test_without_a_step_of_the_weights_nothing_has_moved(single, tmp_path, when):
    recipe = apply(single, ["optim.lr=1e-30", f"algorithm.tracker.when={when}", "steps=3"])
    start(recipe, tmp_path / "run")
    for record in metrics(tmp_path / "run")[1:]:
        assert record["divergence"] < 1e-5  # the same weights in rows of another shape: rounding
        assert record["rho"] == 0.96


def test_divergence_compares_the_weights_that_it_says(single, tmp_path):
    """The first visits are in step 1: what step 2 measures of them is one step of the weights, at either end."""
    found = {}
    for when in ("before_update", "after_update"):
        recipe = apply(single, [f"algorithm.tracker.when={when}", "steps=2", "rollout.prompts=12"])
        start(recipe, tmp_path / when)
        found[when] = metrics(tmp_path / when)
    one, other = (records[1]["divergence"] for records in found.values())
    assert one != other
    assert all(value > 1e-3 for value in (one, other))
    assert [records[1]["first_visits"] for records in found.values()] == [0, 0]
    # the update itself is the same: values of the second step come from the first one's rho, which is 0.96 in both
    assert found["before_update"][1]["loss"] == found["after_update"][1]["loss"]


def test_a_constant_rate_scores_nothing_and_keeps_no_answer(single, tmp_path):
    start(apply(single, ["algorithm.tracker.divergence=constant", "steps=2"]), tmp_path / "run")
    for record in metrics(tmp_path / "run"):
        assert record["rho"] == 0.875
        assert not {"rho_low", "rho_high", "divergence"} & record.keys()
    assert values_of(tmp_path / "run", 2).last == {}


def test_values_may_steer_the_draw_and_nothing_else(make_recipe, tmp_path):
    """The paper's ablation without a baseline."""
    start(make_recipe(*SINGLE, "algorithm.baseline=none", preset="spo"), tmp_path / "run")
    for record in metrics(tmp_path / "run"):
        assert record["advantage_mean"] == pytest.approx(record["reward"])
        assert {"value_mean", "draw_spread"} <= record.keys()


def test_repeats_of_a_problem_are_taken_in_together_or_the_last_one_alone(make_recipe, tmp_path):
    counts = {}
    for duplicates in ("joint", "last"):
        changes = (SINGLE[0], "steps=1", f"algorithm.tracker.duplicates={duplicates}")
        start(make_recipe(*changes, preset="bspo"), tmp_path / duplicates)
        tracker = values_of(tmp_path / duplicates, 1).tracker
        counts[duplicates] = tracker.first_P + tracker.second_P
        answers = list(read_jsonl(tmp_path / duplicates / "rollouts.jsonl"))
        for place, key in enumerate(tracker.keys):
            rewards = [answer["reward"] for answer in answers if answer["key"] == key]
            taken = rewards if duplicates == "joint" else rewards[-1:]
            assert tracker.first_P[place] == pytest.approx(0.96 * 0.5 + sum(taken))
    assert counts["joint"] == pytest.approx(0.96 + 4)
    assert counts["last"] == pytest.approx(0.96 + 1)


# ------------------------------------------------------------------------------------------------------------ killed


def test_a_killed_run_finds_its_values_again(live, single, same_run, tmp_path):
    recipe = to_yaml(apply(single, ["save={every: 1, keep: 2}"]))
    assert live(path=tmp_path / "whole", recipe=recipe, log=tmp_path / "log") == 0, (tmp_path / "log").read_text()
    run = tmp_path / "run"
    kills = [
        {"phase": {"phase": "rl: training 2/2", "count": 2, "delay": 0.0}},
        {"phase": {"phase": "rl: scoring", "count": 2, "delay": 0.0}},  # last answers, or what is left for training
        {"operation": ("open", ".partial-step-000003/manifest.json")},  # values are written, the proof is not
        {},
    ]
    for number, kill in enumerate(kills):
        life = {} if run.exists() and (run / "recipe.yaml").exists() else {"recipe": recipe}
        code = live(path=run, log=tmp_path / f"log-{number}", **life, **kill)
        assert code == (KILLED if kill else 0), (tmp_path / f"log-{number}").read_text()
    same_run(tmp_path / "whole", run, logs=("rollouts",))
    assert (run / "checkpoints" / "step-000004" / "values.safetensors").is_file()


def test_saved_values_are_the_same_to_the_bit(done, tmp_path):
    values = values_of(done, 4)
    values.save(tmp_path / "again")
    again = (tmp_path / "again").read_bytes()
    assert again == (done / "checkpoints" / "step-000004" / "values.safetensors").read_bytes()
    manifest = json.loads((done / "checkpoints" / "step-000004" / "manifest.json").read_text())
    assert manifest["values.safetensors"]["bytes"] == len(again)
    empty = Values(init("ema", [], [], 1), {})
    empty.save(tmp_path / "empty")
    assert Values.load(tmp_path / "empty").tracker.form == "ema"


# ------------------------------------------------------------------------------------------------------ offline values


@pytest.fixture(scope="module")
def right_only(single) -> Recipe:
    return apply(single, ["reward=[{term: accuracy}]", "data.limit=10"])


@pytest.fixture(scope="module")
def offline_file(right_only, tmp_path_factory) -> Path:
    return sample_values(right_only, 4, tmp_path_factory.mktemp("values"))


def test_offline_values_are_where_a_run_starts(right_only, offline_file, tmp_path):
    content = json.loads(offline_file.read_text())
    problems = content["problems"]
    assert len(problems) == 10
    assert all(samples == 4 for _, samples in problems.values())
    for number, counts in enumerate(problems.values()):
        counts[0] = float(number % 5)  # a random model is right too seldom
    (tmp_path / "values.json").write_text(json.dumps(content))
    start(apply(right_only, [f"algorithm.tracker.values={tmp_path / 'values.json'}", "steps=1"]), tmp_path / "run")
    (record,) = metrics(tmp_path / "run")
    asked = [answer["key"] for answer in read_jsonl(tmp_path / "run" / "rollouts.jsonl")]
    assert record["value_mean"] == pytest.approx(sum((problems[key][0] + 0.5) / 5 for key in asked) / len(asked))
    assert record["value_count"] == 8
    assert record["first_visits"] == 1


def test_sampling_values_that_was_stopped_goes_on_and_draws_nothing_twice(right_only, offline_file, tmp_path, capsys):
    folder = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_out, "ANSWERS_A_BATCH", 16)  # four problems a batch
        whole = sample_values(right_only, 4, tmp_path / "whole")
        folder.mkdir()
        lines = (tmp_path / "whole" / "answers.jsonl").read_text().splitlines(keepends=True)
        (folder / "evaluation.json").write_bytes((tmp_path / "whole" / "evaluation.json").read_bytes())
        (folder / "answers.jsonl").write_text("".join(lines[:23]) + lines[23][:10])  # killed while it was writing
        capsys.readouterr()
        again = sample_values(right_only, 4, folder)
    assert "16 of 40 answers are here already" in capsys.readouterr().out
    assert again.read_bytes() == whole.read_bytes()
    assert (folder / "answers.jsonl").read_text() == "".join(lines)


def test_values_of_other_problems_are_refused_before_a_run_begins(right_only, offline_file, tmp_path):
    for change, found in (
        ("data.limit=12", "no value for 2 of 12 problems"),
        ("prompt.instruction=Hurry.", "asked otherwise (prompt.instruction '' there, 'Hurry.' here)"),
        ("answer.extract=[boxed]", "asked otherwise (answer.extract"),
    ):
        with pytest.raises(DataError) as caught:
            start(apply(right_only, [f"algorithm.tracker.values={offline_file}", change]), tmp_path / "run")
        assert found in str(caught.value)
        assert not (tmp_path / "run").exists()


def test_values_of_another_model_are_refused(right_only, offline_file, done, tmp_path):
    trained = done / "checkpoints" / "step-000004" / "model"
    recipe = apply(right_only, [f"algorithm.tracker.values={offline_file}", f"model.source={trained}"])
    with pytest.raises(DataError, match="values of another model"):
        start(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_values_sampled_otherwise_are_taken_and_noted(right_only, offline_file, tmp_path, capsys):
    changes = [f"algorithm.tracker.values={offline_file}", "rollout.temperature=0.9", "steps=1"]
    start(apply(right_only, changes), tmp_path / "run")
    assert "rollout.temperature 1.0 there, 0.9 here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "No such file"),
        ("{", "no JSON"),
        ("[]", "another kind of file"),
        ('{"kind": "anabranch offline values", "version": 1}', "a damaged file"),
    ],
)
def test_what_is_no_file_of_values_is_refused(right_only, tmp_path, content, found):
    path = tmp_path / "values.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=found):
        start(apply(right_only, [f"algorithm.tracker.values={path}"]), tmp_path / "run")


def test_a_run_that_goes_on_needs_no_file_of_values(right_only, offline_file, tmp_path):
    path = tmp_path / "values.json"
    path.write_bytes(offline_file.read_bytes())
    start(apply(right_only, [f"algorithm.tracker.values={path}", "steps=1"]), tmp_path / "run")
    path.unlink()
    running.resume(tmp_path / "run", 2)
    assert [record["value_count"] == 8 for record in metrics(tmp_path / "run")] == [True, False]
