"""The reward of a rollout: a weighted sum of terms, kept apart."""

from __future__ import annotations

from anabranch.recipe.tree import RewardTerm
from anabranch.records import Rollout, Score, Verdict
from anabranch.rewards.terms import TERMS


def total(terms: tuple[RewardTerm, ...], rollout: Rollout, verdict: Verdict) -> Score:
    """sum over terms of weight * value, with the raw values in `parts`.

    Example: accuracy 1 with weight 1 and format 1 with weight 0.1 give reward 1.1 and parts {accuracy: 1, format: 1}.
    """
    parts: dict[str, float] = {item.term: TERMS[item.term](rollout, verdict) for item in terms}
    return Score(sum(item.weight * parts[item.term] for item in terms), parts, verdict)
