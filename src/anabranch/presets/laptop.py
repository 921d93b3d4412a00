"""What all presets share: a small model, problems without downloads, and sizes that two CPU cores can carry."""

from __future__ import annotations

from anabranch.recipe.tree import Algorithm, Optim, ReasoningGym, Recipe, RolloutSettings, Train


def laptop(name: str, algorithm: Algorithm, *, minibatches: int = 1) -> Recipe:
    """A recipe that runs as it is on a laptop: methods differ only in `algorithm` and `minibatches`.

    Sums by reasoning-gym, SmolLM2-135M-Instruct, 8 problems x 8 answers a step. Answers may be long (256 tokens),
    because these recipes are meant to be pointed at other data: `data.path=gsm8k.jsonl`.
    """
    return Recipe(
        name=name,
        steps=50,
        data=ReasoningGym(name="chain_sum", options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}),
        rollout=RolloutSettings(prompts=8, per_problem=8, max_new_tokens=256),
        algorithm=algorithm,
        optim=Optim(lr=1e-5, warmup=5),
        train=Train(minibatches=minibatches),
    )
