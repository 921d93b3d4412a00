"""Accuracy of several answers to each of several problems: mean@k, pass@k, maj@k, with intervals over problems.

Pure functions on plain numbers. Functions named `*_value` look at one problem; the others look at all problems, take
the plain mean over problems (each counts once, however many answers it has) and return an `Estimate`, whose interval
is a percentile bootstrap in which *problems* are resampled: answers to one problem are not independent evidence.

Letters: N problems, K answers to one problem, R resamples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from anabranch.errors import ShapeError, explain

Float64 = NDArray[np.float64]

LEVEL = 0.95
"""Default confidence level of an interval."""
RESAMPLES = 2000
"""Default number of bootstrap resamples of an interval."""


@dataclass(frozen=True)
class Estimate:
    """A statistic over problems with its bootstrap interval.

    The interval has no width where all problems have the same value (for instance nothing was ever right): resampling
    cannot show what never occurred. Read such an interval as "no information about the spread", not as certainty.
    """

    value: float
    low: float
    high: float
    num_problems: int
    num_samples: int
    """Answers, over all problems."""


# ------------------------------------------------------------------------------------------------------ one problem


def pass_at_k_value(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that k of the answers, drawn without replacement, hold a correct one: 1 - C(n-c, k) / C(n, k).

    The unbiased estimator of Chen et al., arXiv:2107.03374. Computed in whole numbers and divided once, so nothing
    cancels, for any n.

    Args:
        num_samples: n, answers to the problem.
        num_correct: c, how many of them are correct.
        k: 1 <= k <= n.

    Raises:
        ShapeError: k or c outside its range.
    """
    _check_k(k, num_samples)
    if not 0 <= num_correct <= num_samples:
        raise ShapeError(explain("num_correct", num_correct, f"there are {num_samples} answers", f"0 to {num_samples}"))
    subsets = comb(num_samples, k)
    return (subsets - comb(num_samples - num_correct, k)) / subsets


def maj_at_k_value(answers: Sequence[str | None], values: Sequence[float], k: int) -> float:
    """Expected value of the majority answer among k of the answers, drawn without replacement.

    Rules: equal strings are one answer. Of several answers with the most votes each wins with the same probability
    (the expectation is taken, nothing is drawn). None, no answer found, never wins, however often it occurs; if all k
    are None the value is 0. The value of an answer is the mean value of the samples that gave it.

    Exact for every k <= n. All n samples are thought to be included independently with probability k / n; given
    that k are included, every subset of k is equally likely. For each size m of the winning block two polynomials
    are multiplied over the answers: x counts the included samples, y the answers tied at m, all others having fewer.

    Args:
        answers: K extracted answers, None where there is none.
        values: K values in [0, 1], 1 for a correct answer.
        k: 1 <= k <= K.

    Returns:
        A number in [0, 1].

    Raises:
        ShapeError: k outside its range, or answers and values of different lengths.
    """
    _check_k(k, len(answers))
    if len(answers) != len(values):
        raise ShapeError(explain("values", f"{len(values)} values", f"there are {len(answers)} answers", "one each"))
    given: dict[str, list[float]] = defaultdict(list)
    for answer, value in zip(answers, values, strict=True):
        if answer is not None:
            given[answer].append(float(value))
    share = k / len(answers)
    pmfs = [_binomial_pmf(len(votes), share) for votes in given.values()]
    worths = [float(np.mean(votes)) for votes in given.values()]
    none_pmf = _binomial_pmf(len(answers) - sum(len(votes) for votes in given.values()), share)
    largest = max((len(votes) for votes in given.values()), default=0)
    won = sum(_won_with(block, k, pmfs, worths, none_pmf) for block in range(1, min(largest, k) + 1))
    return float(min(1.0, won / _binomial_pmf(len(answers), share)[k]))


def _won_with(block: int, k: int, pmfs: Sequence[Float64], worths: Sequence[float], none_pmf: Float64) -> float:
    """E[mean value of the tied winners; the winners have `block` votes and k samples are included]."""
    ties = k // block
    plain = np.zeros((k + 1, ties + 1))  # [included samples, tied answers]: probability
    plain[0, 0] = 1.0
    worth = np.zeros_like(plain)  # the same, times the summed value of the tied answers
    for pmf, value in zip(pmfs, worths, strict=True):
        next_plain, next_worth = np.zeros_like(plain), np.zeros_like(worth)
        for votes, chance in enumerate(pmf[:block]):  # fewer votes than the winners
            next_plain[votes:] += chance * plain[: k + 1 - votes]
            next_worth[votes:] += chance * worth[: k + 1 - votes]
        if block < len(pmf):  # one of the winners
            tied_plain, tied_worth = plain[:-block, :-1], worth[:-block, :-1]
            next_plain[block:, 1:] += pmf[block] * tied_plain
            next_worth[block:, 1:] += pmf[block] * (tied_worth + value * tied_plain)
        plain, worth = next_plain, next_worth
    most_none = min(k, len(none_pmf) - 1)
    mean_worth = worth[:, 1:] / np.arange(1, ties + 1)
    return float(sum(none_pmf[j] * mean_worth[k - j].sum() for j in range(most_none + 1)))


def _binomial_pmf(size: int, share: float) -> Float64:
    """float [size + 1]: P(j of `size` included); share in (0, 1]."""
    if share == 1.0:
        all_included: Float64 = np.eye(1, size + 1, size)[0]
        return all_included
    counts = np.arange(1, size + 1)
    log_ratios = np.log((size + 1 - counts) / counts) + np.log(share) - np.log1p(-share)
    pmf: Float64 = np.exp(size * np.log1p(-share) + np.concatenate([[0.0], np.cumsum(log_ratios)]))
    return pmf


def bootstrap_best_at_k_value(
    values: Sequence[float], k: int, *, resamples: int, generator: np.random.Generator
) -> float:
    """Mean over `resamples` draws, with replacement, of the best of k values of one problem (verl's best@k)."""
    values_K = np.asarray(values, dtype=np.float64)
    if k < 1 or len(values_K) == 0:
        raise ShapeError(explain("k", k, f"k values are drawn from {len(values_K)}", "both at least 1"))
    return float(values_K[generator.integers(len(values_K), size=(resamples, k))].max(axis=1).mean())


def bootstrap_best_at_k_limit(values: Sequence[float], k: int) -> float:
    """What `bootstrap_best_at_k_value` tends to for many resamples: sum_i v_(i) * ((i/n)^k - ((i-1)/n)^k).

    With c of n values at 1 and the others at 0 this is 1 - (1 - c/n)^k: below the true pass@k, which is 1 at k = n.
    """
    sorted_K = np.sort(np.asarray(values, dtype=np.float64))
    ranks = np.arange(len(sorted_K) + 1) / len(sorted_K)
    return float(sorted_K @ np.diff(ranks**k))


# ------------------------------------------------------------------------------------------------------ all problems


def mean_at_k(values: Sequence[Sequence[float]], *, level: float = LEVEL, seed: int = 0) -> Estimate:
    """mean@k (avg@k): mean over problems of the mean value of their answers.

    Args:
        values: for each of N problems the values of its answers, in [0, 1].
        level: confidence level of the interval.
        seed: of the bootstrap.

    Raises:
        ShapeError: no problem, or a problem without answers.
    """
    sizes = _sizes(values)
    per_problem = [float(np.mean(np.asarray(each, dtype=np.float64))) for each in values]
    return bootstrap_interval(per_problem, num_samples=sum(sizes), level=level, seed=seed)


def pass_at_k(correct: Sequence[Sequence[bool]], k: int, *, level: float = LEVEL, seed: int = 0) -> Estimate:
    """Unbiased pass@k: mean over problems of `pass_at_k_value`.

    Raises:
        ShapeError: no problem, or one with fewer than k answers.
    """
    sizes = _sizes(correct)
    per_problem = [pass_at_k_value(len(each), sum(bool(c) for c in each), k) for each in correct]
    return bootstrap_interval(per_problem, num_samples=sum(sizes), level=level, seed=seed)


def maj_at_k(
    answers: Sequence[Sequence[str | None]],
    values: Sequence[Sequence[float]],
    k: int,
    *,
    level: float = LEVEL,
    seed: int = 0,
) -> Estimate:
    """maj@k: mean over problems of `maj_at_k_value`, which states the tie rule.

    Raises:
        ShapeError: no problem, one with fewer than k answers, or answers and values that do not match.
    """
    sizes = _sizes(answers)
    if len(values) != len(sizes):
        found = f"{len(values)} problems"
        raise ShapeError(explain("values", found, f"there are answers to {len(sizes)}", "the same problems twice"))
    per_problem = [maj_at_k_value(a, v, k) for a, v in zip(answers, values, strict=True)]
    return bootstrap_interval(per_problem, num_samples=sum(sizes), level=level, seed=seed)


def bootstrap_best_at_k(
    values: Sequence[Sequence[float]], k: int, *, resamples: int = 1000, level: float = LEVEL, seed: int = 42
) -> Estimate:
    """verl's best@k: mean over problems of the best of k values drawn with replacement, `resamples` times.

    Kept for comparison with numbers published that way (arXiv:2509.07980 among them). It is *not* pass@k and lies
    below it: with one of 16 answers correct it tends to 0.644 at k = 16, where pass@16 is 1.

    Raises:
        ShapeError: no problem, a problem without answers, or k < 1.
    """
    sizes = _sizes(values)
    generator = np.random.default_rng(seed)
    per_problem = [bootstrap_best_at_k_value(v, k, resamples=resamples, generator=generator) for v in values]
    return bootstrap_interval(per_problem, num_samples=sum(sizes), level=level, seed=seed)


def bootstrap_interval(
    per_problem_values: Sequence[float] | Float64,
    statistic: Callable[[Float64], float] | None = None,
    *,
    num_samples: int | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Percentile bootstrap over problems: N problems are drawn with replacement, `resamples` times.

    Args:
        per_problem_values: float [N], one number a problem.
        statistic: float [N] -> float; None: the mean.
        num_samples: answers behind these numbers, for the record; None: one a problem.
        level: probability mass between the two ends, in (0, 1).
        resamples: R, at least 1.
        seed: the same seed and values give the same interval.

    Raises:
        ShapeError: not one finite number a problem, no problem, or level or resamples out of range.
    """
    values_N = np.asarray(per_problem_values, dtype=np.float64)
    if values_N.ndim != 1 or len(values_N) == 0 or not np.isfinite(values_N).all():
        found = f"shape {values_N.shape}, {int((~np.isfinite(values_N)).sum())} not finite"
        raise ShapeError(explain("per_problem_values", found, "need one finite number a problem", "a flat list"))
    if not 0 < level < 1:
        raise ShapeError(explain("level", level, "it is a probability mass", "level=0.95"))
    if resamples < 1:
        raise ShapeError(explain("resamples", resamples, "at least one is drawn", f"resamples={RESAMPLES}"))
    measure = statistic if statistic is not None else _mean
    generator = np.random.default_rng(seed)
    drawn_R = [measure(values_N[generator.integers(len(values_N), size=len(values_N))]) for _ in range(resamples)]
    low, high = np.quantile(drawn_R, [(1 - level) / 2, (1 + level) / 2])
    count = len(values_N) if num_samples is None else num_samples
    return Estimate(float(measure(values_N)), float(low), float(high), len(values_N), count)


def paired_difference_interval(
    before: Sequence[float] | Float64,
    after: Sequence[float] | Float64,
    *,
    num_samples: int | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Mean of after - before over the same N problems. What makes a problem hard cancels in the difference.

    Args:
        before: float [N], one number a problem.
        after: float [N], the same problems in the same order.
        num_samples: answers behind these numbers, both sides together; None: two a problem.
        level: see `bootstrap_interval`.
        resamples: see `bootstrap_interval`.
        seed: see `bootstrap_interval`.

    Raises:
        ShapeError: different numbers of problems, or what `bootstrap_interval` refuses.
    """
    before_N, after_N = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if before_N.shape != after_N.shape:
        found = f"{before_N.shape} before and {after_N.shape} after"
        raise ShapeError(explain("paired_difference_interval", found, "problems are paired", "the same problems twice"))
    count = 2 * len(before_N) if num_samples is None else num_samples
    return bootstrap_interval(after_N - before_N, num_samples=count, level=level, resamples=resamples, seed=seed)


def _mean(values_N: Float64) -> float:
    return float(values_N.mean())


def _sizes(per_problem: Sequence[Sequence[object]]) -> list[int]:
    sizes = [len(each) for each in per_problem]
    if not sizes or min(sizes) == 0:
        found = "a problem without answers" if sizes else "no problem"
        raise ShapeError(explain("evaluation", found, "each problem needs answers", "evaluate at least one problem"))
    return sizes


def _check_k(k: int, num_samples: int) -> None:
    if not 1 <= k <= num_samples:
        raise ShapeError(
            explain("k", k, f"k of {num_samples} answers are looked at", f"1 to {num_samples}, or sample more answers")
        )
