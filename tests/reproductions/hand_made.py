"""Results made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anabranch.study.outline import ArmOutline, Outline
from anabranch.study.results import Clipped, Evaluated, RunResult

SEEDS = (0, 1, 2, 3, 4)


def run_of(
    arm: str,
    seed: int,
    scores: Sequence[float],
    *,
    curves: Mapping[str, Sequence[float | None]] | None = None,
    clipped: Mapping[str, Clipped] | None = None,
) -> RunResult:
    """A finished run of three steps."""
    return RunResult(
        arm=arm,
        seed=seed,
        curves={"accuracy": (0.0, 0.5, 1.0), **{name: tuple(v) for name, v in (curves or {}).items()}},
        evaluations=(Evaluated(0, (0.0,) * len(scores), 2), Evaluated(3, tuple(scores), 2)),
        cost={"answers": 48, "tokens": 100, "trained_tokens": 90, "seconds": 60.0},
        environment={"version": "0", "commit": None},
        clipped=clipped or {},
    )


def outline_of(
    scores: Mapping[str, Sequence[Sequence[float] | None]],
    *,
    seeds: Sequence[int] = SEEDS,
    curves: Mapping[str, Sequence[Mapping[str, Sequence[float | None]]]] | None = None,
    facts: Mapping[str, Any] | None = None,
    clipped: Mapping[str, Mapping[str, Clipped]] | None = None,
) -> Outline:
    """Results by arm and seed: final scores of the held-out problems; None: this run is missing."""
    runs = {}
    for arm, several in scores.items():
        for number, (seed, values) in enumerate(zip(seeds, several, strict=True)):
            if values is not None:
                drawn = curves[arm][number] if curves and arm in curves else None
                runs[arm, seed] = run_of(arm, seed, values, curves=drawn, clipped=(clipped or {}).get(arm))
    told = {
        "version": "0",
        "git_commit": None,
        "cpu": "a cpu",
        "cores": 2,
        "started": "some day",
        "command": "anabranch reproduce sample",
        "packages": {"torch": "2"},
        **(facts or {}),
    }
    held_out = tuple(f"of seed {seed}" for seed in seeds)
    arms = tuple(ArmOutline(arm, (), (f"name={arm}",), held_out) for arm in scores)
    return Outline(
        "small_sums", (), arms, tuple(seeds), {"dtype": "float32", "device": "cpu", "threads": 1}, told, runs
    )
