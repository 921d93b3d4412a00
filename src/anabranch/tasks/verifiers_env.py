"""Problems of tasksets of the `verifiers` package (extra `verifiers`), judged by the environment they belong to."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from anabranch.errors import DataError, explain
from anabranch.recipe.tree import Answer, VerifiersTasks
from anabranch.records import Problem, Reason, Verdict
from anabranch.tasks.base import Checker, Task, problem_key

WHERE = "data.kind=verifiers"
BETWEEN = "\n\n"
"""Stands between the messages of a prompt that has several; the model reads them as one."""


@dataclass(frozen=True)
class EnvironmentJudged(Checker):
    """Stands where the environment is the judge: asked only about an answer that ended before its environment did."""

    provable: ClassVar[bool] = False

    def __call__(self, problem: Problem, text: str) -> Verdict:
        """Worth nothing."""
        return Verdict(0.0, Reason.NO_ANSWER, None, "ended before its environment gave a reward")


def package(where: str) -> Any:
    """The module `verifiers.v1`.

    Raises:
        DataError: it is not installed, or too old to have it.
    """
    fix, found = "pip install 'anabranch[verifiers]'", "no package 'verifiers'"
    if importlib.util.find_spec("verifiers") is not None:
        try:
            return importlib.import_module("verifiers.v1")
        except ModuleNotFoundError as error:
            if error.name != "verifiers.v1":
                raise  # one of the package's own needs is missing: its message says which
            found = "an older package 'verifiers'"
    raise DataError(explain(where, found, "version 0.4 or newer is needed", fix))


def open_verifiers(data: VerifiersTasks, answer: Answer) -> Task:
    """A task of the rows of a taskset. Rows with the same content are one problem.

    `Problem.meta` has the row as the taskset made it, plain JSON: `{"taskset": NAME, "task": {...}}`.

    Raises:
        DataError: the extra or the taskset is not installed, an option is unknown, its code raises, it has no rows in
            the range asked for, is endless and has no `limit`, or a row has no prompt of text.
    """
    package(WHERE)
    problems: dict[str, Problem] = {}
    for problem in _rows(data):
        problems.setdefault(problem.key, problem)
    if not problems:
        need = f"`skip` {data.skip} leaves some of its rows"
        raise DataError(explain(f"data.taskset={data.taskset}", "no row", need, "lower data.skip"))
    return Task(data.taskset, tuple(problems.values()), EnvironmentJudged(answer.extract))


def _rows(data: VerifiersTasks) -> Iterator[Problem]:
    """The problems of the range asked for."""
    taskset = _taskset(data)
    if data.limit is None and not taskset.bounded:
        need = "it makes tasks without end"
        raise DataError(explain("data.limit", None, need, "data.limit=1000"))
    view = taskset.skip(data.skip)
    if data.limit is not None:
        view = view.take(data.limit)
    try:
        yield from (_problem(data.taskset, task.data) for task in view)
    except DataError:
        raise
    except Exception as error:  # boundary: the taskset's own code
        found = f"{type(error).__name__}: {error}"
        raise DataError(
            explain(f"data.taskset={data.taskset}", found, "it must load its tasks", "see its documentation")
        ) from error


def _taskset(data: VerifiersTasks) -> Any:
    """The package's taskset object."""
    vf, where = package(WHERE), f"data.taskset={data.taskset}"
    try:
        config = vf.taskset_config_type(data.taskset).model_validate({**data.options, "id": data.taskset})
        return vf.load_taskset(config)
    except ModuleNotFoundError as error:
        fix = f"install the package that has the module {data.taskset.replace('-', '_').lower()!r}"
        raise DataError(explain(where, f"{error}", "a taskset is an installed package", fix)) from error
    except (AttributeError, TypeError) as error:  # how the package says that a module is no taskset
        raise DataError(explain(where, f"{error}", "a taskset is needed", "name another package")) from error
    except ValueError as error:  # pydantic: unknown or wrong options
        raise DataError(
            explain("data.options", f"{error}", f"'{data.taskset}' has its own", "see its documentation")
        ) from error


def _problem(taskset: str, row: Any) -> Problem:
    """A row of a taskset as a problem."""
    content = row.model_dump(mode="json")
    identity = {name: value for name, value in content.items() if name != "idx"}
    return Problem(
        key=problem_key(taskset, json.dumps(identity, sort_keys=True)),
        question=question(taskset, content),
        answer="",
        source=taskset,
        meta={"taskset": taskset, "task": content},
    )


def question(taskset: str, row: dict[str, Any]) -> str:
    """What the model is asked: the system prompt, if there is one, and the prompt.

    Raises:
        DataError: there is no prompt, or it is more than text from system and user.
    """
    prompt, where = row["prompt"], f"data.taskset={taskset}"
    if prompt is None:
        need = "the environment opens the conversation itself, and a rollout begins with a problem that is known before"
        raise DataError(explain(where, "a task without a prompt", need, "choose a taskset whose tasks have one"))
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    for message in messages:
        if message["role"] not in ("system", "user") or not isinstance(message["content"], str):
            need = "a prompt is text from system and user"
            found = f"a prompt with a message of {message['role']}, {str(message['content'])[:60]!r}"
            raise DataError(explain(where, found, need, "choose another taskset"))
    return BETWEEN.join(filter(None, (row["system_prompt"], *(message["content"] for message in messages))))
