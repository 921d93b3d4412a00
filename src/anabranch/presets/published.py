"""A published method is two things: a recipe at the scale of its paper, and what a laptop changes.

load("grpo")          as it runs here: the paper's recipe with the laptop's changes on top
load("grpo@paper")    the paper's recipe
anabranch show grpo --against grpo@paper     # exactly those changes
"""

from __future__ import annotations

from collections.abc import Callable

from anabranch.presets.laptop import LAPTOP, laptop
from anabranch.recipe.tree import Recipe

PAPER = "@paper"
"""What a name ends with that means the scale of the paper."""


class Method:
    """A published method. Calling it gives the recipe that runs on a laptop.

    Args:
        recipe: makes the recipe at the paper's scale, named after the method; its docstring describes the method.
        more: what this method changes on a laptop beside `LAPTOP`, as overrides.
    """

    def __init__(self, recipe: Callable[[], Recipe], *more: str) -> None:
        self.__doc__ = recipe.__doc__
        self.changes = (*LAPTOP, *more)
        self._recipe = recipe
        self._more = more

    def __call__(self) -> Recipe:
        """As it runs on a laptop."""
        return laptop(self._recipe(), *self._more)

    def paper(self) -> Recipe:
        """As in the paper."""
        recipe = self._recipe()
        return recipe.but(name=f"{recipe.name}-paper")


def published(*more: str) -> Callable[[Callable[[], Recipe]], Method]:
    """Decorates a function that returns a recipe at the paper's scale; `more`: see `Method`."""
    return lambda recipe: Method(recipe, *more)
