"""How long a batch takes to fill when answers take different times: with groups, and without.

A group is complete when its slowest answer is, and a batch is made of whole groups; without groups it is made of the
answers that are complete first. SPO (arXiv:2509.13232, section 5.4) shows one draw of that; how long its answers take
in general, and how many of them are stragglers, it does not state. The distributions here are a reconstruction of ours.

Letters: T trials, K groups, G answers of a group, N = K G answers, Q quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from anabranch.errors import RecipeError, ShapeError, explain

Float64 = NDArray[np.float64]

CHUNK = 1 << 20
"""Answers that are drawn at a time: 8 MB an array. What comes out does not depend on it."""
LARGE_SPEED_UP = 4.0
"""How often a speed-up is above this is counted."""
QUANTILES = (0.05, 0.95)
MOST_ANSWERS = 1 << 22
"""Of a trial."""
MOST_TRIALS = 5_000_000

GROUPS_OF_THE_PAPER = (130.0, 133.0, 486.0, 495.0, 519.0, 553.0)
"""Seconds until each of the paper's six groups of 8 is complete, in its one draw."""
PICKED_BY_THE_PAPER = 3
"""Groups that fill its batch of 24."""
FREE_OF_THE_PAPER = 112.0
"""Seconds until 24 of the same 48 answers are complete, as it states them."""


# ------------------------------------------------------------------------------------------------- pure arithmetic


def group_based(seconds_TKG: Float64, picked: int) -> Float64:
    """When a batch of whole groups is complete: a group with its slowest answer, the batch with so many groups.

    Args:
        seconds_TKG: float64 [T, K, G], how long each answer takes; all begin at once.
        picked: groups that fill the batch, 1 to K.

    Returns:
        float64 [T].

    Raises:
        ShapeError: not three axes.
        ValueError: more groups than there are, or none.
    """
    if seconds_TKG.ndim != 3:
        need = "there are three axes: trials, groups, answers of a group"
        raise ShapeError(explain("seconds_TKG", f"shape {seconds_TKG.shape}", need, "reshape it"))
    return smallest(seconds_TKG.max(axis=2), picked)


def group_free(seconds_TN: Float64, batch: int) -> Float64:
    """When so many answers are complete, whichever they are.

    Args:
        seconds_TN: float64 [T, N], how long each answer takes; all begin at once.
        batch: answers that fill it, 1 to N.

    Returns:
        float64 [T].

    Raises:
        ShapeError: not two axes.
        ValueError: more answers than there are, or none.
    """
    return smallest(seconds_TN, batch)


def smallest(values_TN: Float64, count: int) -> Float64:
    """The `count`-th smallest value of each row, float64 [T]; 1 is the smallest.

    Raises:
        ShapeError: not two axes.
        ValueError: a row has no such value.
    """
    if values_TN.ndim != 2:
        raise ShapeError(explain("values_TN", f"shape {values_TN.shape}", "there are two axes", "reshape it"))
    if not 1 <= count <= values_TN.shape[1]:
        raise ValueError(explain("count", count, f"a row has {values_TN.shape[1]} values", "a number in between"))
    found: Float64 = np.partition(values_TN, count - 1, axis=1)[:, count - 1]
    return found


def paper_illustration() -> tuple[float, float]:
    """Seconds with and without groups in the one draw that the paper shows; 486 / 112 = 4.34, where it says 4.35."""
    return float(smallest(np.array([GROUPS_OF_THE_PAPER]), PICKED_BY_THE_PAPER)[0]), FREE_OF_THE_PAPER


# --------------------------------------------------------------------------------------------------- distributions


class Latency(Protocol):
    """How long an answer takes, as a function of random numbers that all distributions share."""

    @property
    def label(self) -> str:
        """For people."""

    def seconds(self, uniform: Float64, normal: Float64) -> Float64:
        """One time for each pair of a number from (0, 1) and one from the standard normal distribution."""


@dataclass(frozen=True)
class Stragglers:
    """Most answers take about as long; a share of them takes several times that. Normal times, in seconds."""

    share: float
    """Of stragglers."""
    usual: tuple[float, float] = (100.0, 20.0)
    """Mean and standard deviation of the others."""
    slow: tuple[float, float] = (480.0, 50.0)
    """Of the stragglers."""
    least: float = 1.0
    """Nothing takes less."""

    @property
    def label(self) -> str:
        """For people."""
        return f"{100 * self.share:g} % stragglers"

    def seconds(self, uniform: Float64, normal: Float64) -> Float64:
        """See `Latency.seconds`."""
        usual, slow = (mean + std * normal for mean, std in (self.usual, self.slow))
        found: Float64 = np.maximum(np.where(uniform < self.share, slow, usual), self.least)
        return found


@dataclass(frozen=True)
class Lognormal:
    """Times with a long tail, and no two kinds of answers."""

    sigma: float
    """Standard deviation of the logarithm."""
    median: float = 100.0

    @property
    def label(self) -> str:
        """For people."""
        return f"lognormal, sigma {self.sigma:g}"

    def seconds(self, uniform: Float64, normal: Float64) -> Float64:
        """See `Latency.seconds`."""
        found: Float64 = self.median * np.exp(self.sigma * normal)
        return found


SHARES = (0.0, 0.05, 0.10, 0.128, 0.15, 0.20, 0.25, 0.30, 0.375)
"""Of stragglers. 0.128 is what 4 of 6 groups with a straggler would suggest; 0.25 to 0.30 fit the paper's one draw."""
SIGMAS = (0.25, 0.5, 0.75, 1.0)
DISTRIBUTIONS: tuple[Latency, ...] = (*map(Stragglers, SHARES), *map(Lognormal, SIGMAS))


# ------------------------------------------------------------------------------------------------------ simulation


@dataclass(frozen=True)
class Setting:
    """What is started, what is waited for, and how often that is drawn.

    Raises:
        RecipeError: a batch that whole groups cannot fill, a number below its least, more than fits into memory.
    """

    batch: int = 24
    """Answers that fill a batch: a multiple of the size of a group."""
    groups: int = 6
    """Groups that are started."""
    group_size: int = 8
    trials: int = 200_000
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("--batch", self.batch, 1)
        _at_least("--group-size", self.group_size, 1)
        _at_least("--trials", self.trials, 1)
        _at_least("--seed", self.seed, 0)
        if self.batch % self.group_size:
            fix = f"--batch {self.batch - self.batch % self.group_size + self.group_size}, or --group-size 1"
            need = f"it is made of whole groups of {self.group_size}"
            raise RecipeError(explain("--batch", self.batch, need, fix))
        if self.groups < self.picked:
            need = f"{self.picked} groups of {self.group_size} fill a batch of {self.batch}"
            raise RecipeError(explain("--groups", self.groups, need, f"--groups {self.picked}"))
        if self.answers > MOST_ANSWERS:
            need = f"all answers of a trial are held in memory, at most {MOST_ANSWERS:,}"
            raise RecipeError(explain("--groups", f"{self.answers:,} answers in all", need, "fewer or smaller groups"))
        if self.trials > MOST_TRIALS:
            fix = f"--trials {MOST_TRIALS}"
            raise RecipeError(explain("--trials", f"{self.trials:,}", f"their outcomes are kept: {MOST_TRIALS:,}", fix))

    @property
    def picked(self) -> int:
        """Groups that fill a batch."""
        return self.batch // self.group_size

    @property
    def answers(self) -> int:
        """That are started, with groups and without."""
        return self.groups * self.group_size


def started(batch: int, group_size: int, oversample: float | None, groups: int | None) -> int:
    """Groups to start: as many as are asked for, or so many that `oversample` times a batch is under way, rounded up.

    Args:
        batch: answers that fill a batch.
        group_size: answers of a group.
        oversample: None: 2, as in the paper's illustration.
        groups: None: as `oversample` says.

    Raises:
        RecipeError: both are given, less than a batch is started, or groups of nothing.
    """
    _at_least("--group-size", group_size, 1)
    if groups is not None:
        if oversample is not None:
            need = "--groups says already how much is started"
            raise RecipeError(explain("--oversample", oversample, need, "leave out one of them"))
        return groups
    factor = 2.0 if oversample is None else oversample
    if not 1 <= factor <= MOST_ANSWERS:  # false for what is not a number, too
        raise RecipeError(explain("--oversample", factor, "at least one batch is started", "--oversample 2"))
    return math.ceil(factor * batch / group_size - 1e-9)


@dataclass(frozen=True)
class Outcome:
    """What all trials with one distribution came to."""

    latency: Latency
    group_based: float
    """Mean seconds until a batch is complete, with groups."""
    group_free: float
    """Without."""
    mean: float
    """Of the speed-ups, each group-based over group-free for the same times of answers."""
    median: float
    low: float
    high: float
    """Quantiles of the speed-up, see `QUANTILES`."""
    large: float
    """Share of speed-ups above `LARGE_SPEED_UP`."""


def simulate(setting: Setting, distributions: Sequence[Latency] = DISTRIBUTIONS) -> list[Outcome]:
    """Draw times of answers again and again, and see when a batch is complete in either way.

    All distributions and both ways share the same random numbers, so that they differ in nothing but themselves.

    Args:
        setting: what is started and waited for.
        distributions: of the time that one answer takes; times are independent of each other.
    """
    which, how_long = (np.random.Generator(np.random.Philox(key=(setting.seed, stream))) for stream in (0, 1))
    with_groups, without = (np.empty((len(distributions), setting.trials)) for _ in range(2))
    size = max(1, CHUNK // setting.answers)
    for start in range(0, setting.trials, size):
        shape = min(size, setting.trials - start), setting.groups, setting.group_size
        uniform, normal = which.random(shape), how_long.standard_normal(shape)
        here = slice(start, start + shape[0])
        for number, latency in enumerate(distributions):
            seconds_TKG = latency.seconds(uniform, normal)
            with_groups[number, here] = group_based(seconds_TKG, setting.picked)
            without[number, here] = group_free(seconds_TKG.reshape(shape[0], -1), setting.batch)
    return [_outcome(*parts) for parts in zip(distributions, with_groups, without, strict=True)]


def _outcome(latency: Latency, with_groups_T: Float64, without_T: Float64) -> Outcome:
    speed_up_T = with_groups_T / without_T
    low, median, high = np.quantile(speed_up_T, (QUANTILES[0], 0.5, QUANTILES[1])).tolist()
    return Outcome(
        latency,
        group_based=float(with_groups_T.mean()),
        group_free=float(without_T.mean()),
        mean=float(speed_up_T.mean()),
        median=median,
        low=low,
        high=high,
        large=float((speed_up_T > LARGE_SPEED_UP).mean()),
    )


def _at_least(option: str, found: int, least: int) -> None:
    if found < least:
        raise RecipeError(explain(option, found, f"it is at least {least}", f"{option} {least}"))
