"""Short worked solutions, for the supervised cold start before RL: they teach the format, not the arithmetic."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from anabranch.errors import DataError, explain
from anabranch.recipe.tree import WORKED
from anabranch.records import Problem
from anabranch.tasks.files import SOLUTION

ANSWER = "Answer: {}"
"""The last line of every worked answer."""

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
    lines, total = steps_of([int(first), *map(int, rest[1::2])], rest[::2])
    return "\n".join([*lines, ANSWER.format(total)])


def steps_of(
    terms: Sequence[int], operators: Sequence[str], off: Callable[[], int] = lambda: 0
) -> tuple[list[str], int]:
    """One line an operation, with the running total; and the last total.

    Args:
        terms: the numbers.
        operators: "+" or "-" between each two of them.
        off: called once a line; by how much its result is wrong. The lines after it go on from there.
    """
    total, lines = terms[0], []
    for operator, term in zip(operators, terms[1:], strict=True):
        result = (total + term if operator == "+" else total - term) + off()
        lines.append(f"{total} {operator} {term} = {result}")
        total = result
    return lines, total


def _no_way(source: str) -> str:
    return explain(
        "cold_start",
        f"data '{source}'",
        f"worked examples exist for reasoning-gym {', '.join(WORKED)} and for files with a column '{SOLUTION}'",
        f"cold_start=null, or give a file with a column '{SOLUTION}'",
    )
