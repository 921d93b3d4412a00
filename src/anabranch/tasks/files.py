"""Problems from JSONL files: one JSON object a line, with columns for question and answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from anabranch.errors import DataError, explain
from anabranch.recipe.tree import Answer, HubDataset, JsonLines
from anabranch.records import Problem
from anabranch.tasks.base import Task, problem_key
from anabranch.tasks.equality import MathChecker

SOLUTION = "solution"
"""Column with a worked solution, if there is one; kept in `Problem.meta` for the cold start (see `worked`)."""


def open_jsonl(data: JsonLines, answer: Answer) -> Task:
    """A task of the problems in a JSONL file, judged by mathematical equality.

    Rows with the same question and answer are one problem and kept once. Blank lines are skipped.

    Raises:
        DataError: no such file, not UTF-8, a line that is not a JSON object, a missing or empty column, a column of the
            wrong type, or no problem at all. The message names file and line.
    """
    path = Path(data.path)
    problems = to_problems(numbered_objects(path, data.limit), data, path.stem)
    return Task(path.stem, require_problems(problems, str(path)), MathChecker(answer.extract))


def to_problems(
    rows: Iterable[tuple[str, Mapping[str, Any]]], data: JsonLines | HubDataset, source: str
) -> tuple[Problem, ...]:
    """Rows as problems, each kept once.

    Args:
        rows: (where, row) pairs; `where` goes into error messages.
        data: names the columns and the mark before the answer.
        source: `Problem.source`.

    Raises:
        DataError: a row that is no problem.
    """
    problems: dict[str, Problem] = {}
    for where, row in rows:
        question = text_of(where, row, data.question, numbers=False)
        answer = _after(where, text_of(where, row, data.answer, numbers=True), data)
        level, solution = row.get("level"), row.get(SOLUTION)
        key = problem_key(question, answer)
        meta = {SOLUTION: solution} if isinstance(solution, str) and solution.strip() else {}
        problems.setdefault(key, Problem(key, question, answer, source, None if level is None else str(level), meta))
    return tuple(problems.values())


def require_problems(problems: tuple[Problem, ...], where: str) -> tuple[Problem, ...]:
    """The problems, if there are any.

    Raises:
        DataError: there are none.
    """
    if not problems:
        raise DataError(explain(where, "no problem", "at least one is needed", "check that this is the right file"))
    return problems


def numbered_objects(path: Path, limit: int | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """("file:line", object) for the first `limit` lines that are not blank."""
    try:
        with path.open(encoding="utf-8") as file:
            numbered = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
            for number, line in islice(numbered, limit):
                where = f"{path}:{number}"
                yield where, _object(where, line)
    except OSError as error:
        raise DataError(
            explain(str(path), f"{error.strerror}", "a readable JSONL file is needed", "check the path")
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            explain(str(path), f"byte {error.start} that is not UTF-8", "JSONL is UTF-8", "convert the file to UTF-8")
        ) from error


def _object(where: str, line: str) -> Mapping[str, Any]:
    """One line as a JSON object."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            explain(where, f"{line.strip()[:60]!r}", f"this is not JSON ({error})", "one JSON object on every line")
        ) from error
    if not isinstance(value, dict):
        raise DataError(
            explain(where, f"a JSON {type(value).__name__}", "each line holds an object", '{"question": ..., ...}')
        )
    return value


def text_of(where: str, row: Mapping[str, Any], column: str, *, numbers: bool) -> str:
    """The text of a column; with `numbers`, a JSON number will do."""
    if column not in row:
        raise DataError(
            explain(
                where,
                f"columns {', '.join(map(repr, row)) or 'none'}",
                f"column '{column}' is needed",
                "write the column, or name the one to read (data.question, data.answer; sft.question, sft.solution)",
            )
        )
    value = row[column]
    if numbers and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise DataError(explain(where, f"{column} = {value!r}"[:80], "text is needed", f"write '{column}' as a string"))
    if not value.strip():
        raise DataError(explain(where, f"an empty '{column}'", "text is needed", "fill it in or remove the line"))
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        need = "no tokenizer reads it"
        raise DataError(explain(where, f"half a surrogate pair in '{column}'", need, "correct or remove the line"))
    return value.strip()


def _after(where: str, answer: str, data: JsonLines | HubDataset) -> str:
    """What follows the last mark in an answer."""
    if data.answer_after is None:
        return answer
    _, mark, rest = answer.rpartition(data.answer_after)
    if not mark or not rest.strip():
        raise DataError(
            explain(
                where,
                f"answer {answer[-60:]!r}",
                f"text after the mark {data.answer_after!r} is needed (data.answer_after)",
                "data.answer_after=null, or correct the line",
            )
        )
    return rest.strip()
