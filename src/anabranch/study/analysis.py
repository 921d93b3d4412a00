"""From the results of a study to what its report says: intervals, differences, verdicts, curves, costs. Plain data."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from anabranch.study.outline import ArmOutline, Outline
from anabranch.study.results import CURVES, RunResult
from anabranch.study.statistics import LEVEL, Float64, Spread, holm, spread, t_quantile

FEWEST_SEEDS = 3
"""With fewer there is no verdict: one run says nothing about luck, and two hardly more."""
ALPHA = 1 - LEVEL
"""Error rate of all verdicts of a study together."""
HELD_OUT = "held_out"
"""The curve of held-out accuracy, beside those of `CURVES`."""
SHARES = (
    HELD_OUT,
    "accuracy",
    "centred_small",
    "dead_groups",
    "truncated",
    "repeat_ratio",
    "clip_low",
    "clip_high",
    "rho_low",
)
"""Curves that are shares of 1."""


def analyse(outline: Outline) -> dict[str, Any]:
    """All numbers and sentences of a report, as plain JSON types."""
    arms = [arm_record(outline, arm) for arm in outline.arms]
    comparisons = [_comparison(outline, outline.arms[0], arm) for arm in outline.arms[1:]]
    _judge(comparisons, outline.arms[0].name)
    held_out = by_held_out(outline)
    return {
        "base": outline.base,
        "overrides": list(outline.overrides),
        "seeds": list(outline.seeds),
        "level": LEVEL,
        "reference": outline.arms[0].name,
        "missing": [{"arm": arm, "seed": seed} for arm, seed in outline.missing()],
        "speed_of": "held-out accuracy" if held_out else "training accuracy",
        "arms": arms,
        "comparisons": comparisons,
        "curves": _curves(outline),
        "statistics": _statistics(outline),
        "commands": commands(outline),
        "facts": {name: outline.facts.get(name) for name in ("version", "git_commit", "cpu", "cores", "started")},
        "compute": {name: outline.compute[name] for name in ("dtype", "device", "threads")},
    }


# ------------------------------------------------------------------------------------------------------------- arms


def arm_record(outline: Outline, arm: ArmOutline) -> dict[str, Any]:
    """What one arm came to by itself: accuracy, learning speed, cost."""
    seeds, runs = runs_of(outline, arm)
    record: dict[str, Any] = {"name": arm.name, "changes": list(arm.changes), "seeds": seeds}
    if not runs:
        return record
    record |= {
        "problems": len(runs[0].final.scores),
        "samples": runs[0].final.samples,
        "accuracy": _ends(_spread(_table(runs), shared=_shared(arm, outline, seeds)), 0.0, 1.0),
        "before": _mean([float(np.mean(run.evaluations[0].scores)) for run in runs]),
        "by_seed": [float(np.mean(run.final.scores)) for run in runs],
        "speed": _ends(spread_of([speed(run, held_out=by_held_out(outline)) for run in runs]), 0.0, 1.0),
        "steps": [run.steps for run in runs],
        "cost": {name: _mean([run.cost[name] for run in runs]) for name in runs[0].cost},
    }
    return record


def runs_of(outline: Outline, arm: ArmOutline) -> tuple[list[int], list[RunResult]]:
    """The seeds that an arm has finished, and their runs."""
    seeds = [seed for seed in outline.seeds if (arm.name, seed) in outline.runs]
    return seeds, [outline.runs[arm.name, seed] for seed in seeds]


def _table(runs: Sequence[RunResult]) -> Float64:
    """float [S, P]."""
    return np.array([run.final.scores for run in runs], dtype=np.float64)


def _column(values: Sequence[float]) -> Float64:
    """float [S, 1]: a number for each seed."""
    return np.array(values, dtype=np.float64)[:, None]


def _digests(arm: ArmOutline, outline: Outline, seeds: Sequence[int]) -> list[str]:
    return [arm.held_out[outline.seeds.index(seed)] for seed in seeds]


def _shared(arm: ArmOutline, outline: Outline, seeds: Sequence[int]) -> bool:
    """Whether all of these seeds have one set of held-out problems."""
    return len(set(_digests(arm, outline, seeds))) == 1


def _spread(scores_SP: Float64, *, shared: bool) -> Spread | None:
    """None where one number is all there is."""
    rows, columns = scores_SP.shape
    return spread(scores_SP, shared=shared) if rows > 1 or columns > 1 else None


def _ends(found: Spread | None, least: float, most: float) -> dict[str, float] | None:
    if found is None:
        return None
    low, high = found.interval()
    return {"value": found.value, "low": max(least, low), "high": min(most, high)}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def by_held_out(outline: Outline) -> bool:
    """Whether learning speed can be read from held-out accuracy: every run has a value between the first and last."""
    return bool(outline.runs) and all(len(run.evaluations) > 2 for run in outline.runs.values())


def speed(run: RunResult, *, held_out: bool) -> float:
    """Area under the curve of accuracy, divided by its length: the mean accuracy on the way.

    Held-out accuracy by the trapezoid rule if there are values on the way, otherwise training accuracy step by step.

    Args:
        run: finished.
        held_out: which of the two, see `by_held_out`.
    """
    if held_out:
        steps = [evaluated.step for evaluated in run.evaluations]
        values = [float(np.mean(evaluated.scores)) for evaluated in run.evaluations]
        pieces = zip(steps, steps[1:], values, values[1:], strict=False)
        return sum((b - a) * (x + y) / 2 for a, b, x, y in pieces) / (steps[-1] - steps[0])
    return _mean([value for value in run.curves["accuracy"] if value is not None])


# ------------------------------------------------------------------------------------------------------ comparisons


def _comparison(outline: Outline, reference: ArmOutline, arm: ArmOutline) -> dict[str, Any]:
    """Arm minus reference over the seeds that both have."""
    seeds = [seed for seed in outline.seeds if {(arm.name, seed), (reference.name, seed)} <= set(outline.runs)]
    record: dict[str, Any] = {"arm": arm.name, "seeds": seeds}
    if not seeds:
        return record
    here = [outline.runs[arm.name, seed] for seed in seeds]
    there = [outline.runs[reference.name, seed] for seed in seeds]
    by_seed = [_mean(one.final.scores) - _mean(other.final.scores) for one, other in zip(here, there, strict=True)]
    found = difference(outline, arm, reference, seeds)
    held_out = by_held_out(outline)
    speeds = [
        speed(one, held_out=held_out) - speed(other, held_out=held_out) for one, other in zip(here, there, strict=True)
    ]
    return record | {
        "paired_by_problem": _same_problems(outline, arm, reference, seeds),
        "difference": _ends(found, -1.0, 1.0),
        "by_seed": by_seed,
        "p": None if found is None else found.p_value(),
        "speed_difference": _ends(spread_of(speeds), -1.0, 1.0),
        "identical": identical(here, there),
    }


def identical(here: Sequence[RunResult], there: Sequence[RunResult]) -> bool:
    """Whether two arms came to the very same numbers in every run: what makes them differ does nothing."""
    pairs = zip(here, there, strict=True)
    return all(one.final == other.final and one.curves == other.curves for one, other in pairs)


def difference(outline: Outline, arm: ArmOutline, reference: ArmOutline, seeds: Sequence[int]) -> Spread | None:
    """Final held-out accuracy of an arm minus that of another, over seeds that both have finished.

    Paired by seed, and by problem where both have the same ones. None where one number is all there is.
    """
    here, there = ([outline.runs[a.name, seed] for seed in seeds] for a in (arm, reference))
    if _same_problems(outline, arm, reference, seeds):
        return _spread(_table(here) - _table(there), shared=_shared(arm, outline, seeds))
    pairs = zip(here, there, strict=True)
    return spread_of([_mean(one.final.scores) - _mean(other.final.scores) for one, other in pairs])


def _same_problems(outline: Outline, arm: ArmOutline, reference: ArmOutline, seeds: Sequence[int]) -> bool:
    return _digests(arm, outline, seeds) == _digests(reference, outline, seeds)


def spread_of(values: Sequence[float]) -> Spread | None:
    """The mean of one number a seed, and how it scatters over seeds. None where there is one number."""
    return _spread(_column(values), shared=False)


def _judge(comparisons: Sequence[dict[str, Any]], reference: str) -> None:
    """Add Holm's adjusted p-values and the verdicts, in place."""
    judged = [c for c in comparisons if c.get("p") is not None and len(c["seeds"]) >= FEWEST_SEEDS]
    for comparison, adjusted in zip(judged, holm([c["p"] for c in judged]), strict=True):
        comparison["p_holm"] = adjusted
    for comparison in comparisons:
        comparison["verdict"], comparison["sentence"] = _verdict(comparison, reference)


def _verdict(comparison: dict[str, Any], reference: str) -> tuple[str, str]:
    arm, seeds = comparison["arm"], comparison["seeds"]
    if not seeds:
        return "missing", f"{arm}: no seed that is finished both here and in {reference}."
    difference = comparison["difference"]
    if difference is None:
        return "no verdict", f"{arm}: one seed and one problem show nothing."
    points = (
        f"{100 * difference['value']:+.1f} points [{100 * difference['low']:+.1f}, {100 * difference['high']:+.1f}]"
    )
    if comparison["identical"]:
        return "no effect", f"{arm}: the very same numbers as {reference} in every run; the change does nothing here."
    if len(seeds) < FEWEST_SEEDS:
        count = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
        return "no verdict", f"{arm}: {points} against {reference}, but {count} cannot tell a method from luck."
    p = f"p {_p(comparison['p'])}, adjusted {_p(comparison['p_holm'])}, {len(seeds)} seeds"
    if comparison["p_holm"] >= ALPHA:
        return "no difference shown", f"{arm}: no difference to {reference} shown: {points} ({p})."
    word = "better" if difference["value"] > 0 else "worse"
    return word, f"{arm} is {word} than {reference}: {points} ({p})."


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


# ----------------------------------------------------------------------------------------------------------- curves


def _curves(outline: Outline) -> dict[str, dict[str, Any]]:
    """By metric, see `curve`; those that some run has."""
    found = {name: curve(outline, name) for name in (HELD_OUT, *CURVES)}
    return {name: lines for name, lines in found.items() if lines}


def curve(outline: Outline, metric: str) -> dict[str, Any]:
    """By arm: steps, mean over seeds, and the ends of its interval (t over seeds, at each step alone).

    Args:
        outline: the study.
        metric: one of `CURVES`, or `HELD_OUT`.
    """
    lines = {}
    for arm in outline.arms:
        runs = [_steps(run, metric) for run in runs_of(outline, arm)[1]]
        steps = sorted(set.intersection(*map(set, runs))) if runs else []
        if steps:
            values_ST = np.array([[run[step] for step in steps] for run in runs])
            mean_T, half_T = _band(values_ST)
            low_T, high_T = mean_T - half_T, mean_T + half_T
            if metric in SHARES:
                low_T, high_T = low_T.clip(0.0, 1.0), high_T.clip(0.0, 1.0)
            lines[arm.name] = {
                "steps": steps,
                **{key: _rounded(row) for key, row in (("mean", mean_T), ("low", low_T), ("high", high_T))},
            }
    return lines


def _steps(run: RunResult, metric: str) -> dict[int, float]:
    if metric == HELD_OUT:
        return {evaluated.step: _mean(evaluated.scores) for evaluated in run.evaluations}
    return {step: value for step, value in enumerate(run.curves.get(metric, ()), start=1) if value is not None}


def _band(values_ST: Float64) -> tuple[Float64, Float64]:
    """Mean over seeds, and half the width of its t interval; 0 for one seed."""
    count = len(values_ST)
    mean_T: Float64 = values_ST.mean(0)
    if count == 1:
        return mean_T, np.zeros_like(mean_T)
    half_T: Float64 = t_quantile((1 + LEVEL) / 2, count - 1) * values_ST.std(0, ddof=1) / math.sqrt(count)
    return mean_T, half_T


def _rounded(row_T: Float64) -> list[float]:
    return [float(f"{value:.5g}") for value in row_T]


# ------------------------------------------------------------------------------------------------------------ words


def commands(outline: Outline) -> dict[str, Any]:
    """What to type to do it all again, and to do one run of each arm again."""
    threads, dtype, device = (outline.compute[name] for name in ("threads", "dtype", "device"))
    first = f"seed={outline.seeds[0]}"
    same = [f"model.threads={threads}", f"model.dtype={dtype}", f"model.device={device}"]
    return {
        "study": outline.facts["command"],
        "arms": {
            arm.name: shlex.join(["anabranch", "train", outline.base, *arm.overrides, *same, first])
            for arm in outline.arms
        },
    }


def _statistics(outline: Outline) -> list[str]:
    """How the intervals were made, for this study: sentences."""
    seeds = len(outline.seeds)
    first = outline.arms[0].held_out
    shared = seeds > 1 and len(set(first)) == 1
    paired = all(arm.held_out == first for arm in outline.arms)
    return [
        f"Final accuracy is the mean score on held-out problems after the last step, over {seeds} "
        f"seed{'' if seeds == 1 else 's'}. A seed decides data order, cold start"
        f"{'' if shared else ', held-out problems'} and every random number, in all arms alike.",
        _what_is_drawn(seeds, shared),
        "Differences to the first arm are paired by seed"
        + (" and by problem: both arms answer the same problems with the same random numbers." if paired else " only: ")
        + ("" if paired else "the arms have different held-out problems."),
        f"Intervals are {100 * LEVEL:g} % each, from percentiles of the bootstrap, widened for few seeds by "
        "sqrt(n / (n - 1)) and by Student's t over the normal quantile. They are not adjusted for the number of arms.",
        "Verdicts: p is the smallest 1 - level whose interval leaves 0 out, adjusted by Holm's rule for all "
        f"comparisons with the first arm together. Better or worse if the adjusted p is below {ALPHA:.2g}; otherwise "
        f"no difference is shown, which does not mean that there is none. Fewer than {FEWEST_SEEDS} seeds give no "
        "verdict.",
        "Learning speed is the area under the curve of accuracy divided by its length; its intervals are over seeds. "
        "It has no part in the verdict.",
        "Bands of curves are t intervals over seeds at each step alone.",
    ]


def _what_is_drawn(seeds: int, shared: bool) -> str:
    if seeds == 1:
        return "There is one seed: problems are drawn with replacement, and nothing is said about other seeds."
    if shared:
        return (
            "All seeds have one set of held-out problems: seeds and problems are both drawn with replacement, and "
            "their deviations add up."
        )
    return (
        "Every seed has held-out problems of its own: seeds are drawn with replacement, each with all of its problems, "
        "so that the scatter over problems is in the scatter over seeds."
    )
