"""The numbers that claims are about: each reads one finished run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from anabranch.study.analysis import speed
from anabranch.study.results import RunResult
from anabranch.study.statistics import TINY, Float64

FINAL = "final"
"""The measure whose differences are paired by problem, too."""
WINDOW = 11
"""Steps over which training accuracy is smoothed before a fall is looked for: as in a figure of "Tricks or Traps"."""
LATE = EARLY = 4
"""The last quarter of the steps is "late", the first one "early"."""


@dataclass(frozen=True)
class Measure:
    """A number of a run."""

    title: str
    unit: str
    """`points`: it is a share, and shown times 100."""
    read: Callable[[RunResult], float | None]
    """None: this run has no such number."""
    bounded: bool = False
    """A share of right answers: where both arms are at one of its ends, they cannot differ."""

    @property
    def factor(self) -> float:
        """By which it is multiplied where people read it."""
        return 100.0 if self.unit == "points" else 1.0


def final(run: RunResult) -> float:
    """Held-out accuracy after the last step."""
    return float(np.mean(run.final.scores))


def solved(run: RunResult) -> float:
    """Share of the held-out problems with a right answer after the last step: pass@k for as many answers as it got.

    Read from mean scores: a problem counts if they are worth one right answer or more.
    """
    return float(np.mean([score >= 1 / run.final.samples - TINY for score in run.final.scores]))


def early(run: RunResult) -> float | None:
    """Mean held-out accuracy over the evaluations of the first quarter of the steps, the one before RL left out."""
    there = [float(np.mean(e.scores)) for e in run.evaluations if 0 < e.step <= run.steps / EARLY]
    return float(np.mean(there)) if there else None


def on_the_way(run: RunResult) -> float:
    """Mean held-out accuracy from the first evaluation to the last; training accuracy if nothing lies between them."""
    return speed(run, held_out=len(run.evaluations) > 2)


def fall(run: RunResult) -> float | None:
    """How far smoothed training accuracy fell below the best that it had been: the largest such difference.

    0 for a run that only rises. Smoothed is the mean over `WINDOW` steps in a row (all steps, if there are fewer).
    """
    values_T = _curve(run, "accuracy")
    if values_T is None:
        return None
    width = min(WINDOW, len(values_T))
    smooth_T = np.convolve(values_T, np.full(width, 1 / width), mode="valid")
    return float((np.maximum.accumulate(smooth_T) - smooth_T).max())


def grad_spikes(run: RunResult) -> float | None:
    """The largest gradient norm of a run over its median: how much single steps stand out, whatever the scale."""
    values_T = _curve(run, "grad_norm")
    if values_T is None or not (middle := float(np.median(values_T))):
        return None
    return float(values_T.max()) / middle


def mean_of(metric: str) -> Callable[[RunResult], float | None]:
    """The mean of a metric over the steps that have it."""

    def read(run: RunResult) -> float | None:
        values_T = _curve(run, metric)
        return None if values_T is None else float(values_T.mean())

    return read


def spread_of_steps(metric: str) -> Callable[[RunResult], float | None]:
    """The standard deviation of a metric over the steps that have it: how erratic it is."""

    def read(run: RunResult) -> float | None:
        values_T = _curve(run, metric)
        return None if values_T is None or len(values_T) < 2 else float(values_T.std(ddof=1))

    return read


def variance_kept(run: RunResult) -> float | None:
    """What the baseline leaves of the variance of rewards: of reward - baseline over that of the rewards of the step.

    The mean over steps that have both, groups that agree left out of the first where there are groups.
    """
    pairs = zip(run.curves.get("centred_variance", ()), run.curves.get("sigma_batch", ()), strict=False)
    found = [kept / std**2 for kept, std in pairs if kept is not None and std]
    return float(np.mean(found)) if found else None


def late(metric: str) -> Callable[[RunResult], float | None]:
    """The mean of a metric over the last quarter of the steps."""

    def read(run: RunResult) -> float | None:
        values = run.curves.get(metric, ())
        rest = [value for value in values[-max(1, len(values) // LATE) :] if value is not None]
        return float(np.mean(rest)) if rest else None

    return read


def _curve(run: RunResult, metric: str) -> Float64 | None:
    """float64 [T]: the values that there are; None if there is none."""
    values = [value for value in run.curves.get(metric, ()) if value is not None]
    return np.array(values, dtype=np.float64) if values else None


MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        FINAL: Measure("final held-out accuracy", "points", final, bounded=True),
        "way": Measure("mean accuracy on the way", "points", on_the_way, bounded=True),
        "early": Measure("mean held-out accuracy, first quarter", "points", early, bounded=True),
        "solved": Measure("held-out problems with a right answer", "points", solved, bounded=True),
        "fall": Measure("largest fall of training accuracy below its best", "points", fall),
        "grad_spikes": Measure("largest gradient norm over its median", "times", grad_spikes),
        "dead": Measure("answers with an advantage within 0.02", "points", mean_of("centred_small")),
        "dead_late": Measure("the same, last quarter", "points", late("centred_small")),
        "variance": Measure("variance of advantages", "reward^2", mean_of("centred_variance")),
        "variance_kept": Measure("variance of advantages as a share of that of rewards", "points", variance_kept),
        "variance_spread": Measure(
            "std over steps of the variance of advantages", "reward^2", spread_of_steps("centred_variance")
        ),
        "reward_std_late": Measure("reward std within groups, last quarter", "reward", late("reward_std")),
        "entropy": Measure("mean entropy", "nats a token", mean_of("entropy")),
        "entropy_late": Measure("entropy, last quarter", "nats a token", late("entropy")),
        "clipped": Measure("tokens at the upper clip bound", "points", mean_of("clip_high")),
        "length_late": Measure("tokens of an answer, last quarter", "tokens", late("answer_length_mean")),
        "truncated": Measure("answers cut at the limit", "points", mean_of("truncated")),
        "repeat_ratio": Measure("cut answers that had fallen into a loop", "points", mean_of("repeat_ratio")),
    }
)
"""By the name that a claim has for it."""
