"""What a line of rollouts.jsonl tells."""

import json
from dataclasses import replace

import pytest

from anabranch.records import Problem, Reason, Rollout, Score, Segment, StopReason, StreamGraph, Verdict
from anabranch.tracking.jsonl import encode
from anabranch.tracking.rollouts import RolloutRecord, rollout_record

PROBLEM = Problem(key="k1", question="4 + 3 = ?", answer="7", source="chain_sum")
SCORE = Score(1.1, {"accuracy": 1.0, "format": 1.0}, Verdict(1.0, Reason.CORRECT, extracted="7", detail="equal"))


def rollout(versions, key="k1"):
    answer = Segment([1] * len(versions), (0,), [True] * len(versions), [-0.5] * len(versions), versions)
    graph = StreamGraph((Segment([7, 8, 9]), answer))
    return Rollout(problem_key=key, sample=2, graph=graph, text="Answer: 7", stop=StopReason.EOS, step=2)


def test_an_answer_is_recorded_with_why_it_got_its_reward():
    assert rollout_record(3, "rl", PROBLEM, rollout([5, 5]), SCORE) == {
        "step": 3,
        "stage": "rl",
        "key": "k1",
        "sample": 2,
        "source": "chain_sum",
        "question": "4 + 3 = ?",
        "answer": "Answer: 7",
        "verdict": "correct",
        "detail": "equal",
        "extracted": "7",
        "gold": "7",
        "parts": {"accuracy": 1.0, "format": 1.0},
        "reward": 1.1,
        "stop": "eos",
        "tokens": 2,
        "policy_versions": [5],
    }


def test_weights_that_changed_under_way_are_both_named():
    assert rollout_record(3, "rl", PROBLEM, rollout([6, 5, 6, -1]), SCORE)["policy_versions"] == [5, 6]


def test_the_prompt_is_recorded_on_request_and_the_record_is_one_json_line():
    record = rollout_record(3, "rl", PROBLEM, rollout([5]), SCORE, prompt="<user>4 + 3 = ?")
    assert json.loads(encode(record)) == record
    sometimes = {"dropped", "begun", "turns"}  # not kept; of an earlier step; of several turns
    assert set(record) | sometimes == set(RolloutRecord.__annotations__)


def test_an_answer_of_several_turns_that_an_earlier_step_began_says_so():
    several = replace(rollout([4, 5]), step=0, turns=2, transcript="1 = 7 Answer: 7")
    record = rollout_record(3, "rl", PROBLEM, several, SCORE)
    assert (record["begun"], record["turns"], record["answer"]) == (1, 2, "1 = 7 Answer: 7")


def test_an_answer_to_another_problem_is_our_bug():
    with pytest.raises(ValueError, match="rollout of problem 'k2' recorded with problem 'k1'"):
        rollout_record(3, "rl", PROBLEM, rollout([5], key="k2"), SCORE)
