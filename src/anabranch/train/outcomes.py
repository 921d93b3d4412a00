"""What came out of a step's problems beside what was expected of them: the part of its record about tracked values.

Letters: B answers of the step, K its problems, P all problems.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anabranch.algo.value_tracker import Known
from anabranch.recipe.tree import Tracker
from anabranch.train.experience import Experience

Float64 = NDArray[np.float64]
DECILES = 10


def decile(value: Float64) -> NDArray[np.int64]:
    """Which tenth of [0, 1] each value is in, 0 to 9; 1 is in the last one, and so is what lies beyond it."""
    return np.clip((value * DECILES).astype(np.int64), 0, DECILES - 1)


def outcome_record(
    tracker: Tracker,
    experience: Experience,
    known: Known,
    everything: Known,
    raw_K: Float64,
    divergence_K: Float64 | None,
) -> dict[str, object]:
    """Names and meanings: docs/metrics.md, group *values*.

    Args:
        tracker: for the bounds of rho.
        experience: of the step, with values.
        known: of the step's problems, before it.
        everything: of all problems, before it.
        raw_K: rho before its bounds.
        divergence_K: D, 0 for first visits; None: nothing was compared.
    """
    assert experience.value_B is not None
    value_B, reward_B = experience.value_B.numpy(), experience.reward_B.numpy()
    record: dict[str, object] = {
        "value_mean": float(value_B.mean()),
        "value_count": float(known.count_K.mean()),
        "first_visits": float((known.visits_K == 0).mean()),
        "rho": float(np.clip(raw_K, tracker.rho_min, tracker.rho_max).mean()),
    }
    if divergence_K is not None:
        again_K = known.visits_K > 0
        record["rho_low"] = float((raw_K < tracker.rho_min).mean())
        record["rho_high"] = float((raw_K > tracker.rho_max).mean())
        if again_K.any():
            record["divergence"] = float(divergence_K[again_K].mean())
    return {**record, **_calibration(value_B, reward_B), **_curriculum(known.value_K, everything.value_K)}


def _calibration(value_B: Float64, reward_B: Float64) -> dict[str, object]:
    """Expected against observed, by the value that was expected."""
    decile_B = decile(value_B)
    record: dict[str, object] = {}
    error = 0.0
    for tenth in np.unique(decile_B).tolist():
        here_B = decile_B == tenth
        predicted, observed = float(value_B[here_B].mean()), float(reward_B[here_B].mean())
        record[f"predicted/{tenth}"], record[f"observed/{tenth}"] = predicted, observed
        error += float(here_B.mean()) * abs(predicted - observed)
    return {"calibration_error": error, **record}


def _curriculum(drawn_K: Float64, value_P: Float64) -> dict[str, object]:
    """Shares by value of what was drawn and of what there was, tenths that are empty on both sides left out."""
    drawn, there = (np.bincount(decile(value), minlength=DECILES) / len(value) for value in (drawn_K, value_P))
    tenths = [tenth for tenth in range(DECILES) if drawn[tenth] or there[tenth]]
    return {
        **{f"drawn/{tenth}": float(drawn[tenth]) for tenth in tenths},
        **{f"problems/{tenth}": float(there[tenth]) for tenth in tenths},
    }
