"""Short worked solutions, for the supervised cold start before RL: they teach the format, not the arithmetic."""

from __future__ import annotations

import random
import re
from itertools import chain, repeat

from anabranch.errors import DataError, explain
from anabranch.recipe.tree import WORKED, Data, ReasoningGym
from anabranch.records import Problem
from anabranch.tasks import reasoning_gym
from anabranch.tasks.base import MIN_TRIES, TRIES_PER_PROBLEM, derived_seed, open_task, unseen
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


def worked_problems(
    count: int, seed: int, data: Data, exclude: frozenset[str] = frozenset()
) -> tuple[tuple[Problem, str], ...]:
    """`count` problems with worked solutions for the cold start, the same for the same seed.

    reasoning-gym: fresh problems under a seed derived from `seed`, far from those of training and held-out problems.
    Files: rows with a `solution`, shuffled. If there are fewer different ones than `count`, all of them come round
    again, in the same order.

    Args:
        count: how many.
        seed: of this choice.
        data: where the problems come from.
        exclude: keys of problems that must not be among them: the held-out ones.

    Raises:
        DataError: no worked solutions for this data, or none outside `exclude`.
    """
    if isinstance(data, ReasoningGym):
        if data.name not in WORKED:
            raise DataError(_no_way(data.name))
        stream = reasoning_gym.stream(data, derived_seed("worked", seed))
        found = unseen(stream, exclude, count, max(MIN_TRIES, TRIES_PER_PROBLEM * count))
    else:
        rows = [row for row in _all_rows(data) if row.key not in exclude]
        random.Random(derived_seed("worked", seed)).shuffle(rows)
        found = tuple(rows[:count])
    if not found:
        raise DataError(
            explain(
                "cold_start",
                f"no problem outside the {len(exclude)} held-out ones",
                f"{count} worked problems are needed",
                "lower evaluation.problems, or widen data.options",
            )
        )
    pairs = [(problem, worked_answer(problem)) for problem in found]
    rounds = -(-count // len(pairs))
    return tuple(chain.from_iterable(repeat(pairs, rounds)))[:count]


def _all_rows(data: Data) -> tuple[Problem, ...]:
    """The rows of a file that have a solution."""
    from anabranch.recipe.tree import Answer  # only its default is needed: nothing is judged here

    task = open_task(data, Answer())
    rows = tuple(problem for problem in task.problems if SOLUTION in problem.meta)
    if not rows:
        raise DataError(_no_way(task.name))
    return rows


def _worked_sum(problem: Problem) -> str:
    """Running totals of a chain of additions and subtractions."""
    expression = str(problem.meta["metadata"]["expression"])
    if not _SUM.fullmatch(expression):
        raise DataError(
            explain(f"problem {problem.key}", f"expression {expression!r}", "a chain of + and - is needed", "report it")
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
