"""What the evaluation statistics promise: worked numbers, brute-force enumeration, and sane intervals."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import ShapeError
from anabranch.evaluation.metrics import (
    Estimate,
    bootstrap_best_at_k,
    bootstrap_best_at_k_limit,
    bootstrap_best_at_k_value,
    bootstrap_interval,
    maj_at_k,
    maj_at_k_value,
    mean_at_k,
    paired_difference_interval,
    pass_at_k,
    pass_at_k_value,
)


def majority_by_enumeration(answers, values, k):
    """The definition, over every subset of k samples."""
    worth = {}
    for answer in set(answers) - {None}:
        worth[answer] = np.mean([v for a, v in zip(answers, values, strict=True) if a == answer])
    outcomes = []
    for subset in combinations(answers, k):
        votes = {answer: subset.count(answer) for answer in set(subset) - {None}}
        tied = [answer for answer, count in votes.items() if count == max(votes.values())]
        outcomes.append(np.mean([worth[answer] for answer in tied]) if tied else 0.0)
    return float(np.mean(outcomes))


# ----------------------------------------------------------------------------------------------------------- pass@k


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (4, 1, 1, 1 / 4),
        (4, 1, 2, 1 / 2),  # 3 of the 6 pairs hold the correct one
        (4, 2, 2, 5 / 6),  # only the pair of the two wrong ones fails
        (4, 3, 2, 1.0),  # two wrong ones cannot be drawn
        (4, 0, 4, 0.0),
        (1, 1, 1, 1.0),
    ],
)
def test_pass_at_k_by_hand(n, c, k, expected):
    assert pass_at_k_value(n, c, k) == pytest.approx(expected, abs=1e-15)


def test_S11_pass_at_k():
    assert pass_at_k_value(32, 4, 8) == pytest.approx(0.704505, abs=5e-7)
    assert pass_at_k_value(32, 1, 16) == 0.5
    assert pass_at_k_value(64, 10, 32) == pytest.approx(0.999574, abs=5e-7)
    assert pass_at_k_value(32, 0, 8) == 0.0


def test_pass_at_k_equals_enumeration_for_every_small_case():
    for n in range(1, 8):
        for c in range(n + 1):
            correct = [True] * c + [False] * (n - c)
            for k in range(1, n + 1):
                hits = [any(subset) for subset in combinations(correct, k)]
                assert pass_at_k_value(n, c, k) == pytest.approx(sum(hits) / len(hits), abs=1e-15)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_pass_at_k_grows_with_k_and_is_c_over_n_at_one(data):
    n = data.draw(st.integers(2, 600))
    c = data.draw(st.integers(0, n))
    k = data.draw(st.integers(1, n - 1))
    assert pass_at_k_value(n, c, 1) == pytest.approx(c / n, rel=1e-15)
    assert pass_at_k_value(n, c, k) <= pass_at_k_value(n, c, k + 1)
    assert pass_at_k_value(n, c, n) == float(c > 0)


def test_pass_at_k_keeps_its_digits_for_many_samples():
    # C(n-1, k)/C(n, k) = (n-k)/n, so exactly one correct gives k/n; 1 - 0.99999... would lose digits
    assert pass_at_k_value(100_000, 1, 1) == 1 / 100_000
    assert pass_at_k_value(2048, 1, 512) == 0.25


@pytest.mark.parametrize("correct", [0, 1, 3, 256, 511, 512])
def test_pass_at_k_of_512_answers_is_exact_for_every_k(correct):
    """1 - prod over i < k of (n - c - i) / (n - i), in floating point: C(512, 256) itself has 153 digits."""
    n, missed = 512, 1.0
    for k in range(1, n + 1):
        missed *= max(0, n - correct - (k - 1)) / (n - (k - 1))
        assert pass_at_k_value(n, correct, k) == pytest.approx(1 - missed, abs=1e-13)


def test_a_curve_of_512_answers_has_an_interval_at_every_k():
    curve = [pass_at_k([[j < c for j in range(512)] for c in (0, 1, 40, 500)], 2**power) for power in range(10)]
    assert curve[0].value == pytest.approx((0 + 1 + 40 + 500) / 4 / 512)
    assert curve[-1].value == 0.75  # one problem of four has no right answer
    assert [each.value for each in curve] == sorted(each.value for each in curve)
    assert all(0 <= each.low <= each.value <= each.high <= 1 for each in curve)


# ------------------------------------------------------------------------------------------------------------ maj@k


def test_S11_the_majority_answer_decides():
    assert maj_at_k_value(["a", "a", "b"], [0, 0, 1], 3) == 0.0
    assert maj_at_k_value(["a", "a", "b"], [1, 1, 0], 3) == 1.0


def test_S11_means_of_table_1():
    # rows of the SPO paper's table 1, maj@32 and avg@32 of five benchmarks
    table = {
        "spo": ([84.0, 76.5, 46.9, 64.0, 47.5], [74.9, 65.0, 40.3, 59.0, 40.6], 63.78, 55.96),
        "grpo": ([83.3, 72.1, 45.6, 56.7, 44.2], [77.6, 64.2, 39.0, 56.9, 40.9], 60.38, 55.72),
        "base": ([77.8, 70.5, 45.2, 55.1, 36.8], [64.4, 58.4, 38.0, 49.4, 30.3], 57.08, 48.10),
    }
    for majority, average, expected_majority, expected_average in table.values():
        assert bootstrap_interval(majority).value == pytest.approx(expected_majority, abs=1e-9)
        assert bootstrap_interval(average).value == pytest.approx(expected_average, abs=1e-9)


def test_tied_answers_win_equally_often():
    assert maj_at_k_value(["a", "b"], [1, 0], 2) == 0.5
    assert maj_at_k_value(["a", "b", "c"], [1, 0, 0], 3) == pytest.approx(1 / 3)
    assert maj_at_k_value(["a", "a", "b", "b", "c"], [1, 1, 0, 0, 0], 5) == 0.5


def test_no_answer_never_wins_unless_nothing_else_was_said():
    assert maj_at_k_value([None, None, None, "7"], [0, 0, 0, 1], 4) == 1.0
    assert maj_at_k_value([None, None], [0, 0], 2) == 0.0
    # one of two: the pair is drawn as "7" half of the time, as None (wrong) the other half
    assert maj_at_k_value([None, "7"], [0, 1], 1) == pytest.approx(0.5)


def test_majority_over_a_subset_by_hand():
    # a, a, b with a correct, k = 2: pairs aa (1), ab (tie, 1/2), ab (1/2): mean 2/3
    assert maj_at_k_value(["a", "a", "b"], [1, 1, 0], 2) == pytest.approx(2 / 3)


@settings(deadline=None, max_examples=80)
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "c", "d", None]), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=9
    )
)
def test_majority_equals_enumeration_for_every_k(samples):
    answers = [answer for answer, _ in samples]
    values = [value for _, value in samples]
    for k in range(1, len(samples) + 1):
        expected = majority_by_enumeration(answers, values, k)
        assert maj_at_k_value(answers, values, k) == pytest.approx(expected, abs=1e-12)


def test_majority_of_one_is_the_mean_when_every_sample_answers():
    answers = ["a"] * 3 + ["b"] * 2
    assert maj_at_k_value(answers, [1, 1, 1, 0, 0], 1) == pytest.approx(3 / 5)


def test_majority_of_hundreds_of_samples_stays_exact():
    # 300 right against 212 wrong, k = 3: P(at least 2 of 3 right), hypergeometric
    expected = (comb(300, 2) * 212 + comb(300, 3)) / comb(512, 3)
    answers, values = ["r"] * 300 + ["w"] * 212, [1] * 300 + [0] * 212
    assert maj_at_k_value(answers, values, 3) == pytest.approx(expected, rel=1e-10)
    assert maj_at_k_value(answers, values, 512) == 1.0


# ------------------------------------------------------------------------------------------------------------ best@k


@pytest.mark.parametrize(("correct", "expected"), [(0, 0.0), (1, 0.6439), (2, 0.8819), (4, 0.9900)])
def test_A13_best_at_16_expected_value(correct, expected):
    values = [1.0] * correct + [0.0] * (16 - correct)
    assert bootstrap_best_at_k_limit(values, 16) == pytest.approx(expected, abs=5e-5)
    assert bootstrap_best_at_k_limit(values, 16) == pytest.approx(1 - (1 - correct / 16) ** 16, abs=1e-12)


def test_A13_best_at_16_scatters_around_it():
    values = [1.0] + [0.0] * 15
    generator = np.random.default_rng(0)
    drawn = [bootstrap_best_at_k_value(values, 16, resamples=1000, generator=generator) for _ in range(200)]
    assert np.mean(drawn) == pytest.approx(0.6439, abs=0.004)  # 0.015 / sqrt(200) = 0.001
    assert np.std(drawn) == pytest.approx(0.015, abs=0.003)  # sqrt(0.6439 * 0.3561 / 1000) = 0.0151


def test_A13_true_pass_at_16_is_one_as_soon_as_one_is_correct():
    assert [pass_at_k_value(16, correct, 16) for correct in (0, 1, 2, 4)] == [0.0, 1.0, 1.0, 1.0]


def test_best_at_k_is_seeded_and_keeps_partial_values():
    values = [[0.25, 0.5], [0.0, 1.0]]
    assert bootstrap_best_at_k(values, 2) == bootstrap_best_at_k(values, 2)
    assert bootstrap_best_at_k_limit([0.25, 0.5], 2) == pytest.approx(0.25 * 0.25 + 0.5 * 0.75)  # (1/2)^2 = 1/4
    assert bootstrap_best_at_k(values, 2).value == pytest.approx((0.4375 + 0.75) / 2, abs=0.02)


# -------------------------------------------------------------------------------------------------------- estimates


def test_each_problem_counts_once_however_many_answers_it_has():
    estimate = mean_at_k([[1, 0], [1, 1, 1, 1]])
    assert (estimate.value, estimate.num_problems, estimate.num_samples) == (0.75, 2, 6)


def test_estimates_over_problems_are_means_of_their_problems():
    correct = [[True, False, False, False], [False] * 4]
    assert pass_at_k(correct, 2).value == pytest.approx(0.25)  # (1/2 + 0) / 2
    answers = [["a", "a", "b"], [None, "c", None]]
    estimate = maj_at_k(answers, [[0, 0, 1], [0, 1, 0]], 3)
    assert (estimate.value, estimate.num_problems, estimate.num_samples) == (0.5, 2, 6)


def test_the_interval_is_the_same_for_the_same_seed_and_moves_with_another():
    values = np.random.default_rng(1).random(20)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_the_interval_of_two_problems_by_hand():
    # means of resamples of (0, 1): 0, 0.5, 1 with probability 1/4, 1/2, 1/4, so 95 % reaches both ends, 40 % neither
    assert bootstrap_interval([0.0, 1.0]) == Estimate(0.5, 0.0, 1.0, 2, 2)
    assert bootstrap_interval([0.0, 1.0], level=0.4) == Estimate(0.5, 0.5, 0.5, 2, 2)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(7)
    covered = 0
    for trial in range(200):
        values = generator.random(60) < 0.4
        estimate = bootstrap_interval(values.astype(float), resamples=200, seed=trial)
        covered += estimate.low <= 0.4 <= estimate.high
    assert 0.89 <= covered / 200 <= 0.99  # 4 standard errors of sqrt(.95 * .05 / 200) = 0.015 below


def test_the_interval_has_half_of_the_rest_on_either_side():
    # many problems: close to the normal interval, mean +- 1.96 standard errors for 95 %, 1.645 for 90 %
    values = np.random.default_rng(3).normal(size=400)
    error = values.std() / np.sqrt(400)
    for level, factor in ((0.95, 1.960), (0.90, 1.645)):
        estimate = bootstrap_interval(values, level=level, resamples=4000)
        assert (estimate.high - estimate.value) / error == pytest.approx(factor, rel=0.06)
        assert (estimate.value - estimate.low) / error == pytest.approx(factor, rel=0.06)


def test_the_interval_takes_any_statistic():
    estimate = bootstrap_interval([1.0, 2.0, 9.0], statistic=lambda values: float(np.median(values)))
    assert (estimate.value, estimate.low, estimate.high) == (2.0, 1.0, 9.0)


def test_pairing_cancels_what_makes_a_problem_hard():
    hardness = np.linspace(0, 0.8, 40)
    before, after = hardness, hardness + 0.1
    difference = paired_difference_interval(before, after)
    assert difference.value == pytest.approx(0.1)
    assert difference.high - difference.low < 1e-9
    alone = bootstrap_interval(after)
    assert alone.high - alone.low > 0.1


def test_a_difference_has_the_sign_of_the_gain():
    difference = paired_difference_interval([0.0, 0.5, 0.0], [1.0, 0.5, 1.0])
    assert difference.value == pytest.approx(2 / 3)
    assert (difference.num_problems, difference.num_samples) == (3, 6)
    assert difference.low >= 0.0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: pass_at_k_value(4, 1, 5), "k: found 5"),
        (lambda: pass_at_k_value(4, 5, 1), "num_correct: found 5"),
        (lambda: maj_at_k_value(["a"], [1.0, 0.0], 1), "2 values"),
        (lambda: maj_at_k([["a"]], [[1.0], [1.0]], 1), "2 problems"),
        (lambda: mean_at_k([]), "no problem"),
        (lambda: mean_at_k([[1.0], []]), "a problem without answers"),
        (lambda: bootstrap_interval([float("nan")]), "1 not finite"),
        (lambda: bootstrap_interval([1.0], level=95), "level: found 95"),
        (lambda: bootstrap_interval([1.0], resamples=0), "resamples: found 0"),
        (lambda: paired_difference_interval([1.0], [1.0, 0.0]), "problems are paired"),
        (lambda: bootstrap_best_at_k_value([], 1, resamples=1, generator=np.random.default_rng(0)), "drawn from 0"),
    ],
)
def test_misuse_is_refused_with_its_place(call, says):
    with pytest.raises(ShapeError, match=says.replace("(", r"\(")):
        call()
