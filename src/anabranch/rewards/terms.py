"""The terms a reward can be made of: pure functions of one rollout and its verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from anabranch.recipe.reward import CosineLength, Reward
from anabranch.records import Reason, Rollout, Verdict

Term = Callable[[Rollout, Verdict], float]


def accuracy(rollout: Rollout, verdict: Verdict) -> float:
    """The verdict's value, in [0, 1]."""
    return verdict.value


def format(rollout: Rollout, verdict: Verdict) -> float:
    """1 if a final answer was found in the text, else 0; whether it is right plays no part."""
    return 0.0 if verdict.extracted is None else 1.0


TERMS: Mapping[str, Term] = MappingProxyType({"accuracy": accuracy, "format": format})
"""The terms without settings, by the name they have in a recipe."""


def cosine_length(length: int, max_length: int, low: float, high: float) -> float:
    """ProRLv2's length term: low + (high - low) * (1 + cos(pi * t / T)) / 2, from `high` at t = 0 to `low` at t = T.

    Args:
        length: t, tokens of the answer; more than T count as T.
        max_length: T > 0.
        low: eta_min.
        high: eta_max.
    """
    return low + (high - low) * (1.0 + math.cos(math.pi * min(length, max_length) / max_length)) / 2.0


def value_of(term: Reward, rollout: Rollout, verdict: Verdict, max_new_tokens: int) -> float:
    """The raw value of a term, before its weight.

    A term without settings of its own goes from `wrong` (0 unless the recipe says otherwise) to 1.

    Args:
        term: as the recipe has it.
        rollout: the answer.
        verdict: on it.
        max_new_tokens: the length limit.
    """
    if isinstance(term, CosineLength):
        if term.only_correct and verdict.reason is not Reason.CORRECT:
            return 0.0
        return cosine_length(rollout.num_answer_tokens, max_new_tokens, term.low, term.high)
    return term.wrong + (1.0 - term.wrong) * TERMS[term.term](rollout, verdict)
