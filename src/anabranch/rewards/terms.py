"""The terms a reward can be made of: pure functions of one rollout and its verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from anabranch.records import Rollout, Verdict

Term = Callable[[Rollout, Verdict], float]


def accuracy(rollout: Rollout, verdict: Verdict) -> float:
    """The verdict's value, in [0, 1]."""
    return verdict.value


def format(rollout: Rollout, verdict: Verdict) -> float:
    """1 if a final answer was found in the text, else 0; whether it is right plays no part."""
    return 0.0 if verdict.extracted is None else 1.0


TERMS: Mapping[str, Term] = MappingProxyType({"accuracy": accuracy, "format": format})
"""Every term by the name it has in a recipe."""
