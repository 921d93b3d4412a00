"""What all presets share: a small model, problems without downloads, and sizes that two CPU cores can carry."""

from __future__ import annotations

from anabranch.recipe.tree import Algorithm, Answer, Optim, ReasoningGym, Recipe, RolloutSettings, Train

SMALL_SUMS = ReasoningGym(
    name="basic_arithmetic",
    options={
        "min_terms": 2,
        "max_terms": 2,
        "min_digits": 1,
        "max_digits": 1,
        "operators": ["+"],
        "allow_parentheses": False,
        "allow_negation": False,
    },
    size=80,
)
"""Sums of two numbers up to 10: 121 different problems, of which about 60 are trained on."""


def laptop(name: str, algorithm: Algorithm, *, minibatches: int = 1) -> Recipe:
    """A recipe that runs as it is on a laptop: methods differ only in `algorithm` and `minibatches`.

    Sums by reasoning-gym, SmolLM2-135M-Instruct, 8 problems x 8 answers a step. Answers may be long (256 tokens),
    because these recipes are meant to be pointed at other data: `data.path=gsm8k.jsonl`. There is no cold start, and a
    small model seldom marks its answer as asked: where it does not, the last number counts. Measured: a fifth of the
    answers are right at the first step, where without that rule none is.
    """
    return Recipe(
        name=name,
        steps=50,
        data=SMALL_SUMS,
        answer=Answer(extract=("boxed", "answer_line", "hashes", "last_number")),
        rollout=RolloutSettings(prompts=8, per_problem=8, max_new_tokens=256),
        algorithm=algorithm,
        optim=Optim(lr=1e-5, warmup=5),
        train=Train(minibatches=minibatches),
    )
