"""A run that cannot learn stops at its start and says why. Every cause is brought about for real."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch

from anabranch.engines.torch_engine import TorchEngine
from anabranch.errors import DataError, ProbeError
from anabranch.tracking.jsonl import read_jsonl
from anabranch.train import run
from anabranch.train.run import start


@pytest.fixture
def bare(make_recipe):
    """`bare(...)`: RL only, no evaluation."""
    return lambda *overrides, preset="quickstart": make_recipe(
        "cold_start=null", "evaluation=null", "steps=5", "probes.patience=2", *overrides, preset=preset
    )


def stops(recipe, folder: Path) -> str:
    """The message of the probe that stops the run."""
    with pytest.raises(ProbeError) as error:
        start(recipe, folder)
    return str(error.value)


def metrics(folder: Path) -> list[dict]:
    return list(read_jsonl(folder / "metrics.jsonl"))


def engine_over_a_copy(model, tokenizer, **limits):
    """An engine with weights of its own, that nobody keeps up to date."""
    return TorchEngine(copy.deepcopy(model), tokenizer, **limits)


def test_an_engine_that_missed_the_training_steps_is_caught(make_recipe, tmp_path, monkeypatch):
    """The engine's weights are a copy from before the cold start: what it samples is not what is trained."""
    monkeypatch.setattr(run, "TorchEngine", engine_over_a_copy)
    message = stops(make_recipe("cold_start={steps: 3, batch: 8, lr: 0.01, warmup: 0}"), tmp_path / "run")
    assert message.startswith("engine and trainer: found a mean gap of 0.")
    assert "it may be at most 0.001 (float32)" in message
    assert "\n  fix: model.dtype=float32 shows whether it is rounding" in message
    assert [record["stage"] for record in metrics(tmp_path / "run")] == ["cold_start"] * 3  # nothing learned from it


def test_a_copy_with_the_same_weights_passes(bare, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "TorchEngine", engine_over_a_copy)
    start(bare("steps=1"), tmp_path / "run")
    assert metrics(tmp_path / "run")[0]["engine_gap_max"] < 1e-4


def test_an_entropy_bonus_does_not_hide_that_rewards_teach_nothing(bare, tmp_path):
    recipe = bare("answer.extract=[answer_line]", "algorithm.entropy_coef=0.1")
    assert "the gradient of the rewards is zero" in stops(recipe, tmp_path / "run")
    assert metrics(tmp_path / "run")[0]["grad_norm"] > 0


def test_the_limit_on_the_gap_can_be_set(bare, tmp_path, monkeypatch):
    def slightly_off(model, tokenizer, **limits):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.lm_head.weight.mul_(1.01)
        return TorchEngine(other, tokenizer, **limits)

    monkeypatch.setattr(run, "TorchEngine", slightly_off)
    assert "it may be at most 0.001" in stops(bare(), tmp_path / "strict")
    start(bare("steps=1", "probes.agreement=0.1"), tmp_path / "lenient")
    assert 1e-3 < metrics(tmp_path / "lenient")[0]["engine_gap_mean"] < 0.1


def test_every_reward_the_same_stops_the_run_after_its_patience(bare, tmp_path):
    recipe = bare("answer.extract=[answer_line]")  # a random model never writes `Answer: 7`
    message = stops(recipe, tmp_path / "run")
    assert message.startswith(
        "the first 2 RL steps: found every reward 0 (16 no_answer), so the gradient of the rewards is zero, but"
    )
    assert "\n  fix: a cold start" in message
    assert [record["dead_groups"] for record in metrics(tmp_path / "run")] == [1.0, 1.0]  # the last one too


def test_every_answer_wrong_has_another_advice(bare, tmp_path):
    recipe = bare("reward=[{term: accuracy}]", "rollout.max_new_tokens=40", f"data.path={wrong_answers(tmp_path)}")
    message = stops(recipe, tmp_path / "run")
    assert re.search(r"every reward 0 \(\d+ wrong, \d+ no_answer\), so the gradient of the rewards is zero", message)
    assert "\n  fix: easier or harder problems" in message


def wrong_answers(folder: Path) -> Path:
    """Problems that a random model does not solve, though it writes numbers."""
    path = folder / "hard.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n}!=", "answer": "123456789"}) + "\n" for n in range(8)))
    return path


def test_every_answer_cut_is_named_before_the_rewards(bare, tmp_path):
    message = stops(bare("rollout.max_new_tokens=2", "algorithm.overlong.kind=filter", "seed=1"), tmp_path / "run")
    assert message.startswith(
        "the first 2 RL steps: found every answer cut at 2 tokens, so the gradient of the rewards is zero"
    )
    assert "\n  fix: raise rollout.max_new_tokens" in message
    first = metrics(tmp_path / "run")[0]
    assert first["truncated"] == 1.0
    assert first["filtered_rollouts"] == first["generated_rollouts"] == 16
    assert first["dead_groups"] < 1.0  # the rewards differ, it is the filter that leaves nothing


def test_groups_that_agree_have_no_gradient(bare, tmp_path):
    recipe = bare("rollout.temperature=0.0001", "rollout.max_new_tokens=12")  # greedy: the answers to a problem are one
    message = stops(recipe, tmp_path / "run")
    assert "found rewards that agree within every group, so the gradient of the rewards is zero" in message
    assert "\n  fix: a larger rollout.per_problem" in message
    first = metrics(tmp_path / "run")[0]
    assert first["dead_groups"] == 1.0
    assert first["sigma_batch"] > 0


def test_a_gradient_of_zero_counts_even_where_tokens_were_trained(bare, tmp_path):
    """A KL loss trains every answer; where policy and reference are one and no reward differs, its gradient is 0."""
    recipe = bare("answer.extract=[answer_line]", preset="grpo")
    message = stops(recipe, tmp_path / "run")
    assert "every reward 0 (16 no_answer), so the gradient of the rewards is zero" in message
    first = metrics(tmp_path / "run")[0]
    assert first["grad_norm"] == 0.0
    assert first["trained_rollouts"] == 16


def test_one_step_that_teaches_ends_the_watch(bare, tmp_path):
    start(bare("steps=2"), tmp_path / "run")
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-000002" / "state.json").read_text())["state"]
    assert state["barren"] == -1


def test_gold_answers_that_are_not_accepted_stop_the_run_before_it_begins(bare, tmp_path):
    path = tmp_path / "fruit.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n}?", "answer": "a banana"}) + "\n" for n in range(4)))
    with pytest.raises(DataError, match=r"self-check of 'fruit': found 4 of 4 .* the gold answer scores 0"):
        start(bare(f"data.path={path}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_gold_answers_of_held_out_problems_are_checked_too(bare, tmp_path):
    path = tmp_path / "fruit.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n}?", "answer": "a banana"}) + "\n" for n in range(4)))
    recipe = bare(f"evaluation={{problems: 4, data: {{kind: jsonl, path: {path}}}}}")
    with pytest.raises(DataError, match=r"self-check of 'fruit': found 4 of 4 .* the gold answer scores 0"):
        start(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
