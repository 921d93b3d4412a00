"""Worked examples from a JSONL file, for supervised training."""

from __future__ import annotations

from pathlib import Path

from anabranch.errors import DataError, explain
from anabranch.recipe.tree import Sft
from anabranch.records import Problem
from anabranch.tasks.base import problem_key
from anabranch.tasks.files import numbered_objects, text_of


def read_solutions(sft: Sft) -> tuple[tuple[Problem, str], ...]:
    """(problem, worked solution) for every line of the file that `sft.path` names. The problems have no gold answer.

    Raises:
        DataError: no such file, a malformed line (with its number), a missing column, no line at all.
    """
    path = Path(sft.path)
    examples = []
    for where, row in numbered_objects(path, None):
        question = text_of(where, row, sft.question, numbers=False)
        solution = text_of(where, row, sft.solution, numbers=False)
        examples.append((Problem(problem_key(question, solution), question, "", path.stem), solution))
    if not examples:
        raise DataError(explain(str(path), "no example", "supervised training needs one", "add lines to the file"))
    return tuple(examples)
