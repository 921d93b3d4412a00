"""The parts of the step's duel that need no trainer: the reward, the search's changes, the memory figures."""

import pytest

from benchmarks.duel import Side
from benchmarks.step import KEEP_MEMORY, STAGES, changed, check_same_prompts, memory, search_line
from benchmarks.step_task import PROBLEMS, Size, fingerprint, reward

SIDE = Side("trl", ["python"], {"dtype": "float32", "micro_batch": 16, "prompts": 2, "answers": 4}, {"A": "1"})


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


def test_a_change_keeps_what_it_does_not_name_and_no_micro_batch_is_larger_than_the_batch():
    side = changed(SIDE, {"dtype": "bfloat16", "micro_batch": 64, "env": KEEP_MEMORY})
    assert side.settings == {"dtype": "bfloat16", "micro_batch": 8, "prompts": 2, "answers": 4}
    assert side.env == {"A": "1", **KEEP_MEMORY}


def test_the_search_tries_every_dtype_and_micro_batch_that_it_promises():
    changes = [change for _, stage in STAGES for change in stage]
    assert {(c["dtype"], c["autocast"]) for c in changes if "dtype" in c} == {
        ("float32", False),
        ("float32", True),
        ("bfloat16", False),
        ("bfloat16", True),
    }
    assert {c["micro_batch"] for c in changes if "micro_batch" in c} == {8, 32, 64}  # 16 is where it begins


def test_a_setting_that_cannot_run_is_told_apart_from_a_slow_one():
    record = {"settings": {"dtype": "float32", "compile": True}, "env": {}}
    assert search_line({**record, "error": "..."}) == "  dtype float32, compile True: cannot run"
    line = search_line({**record, "env": KEEP_MEMORY, "rate": 0.5, "peak_mb": 100})
    assert line == "  dtype float32, compile True, keeps freed memory: 0.500 samples/s, peak 100 MB"


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
