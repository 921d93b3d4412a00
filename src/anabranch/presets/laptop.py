"""What turns a recipe at a paper's scale into one that two CPU cores can carry: the same changes for every method."""

from __future__ import annotations

from anabranch.recipe.overrides import apply
from anabranch.recipe.text import inline
from anabranch.recipe.tree import ReasoningGym, Recipe

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

LAPTOP = (
    "seed=0",
    "steps=50",
    "model={}",
    f"data={inline(SMALL_SUMS.model_dump(mode='json'))}",
    "prompt={}",
    # A small model seldom marks its answer as asked: where it does not, the last number counts. Measured: a fifth of
    # the answers are right at the first step, where without that rule none is.
    "answer.extract=[boxed, answer_line, hashes, last_number]",
    "rollout.prompts=8",
    "rollout.per_problem=8",
    "rollout.temperature=1.0",
    "rollout.top_p=1.0",
    "rollout.top_k=0",
    # Long enough for other data: `data.path=gsm8k.jsonl`.
    "rollout.max_new_tokens=256",
    "engine={}",
    "optim={lr: 1e-5, warmup: 5}",
    "train={}",
    "evaluation=null",
    "save={}",
)
"""SmolLM2-135M-Instruct on sums by reasoning-gym, 8 problems x 8 answers a step, no cold start, no evaluation. `{}` is
every default of that part. Nothing here is an axis of an algorithm."""


def laptop(recipe: Recipe, *more: str) -> Recipe:
    """The recipe as it runs on a laptop: with the changes of `LAPTOP`, then with `more`."""
    return apply(recipe, (*LAPTOP, *more))
