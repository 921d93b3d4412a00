"""Terms, their weighted sum, and the length rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.recipe.tree import Overlong, RewardTerm
from anabranch.records import Reason, Rollout, Score, Segment, StopReason, StreamGraph, Verdict
from anabranch.rewards.overlong import apply_overlong, soft_overlong
from anabranch.rewards.terms import TERMS
from anabranch.rewards.total import total

RIGHT = Verdict(1.0, Reason.CORRECT, "7")


def rollout(length=4, stop=StopReason.EOS):
    graph = StreamGraph((Segment([1, 2]), Segment([3] * length, parents=(0,))))
    return Rollout("k", 0, graph, "Answer: 7", stop)


@pytest.mark.parametrize(
    ("verdict", "accuracy", "format"),
    [
        (RIGHT, 1.0, 1.0),
        (Verdict(0.25, Reason.PARTIAL, "6"), 0.25, 1.0),
        (Verdict(0.0, Reason.WRONG, "6"), 0.0, 1.0),
        (Verdict(0.0, Reason.TIMEOUT, "10^{10}!"), 0.0, 1.0),
        (Verdict(0.0, Reason.NO_ANSWER), 0.0, 0.0),
    ],
)
def test_accuracy_is_the_verdict_and_format_is_that_an_answer_was_found(verdict, accuracy, format):
    assert TERMS["accuracy"](rollout(), verdict) == accuracy
    assert TERMS["format"](rollout(), verdict) == format


def test_every_term_of_the_recipe_exists():
    from typing import get_args

    assert set(get_args(RewardTerm.model_fields["term"].annotation)) == set(TERMS)


def test_the_total_is_weighted_and_keeps_raw_parts():
    terms = (RewardTerm(term="accuracy", weight=2.0), RewardTerm(term="format", weight=0.1))
    assert total(terms, rollout(), Verdict(0.5, Reason.PARTIAL, "6")) == Score(
        1.1,  # 2 * 0.5 + 0.1 * 1
        {"accuracy": 0.5, "format": 1.0},
        Verdict(0.5, Reason.PARTIAL, "6"),
    )


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (16384, 0.0),  # 20480 - 4096: the last length that costs nothing
        (17408, -0.25),  # 1024 / 4096 beyond it
        (18432, -0.5),
        (20480, -1.0),
        (21000, -1.0),
    ],
)
def test_L12_soft_punishment(length, expected):
    assert soft_overlong(length, 20480, 4096) == expected


def test_L12_stop_properly_takes_the_reward_of_a_cut_answer():
    score = Score(1.0, {"accuracy": 1.0}, RIGHT)
    overlong = Overlong(kind="stop_properly", coef=0.0)
    cut = apply_overlong(overlong, score, rollout(stop=StopReason.LENGTH), 4)
    assert (cut.reward, cut.parts) == (0.0, {"accuracy": 1.0, "overlong": -1.0})
    ended = apply_overlong(overlong, score, rollout(), 4)
    assert (ended.reward, ended.parts) == (1.0, {"accuracy": 1.0, "overlong": 0.0})
    half = apply_overlong(Overlong(kind="stop_properly", coef=0.5), score, rollout(stop=StopReason.LENGTH), 4)
    assert half.reward == 0.5


def test_soft_overlong_is_added_with_a_fifth_of_the_limit_as_its_buffer():
    score = Score(1.0, {"accuracy": 1.0}, RIGHT)
    soft = apply_overlong(Overlong(kind="soft"), score, rollout(length=18), 20)  # buffer 4: -(18 - 16) / 4
    assert (soft.reward, soft.parts["overlong"]) == (0.5, -0.5)
    wide = apply_overlong(Overlong(kind="soft", buffer=10), score, rollout(length=18), 20)  # -(18 - 10) / 10
    assert wide.parts["overlong"] == pytest.approx(-0.8)


@pytest.mark.parametrize("kind", ["none", "filter"])
def test_no_length_rule_changes_nothing(kind):
    score = Score(1.0, {"accuracy": 1.0}, RIGHT)
    assert apply_overlong(Overlong(kind=kind), score, rollout(stop=StopReason.LENGTH), 4) is score


@given(st.integers(0, 300), st.integers(1, 200), st.integers(1, 200))
def test_the_punishment_never_rises_with_length(length, limit, buffer):
    now, longer = soft_overlong(length, limit, buffer), soft_overlong(length + 1, limit, buffer)
    assert -1 <= longer <= now <= 0
