"""Runs of a minute or two on two cores: a small model trained from scratch, and sums of three difficulties.

    anabranch model build small-base        # once; `train` does it too
    anabranch train small_sums
    anabranch train small_sums seed=1 model.source=small-aligned

How often the two models are right on each set before any RL, and what RL makes of it: docs/small-models.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from anabranch.presets.methods import lite_ppo
from anabranch.recipe.overrides import apply
from anabranch.recipe.text import inline
from anabranch.recipe.tree import ReasoningGym, Recipe


def sums(terms: int) -> ReasoningGym:
    """Sums and differences of so many numbers from 0 to 10."""
    return ReasoningGym(
        name="basic_arithmetic",
        options={
            "min_terms": terms,
            "max_terms": terms,
            "min_digits": 1,
            "max_digits": 1,
            "operators": ["+", "-"],
            "allow_parentheses": False,
            "allow_negation": False,
        },
        size=2000,
    )


SETS: Mapping[str, ReasoningGym] = MappingProxyType({"easy": sums(3), "medium": sums(4), "hard": sums(6)})
"""The more numbers, the more steps that can go wrong. Of two there are only 242 sums, and RL soon has them all."""

SMALL = (
    "model={source: small-base, dtype: float32}",
    f"data={inline(SETS['medium'].model_dump(mode='json'))}",
    "prompt={instruction: ''}",
    "answer={extract: [answer_line]}",
    "rollout.prompts=16",
    "rollout.per_problem=8",
    "rollout.max_new_tokens=128",
    "engine={}",
    "train.row_tokens=2048",
    "optim={lr: 3e-4}",
    "steps=50",
    "evaluation={problems: 96, samples: 4, every: 25}",
    "save={every: 1000}",
)
"""Everything but the axes of an algorithm, as `anabranch.presets.laptop.LAPTOP` has it for SmolLM2."""


def small(recipe: Recipe, *more: str) -> Recipe:
    """The recipe as it runs on a small model: with the changes of `SMALL`, then with `more`."""
    return apply(recipe, (*SMALL, *more))


def small_calculator() -> Recipe:
    """`small_sums` with a tool: a calculator writes the result behind every `=`, and steps wait for no straggler."""
    return small(
        lite_ppo(),
        "name=small_calculator",
        "environment={kind: calculator, open: '', close: '=', reply: ' {}'}",
        "rollout.asynchronous={oversample: 0.5}",
        "steps=10",
        "evaluation.every=5",
    )


def small_sums() -> Recipe:
    """A model of less than a million parameters learns sums of four numbers within two minutes, with Lite PPO."""
    return small(lite_ppo(), "name=small_sums")
