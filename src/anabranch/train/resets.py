"""When the current weights become the reference model of a KL term: after so many steps, on a spike, on a stall.

ProRL (arXiv:2505.24864) resets it by hand where it holds the policy back, with a fresh optimizer; ProRLv2 every 200 to
500 RL steps, or where KL spikes or validation stalls, and keeps the optimizer's moments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from anabranch.recipe.tree import Reset

Cause = Literal["steps", "spike", "stall"]


@dataclass(frozen=True)
class ReferenceState:
    """What is remembered of the reference and of what may bring its reset."""

    step: int = 0
    """RL steps that were done when it was taken; names its file."""
    cause: Cause | None = None
    """Why it was taken; None: at the start of RL."""
    drift: float | None = None
    """`kl_ref` of the last RL step; None: that step measured none."""
    best: float | None = None
    """Best held-out accuracy of the evaluations during RL; None: there was none yet."""
    stalled: int = 0
    """Evaluations in a row without a new best, since the reference was taken."""


def after_step(state: ReferenceState, record: Mapping[str, object]) -> ReferenceState:
    """The state after an RL step with this record of metrics, of which it keeps `kl_ref` if there is one."""
    drift = record.get("kl_ref")
    return replace(state, drift=drift if isinstance(drift, float) else None)


def after_evaluation(state: ReferenceState, accuracy: float) -> ReferenceState:
    """The state after an evaluation during RL. Only a higher accuracy than ever before is an improvement."""
    if state.best is None or accuracy > state.best:
        return replace(state, best=accuracy, stalled=0)
    return replace(state, stalled=state.stalled + 1)


def after_reset(state: ReferenceState, step: int, cause: Cause) -> ReferenceState:
    """The state once the reference was taken anew after RL step `step`. The best accuracy stays the one to beat."""
    return replace(state, step=step, cause=cause, drift=None, stalled=0)


def due(reset: Reset | None, state: ReferenceState, step: int) -> Cause | None:
    """Why the reference is to be taken anew after RL step `step`; None: it is not.

    Args:
        reset: the causes; None: never.
        state: after that step and after the evaluation that followed it.
        step: RL steps done.
    """
    if reset is None:
        return None
    if reset.every is not None and step - state.step >= reset.every:
        return "steps"
    if reset.spike is not None and state.drift is not None and state.drift > reset.spike:
        return "spike"
    if reset.stall is not None and state.stalled >= reset.stall:
        return "stall"
    return None
