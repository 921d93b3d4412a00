"""Short worked solutions, for the supervised cold start before RL: they teach the format, not the arithmetic."""

from __future__ import annotations

import re

from anabranch.errors import DataError, explain
from anabranch.recipe.tree import WORKED
from anabranch.records import Problem
from anabranch.tasks.files import SOLUTION

_SUM = re.compile(r"-?\d+(?: [-+] -?\d+)*")


def worked_answer(problem: Problem) -> str:
    r"""A worked solution that ends with the line `Answer: N`.

    For `chain_sum` one line an operation, with the running total: "4 + 3 - 2 =" gives
    "4 + 3 = 7\n7 - 2 = 5\nAnswer: 5". For rows of a file that has a `solution` column, that text and the gold answer.

    Raises:
        DataError: there is no way to work this problem out.
    """
    if problem.source in WORKED:
        return _worked_sum(problem)
    if SOLUTION in problem.meta:
        return f"{problem.meta[SOLUTION].strip()}\nAnswer: {problem.answer}"
    raise DataError(_no_way(problem.source))


def _worked_sum(problem: Problem) -> str:
    """Running totals of a chain of additions and subtractions."""
    expression = str(problem.meta["metadata"]["expression"])
    if not _SUM.fullmatch(expression):
        raise DataError(
            explain(
                f"problem {problem.key}",
                f"expression {expression!r}",
                "only a chain of + and - is worked out",
                "data.options.operators=[+,-] data.options.allow_parentheses=false, or cold_start=null",
            )
        )
    first, *rest = expression.split(" ")
    total, lines = int(first), []
    for operator, term in zip(rest[::2], rest[1::2], strict=True):
        result = total + int(term) if operator == "+" else total - int(term)
        lines.append(f"{total} {operator} {term} = {result}")
        total = result
    return "\n".join([*lines, f"Answer: {total}"])


def _no_way(source: str) -> str:
    return explain(
        "cold_start",
        f"data '{source}'",
        f"worked examples exist for reasoning-gym {', '.join(WORKED)} and for files with a column '{SOLUTION}'",
        f"cold_start=null, or give a file with a column '{SOLUTION}'",
    )
