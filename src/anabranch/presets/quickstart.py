"""The recipe of `make quickstart`: a real model learns to add within minutes, on two CPU cores."""

from __future__ import annotations

from anabranch.presets.methods import lite_ppo
from anabranch.recipe.tree import (
    ColdStart,
    Evaluation,
    Optim,
    ReasoningGym,
    Recipe,
    RewardTerm,
    RolloutSettings,
)


def quickstart() -> Recipe:
    """One-digit sums: a thin cold start that teaches the format only, then ten steps of Lite PPO.

    Two terms of one digit with + or -: 200 different problems, of which `data.size` draws leave enough unseen for
    the evaluation. The cold start is kept thin on purpose: after a thick one the answers to a problem agree, and
    where they agree there is nothing to learn from.
    """
    return Recipe(
        name="quickstart",
        steps=10,
        data=ReasoningGym(
            name="chain_sum", options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}, size=160
        ),
        rollout=RolloutSettings(prompts=16, per_problem=8, max_new_tokens=32),
        reward=(RewardTerm(term="accuracy"),),
        algorithm=lite_ppo().algorithm,
        optim=Optim(lr=4e-5),
        cold_start=ColdStart(steps=13, batch=16),
        evaluation=Evaluation(problems=64, samples=2),
    )
