"""The reward of a rollout: a weighted sum of the terms in force, kept apart."""

from __future__ import annotations

from anabranch.recipe.reward import Reward
from anabranch.records import Rollout, Score, Verdict
from anabranch.rewards.terms import value_of


def weights_at(terms: tuple[Reward, ...], step: int) -> dict[str, float]:
    """The weight of every term at RL step `step`, counted from 0: 0 where its schedule has it out of force."""
    return {item.term: item.weight if item.schedule.in_force(step) else 0.0 for item in terms}


def total(terms: tuple[Reward, ...], rollout: Rollout, verdict: Verdict, *, step: int, max_new_tokens: int) -> Score:
    """sum over terms of weight * value, with the raw values in `parts`, also those of terms that are out of force.

    Example: accuracy 1 with weight 1 and format 1 with weight 0.1 give reward 1.1 and parts {accuracy: 1, format: 1}.

    Args:
        terms: of the recipe.
        rollout: the answer.
        verdict: on it.
        step: RL step, counted from 0.
        max_new_tokens: the length limit.
    """
    weights = weights_at(terms, step)
    parts: dict[str, float] = {item.term: value_of(item, rollout, verdict, max_new_tokens) for item in terms}
    return Score(sum(weights[name] * value for name, value in parts.items()), parts, verdict)
