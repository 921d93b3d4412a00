"""Problems from Hugging Face data sets by id (extra `datasets`)."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from anabranch.errors import DataError, explain
from anabranch.recipe.tree import Answer, HubDataset
from anabranch.tasks.base import Task
from anabranch.tasks.equality import MathChecker
from anabranch.tasks.files import require_problems, to_problems


def open_hub(data: HubDataset, answer: Answer) -> Task:
    """A task of the rows of one split, judged by mathematical equality.

    Raises:
        DataError: the extra is missing, the data set cannot be loaded, or a row is no problem (see `files.open_jsonl`).
    """
    try:
        datasets = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise DataError(
            explain(
                "data.kind=hub",
                "no package 'datasets'",
                "it loads data sets by id",
                "pip install 'anabranch[datasets]', or data.kind=jsonl with a file",
            )
        ) from error
    name = f"{data.id}{f'/{data.config}' if data.config else ''}:{data.split}"
    try:
        rows = datasets.load_dataset(data.id, data.config, split=data.split, revision=data.revision)
    except (OSError, ValueError) as error:  # no network, no such data set, configuration or split
        raise DataError(
            explain("data.id", name, f"it cannot be loaded: {str(error)[:200]}", "check id, config, split and network")
        ) from error
    problems = to_problems(numbered(rows, name, data.limit), data, data.id)
    return Task(data.id, require_problems(problems, name), MathChecker(answer.extract))


def numbered(rows: Any, name: str, limit: int | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """("name row 0", row) for the first `limit` rows."""
    for number, row in enumerate(islice(rows, limit)):
        yield f"{name} row {number}", row
