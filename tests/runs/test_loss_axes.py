"""Every setting of the loss reaches the run: what it changes can be seen in the run's own records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from anabranch.recipe.io import to_yaml
from anabranch.tracking.jsonl import read_jsonl
from anabranch.tracking.metrics import validate
from anabranch.train import rl
from anabranch.train.run import start
from anabranch.train.trainer import Update


@dataclass
class Ran:
    """A finished run."""

    metrics: list[dict]
    rollouts: list[dict]
    clipped: list[dict]
    updates: list[list[Update]]
    """By step."""


@pytest.fixture
def ran(make_recipe, tmp_path):
    """`ran("algorithm.entropy_coef=0.1")`: a run of two RL steps with these settings."""

    def run(*overrides: str, preset: str = "lite_ppo") -> Ran:
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        seen: list[list[Update]] = []
        learn = rl.learn

        def listening(*arguments):
            seen.append(learn(*arguments))
            return seen[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rl, "learn", listening)
            start(make_recipe(*overrides, preset=preset), folder)

        def log(name: str) -> list[dict]:
            path: Path = folder / f"{name}.jsonl"
            return list(read_jsonl(path)) if path.exists() else []

        metrics = log("metrics")
        for record in metrics:
            validate(record)
        return Ran(metrics, log("rollouts"), log("clipped_tokens"), seen)

    return run


def test_a_second_pass_repeats_the_optimizer_steps_with_ratios_to_the_weights_that_sampled(ran):
    once, twice = ran("train.minibatches=2"), ran("train.minibatches=2", "train.epochs=2")
    assert [len(updates) for updates in twice.updates] == [4, 4]
    assert [record["policy_version"] for record in twice.metrics] == [0, 4]
    assert {tuple(answer["policy_versions"]) for answer in twice.rollouts} == {(0,), (4,)}
    first, again = once.updates[0], twice.updates[0]
    for one, other in zip(first, again, strict=False):  # the first pass is what it would be without a second
        assert torch.equal(one.logprob_N.nan_to_num(), other.logprob_N.nan_to_num())
        assert one.loss == other.loss
    for half in (0, 1):
        seen = [~update.logprob_N.isnan() for update in (again[half], again[half + 2])]
        assert torch.equal(*seen)  # the parts come in the same order
    old_N = again[0].logprob_N
    for update, part in ((again[0], old_N), (again[2], old_N)):
        ratio_N = (update.logprob_N - part)[~part.isnan()].exp()
        assert update.sums["ratio_sum"] == pytest.approx(float(ratio_N.sum()), rel=1e-6)
    assert again[2].sums["ratio_max"] != 1.0
    assert twice.metrics[0]["trained_tokens"] == once.metrics[0]["trained_tokens"]


def test_passes_over_one_part_need_no_scoring(ran):
    found = ran("train.epochs=3")
    assert [len(updates) for updates in found.updates] == [3, 3]
    assert not any("time/score" in record for record in found.metrics)
    first, *later = found.updates[0]
    assert first.sums["ratio_sum"] == first.sums["tokens"]
    for update in later:
        expected = float((update.logprob_N - first.logprob_N).exp().nansum())
        assert update.sums["ratio_sum"] == pytest.approx(expected, rel=1e-6) != update.sums["tokens"]


def test_passes_with_a_kl_keep_its_reference_and_its_reward(ran):
    for preset in ("grpo", "reinforce_pp"):
        found = ran("train.epochs=2", preset=preset)
        assert [len(updates) for updates in found.updates] == [2, 2]
        assert found.metrics[1]["kl_ref"] != 0.0


def test_an_entropy_bonus_is_in_the_loss_and_reaches_answers_without_advantage(ran):
    plain = ran()
    bonus = ran("algorithm.entropy_coef=0.5")
    assert any(record["skipped_rollouts"] > 0 for record in plain.metrics)
    assert not any("loss_entropy" in record for record in plain.metrics)
    for record in bonus.metrics:
        assert record["trained_rollouts"] == record["generated_rollouts"]
        # under token_mean the weights of all tokens add up to 1
        assert record["loss_entropy"] == pytest.approx(-0.5 * record["entropy"], rel=1e-5)
    assert bonus.updates[0][0].grad_norm != plain.updates[0][0].grad_norm


@pytest.mark.parametrize("kind", ["tis", "icepop", "sequence_mask"])
def test_a_mismatch_correction_sees_what_the_engine_recorded(ran, kind):
    loose = ran(f"algorithm.mismatch.kind={kind}", "train.epochs=2")
    for record in loose.metrics:
        # the engine is the trainer's own model: they differ by rounding, and nothing is bounded
        assert 0 < record["mismatch_gap"] < 1e-4
        assert record["mismatch_gap"] == pytest.approx(record["engine_gap_mean"], rel=1e-3)
        assert record["mismatch_bounded"] == record["mismatch_dropped"] == 0.0
    tight = ran(f"algorithm.mismatch={{kind: {kind}, low: 1.0, high: 1.0}}", "steps=1")
    assert tight.metrics[0]["mismatch_bounded"] > 0
    assert (tight.metrics[0]["mismatch_dropped"] > 0) == (kind == "sequence_mask")
    if kind != "tis":  # what is taken out stays in the denominators
        assert tight.updates[0][0].grad_norm != pytest.approx(loose.updates[0][0].grad_norm, rel=1e-3)
    assert tight.metrics[0]["trained_tokens"] == loose.metrics[0]["trained_tokens"]


def test_a_clip_of_the_advantage_bounds_it(ran):
    free, held = ran(), ran("algorithm.advantage_clip=0.5")
    assert free.metrics[0]["advantage_max_abs"] > 0.5
    assert "advantage_clipped" not in free.metrics[0]
    assert held.metrics[0]["advantage_max_abs"] == 0.5
    assert 0 < held.metrics[0]["advantage_clipped"] < 1
    assert held.updates[0][0].grad_norm < free.updates[0][0].grad_norm


@pytest.mark.parametrize("kl", ["{kind: reward_k1, coef: 0.1}", "{kind: loss_k2, coef: 0.1}"])
@pytest.mark.parametrize("limit", ["input_limit", "output_limit"])
def test_a_limit_of_the_kl_bounds_it(ran, kl, limit):
    free = ran(f"algorithm.kl={kl}", "optim.lr=0.05", "train.epochs=2")
    held = ran(f"algorithm.kl={kl}", "optim.lr=0.05", "train.epochs=2", f"algorithm.kl.{limit}=0.001")
    bound = 0.001 if limit == "output_limit" or "k1" in kl else 0.001**2 / 2
    assert abs(free.metrics[1]["kl_ref"]) > bound
    assert abs(held.metrics[1]["kl_ref"]) <= bound * (1 + 1e-6)


def test_a_cut_answer_gets_the_reward_that_stop_properly_names(ran):
    found = ran("algorithm.overlong={kind: stop_properly, coef: -0.5}", "rollout.max_new_tokens=40")
    cut = [answer["stop"] == "length" for answer in found.rollouts]
    assert any(cut) and not all(cut)
    for answer, was_cut in zip(found.rollouts, cut, strict=True):
        assert (answer["reward"] == -0.5) == was_cut


def test_clipped_tokens_are_listed_and_add_up_to_the_clip_shares(ran):
    found = ran("algorithm.clip={low: 0.01, high: 0.02, dual: 1.5}", "train.minibatches=2", "train.epochs=2")
    assert [record["step"] for record in found.clipped] == [1, 2]
    for record, metrics, updates in zip(found.clipped, found.metrics, found.updates, strict=True):
        assert record["policy_version"] == metrics["policy_version"]
        tokens = sum(update.sums["tokens"] for update in updates)
        assert {"low", "high"} <= set(record)
        for side in ("low", "high", "dual"):
            count = record[side]["count"] if side in record else 0
            assert count == pytest.approx(metrics[f"clip_{side}"] * tokens)
        for side in set(record) & {"low", "high", "dual"}:
            listed = record[side]["tokens"]
            assert len(listed) == min(20, record[side]["kinds"])
            assert sum(entry["count"] for entry in listed) <= record[side]["count"]
            assert all(0 <= entry["starts"] <= entry["count"] and entry["text"] for entry in listed)


def test_a_run_that_clips_nothing_lists_nothing(ran):
    assert ran().clipped == []


def test_a_killed_run_lists_the_same_clipped_tokens(live, make_recipe, same_run, tmp_path):
    changes = ("algorithm.clip={low: 0.01, high: 0.02}", "train.minibatches=2", "train.epochs=2", "steps=4")
    corrections = ("algorithm.mismatch.kind=icepop", "algorithm.entropy_coef=0.01", "algorithm.advantage_clip=1.0")
    recipe = to_yaml(make_recipe(*changes, *corrections, "save.every=2", preset="lite_ppo"))
    assert live(path=tmp_path / "whole", recipe=recipe, log=tmp_path / "log") == 0
    kill = {"phase": "rl: training 3/4", "count": 4, "delay": 0.001}  # in the fourth step, after the first checkpoint
    assert live(path=tmp_path / "run", recipe=recipe, log=tmp_path / "log", phase=kill) == -9
    assert live(path=tmp_path / "run", log=tmp_path / "log") == 0
    same_run(tmp_path / "whole", tmp_path / "run", logs=("rollouts", "clipped_tokens"))
    assert len(list(read_jsonl(tmp_path / "run" / "clipped_tokens.jsonl"))) == 4
