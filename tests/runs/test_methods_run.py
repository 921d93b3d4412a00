"""Every method trains: its numbers add up, and its ratio is exactly 1 where the weights are those that sampled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from anabranch.modeling.load import load_tokenizer
from anabranch.modeling.tiny import tiny_llama
from anabranch.presets import PRESETS
from anabranch.recipe.tree import Recipe
from anabranch.tracking.jsonl import read_jsonl
from anabranch.tracking.metrics import validate
from anabranch.train import rl
from anabranch.train.run import start
from anabranch.train.trainer import Update

METHODS = (
    "ppo_vanilla",
    "reinforce_pp",
    "grpo",
    "dr_grpo",
    "dapo",
    "gspo",
    "cispo",
    "lite_ppo",
    "prorl_v2",
    "spo",
    "bspo",
)
SPO = (
    "reward=[{term: accuracy, weight: 0.5}, {term: format, weight: 0.5}]",  # in [0, 1]
    "rollout.prompts=16",
    "rollout.per_problem=1",
)
GSM8K = Path(__file__).parents[2] / ".." / "shared" / "data" / "train" / "gsm8k_train.jsonl"


@dataclass
class Trained:
    """A finished run: what it wrote, and what its optimizer steps reported."""

    recipe: Recipe
    metrics: list[dict]
    rollouts: list[dict]
    updates: list[list[Update]]
    """By step."""


@pytest.fixture(scope="module", params=METHODS)
def trained(request, make_recipe, tmp_path_factory) -> Trained:
    """Two RL steps of a method, with two optimizer steps each, or as many as the method has."""
    # Most answers of so few tokens are cut: with a reward of 0 for those hardly any group would differ.
    changes = {"prorl_v2": ("algorithm.overlong.coef=0.5",), "spo": SPO, "bspo": SPO[:1]}.get(request.param, ())
    recipe = make_recipe(*changes, preset=request.param)
    if recipe.train.minibatches == 1:
        recipe = recipe.but(train=recipe.train.but(minibatches=2))
    seen: list[list[Update]] = []
    learn = rl.learn

    def listening(*arguments):
        seen.append(learn(*arguments))
        return seen[-1]

    folder = tmp_path_factory.mktemp(request.param) / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl, "learn", listening)
        start(recipe, folder)
    return Trained(
        recipe, list(read_jsonl(folder / "metrics.jsonl")), list(read_jsonl(folder / "rollouts.jsonl")), seen
    )


def test_no_preset_is_left_out():
    # the other tests of this folder run the quickstart; small_sums is Lite PPO
    assert {*METHODS, "quickstart", "small_sums", "small_calculator"} == set(PRESETS)


def test_the_metrics_are_valid_and_the_answers_add_up(trained):
    recipe = trained.recipe
    assert [record["step"] for record in trained.metrics] == [1, 2]
    for record in trained.metrics:
        validate(record)
        answers = [answer for answer in trained.rollouts if answer["step"] == record["step"]]
        rewards = [answer["reward"] for answer in answers]
        kept = [answer for answer in answers if "dropped" not in answer]
        assert len(kept) == recipe.rollout.prompts * recipe.rollout.per_problem
        parts = (record[f"{part}_rollouts"] for part in ("trained", "skipped", "filtered"))
        assert len(kept) == sum(parts)
        assert record["generated_rollouts"] == len(answers) == len(kept) + record.get("dropped_rollouts", 0)
        assert record["sampled_tokens"] == sum(answer["tokens"] for answer in answers)
        assert record["reward"] == pytest.approx(sum(rewards) / len(rewards), abs=1e-12)
        assert record["truncated"] == sum(answer["stop"] == "length" for answer in answers) / len(answers)
        assert sum(value for name, value in record.items() if name.startswith("verdict/")) == pytest.approx(1)
        assert {tuple(answer["policy_versions"]) for answer in answers} == {(record["policy_version"],)}


def test_trained_tokens_are_those_of_the_trained_answers(trained):
    for record, updates in zip(trained.metrics, trained.updates, strict=True):
        assert record["trained_tokens"] == sum(update.num_tokens for update in updates)
        assert 0 < record["trained_tokens"] <= record["sampled_tokens"]
        if record["trained_rollouts"] == record["generated_rollouts"]:
            assert record["trained_tokens"] == record["sampled_tokens"]


def test_every_optimizer_step_counts_as_a_policy_version(trained):
    first, second = trained.metrics
    assert (first["policy_version"], second["policy_version"]) == (0, len(trained.updates[0]))
    assert len(trained.updates[0]) >= 2


def test_the_ratio_is_exactly_1_in_the_first_update_and_not_in_the_next(trained):
    for updates in trained.updates:
        first, *later = updates
        assert first.sums["ratio_sum"] == first.sums["tokens"]  # every token's ratio is 1.0, with no rounding
        assert first.sums["ratio_max"] == 1.0
        assert first.sums["clip_low"] == first.sums["clip_high"] == 0
        assert first.sums["kl_old_k1"] == first.sums["kl_old_k3"] == 0
        for update in later:
            assert update.sums["ratio_sum"] != update.sums["tokens"]
            assert update.sums["kl_old_k3"] > 0
            assert update.grad_norm > 0


def test_the_distance_to_the_reference_is_reported_where_there_is_one(trained):
    kind = trained.recipe.algorithm.kl.kind
    if kind == "none":
        assert not any("kl_ref" in record for record in trained.metrics)
        return
    first, second = trained.metrics
    if kind == "reward_k1":  # of the answers as they were sampled: in the first step by the reference itself
        assert first["kl_ref"] == 0.0
    assert second["kl_ref"] != 0.0


def test_a_dual_clip_is_reported_where_there_is_one(make_recipe, tmp_path):
    # Rewards below 0 without a baseline: every advantage is negative. The second update moves some ratios beyond 1.001.
    changes = ("reward=[{term: format, weight: -1.0}]", "algorithm.clip.dual=1.001", "train.minibatches=2", "steps=1")
    start(make_recipe(*changes, preset="ppo_vanilla"), tmp_path / "run")
    (record,) = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    validate(record)
    assert 0 < record["clip_dual"] < 1


def test_engine_and_trainer_agree_on_every_token(trained):
    assert all(record["engine_gap_max"] < 1e-4 for record in trained.metrics)


def test_a_method_runs_on_a_file_of_real_problems(make_recipe, tiny_model, tmp_path):
    if not GSM8K.exists():
        pytest.skip("../shared/data is not there")
    tokenizer = load_tokenizer(tiny_model)
    tiny_llama(vocab_size=len(tokenizer), hidden=16, positions=1024).save_pretrained(tmp_path / "longer")
    tokenizer.save_pretrained(tmp_path / "longer")
    recipe = make_recipe(
        f"model.source={tmp_path / 'longer'}",
        f"data={{kind: jsonl, path: {GSM8K}, limit: 12}}",
        "rollout.prompts=2",
        "steps=1",
        preset="grpo",
    )
    start(recipe, tmp_path / "run")
    answers = list(read_jsonl(tmp_path / "run" / "rollouts.jsonl"))
    assert len(answers) == 8
    assert {answer["source"] for answer in answers} == {"gsm8k_train"}
    assert all(answer["gold"] in GSM8K.read_text() and answer["question"] for answer in answers)
