"""Rollouts in flight across steps: begun by one, learned from by that one or a later one.

    begin problems -> advance until the step has enough -> take those -> the rest goes on, or is given up

`anabranch.train.staleness` says when a step has enough, and which it takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from anabranch.engines.base import InFlight
from anabranch.engines.episodes import Episodes
from anabranch.engines.stored import name_from_json, name_to_json, rollout_from_json, rollout_to_json
from anabranch.errors import EngineError, explain
from anabranch.evaluation.held_out import judged
from anabranch.recipe.tree import Asynchronous, Recipe
from anabranch.records import Name, Problem, Request, Rollout, Verdict
from anabranch.tasks.judge import Judge
from anabranch.train.staleness import Standing, choose


@dataclass
class Unit:
    """Answers to one problem that are learned from together: a group, or one answer."""

    number: int
    """Units are numbered in the order in which they were begun."""
    problem: Problem
    step: int
    """In which it was begun."""
    names: tuple[Name, ...]
    rollouts: dict[Name, Rollout] = field(default_factory=dict)
    """Those that are over."""
    verdicts: dict[Name, Future[Verdict]] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether all of its answers are over."""
        return len(self.rollouts) == len(self.names)


@dataclass(frozen=True)
class Taken:
    """What a step learns from, and what became of the rest."""

    units: Sequence[Unit]
    """Oldest first."""
    given_up: int
    """Answers that were dropped, whether they were over or not."""
    left: int
    """Answers in flight after the step: not over, or not taken."""


class Flight:
    """Everything in flight in a stage.

    Args:
        recipe: with `rollout.asynchronous`.
        episodes: empty.
        judge: judges answers as they come.
    """

    def __init__(self, recipe: Recipe, episodes: Episodes, judge: Judge) -> None:
        settings = recipe.rollout.asynchronous
        assert settings is not None
        self._settings: Asynchronous = settings
        self._whole = recipe.algorithm.compares_groups
        self._batch = recipe.rollout.prompts * (1 if self._whole else recipe.rollout.per_problem)
        self._samples = recipe.rollout.per_problem
        self._capacity = settings.capacity(recipe.rollout.prompts)
        self._episodes, self._judge = episodes, judge
        self._units: dict[int, Unit] = {}
        self._unit_of: dict[Name, Unit] = {}
        self._next = 0

    @property
    def room(self) -> int:
        """How many problems can be begun now."""
        unit = 1 if self._whole else self._samples
        return self._capacity - len(self._units) // unit

    @property
    def waited(self) -> float:
        """See `Episodes.waited`."""
        return self._episodes.waited

    def begin(self, problems: Sequence[Problem], requests: Sequence[Request]) -> None:
        """Ask for answers: `requests[i]` to `problems[i]`. Raises as `Episodes.submit`."""
        for problem, request in zip(problems, requests, strict=True):
            self._episodes.submit(problem, request)
            samples = range(request.first_sample, request.first_sample + request.num_samples)
            names = tuple(Name(request.problem_key, request.step, sample) for sample in samples)
            for part in [names] if self._whole else [(name,) for name in names]:
                self._add(Unit(self._next, problem, request.step, part))
                self._next += 1

    def _add(self, unit: Unit) -> None:
        self._units[unit.number] = unit
        self._unit_of.update(dict.fromkeys(unit.names, unit))

    def enough(self, now: int) -> list[int] | None:
        """The units that step `now` takes; None: it has to wait."""
        standing = [Standing(unit.step, unit.number, unit.finished) for unit in self._units.values()]
        bound = self._settings.max_staleness if self._settings.leftover == "continue" else None
        return choose(standing, self._batch, now, bound)

    def advance(self) -> int:
        """Do a little; returns how many answers are over. Raises as `Episodes.advance`."""
        if not self._episodes.in_flight:
            found = f"{len(self._units)} units, all of them over"
            raise EngineError(explain("asynchronous step", found, "it waits for some that are not", "report this bug"))
        for rollout in self._episodes.advance():
            self._over(rollout)
        return sum(len(unit.rollouts) for unit in self._units.values())

    def _over(self, rollout: Rollout) -> None:
        unit = self._unit_of[rollout.name]
        unit.rollouts[rollout.name] = rollout
        unit.verdicts[rollout.name] = judged(self._judge, unit.problem, rollout)

    def take(self, numbers: Sequence[int]) -> Taken:
        """Take units out for a step; with leftover drop, the others are given up."""
        units = [self._units.pop(number) for number in numbers]
        given_up = 0
        if self._settings.leftover == "drop":
            given_up = sum(len(unit.names) for unit in self._units.values())
            self._episodes.drop(self._episodes.in_flight)
            self._units.clear()
        self._unit_of = {name: unit for unit in self._units.values() for name in unit.names}
        return Taken(units, given_up, len(self._unit_of))

    # ---------------------------------------------------------------------------------------------------- stored, again

    def export(self) -> InFlight:
        """Everything in flight. Verdicts are left out: `restore` has answers judged again."""
        episodes = self._episodes.export()
        units = [
            {
                "number": unit.number,
                "key": unit.problem.key,
                "step": unit.step,
                "names": [name_to_json(name) for name in unit.names],
                "over": [rollout_to_json(rollout) for rollout in unit.rollouts.values()],
            }
            for unit in self._units.values()
        ]
        return InFlight({"episodes": episodes.state, "units": units, "next": self._next}, episodes.tensors)

    def restore(self, found: InFlight, problems: Mapping[str, Problem]) -> None:
        """Go on where `export` was asked; nothing is in flight.

        Args:
            found: what it gave.
            problems: by key.
        """
        self._episodes.restore(InFlight(found.state["episodes"], found.tensors), problems)
        self._next = found.state["next"]
        for stored in found.state["units"]:
            self._restore(stored, problems)

    def _restore(self, stored: Mapping[str, Any], problems: Mapping[str, Problem]) -> None:
        names = tuple(name_from_json(name) for name in stored["names"])
        self._add(Unit(stored["number"], problems[stored["key"]], stored["step"], names))
        for rollout in stored["over"]:
            self._over(rollout_from_json(rollout))
