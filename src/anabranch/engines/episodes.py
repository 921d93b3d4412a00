"""Rollouts of several turns: what stands between an engine's stream and the environments that answer the model.

    stream --a turn stopped--> runner --observation--> stream
                                  '--done, failed--> rollout

Without environments an answer has one turn, and this passes requests and rollouts through.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from anabranch.engines.base import Engine, InFlight, Stream
from anabranch.engines.stored import (
    name_from_json,
    name_to_json,
    request_from_json,
    request_to_json,
    rollout_from_json,
    rollout_to_json,
)
from anabranch.environments.base import Observation
from anabranch.environments.runner import Failure, Runner
from anabranch.errors import EngineError, explain
from anabranch.records import Name, Problem, Request, Rollout, StopReason

Schedule = Literal["clock", "counted"]

DUE = 8
"""With schedule `counted`, an observation is taken so many steps of the stream after the turn that it answers."""
GRACE = 30.0
"""Seconds beyond an environment's own deadline after which a wait for it ends the run."""


@dataclass(frozen=True)
class _Asked:
    """A turn that its environment has not answered yet."""

    rollout: Rollout
    """As it is after the turn."""
    turn: str
    """What the model wrote in it."""
    due: int
    """Step of the stream in which the answer is taken, with schedule `counted`."""


class Episodes:
    """Rollouts in flight, with the environments that they act in.

    Args:
        stream: draws tokens.
        tokenizer: encodes observations.
        runner: runs the environments; None: there are none.
        schedule: clock: an observation is taken as soon as it is there. counted: a fixed number of the stream's steps
            after the turn, so that what happens depends on no clock.
    """

    def __init__(
        self,
        stream: Stream,
        tokenizer: PreTrainedTokenizerBase,
        runner: Runner | None = None,
        schedule: Schedule = "clock",
    ) -> None:
        self._stream, self._tokenizer, self._runner, self._schedule = stream, tokenizer, runner, schedule
        self._requests: dict[Name, Request] = {}
        self._asked: dict[Name, _Asked] = {}
        """In the order in which they were asked."""
        self._outcomes: dict[Name, tuple[str, ...]] = {}
        """Of rollouts that have some, see `Rollout.outcomes`."""
        self._steps = 0
        self.waited = 0.0
        """Seconds in which nothing could be drawn because every rollout waited for its environment."""

    @property
    def in_flight(self) -> tuple[Name, ...]:
        """Rollouts that have not come yet, in the order in which they were submitted."""
        return tuple(self._requests)

    def submit(self, problem: Problem, request: Request) -> None:
        """Ask for answers to a problem. Raises as `Stream.submit`."""
        self._stream.submit(request)
        for sample in range(request.first_sample, request.first_sample + request.num_samples):
            name = Name(request.problem_key, request.step, sample)
            self._requests[name] = request
            if self._runner is not None:
                self._runner.begin(name, problem, environment_key(request, name))

    def advance(self) -> list[Rollout]:
        """Do a little; returns the rollouts that are over. Something is in flight.

        Raises:
            EngineError: the model's logits are not finite; or an environment keeps the run waiting beyond its deadline.
        """
        over = self._take(0)
        if self._stream.ready:
            for rollout in self._stream.advance():
                over += self._turn(rollout)
            self._steps += 1
        elif not over:
            over = self._wait()
        found = [replace(rollout, outcomes=self._outcomes.get(rollout.name, ())) for rollout in over]
        for rollout in over:
            self._forget(rollout.name)
        return found

    def drop(self, names: Collection[Name]) -> None:
        """Give up rollouts."""
        self._stream.drop(names)
        for name in names:
            self._forget(name)

    def _forget(self, name: Name) -> None:
        del self._requests[name]
        self._asked.pop(name, None)
        self._outcomes.pop(name, None)
        if self._runner is not None:
            self._runner.end(name)

    # ----------------------------------------------------------------------------------------------------- environments

    def _turn(self, rollout: Rollout) -> list[Rollout]:
        """A turn is over: ask the environment, or end the rollout."""
        if self._runner is None or rollout.stop is StopReason.LENGTH:
            return [rollout]
        turn = self._tokenizer.decode(rollout.graph.segments[-1].tokens, skip_special_tokens=True)
        self._asked[rollout.name] = _Asked(rollout, turn, self._steps + DUE)
        self._runner.step(rollout.name, turn)
        return []

    def _take(self, timeout: float) -> list[Rollout]:
        """Rollouts that the observations which are there within `timeout` seconds have ended; the others go on."""
        if self._runner is None or not self._asked:
            return []
        if self._schedule == "clock":
            found = self._runner.results(timeout, among=self._asked)
            if timeout and not found:
                raise self._late(next(iter(self._asked)))
        else:
            found = [(name, self._answer(name)) for name, asked in self._asked.items() if asked.due <= self._steps]
        return [rollout for name, answer in found for rollout in self._answered(name, answer)]

    def _wait(self) -> list[Rollout]:
        """Nothing can be drawn: wait until an environment answers."""
        assert self._asked
        start = time.perf_counter()
        if self._schedule == "counted":
            self._steps = max(self._steps, min(asked.due for asked in self._asked.values()))
        over = self._take(self._limit)
        self.waited += time.perf_counter() - start
        return over

    def _answer(self, name: Name) -> Observation | Failure:
        assert self._runner is not None
        try:
            return self._runner.wait_for(name, self._limit)
        except TimeoutError:
            raise self._late(name) from None

    def _answered(self, name: Name, answer: Observation | Failure) -> list[Rollout]:
        assert self._runner is not None
        rollout = self._asked.pop(name).rollout
        if isinstance(answer, Failure):
            return self._end(_failed(rollout, answer))
        if answer.outcome:
            self._outcomes[name] = (*self._outcomes.get(name, ()), answer.outcome)
        if answer.done:
            stop = rollout.stop if rollout.stop is StopReason.EOS else StopReason.DONE
            return self._end(replace(rollout, stop=stop, reward=answer.reward))
        if rollout.turns >= self._runner.world.turns:
            return self._end(replace(rollout, stop=StopReason.TURNS))
        tokens = self._tokenizer.encode(answer.text, add_special_tokens=False, split_special_tokens=not answer.marks)
        if not tokens:
            return self._end(_failed(rollout, Failure("crash", f"no token for the observation {answer.text[:60]!r}")))
        if rollout.num_answer_tokens + len(tokens) >= self._requests[name].sampling.max_new_tokens:
            return self._end(replace(rollout, stop=StopReason.LENGTH))
        self._stream.go_on(name, tokens)
        return []

    def _end(self, rollout: Rollout) -> list[Rollout]:
        self._stream.drop([rollout.name])  # it was held
        return [rollout]

    @property
    def _limit(self) -> float:
        assert self._runner is not None
        return self._runner.world.seconds + GRACE

    def _late(self, name: Name) -> EngineError:
        assert self._runner is not None
        since = self._runner.outstanding.get(name, 0.0)
        found = f"{len(self._asked)} rollouts wait for it, first of all {name}, which asked {since:.0f} s ago"
        need = f"an answer, or the note that there is none, comes within {self._limit:g} s"
        return EngineError(explain("environment", found, need, "see what it waits for; `anabranch resume` goes on"))

    # ---------------------------------------------------------------------------------------------------- stored, again

    def export(self) -> InFlight:
        """Everything in flight. What an environment is asked at the moment, `restore` asks it again."""
        stream = self._stream.export()
        requests = list(dict.fromkeys(self._requests.values()))
        rollouts: list[dict[str, Any]] = []
        for name, request in self._requests.items():
            state = None if self._runner is None else dict(self._runner.state(name))
            rollouts.append(
                {
                    "name": name_to_json(name),
                    "request": requests.index(request),
                    "environment": state,
                    "outcomes": list(self._outcomes.get(name, ())),
                }
            )
        asked = [
            {"rollout": rollout_to_json(asked.rollout), "turn": asked.turn, "due": asked.due}
            for asked in self._asked.values()
        ]
        state = {
            "stream": stream.state,
            "steps": self._steps,
            "requests": [request_to_json(request) for request in requests],
            "rollouts": rollouts,
            "asked": asked,
        }
        return InFlight(state, stream.tensors)

    def restore(self, found: InFlight, problems: Mapping[str, Problem]) -> None:
        """Go on where `export` was asked; nothing is in flight.

        Args:
            found: what it gave.
            problems: by key.
        """
        self._stream.restore(InFlight(found.state["stream"], found.tensors))
        self._steps = found.state["steps"]
        requests = [request_from_json(stored) for stored in found.state["requests"]]
        for stored in found.state["rollouts"]:
            name, request = name_from_json(stored["name"]), requests[stored["request"]]
            self._requests[name] = request
            if stored["outcomes"]:
                self._outcomes[name] = tuple(stored["outcomes"])
            if self._runner is not None:
                self._runner.begin(
                    name, problems[name.problem_key], environment_key(request, name), stored["environment"]
                )
        for stored in found.state["asked"]:
            rollout = rollout_from_json(stored["rollout"])
            self._asked[rollout.name] = _Asked(rollout, stored["turn"], stored["due"])
            if self._runner is not None:
                self._runner.step(rollout.name, stored["turn"])


def environment_key(request: Request, name: Name) -> tuple[int, ...]:
    """Whole numbers >= 0 that no other rollout has, for the randomness of an environment."""
    problem = hashlib.blake2b(name.problem_key.encode(), digest_size=8).digest()
    evaluated = int(request.step < 0)  # evaluations have a step below 0
    return request.seed, abs(request.step), evaluated, name.sample, int.from_bytes(problem, "little")


def _failed(rollout: Rollout, failure: Failure) -> Rollout:
    stops = {"timeout": StopReason.ENVIRONMENT_TIMEOUT, "crash": StopReason.ENVIRONMENT_CRASH}
    return replace(rollout, stop=stops[failure.kind], failure=failure.detail)


@dataclass
class Answerer:
    """Answers problems: an engine, and the environments in which it does so."""

    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    runner: Runner | None = None
    """None: the model writes an answer in one go."""
    waited: float = 0.0
    """Seconds so far in which `answers` had nothing to draw, because every rollout waited for its environment."""

    def open(self, *, recompute: bool = False, schedule: Schedule = "clock") -> Episodes:
        """A new stream of rollouts, see `Engine.open` and `Episodes`."""
        return Episodes(self.engine.open(recompute=recompute), self.tokenizer, self.runner, schedule)

    def answers(self, problems: Sequence[Problem], requests: Sequence[Request]) -> Iterator[Rollout]:
        """Rollouts of all requests, one by one as they are over. `problems[i]` belongs to `requests[i]`.

        Raises:
            EngineError: as `Episodes.submit`, before anything is generated. Later: as `Episodes.advance`.
        """
        episodes = self.open()
        for problem, request in zip(problems, requests, strict=True):
            episodes.submit(problem, request)
        return self._all(episodes)

    def _all(self, episodes: Episodes) -> Iterator[Rollout]:
        while episodes.in_flight:
            yield from episodes.advance()
        self.waited += episodes.waited
