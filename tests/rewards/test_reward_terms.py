"""Terms, their weighted sum, and the length rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.errors import RecipeError
from anabranch.recipe.tree import CosineLength, Cycle, Overlong, Recipe, RewardTerm
from anabranch.records import Reason, Rollout, Score, Segment, StopReason, StreamGraph, Verdict
from anabranch.rewards.overlong import apply_overlong, soft_overlong
from anabranch.rewards.terms import TERMS, cosine_length
from anabranch.rewards.total import total, weights_at

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


@pytest.mark.parametrize(
    ("value", "wrong", "reward"), [(1.0, -1.0, 1.0), (0.0, -1.0, -1.0), (0.25, -1.0, -0.5), (0.0, 0.5, 0.5)]
)
def test_a_wrong_answer_may_cost_and_what_is_partly_right_lies_between(value, wrong, reward):
    reason = Reason.CORRECT if value == 1 else Reason.PARTIAL
    score = total((RewardTerm(wrong=wrong),), rollout(), Verdict(value, reason, "6"), step=0, max_new_tokens=8)
    assert (score.reward, score.parts) == (reward, {"accuracy": reward})  # wrong + (1 - wrong) * value


@given(st.floats(0, 1))
def test_without_a_price_a_reward_is_the_verdict_to_the_bit(value):
    verdict = Verdict(value, Reason.PARTIAL, "6")
    assert total((RewardTerm(),), rollout(), verdict, step=0, max_new_tokens=8).reward == value


@pytest.mark.parametrize(("term", "wrong"), [("format", -1.0), ("accuracy", 1.0)])
def test_a_price_of_wrong_answers_that_could_not_act_is_refused(term, wrong):
    with pytest.raises(RecipeError, match=rf"reward\.0\.wrong: found {wrong}"):
        Recipe(name="x", reward=[{"term": term, "wrong": wrong}])


B13 = [(0, 0.0), (2048, -0.073223), (4096, -0.25), (6144, -0.426777), (8192, -0.5), (9000, -0.5)]


@pytest.mark.parametrize(("length", "expected"), B13)
def test_B13_the_cosine_term_falls_from_high_to_low_and_stays_there(length, expected):
    assert cosine_length(length, 8192, -0.5, 0.0) == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize(("length", "expected"), [pair for pair in B13 if pair[0]])  # an answer has a token or more
def test_B13_the_cosine_term_of_an_answer_has_the_length_limit_as_its_end(length, expected):
    (part,) = total((CosineLength(),), rollout(length), RIGHT, step=0, max_new_tokens=8192).parts.values()
    assert part == pytest.approx(expected, abs=5e-7)


def test_B13_a_cycle_of_100_and_500_is_in_force_at_0_to_99_and_600_to_699():
    terms = (RewardTerm(), CosineLength(weight=0.3, schedule=Cycle(on=100, off=500)))
    found = [step for step in range(1300) if weights_at(terms, step)["cosine_length"] != 0]
    assert found == [*range(100), *range(600, 700), *range(1200, 1300)]
    assert all(weights_at(terms, step) == {"accuracy": 1.0, "cosine_length": 0.3} for step in found)


def test_a_cycle_may_begin_later():
    late = Cycle(on=2, off=3, start=4)
    assert [step for step in range(12) if late.in_force(step)] == [4, 5, 9, 10]


def test_out_of_force_a_term_is_recorded_and_does_not_count():
    terms = (RewardTerm(), CosineLength(weight=2.0, schedule=Cycle(on=1, off=1)))
    on, off = (total(terms, rollout(4), RIGHT, step=step, max_new_tokens=8) for step in (0, 1))
    assert on.parts == off.parts == {"accuracy": 1.0, "cosine_length": -0.25}  # half of the limit: cos(pi / 2) = 0
    assert (on.reward, off.reward) == (0.5, 1.0)  # 1 + 2 * -0.25, and 1


@pytest.mark.parametrize(
    ("verdict", "only_correct", "value"),
    [
        (RIGHT, False, -0.5),
        (RIGHT, True, -0.5),
        (Verdict(0.0, Reason.WRONG, "6"), False, -0.5),  # R_correct + len(t): every answer
        (Verdict(0.0, Reason.WRONG, "6"), True, 0.0),
        (Verdict(0.5, Reason.PARTIAL, "6"), True, 0.0),
        (Verdict(0.0, Reason.NO_ANSWER), True, 0.0),
    ],
)
def test_the_cosine_term_may_be_for_correct_answers_only(verdict, only_correct, value):
    terms = (CosineLength(only_correct=only_correct),)
    assert total(terms, rollout(8), verdict, step=0, max_new_tokens=8).parts["cosine_length"] == value


@given(st.integers(0, 300), st.integers(1, 200), st.floats(-2, 0), st.floats(0.01, 2))
def test_the_cosine_term_never_rises_with_length(length, limit, low, more):
    now, longer = (cosine_length(n, limit, low, low + more) for n in (length, length + 1))
    assert low - 1e-12 <= longer <= now + 1e-12 <= low + more + 2e-12


def test_the_total_is_weighted_and_keeps_raw_parts():
    terms = (RewardTerm(term="accuracy", weight=2.0), RewardTerm(term="format", weight=0.1))
    assert total(terms, rollout(), Verdict(0.5, Reason.PARTIAL, "6"), step=0, max_new_tokens=8) == Score(
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


@pytest.mark.parametrize(("coef", "expected"), [(0.0, 0.0), (0.5, 0.5), (-0.5, -0.5)])
def test_B14_a_right_answer_that_was_cut(coef, expected):
    overlong, score = Overlong(kind="stop_properly", coef=coef), Score(1.0, {"accuracy": 1.0}, RIGHT)
    cut = apply_overlong(overlong, score, rollout(stop=StopReason.LENGTH), 4)
    assert (cut.reward, cut.parts["overlong"]) == (expected, expected - 1.0)
    assert apply_overlong(overlong, score, rollout(), 4).reward == 1.0


def test_below_zero_every_cut_answer_has_the_very_same_reward():
    overlong = Overlong(kind="stop_properly", coef=-0.3)
    cut = [
        apply_overlong(overlong, Score(reward, {"accuracy": reward}, RIGHT), rollout(stop=StopReason.LENGTH), 4)
        for reward in (0.0, 0.1, 0.7, 1.05)
    ]
    assert {score.reward for score in cut} == {-0.3}  # no rounding error: groups that agree are found by equality


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
