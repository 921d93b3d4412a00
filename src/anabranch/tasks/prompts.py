"""The only place that makes prompt text."""

from __future__ import annotations

from anabranch.recipe.tree import Prompt
from anabranch.records import Message, Problem


def messages(problem: Problem, prompt: Prompt) -> tuple[Message, ...]:
    """The chat that asks a problem: the system message if there is one, then the question with the instruction below.

    >>> messages(Problem("k", "1 + 1 =", "2", "s"), Prompt(instruction="Be brief."))
    (Message(role='user', content='1 + 1 =\\nBe brief.'),)
    """
    question = f"{problem.question}\n{prompt.instruction}" if prompt.instruction else problem.question
    user = Message("user", question)
    return (user,) if prompt.system is None else (Message("system", prompt.system), user)
