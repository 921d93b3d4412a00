"""Dynamic sampling, scheduled rewards and resets of the reference, in whole runs: what they do can be seen."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anabranch.errors import StarvationError
from anabranch.tracking.jsonl import read_jsonl
from anabranch.tracking.metrics import validate
from anabranch.train.run import resume, start

KL = "algorithm.kl={kind: loss_k2, coef: 0.1}"


def metrics(run: Path) -> list[dict]:
    found = list(read_jsonl(run / "metrics.jsonl"))
    for record in found:
        validate(record)
    return found


def state(run: Path, number: int) -> dict:
    return json.loads((run / "checkpoints" / f"step-{number:06d}" / "state.json").read_text())["state"]


@pytest.fixture
def evaluated(sums) -> str:
    """Evaluation after every step."""
    data = f"{{kind: jsonl, path: {sums / 'held_out.jsonl'}}}"
    return f"evaluation={{problems: 2, samples: 1, every: 1, data: {data}}}"


# ------------------------------------------------------------------------------------------------ dynamic sampling


@pytest.fixture(scope="module", params=[1.0, 2.0], ids=["no more than needed", "with some to spare"])
def overdraw(request) -> float:
    return request.param


@pytest.fixture(scope="module")
def dynamic(make_recipe, overdraw, tmp_path_factory) -> Path:
    """Four steps of two minibatches."""
    run = tmp_path_factory.mktemp("dynamic") / "run"
    changes = (f"rollout.dynamic.overdraw={overdraw}", "train.minibatches=2", "steps=4", "optim.lr=1e-3")
    start(make_recipe(*changes, preset="lite_ppo"), run)
    return run


def groups_of(run: Path, step: int) -> list[list[dict]]:
    answers = [answer for answer in read_jsonl(run / "rollouts.jsonl") if answer["step"] == step]
    return [list(group) for _, group in groupby(answers, lambda answer: answer["key"])]


def test_L13_every_step_learns_from_as_many_groups_as_asked_and_all_of_them_differ(dynamic):
    for record in metrics(dynamic):
        groups = groups_of(dynamic, record["step"])
        kept = [group for group in groups if "dropped" not in group[0]]
        assert len(kept) == 4
        assert all(len({answer["reward"] for answer in group}) > 1 for group in kept)
        assert record["trained_rollouts"] + record["skipped_rollouts"] == 16


def test_what_was_dropped_is_recorded_with_its_reason(dynamic, overdraw):
    reasons = set()
    for record in metrics(dynamic):
        groups = groups_of(dynamic, record["step"])
        assert len({group[0]["key"] for group in groups}) == len(groups)  # all problems of a step are different
        for group in groups:
            (reason,) = {answer.get("dropped") for answer in group}
            reasons.add(reason)
            assert (reason == "agrees") == (len({answer["reward"] for answer in group}) == 1)
    assert reasons == {None, "agrees", *(["surplus"] if overdraw > 1 else [])}


def test_B11_the_pass_rate_is_kept_over_drawn(dynamic, overdraw):
    for record in metrics(dynamic):
        groups = groups_of(dynamic, record["step"])
        dropped = [group[0].get("dropped") for group in groups]
        assert record["groups_drawn"] == len(groups)
        assert record["groups_kept"] == 4 / len(groups)
        assert record["groups_surplus"] == dropped.count("surplus")
        assert record["dead_groups"] == pytest.approx(dropped.count("agrees") / len(groups))
        assert record["dropped_rollouts"] == 4 * (len(groups) - 4)
        assert record["generated_rollouts"] == 4 * len(groups)
        assert record["sampling_rounds"] >= (2 if len(groups) > 4 * overdraw else 1)


def test_another_round_draws_for_the_groups_that_are_missing(dynamic, overdraw):
    rounds = [record["sampling_rounds"] for record in metrics(dynamic)]
    assert max(rounds) > 1 if overdraw == 1 else min(rounds) == 1


def test_rewards_and_lengths_are_those_of_everything_that_was_sampled(dynamic):
    for record in metrics(dynamic):
        answers = [answer for group in groups_of(dynamic, record["step"]) for answer in group]
        assert record["reward"] == pytest.approx(sum(answer["reward"] for answer in answers) / len(answers))
        assert record["sampled_tokens"] == sum(answer["tokens"] for answer in answers)
        assert record["truncated"] == pytest.approx(sum(a["stop"] == "length" for a in answers) / len(answers))


def test_the_sampler_stands_after_all_that_was_drawn(dynamic):
    sampler = state(dynamic, 4)["sampler"]
    drawn = sum(record["groups_drawn"] for record in metrics(dynamic))
    assert 0 <= sampler["epoch"] * sampler["num_problems"] + sampler["offset"] - drawn <= 3 * 4  # some passed over


def test_a_run_that_finds_no_group_to_learn_from_says_why_and_keeps_the_answers(make_recipe, tmp_path):
    recipe = make_recipe("rollout.dynamic.rounds=2", "answer.extract=[answer_line]", preset="lite_ppo")
    with pytest.raises(StarvationError) as error:
        start(recipe, tmp_path / "run")
    message = str(error.value)
    assert message.startswith("rollout.dynamic: found 0 of 4 groups that differ, in 8 drawn over 2 rounds: 100% agree")
    assert "32 answers" in message
    assert "100% had no final answer" in message
    assert "\n  fix: a cold start" in message
    answers = list(read_jsonl(tmp_path / "run" / "rollouts.jsonl"))
    assert len(answers) == 32
    assert {answer["dropped"] for answer in answers} == {"agrees"}
    assert metrics(tmp_path / "run") == []
    with pytest.raises(StarvationError, match="0 of 4 groups"):  # the same again: nothing stands in the way
        resume(tmp_path / "run", None)
    assert len(list(read_jsonl(tmp_path / "run" / "rollouts.jsonl"))) == 32


def test_without_dynamic_sampling_nothing_is_said_about_it(make_recipe, tmp_path):
    start(make_recipe("steps=1", preset="lite_ppo"), tmp_path / "run")
    (record,) = metrics(tmp_path / "run")
    assert not {"dropped_rollouts", "groups_drawn", "groups_kept", "sampling_rounds", "reference_age"} & set(record)
    assert not any("dropped" in answer for answer in read_jsonl(tmp_path / "run" / "rollouts.jsonl"))


# ------------------------------------------------------------------------------------------------ reward schedules


def test_B13_a_term_counts_at_the_steps_of_its_schedule(make_recipe, tmp_path):
    run = tmp_path / "run"
    term = "{term: cosine_length, weight: 0.5, schedule: {kind: cycle, on: 1, off: 2}}"
    start(make_recipe(f"reward.2={term}", "steps=4", preset="lite_ppo"), run)
    records = metrics(run)
    assert [record["reward_weight/cosine_length"] for record in records] == [0.5, 0.0, 0.0, 0.5]
    assert [record["reward_weight/accuracy"] for record in records] == [1.0] * 4
    for answer in read_jsonl(run / "rollouts.jsonl"):
        weights = {name: records[answer["step"] - 1][f"reward_weight/{name}"] for name in answer["parts"]}
        assert set(weights) == {"accuracy", "format", "cosine_length"}
        assert -0.5 <= answer["parts"]["cosine_length"] < 0
        assert answer["reward"] == pytest.approx(sum(weights[name] * value for name, value in answer["parts"].items()))


def test_the_repeat_ratio_is_there_where_answers_were_cut(make_recipe, tmp_path):
    """Three tokens: an answer that was cut and loops is three times the same one."""
    start(make_recipe("rollout.max_new_tokens=3", "rollout.temperature=0.05", "steps=1", preset="grpo"), tmp_path / "a")
    (record,) = metrics(tmp_path / "a")
    answers = [answer for answer in read_jsonl(tmp_path / "a" / "rollouts.jsonl") if answer["stop"] == "length"]
    assert record["truncated"] > 0
    assert record["repeat_ratio"] == sum(len(set(answer["answer"])) == 1 for answer in answers) / len(answers)


# ------------------------------------------------------------------------------------------ resets of the reference


@pytest.fixture(scope="module")
def resets(make_recipe, tmp_path_factory) -> dict[str, Path]:
    """Runs of three steps: no reset, and one after every step, with moments kept and with moments dropped."""
    folder, runs = tmp_path_factory.mktemp("resets"), {}
    schedules = {"none": "null", "keep": "{every: 1}", "drop": "{every: 1, moments: drop}"}
    for name, schedule in schedules.items():
        runs[name] = folder / name
        changes = (KL, f"algorithm.kl.reset={schedule}", "save={every: 1, keep: 9}", "steps=3")
        start(make_recipe(*changes, preset="lite_ppo"), runs[name])
    return runs


def moments(run: Path, number: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{number:06d}" / "optimizer.safetensors")


def test_B12_after_a_reset_policy_and_reference_are_one(resets):
    apart, together = metrics(resets["none"]), metrics(resets["keep"])
    assert [record["kl_ref"] < 1e-10 for record in apart] == [True, False, False]  # rounding of two ways to one number
    assert [record["kl_ref"] < 1e-10 for record in together] == [True, True, True]
    assert together[1]["loss_kl"] < 1e-10 < apart[1]["loss_kl"]


@pytest.mark.parametrize("step", [1, 2, 3])
def test_B12_the_reference_is_the_policy_to_the_bit(resets, step):
    reference = load_file(resets["keep"] / f"reference-{step:06d}.safetensors")
    policy = load_file(resets["keep"] / "checkpoints" / f"step-{step:06d}" / "model" / "model.safetensors")
    assert all(torch.equal(weight, policy[name]) for name, weight in reference.items())
    assert state(resets["keep"], step)["reference"]["step"] == step


def test_B12_a_reset_keeps_the_moments_or_drops_them(resets):
    plain, kept, dropped = (moments(resets[name], 1) for name in ("none", "keep", "drop"))
    assert all(torch.equal(plain[name], kept[name]) for name in plain)
    assert any(bool(tensor.any()) for tensor in kept.values())
    assert not any(bool(tensor.any()) for tensor in dropped.values())


def test_a_reset_is_recorded_in_the_step_that_follows(resets):
    assert [record["reference_age"] for record in metrics(resets["keep"])] == [0, 0, 0]
    assert [record.get("reference_reset") for record in metrics(resets["keep"])] == [None, "steps", "steps"]
    assert not any("reference_age" in record for record in metrics(resets["none"]))


@pytest.mark.parametrize(
    ("schedule", "ages", "causes"),
    [
        ("{spike: 1e-9}", [0, 1, 0, 1], [None, None, "spike", None]),  # the first update of all has no distance
        ("{stall: 1}", [0, 1, 0, 0], [None, None, "stall", "stall"]),  # the first evaluation sets the mark
        ("{every: 3, spike: 1.0e6}", [0, 1, 2, 0], [None, None, None, "steps"]),
    ],
)
def test_a_reset_comes_for_the_causes_that_were_given(make_recipe, evaluated, tmp_path, schedule, ages, causes):
    changes = (KL, f"algorithm.kl.reset={schedule}", "steps=4", "optim.lr=1e-4", evaluated)
    start(make_recipe(*changes, preset="lite_ppo"), tmp_path / "run")
    records = metrics(tmp_path / "run")
    assert [record["reference_age"] for record in records] == ages
    assert [record.get("reference_reset") for record in records] == causes


def test_a_run_continued_with_steps_has_the_resets_of_one_planned_so_long(make_recipe, same_run, evaluated, tmp_path):
    recipe = make_recipe(KL, "algorithm.kl.reset={every: 2, stall: 1}", "steps=4", evaluated, preset="lite_ppo")
    start(recipe, tmp_path / "long")
    start(recipe.but(steps=2), tmp_path / "short")
    resume(tmp_path / "short", 4)
    same_run(tmp_path / "long", tmp_path / "short")
