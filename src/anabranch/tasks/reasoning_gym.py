"""Problems made by the `reasoning-gym` package (extra `demo`), judged by its own scorers behind `tasks.gates`.

A few of its data sets depend on Python's hash seed (isomorphic_strings, polynomial_multiplication, ransom_note,
word_ladder in 0.1.25): another process may get other problems from the same seed unless PYTHONHASHSEED is set.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar

from anabranch.errors import DataError, explain
from anabranch.recipe.tree import Answer, ReasoningGym
from anabranch.records import Problem, Reason, Verdict
from anabranch.tasks import gates
from anabranch.tasks.base import Checker, Task, derived_seed, problem_key
from anabranch.tasks.equality import tidy

ROUNDING = 1e-9
"""A score so close to 1 counts as 1."""

GOLD_IN_METADATA: Mapping[str, str] = MappingProxyType(
    {
        "graph_color": "possible_answer",
        "propositional_logic": "example_answer",
        "rubiks_cube": "example_correct_answer",
    }
)
"""Where data sets with many right answers keep one of them."""

REFUSALS = (AssertionError, TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError)
"""How data sets of the package refuse their options: when they are made, or only when a problem is."""

UNUSABLE: Mapping[str, str] = MappingProxyType(
    {
        "boxnet": "it has no gold answer, so that nothing proves that a right answer scores 1",
        "rush_hour": "it has no gold answer, so that nothing proves that a right answer scores 1",
        "composite": "it mixes data sets whose scorers need gates of their own",
    }
)
"""Data sets that cannot be a task, and why."""


@dataclass(frozen=True)
class ReasoningGymChecker(Checker):
    """Judges with the data set's own scorer: 1 is CORRECT, between 0 and 1 PARTIAL, 0 WRONG.

    The scorer sees the extracted answer as it stands and, if that is not right, without math delimiters, final period
    and the like (`equality.tidy`); the better one counts. A score outside [0, 1] is a fault of the scorer and counts 0.
    """

    name: str = "chain_sum"
    options: str = "{}"
    """The data set's options as JSON: hashable, and easy to send."""

    preload: ClassVar[tuple[str, ...]] = ("reasoning_gym", "anabranch.tasks.reasoning_gym")

    def __call__(self, problem: Problem, text: str) -> Verdict:
        """The scorer's verdict on the extracted answer, or NO_ANSWER, or what a gate says."""
        answer = self.find(text)
        if answer is None:
            return Verdict(0.0, Reason.NO_ANSWER)
        entry = {
            "question": problem.question,
            "answer": from_plain(problem.meta["answer"]),
            "metadata": from_plain(problem.meta["metadata"]),
        }
        scorer = _scorer(self.name, self.options)
        first = self._judge(scorer, answer, answer, problem.answer, entry)
        if first.value == 1 or tidy(answer) in (answer, ""):
            return first
        second = self._judge(scorer, tidy(answer), answer, problem.answer, entry)
        return second if second.value > first.value else first

    def prepare(self) -> None:
        """Make the data set object."""
        _scorer(self.name, self.options)

    def _judge(
        self, scorer: Callable[[str, dict[str, Any]], float], answer: str, shown: str, gold: str, entry: dict[str, Any]
    ) -> Verdict:
        """The verdict on one reading of the answer."""
        refusal = gates.refuse(self.name, answer, gold, entry["metadata"])
        if refusal:
            return Verdict(0.0, refusal.reason, shown, refusal.detail)
        score = float(scorer(answer, entry))
        if not math.isfinite(score) or not -ROUNDING <= score <= 1 + ROUNDING:
            return Verdict(0.0, Reason.WRONG, shown, f"the scorer gave {score:g}, outside [0, 1]")
        if score >= 1 - ROUNDING:
            return Verdict(1.0, Reason.CORRECT, shown)
        return Verdict(score, Reason.PARTIAL, shown) if score > 0 else Verdict(0.0, Reason.WRONG, shown)


def open_reasoning_gym(data: ReasoningGym, answer: Answer) -> Task:
    """A task of `data.size` generated problems, from the generator under a seed derived from `data.seed`.

    Derived, because with the package's own numbering seeds 0 and 1 share all problems but one (see `derived_seed`).
    Problems with the same question and answer are one problem and kept once, so there can be fewer than `data.size`.
    Left out are problems whose gold answer is empty or refused by the data set's gate (intermediate_integration gives
    the integral itself where SymPy finds no other form).

    Raises:
        DataError: the extra is missing, the name is unknown or cannot be a task, an option is unknown or refused, or
            no problem is left.
    """
    dataset = create(data.name, data.options, derived_seed("data", data.seed), data.size)
    problems: dict[str, Problem] = {}
    for index in range(data.size):
        problem = _made(dataset, index, data.name, data.options)
        if _usable(data.name, problem):
            problems.setdefault(problem.key, problem)
    if not problems:
        raise DataError(
            explain(f"data.name={data.name}", "no gold answer", "every problem needs one", "choose another data set")
        )
    checker = ReasoningGymChecker(answer.extract, data.name, json.dumps(data.options, sort_keys=True))
    return Task(data.name, tuple(problems.values()), checker, functools.partial(stream, data))


def stream(data: ReasoningGym, seed: int) -> Iterator[Problem]:
    """Endless problems of a data set from the generator with another seed (`data.seed` plays no part)."""
    chunk, index = max(data.size, 1000), 0
    dataset = create(data.name, data.options, seed, chunk)
    while True:
        if index and index % chunk == 0:  # item i depends on seed + i only, and some data sets end at their size
            dataset = create(data.name, data.options, seed + index, chunk)
        problem = _made(dataset, index % chunk, data.name, data.options)
        index += 1
        if _usable(data.name, problem):
            yield problem


def _usable(name: str, problem: Problem) -> bool:
    """Whether a problem has a gold answer that can score 1."""
    metadata = from_plain(problem.meta["metadata"])
    return bool(problem.answer.strip()) and gates.refuse(name, problem.answer, problem.answer, metadata) is None


def create(name: str, options: Mapping[str, Any], seed: int, size: int) -> Any:
    """The package's data set object.

    Raises:
        DataError: see `open_reasoning_gym`.
    """
    registry = _registry()
    _check_name(name, registry)
    _check_options(name, options, registry[name][1])
    package = importlib.import_module("reasoning_gym")
    with _refusals(name, options, registry[name][1].__name__):
        return package.create_dataset(name, **options, seed=seed, size=size)


def _made(dataset: Any, index: int, name: str, options: Mapping[str, Any]) -> Problem:
    """One problem of a data set.

    Raises:
        DataError: none can be made with these options: not all values that cannot work are refused by `create`.
    """
    with _refusals(name, options, type(dataset.config).__name__):
        made = dataset[index]
    return _problem(name, made)


@contextmanager
def _refusals(name: str, options: Mapping[str, Any], config: str) -> Iterator[None]:
    """Boundary to the package: what its data sets raise about their options becomes one error."""
    try:
        yield
    except REFUSALS as error:
        raise DataError(
            explain(
                "data.options",
                f"{dict(options)}",
                f"'{name}' refuses them: {error or type(error).__name__}",
                f"see the fields of {config} in reasoning-gym",
            )
        ) from error


def _registry() -> Mapping[str, tuple[type, type]]:
    """Name -> (data set class, config class) of the installed package."""
    try:
        module = importlib.import_module("reasoning_gym.factory")
    except ModuleNotFoundError as error:
        raise DataError(
            explain(
                "data.kind=reasoning_gym",
                "no package 'reasoning_gym'",
                "these problems are made by it",
                "pip install 'anabranch[demo]'",
            )
        ) from error
    registry: Mapping[str, tuple[type, type]] = module.DATASETS
    return registry


def _check_name(name: str, registry: Mapping[str, object]) -> None:
    if name in UNUSABLE:
        raise DataError(explain("data.name", name, UNUSABLE[name], "choose another data set, e.g. data.name=chain_sum"))
    if name not in registry:
        close = difflib.get_close_matches(name, registry, n=3) or ["chain_sum"]
        raise DataError(
            explain(
                "data.name",
                repr(name),
                f"reasoning-gym has no such data set (there are {len(registry)})",
                f"one of the closest: {', '.join(close)}",
            )
        )


def _check_options(name: str, options: Mapping[str, Any], config: type) -> None:
    known = {item.name for item in fields(config)}
    for option in options:
        if option in ("seed", "size"):
            raise DataError(
                explain(f"data.options.{option}", options[option], "it has a place of its own", f"data.{option}=...")
            )
        if option not in known:
            close = difflib.get_close_matches(option, known, n=3) or sorted(known - {"seed", "size"})
            raise DataError(
                explain("data.options", repr(option), f"'{name}' has no such option", f"use {', '.join(close)}")
            )


@functools.lru_cache(maxsize=4)
def _scorer(name: str, options: str) -> Callable[[str, dict[str, Any]], float]:
    """The scorer of a data set; made once a process."""
    scorer: Callable[[str, dict[str, Any]], float] = create(name, json.loads(options), seed=0, size=1).score_answer
    return scorer


def _problem(name: str, entry: Mapping[str, Any]) -> Problem:
    """An entry of the package as a problem; what its scorer needs goes into `meta`."""
    gold = entry["answer"]
    if gold is None and name in GOLD_IN_METADATA:
        gold = entry["metadata"][GOLD_IN_METADATA[name]]
    text = gold if isinstance(gold, str) else "" if gold is None else json.dumps(gold)
    return Problem(
        key=problem_key(entry["question"], text),
        question=entry["question"],
        answer=str(text),
        source=name,
        meta={"answer": to_plain(entry["answer"]), "metadata": to_plain(entry["metadata"])},
    )


def to_plain(value: Any) -> Any:
    """A value as plain JSON types; tuples and dictionaries with other keys than strings are marked, scorers need them.

    Raises:
        DataError: a type that has no such form.
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    if isinstance(value, tuple):
        return {"__tuple__": [to_plain(item) for item in value]}
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {str(key): to_plain(item) for key, item in value.items()}
        return {"__dict__": [[to_plain(key), to_plain(item)] for key, item in value.items()]}
    raise DataError(
        explain("reasoning-gym metadata", type(value).__name__, "only JSON types are kept", "choose another data set")
    )


def from_plain(value: Any) -> Any:
    """The value that `to_plain` was given."""
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {"__tuple__"}:
            return tuple(from_plain(item) for item in value["__tuple__"])
        if value.keys() == {"__dict__"}:
            return {from_plain(key): from_plain(item) for key, item in value["__dict__"]}
        return {key: from_plain(item) for key, item in value.items()}
    return value
