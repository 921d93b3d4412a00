"""A calculator as a tool: see `anabranch.recipe.environment.Calculator`, and `arithmetic` for what it understands.

    ... <calc> 12*(3+4) </calc>   ->   <result>84</result>

What the model reads is `reply` with the result in place of `{}`, or with `error: ` and why there is none. A turn
without an expression is the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anabranch.environments.arithmetic import CHARACTERS, ExpressionError, value, written
from anabranch.environments.base import Observation
from anabranch.recipe.environment import Calculator
from anabranch.records import Problem

SECONDS = 30.0
"""Deadline of a call. None takes more than milliseconds, but the machine may be busy."""


class CalculatorWorld:
    """Calculators; they share nothing."""

    seconds = SECONDS
    note = ""

    def __init__(self, settings: Calculator) -> None:
        self.settings = settings
        self.turns = settings.turns
        self.stop_strings = (settings.close,)

    @property
    def instruction(self) -> str:
        """How to use it; empty where no mark opens an expression: then a model uses it unawares."""
        if not self.settings.open:
            return ""
        example = f"{self.settings.open}12*(3+4){self.settings.close}"
        return f"You may use a calculator: write for instance {example} and stop; its result comes back."

    def environment(self) -> CalculatorEnvironment:
        """A new one."""
        return CalculatorEnvironment(self.settings)

    async def close(self) -> None:
        """Nothing to do."""


class CalculatorEnvironment:
    """Answers every turn by itself."""

    def __init__(self, settings: Calculator) -> None:
        self._settings = settings

    async def reset(self, problem: Problem, key: tuple[int, ...]) -> None:
        """Nothing to do."""

    async def restore(self, problem: Problem, key: tuple[int, ...], state: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def state(self) -> Mapping[str, Any]:
        """None."""
        return {}

    async def step(self, text: str) -> Observation:
        """Work out the first expression of a turn."""
        expression = find_expression(text, self._settings.open, self._settings.close)
        if expression is None:
            return Observation("", done=True)
        try:
            result, outcome = written(value(expression)), "ok"
            if len(result) > self._settings.output_chars:
                raise ExpressionError("the result is too long")
        except ExpressionError as error:
            result, outcome = f"error: {error}", "error"
        return Observation(self._settings.reply.replace("{}", result), outcome=outcome)

    async def close(self) -> None:
        """Nothing to do."""


def find_expression(text: str, opening: str, closing: str) -> str | None:
    """The first expression of a turn; None if there is none. Linear time.

    Without an opening mark it is what could be an expression at the end of what stands before `closing`:

    >>> find_expression("Step 2: 9 + 4 =", "", "=")
    ' 9 + 4 '
    """
    start = text.find(opening)
    end = text.find(closing, max(0, start) + len(opening))
    if start < 0 or end < 0:
        return None
    if opening:
        return text[start + len(opening) : end]
    start = end
    while start > 0 and text[start - 1] in CHARACTERS:
        start -= 1
    return text[start:end]
