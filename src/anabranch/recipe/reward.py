"""Terms of the reward, and when each of them counts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt

from anabranch.recipe.part import Part

# -------------------------------------------------------------------------------------------------------- schedules


class Constant(Part):
    """In force at every step."""

    kind: Literal["constant"] = "constant"
    """When the term counts."""

    def in_force(self, step: int) -> bool:
        """Whether the term counts at an RL step, counted from 0."""
        return True


class Cycle(Part):
    """In force for some RL steps, then not for some, again and again.

    `Cycle(on=100, off=500)` is in force at steps 0-99, 600-699, ... (ProRLv2's example).
    """

    kind: Literal["cycle"] = "cycle"
    """When the term counts."""
    on: StrictInt = Field(100, ge=1)
    """RL steps in force."""
    off: StrictInt = Field(500, ge=1)
    """RL steps out of force, after them."""
    start: StrictInt = Field(0, ge=0)
    """The first RL step in force, counted from 0; before it the term is out of force."""

    def in_force(self, step: int) -> bool:
        """Whether the term counts at an RL step, counted from 0."""
        return step >= self.start and (step - self.start) % (self.on + self.off) < self.on


Schedule = Annotated[Constant | Cycle, Field(discriminator="kind")]

# ------------------------------------------------------------------------------------------------------------ terms


class RewardTerm(Part):
    """One term of the reward and its weight."""

    term: Literal["accuracy", "format"] = "accuracy"
    """accuracy: the verdict's value. format: 1 if a final answer was found, else 0."""
    wrong: StrictFloat = Field(0.0, lt=1)
    """accuracy: what a wrong answer gets; a right one gets 1, a partly right one what lies as far between. -1: rewards
    of -1 and 1 in place of 0 and 1."""
    weight: StrictFloat = 1.0
    """The reward is the sum of weight times term, over the terms in force. 0: the term is only recorded."""
    schedule: Schedule = Constant()
    """When the term is in force."""


class CosineLength(Part):
    """ProRLv2's length term: from `high` for an empty answer down to `low` at the length limit, along half a cosine.

    low + (high - low) * (1 + cos(pi * t / T)) / 2, with t the tokens of the answer and T `rollout.max_new_tokens`. The
    ends are not stated there; with these a short answer loses nothing.
    """

    term: Literal["cosine_length"] = "cosine_length"
    """cosine_length: this term."""
    weight: StrictFloat = 1.0
    """The reward is the sum of weight times term, over the terms in force. 0: the term is only recorded."""
    low: StrictFloat = -0.5
    """Value at the length limit."""
    high: StrictFloat = 0.0
    """Value of an answer without length."""
    only_correct: StrictBool = False
    """0 for answers whose verdict is not `correct`. "R_correct + lambda * len(t)" leaves open which answers get the
    term; false takes the formula at its word."""
    schedule: Schedule = Constant()
    """When the term is in force."""


Reward = Annotated[RewardTerm | CosineLength, Field(discriminator="term")]
