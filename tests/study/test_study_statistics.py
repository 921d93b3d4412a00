"""What the statistics of a study promise: worked numbers, pairing, and intervals that cover the truth."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from anabranch.errors import ShapeError
from anabranch.study.statistics import holm, normal_quantile, spread, t_quantile, t_tail

scores = arrays(
    np.float64, st.tuples(st.integers(2, 6), st.integers(1, 8)), elements=st.integers(0, 8).map(lambda n: n / 8)
)


# ------------------------------------------------------------------------------------------------------- quantiles


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.7062), (2, 4.30265), (4, 2.77645), (9, 2.26216), (30, 2.04227), (1000, 1.96234)]
)
def test_quantiles_of_students_t_are_those_of_the_tables(freedom, expected):
    assert t_quantile(0.975, freedom) == pytest.approx(expected, rel=1e-5)


def test_students_t_with_one_and_two_degrees_by_formula():
    assert t_tail(1.0, 1) == pytest.approx(0.25)  # Cauchy: 1/2 - atan(1) / pi
    assert t_tail(1.0, 2) == pytest.approx(0.5 - 1 / (2 * math.sqrt(3)))  # 1/2 - t / (2 sqrt(2 + t^2))
    assert t_tail(0.0, 3.7) == pytest.approx(0.5)
    assert t_tail(1000.0, 2) == pytest.approx(0.5 * (1 - 1000 / math.sqrt(2 + 1e6)), rel=1e-6)  # far out as well


@pytest.mark.parametrize("freedom", [1.0, 1.01, 1.3, 2.2, 5.5, 63.0])
def test_a_quantile_far_out_has_the_tail_that_was_asked_for(freedom):
    assert t_tail(t_quantile(1 - 5e-7, freedom), freedom) == pytest.approx(5e-7, rel=1e-6)


def test_normal_quantile():
    assert normal_quantile(0.975) == pytest.approx(1.959964, abs=1e-6)
    assert normal_quantile(0.5) == pytest.approx(0.0, abs=1e-9)


# ------------------------------------------------------------------------------------------------------------ Holm


def test_holm_by_hand():
    # sorted 0.01, 0.03, 0.04: 3 * 0.01 = 0.03, 2 * 0.03 = 0.06, 1 * 0.04 = 0.04 but not below 0.06
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_keeps_the_order_and_never_makes_p_smaller(p_values):
    adjusted = holm(p_values)
    assert all(0 <= p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    ranked = sorted(range(len(p_values)), key=lambda index: p_values[index])
    assert [adjusted[index] for index in ranked] == sorted(adjusted)


# ------------------------------------------------------------------------------------------------------- intervals


def test_two_seeds_by_hand():
    # seed means 0.2 and 0.4: resampled means are 0.2, 0.3, 0.4 with probability 1/4, 1/2, 1/4, so that the 2.5 %
    # percentiles of the deviation are -0.1 and 0.1; times sqrt(2 / 1), times 12.7062 / 1.959964
    found = spread(np.array([[0.1, 0.3], [0.5, 0.3]]), shared=False)
    half = 0.1 * math.sqrt(2) * 12.7062 / 1.959964
    assert found.value == pytest.approx(0.3)
    assert found.freedom == 1
    assert found.interval() == pytest.approx((0.3 - half, 0.3 + half), rel=1e-4)


def test_one_seed_resamples_its_problems():
    # two problems 0 and 1: deviations -0.5, 0, 0.5, times sqrt(2), one degree of freedom
    half = 0.5 * math.sqrt(2) * 12.7062 / 1.959964
    for shared in (True, False):
        assert spread(np.array([[0.0, 1.0]]), shared=shared).interval() == pytest.approx(
            (0.5 - half, 0.5 + half), rel=1e-4
        )


def test_seeds_with_problems_of_their_own_are_drawn_as_a_whole():
    """Where each seed has its own problems, how they scatter within a seed changes nothing but the seed's mean."""
    means = np.array([[0.2], [0.4], [0.9]])
    scattered = means + np.array([[-0.1, 0.1], [-0.2, 0.2], [0.05, -0.05]])
    assert spread(scattered, shared=False).interval() == pytest.approx(spread(means, shared=False).interval())
    assert spread(scattered, shared=True).deviations_R.std() > spread(means, shared=False).deviations_R.std()


def test_shared_problems_add_their_own_variance():
    # seed means -1, 0, 1 (variance of their mean 1/3) and problem means -2, 0, 2 (4/3): together 5/3, and degrees of
    # freedom (5/3)^2 / ((1/3)^2 / 2 + (4/3)^2 / 2) = (25/9) / (17/18) = 50/17
    table = np.array([[-1.0], [0.0], [1.0]]) + np.array([[-2.0, 0.0, 2.0]])
    found = spread(table, shared=True, resamples=40000)
    assert found.deviations_R.var() == pytest.approx(5 / 3, rel=0.03)
    assert found.freedom == pytest.approx(50 / 17, rel=0.03)


def test_scores_without_any_scatter_have_an_interval_without_width():
    found = spread(np.full((3, 4), 0.25), shared=True)
    assert found.interval() == (0.25, 0.25)
    assert found.p_value() == pytest.approx(1e-6)
    assert spread(np.zeros((3, 4)), shared=True).p_value() == 1.0


def test_a_higher_level_gives_a_wider_interval():
    found = spread(np.random.default_rng(0).random((5, 8)), shared=True)
    ends = [found.interval(level) for level in (0.5, 0.8, 0.95, 0.99, 0.999)]
    assert all(b[0] < a[0] and a[1] < b[1] for a, b in pairwise(ends))


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((0, 3)), np.array([[np.nan, 1.0]]), np.zeros((1, 1))])
def test_what_is_no_table_is_refused(bad):
    with pytest.raises(ShapeError, match="scores_SP"):
        spread(bad, shared=True)


# ---------------------------------------------------------------------------------------------------------- pairing


@settings(deadline=None, max_examples=30)
@given(scores, st.booleans(), st.integers(-4, 4))
def test_what_makes_seeds_lucky_and_problems_hard_cancels(hardness, shared, gain):
    """An arm that is the other one plus a constant, whatever the table: the difference is known exactly."""
    difference = spread((hardness + gain / 8) - hardness, shared=shared, resamples=200)
    assert difference.interval() == pytest.approx((gain / 8, gain / 8), abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(scores, st.data())
def test_the_order_of_seeds_and_problems_does_not_matter_if_both_arms_have_it(first, data):
    second = data.draw(arrays(np.float64, first.shape, elements=st.floats(0, 1)))
    rows = data.draw(st.permutations(range(first.shape[0])))
    columns = data.draw(st.permutations(range(first.shape[1])))
    plain = spread(second - first, shared=True, resamples=4000)
    mixed = spread(second[rows][:, columns] - first[rows][:, columns], shared=True, resamples=4000)
    assert mixed.value == pytest.approx(plain.value)
    assert mixed.deviations_R.std() == pytest.approx(plain.deviations_R.std(), rel=0.12, abs=1e-9)
    assert mixed.freedom == pytest.approx(plain.freedom, rel=0.3)


def test_a_broken_pairing_would_be_seen():
    hardness = np.linspace(0, 0.8, 40)[None, :] + np.linspace(0, 0.1, 5)[:, None]
    paired = spread((hardness + 0.1) - hardness, shared=True)
    broken = spread((hardness + 0.1)[:, ::-1] - hardness, shared=True)
    assert np.ptp(paired.interval()) < 1e-9
    assert np.ptp(broken.interval()) > 0.2


@settings(deadline=None, max_examples=25)
@given(scores, st.booleans())
def test_p_is_below_five_percent_exactly_where_the_interval_leaves_zero_out(table, shared):
    found = spread(table - 0.3, shared=shared, resamples=300)
    low, high = found.interval(0.95)
    p = found.p_value()
    if abs(p - 0.05) > 0.001:
        assert (p < 0.05) == (low > 0 or high < 0)


# --------------------------------------------------------------------------------------------------------- coverage


@pytest.mark.parametrize(
    ("shared", "seeds", "by_seed", "by_problem", "least"),
    [
        (False, 5, 0.05, 0.0, 0.92),
        (False, 5, 0.0, 0.0, 0.92),
        (False, 3, 0.05, 0.0, 0.88),
        (False, 10, 0.05, 0.0, 0.92),
        (True, 5, 0.05, 0.1, 0.92),
        (True, 5, 0.0, 0.3, 0.92),
    ],
)
def test_intervals_cover_the_truth_about_as_often_as_they_say(shared, seeds, by_seed, by_problem, least):
    """300 studies of 24 problems whose true difference is 0; scores scatter by 0.3. Standard error of a share: 0.013.

    Percentiles of 5 seeds without widening would cover 84 %: sqrt(4/5) * 1.96 = 1.753, and P(|t_4| < 1.753) = 0.846.
    """
    generator = np.random.default_rng(17)
    covered = narrow = 0
    for trial in range(300):
        seed_effect = generator.normal(0, by_seed, (seeds, 1)) if by_seed else 0.0
        problem_effect = generator.normal(0, by_problem, (1, 24)) if by_problem else 0.0
        table = seed_effect + problem_effect + generator.normal(0, 0.3, (seeds, 24))
        found = spread(table, shared=shared, seed=trial, resamples=400)
        low, high = found.interval()
        covered += low <= 0 <= high
        if not shared and seeds == 5:
            ends = np.quantile(found.deviations_R / math.sqrt(5 / 4), [0.025, 0.975]) + found.value
            narrow += ends[0] <= 0 <= ends[1]
    assert covered / 300 >= least
    if narrow:
        assert narrow / 300 < 0.90
