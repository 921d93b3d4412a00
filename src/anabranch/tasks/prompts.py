"""The only place that makes prompt text."""

from __future__ import annotations

from anabranch.recipe.tree import Prompt
from anabranch.records import Message, Problem


def messages(problem: Problem, prompt: Prompt, about: str = "") -> tuple[Message, ...]:
    """The chat that asks a problem: the system message if there is one, then the question with the instruction below.

    Between them stands what there is to say `about` the environment that the answer acts in.

    >>> messages(Problem("k", "1 + 1 =", "2", "s"), Prompt(instruction="Be brief."))
    (Message(role='user', content='1 + 1 =\\nBe brief.'),)
    """
    question = "\n".join(filter(None, (problem.question, about, prompt.instruction)))
    user = Message("user", question)
    return (user,) if prompt.system is None else (Message("system", prompt.system), user)
