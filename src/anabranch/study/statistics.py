"""Is one arm better than another? Bootstrap over seeds and problems, Student's t for few seeds, Holm for many arms.

Letters: S seeds, P held-out problems, R resamples, D degrees of freedom.

A table of scores is float [S, P]: the mean score of each problem (in each seed). A difference of two arms is the table
of differences, seed by seed and problem by problem: what makes a seed lucky or a problem hard cancels.

What is drawn with replacement, and why (docs/ablate.md says it at length):

* *Seeds, each with all of its problems*, if there are at least two. Where every seed has held-out problems of its own,
  the scatter between seeds holds that of problems already; drawing problems again within a drawn seed would count it
  twice.
* *Problems*, if all seeds share one set of them, or there is only one seed. Where seeds are drawn as well, both are
  drawn independently and their deviations add up (a two-way layout); the noise of single answers then counts in both,
  which errs on the wide side.

Percentiles of so few seeds are too narrow. Deviations are therefore widened twice, as Hesterberg (arXiv:1411.5279)
explains: by sqrt(n / (n - 1)), since the resampled variance is the biased one, and by t / z, the quantile of Student's
t over that of the normal distribution, with n - 1 degrees of freedom (Welch and Satterthwaite's where seeds and
problems are both drawn).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anabranch.errors import ShapeError, explain

Float64 = NDArray[np.float64]

LEVEL = 0.95
"""Confidence of every interval, and 1 minus the error rate of the verdicts."""
RESAMPLES = 4000
"""Bootstrap resamples."""
FRACTION_TERMS = 100
"""Of the continued fraction: enough for thousands of degrees of freedom."""
TINY = 1e-12
"""Differences below this are rounding."""


@dataclass(frozen=True)
class Spread:
    """An estimate and how it scatters: enough for intervals of any level."""

    value: float
    deviations_R: Float64
    """Bootstrap deviations from `value`, corrected for the number drawn from."""
    freedom: float
    """Degrees of freedom D."""

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Percentiles of the deviations, widened by t / z, around the value."""
        tail = (1 - level) / 2
        wider = t_quantile(1 - tail, self.freedom) / normal_quantile(1 - tail)
        low, high = np.quantile(self.deviations_R, [tail, 1 - tail])
        return self.value + wider * float(low), self.value + wider * float(high)

    def p_value(self) -> float:
        """The smallest 1 - level whose interval leaves 0 out; 1 if the value is 0.

        Nothing below 1e-6 is told apart.
        """
        return 1.0 if abs(self.value) < TINY else self.smallest_tail(lambda low, high: low > TINY or high < -TINY)

    def smallest_tail(self, holds: Callable[[float, float], bool]) -> float:
        """The smallest 1 - level at whose interval something holds that a wider one may lose; 1 if it never does.

        By bisection: intervals grow with their level. Nothing below 1e-6 is told apart.

        Args:
            holds: of the two ends.
        """
        low, high = 1e-6, 1.0 - 1e-6
        if holds(*self.interval(1 - low)):
            return low
        if not holds(*self.interval(1 - high)):
            return 1.0
        while high / low > 1.001:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if holds(*self.interval(1 - middle)) else (middle, high)
        return high


def spread(scores_SP: Float64, *, shared: bool, seed: int = 0, resamples: int = RESAMPLES) -> Spread:
    """The mean of a table and its bootstrap deviations.

    Args:
        scores_SP: float [S, P]; a row for each seed. Scores of one arm, or paired differences of two.
        shared: whether column p is the same problem in all rows. With one row it is.
        seed: of the bootstrap: the same draws for tables of one shape.
        resamples: R.

    Raises:
        ShapeError: not a table of finite numbers, or one number only: nothing can be drawn.
    """
    scores_SP = np.asarray(scores_SP, dtype=np.float64)
    if scores_SP.ndim != 2 or scores_SP.size == 0 or not np.isfinite(scores_SP).all():
        found = f"shape {scores_SP.shape}, {int((~np.isfinite(scores_SP)).sum())} not finite"
        raise ShapeError(explain("scores_SP", found, "need one finite number a seed and problem", "shape [S, P]"))
    num_seeds, num_problems = scores_SP.shape
    value = float(scores_SP.mean())
    generator = np.random.default_rng(seed)
    parts = []
    if num_seeds > 1:
        parts.append(_deviations(scores_SP.mean(1), generator, resamples))
    if (shared or num_seeds == 1) and num_problems > 1:
        parts.append(_deviations(scores_SP.mean(0), generator, resamples))
    if not parts:
        raise ShapeError(explain("scores_SP", "one number", "an interval needs several", "more seeds or problems"))
    variances = [float(deviations_R.var()) for deviations_R, _ in parts]
    total = sum(variances)
    if total < TINY**2:
        freedom = float(max(degrees for _, degrees in parts))
    else:
        freedom = total**2 / sum(v**2 / degrees for v, (_, degrees) in zip(variances, parts, strict=True))
    return Spread(value, np.sum([deviations_R for deviations_R, _ in parts], axis=0), freedom)


def _deviations(means_N: Float64, generator: np.random.Generator, resamples: int) -> tuple[Float64, int]:
    """float [R]: means of N values drawn with replacement, minus their mean, times sqrt(N / (N - 1)); and N - 1."""
    count = len(means_N)
    centred_N = means_N - means_N.mean()
    drawn_R: Float64 = centred_N[generator.integers(count, size=(resamples, count))].mean(1)
    return drawn_R * math.sqrt(count / (count - 1)), count - 1


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Scand. J. Statistics 6, 1979): an error rate for all comparisons together.

    The smallest p counts m times, the next m - 1 times, and so on; none may be below one before it, none above 1.
    """
    adjusted = [0.0] * len(p_values)
    least = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted


def t_tail(t: float, freedom: float) -> float:
    """P(T > t) for Student's t, t >= 0: half the incomplete beta function I(D / 2, 1 / 2) at D / (D + t^2)."""
    x = freedom / (freedom + t * t)
    return 0.5 * _incomplete_beta(x, freedom / 2, 0.5)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b), regularised: by its continued fraction, from the side on which that converges fast."""
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _incomplete_beta(1 - x, b, a)
    if x <= 0:
        return 0.0
    fraction = 1.0
    for k in range(FRACTION_TERMS, 0, -1):
        m = k // 2
        if k % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        fraction = 1.0 + term / fraction
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(front) / (a * fraction)


def t_quantile(share: float, freedom: float) -> float:
    """t with P(T <= t) = share, share in [0.5, 1): by bisection."""
    low, high = 0.0, 1.0
    while t_tail(high, freedom) > 1 - share:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, freedom) > 1 - share else (low, middle)
    return high


def normal_quantile(share: float) -> float:
    """z with P(Z <= z) = share, share in [0.5, 1): by bisection on the error function."""
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 * (1 + math.erf(middle / math.sqrt(2))) < share else (low, middle)
    return high
