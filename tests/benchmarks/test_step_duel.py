"""The parts of the step's duel that need no trainer: the reward, what the search tries, the memory figures."""

from pathlib import Path

import pytest

from benchmarks.step import BEGIN, check_same_prompts, from_home, memory, trl_axes
from benchmarks.step_task import PROBLEMS, Size, fingerprint, reward


def test_the_reward_is_the_mean_of_remainders_by_hand():
    assert reward([0, 97, 98]) == pytest.approx(1 / 96 / 3)  # remainders 0, 0, 1
    assert reward([96, 193]) == 1  # remainders 96, 96


def test_answers_that_differ_in_one_token_get_other_rewards():
    assert reward([1, 2, 3]) != reward([1, 2, 4])


def test_eight_different_problems_make_sixty_four_samples():
    assert len(set(PROBLEMS)) == 8
    assert Size().samples == 64


def test_prompts_have_the_same_name_only_if_every_token_is_the_same():
    assert fingerprint([[1, 2], [3]]) == fingerprint(((1, 2), (3,)))
    assert fingerprint([[1, 2], [3]]) != fingerprint([[1], [2, 3]])


def test_the_search_tries_every_dtype_with_every_attention_and_every_micro_batch_that_fits():
    changes = [BEGIN.settings, *(change.settings for axis in trl_axes(64) for change in axis)]
    computing = {(c["dtype"], c["autocast"], c["attention"]) for c in changes if "dtype" in c}
    assert len(computing) == 4 * 2
    assert {c["micro_batch"] for c in changes if "micro_batch" in c} == {4, 8, 16, 32, 64}
    small = [change.settings for axis in trl_axes(8) for change in axis]
    assert {c["micro_batch"] for c in small if "micro_batch" in c} == {4}


def test_a_path_below_the_home_folder_does_not_name_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert from_home(Path("/home/somebody/.cache/model")) == "~/.cache/model"
    assert from_home(Path("/models/model")) == "/models/model"


def peak(mb: float) -> dict[str, object]:
    return {"memory": {"peak_mb": mb}, "prompts": "x"}


def test_memory_of_steps_leaves_out_warm_ups_and_loading():
    sides = {
        "ours": {"ready": peak(900), "warmups": [peak(300)], "rounds": [peak(100), peak(200)]},
        "trl": {"ready": peak(500), "warmups": [peak(1200)], "rounds": [peak(800), peak(700)]},
    }
    found = memory({"sides": sides})
    assert found["ours"] == {"steps_mb": 200, "process_mb": 900}
    assert found["trl"] == {"steps_mb": 800, "process_mb": 1200}
    assert (found["steps_ratio"], found["process_ratio"]) == (0.25, 0.75)


def test_sides_that_answered_other_prompts_are_refused():
    sides = {"ours": {"rounds": [{"prompts": "x"}]}, "trl": {"rounds": [{"prompts": "y"}]}}
    with pytest.raises(ValueError, match="different prompts"):
        check_same_prompts({"sides": sides})
