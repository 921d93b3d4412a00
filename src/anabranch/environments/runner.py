"""Environments of many rollouts at once, in a thread with an event loop, for a caller that is synchronous.

    with Runner(world) as runner:
        runner.begin(name, problem, key)
        runner.step(name, "what the model wrote")
        ...                                         # other work; the environment runs meanwhile
        for name, answer in runner.results(timeout=0):
            ...                                     # an Observation, or a Failure
        runner.end(name)

Whatever an environment does, its caller gets exactly one answer to every step, in time, and no exception. One that
blocks the thread (a loop without `await`, `time.sleep`) is noticed, too: the rollouts whose environments lived there
fail with its name, and a new thread serves those that begin later. A thread cannot be killed: it stays behind.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Container, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from anabranch.environments.base import Environment, Observation, World
from anabranch.environments.guard import Ended, Failure, checked, guarded
from anabranch.environments.loop_thread import TICK, LoopThread
from anabranch.records import Problem

__all__ = ["Failure", "Runner"]

T = TypeVar("T")

BLOCKED_SECONDS = 1.0
"""So much longer than the deadline of a call may the thread be blocked."""
CLOSE_SECONDS = 5.0
"""Longest wait for an environment to close, if its deadline is not shorter, and for the world."""
LINGER_SECONDS = 1.0
"""So long is a cancelled call waited for before the environment is closed. If it is still there, that is not done."""


class Runner:
    """Runs the environments of a world, one for each rollout. A context manager; its methods may be called from any
    thread.

    Args:
        world: makes the environments. Closed with the runner.

    Every method but `close`, `world` and `outstanding` raises RuntimeError after `close`, and ValueError for a name
    that was not begun, or was ended.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.not_closed = 0
        """Environments that did not close as they should: their `close` raised, was late, or could not be called."""
        self._seconds = float(world.seconds)
        self._changed = threading.Condition()
        self._rollouts: dict[Hashable, _Rollout] = {}
        self._answers: deque[_Rollout] = deque()
        self._answered = 0
        self._closed = False
        self._bug: BaseException | None = None
        self._thread = LoopThread()
        self._stop_watching = threading.Event()
        threading.Thread(target=self._watch, name="anabranch environments watchdog", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def begin(
        self, name: Hashable, problem: Problem, key: tuple[int, ...], state: Mapping[str, Any] | None = None
    ) -> None:
        """Make an environment and start it, in the background; if that fails, the first step says so.

        Args:
            name: of the rollout; free again after `end`.
            problem: see `Environment.reset`.
            key: see `Environment.reset`.
            state: what `state` gave in another process: go on from there. None: begin anew.

        Raises:
            ValueError: the name is in use.
        """
        with self._changed:
            self._check()
            if name in self._rollouts:
                raise ValueError(f"the rollout {name!r} has begun already")
            rollout = _Rollout(name, problem, key, self._thread, dict(state or {}))
            self._rollouts[name] = rollout
            self._thread.post(lambda: self._start(rollout))

    def step(self, name: Hashable, text: str) -> None:
        """Hand a turn of the model to an environment, once it has begun; the answer comes through `results`.

        Raises:
            ValueError: the answer to the last one was not fetched.
        """
        with self._changed:
            rollout = self._find(name)
            if rollout.asked is not None:
                raise ValueError(f"the rollout {name!r} has a step under way already")
            rollout.asked = time.monotonic()
            if rollout.lost is not None:
                self._publish(rollout, rollout.lost, None)
            else:
                rollout.thread.post(lambda: rollout.inbox.put_nowait(text))

    def results(
        self, timeout: float | None, among: Container[Any] | None = None
    ) -> list[tuple[Any, Observation | Failure]]:
        """The answers that have come and were not fetched, in the order in which they came.

        Args:
            timeout: most seconds to wait for one; 0: none; None: as long as it takes. Without a step under way
                nothing is waited for.
            among: only those of these rollouts; None: of all. Callers that share a runner leave each other's alone.
        """

        def mine(rollouts: Iterable[_Rollout]) -> list[_Rollout]:
            return [rollout for rollout in rollouts if among is None or rollout.name in among]

        def over() -> bool:
            idle = all(rollout.asked is None for rollout in mine(self._rollouts.values()))
            return bool(mine(self._answers)) or idle or self._closed or self._bug is not None

        with self._changed:
            self._check()
            self._changed.wait_for(over, timeout)
            self._check()
            return [(rollout.name, self._fetch(rollout)) for rollout in mine(self._answers)]

    def wait_for(self, name: Hashable, timeout: float | None) -> Observation | Failure:
        """The answer to the step of one rollout.

        Raises:
            TimeoutError: for `timeout` seconds no answer came, neither this one nor another. (As long as others come,
                it may only be waiting for its turn at something that they share.)
            ValueError: no step is under way.
        """
        with self._changed:
            rollout = self._find(name)
            if rollout.asked is None:
                raise ValueError(f"the rollout {name!r} has no step under way")
            while rollout.answer is None:
                if not self._changed.wait_for(partial(self._moved, self._answered), timeout):
                    waited = time.monotonic() - rollout.asked
                    raise TimeoutError(f"no environment answered for {timeout:g} s; {name!r} asked {waited:.1f} s ago")
                self._find(name)
            return self._fetch(rollout)

    def state(self, name: Hashable) -> Mapping[str, Any]:
        """What `begin` needs to go on from here in another process, in plain JSON types; does not wait.

        It is the state behind the last answer that was fetched: a step under way, or an answer that was not fetched,
        is not in it, and has to be asked for again.
        """
        with self._changed:
            return self._find(name).state

    def end(self, name: Hashable) -> None:
        """The rollout is over: close its environment in the background. An answer that was not fetched is dropped."""
        with self._changed:
            rollout = self._find(name)
            del self._rollouts[name]
            if rollout.answer is not None:
                self._answers.remove(rollout)
            rollout.thread.post(rollout.give_up)
            self._changed.notify_all()

    @property
    def outstanding(self) -> dict[Hashable, float]:
        """Rollouts whose step has no answer yet, and for how many seconds."""
        with self._changed:
            now = time.monotonic()
            return {
                name: now - rollout.asked
                for name, rollout in self._rollouts.items()
                if rollout.asked is not None and rollout.answer is None
            }

    def close(self) -> None:
        """End everything, within a few times `CLOSE_SECONDS`, however environments behave. May be called twice."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            thread, rollouts = self._thread, tuple(self._rollouts.values())
            self._rollouts.clear()
            self._answers.clear()
            self._changed.notify_all()
        self._stop_watching.set()
        for rollout in rollouts:
            rollout.thread.post(rollout.give_up)
        thread.shut(self._close_world, min(self._seconds, CLOSE_SECONDS) + BLOCKED_SECONDS)

    # -------------------------------------------------------------------------------------------- with the lock held

    def _check(self) -> None:
        if self._bug is not None:
            raise RuntimeError("the runner of the environments has failed") from self._bug
        if self._closed:
            raise RuntimeError("the runner is closed")

    def _find(self, name: Hashable) -> _Rollout:
        self._check()
        if name not in self._rollouts:
            raise ValueError(f"no rollout {name!r} has begun")
        return self._rollouts[name]

    def _moved(self, answered: int) -> bool:
        return self._answered != answered or self._closed or self._bug is not None

    def _publish(self, rollout: _Rollout, answer: Observation | Failure, state: dict[str, Any] | None) -> None:
        """The answer to the step under way."""
        rollout.answer, rollout.next_state = answer, state
        self._answers.append(rollout)
        self._answered += 1
        self._changed.notify_all()

    def _fetch(self, rollout: _Rollout) -> Observation | Failure:
        self._answers.remove(rollout)
        answer = rollout.answer
        assert answer is not None
        rollout.asked = rollout.answer = None
        if rollout.next_state is not None:
            rollout.state = rollout.next_state
        return answer

    # -------------------------------------------------------------------------------------------------- in the thread

    def _start(self, rollout: _Rollout) -> None:
        task = rollout.thread.loop.create_task(self._live(rollout))
        rollout.thread.lives.add(task)
        task.add_done_callback(partial(self._ended, rollout.thread))

    def _ended(self, thread: LoopThread, task: asyncio.Task[None]) -> None:
        """A life is over. It never raises, unless there is a mistake in here: then the caller hears of it."""
        thread.lives.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            with self._changed:
                self._bug = error
                self._changed.notify_all()

    async def _live(self, rollout: _Rollout) -> None:
        """From begin to end."""
        rollout.given_up = asyncio.get_running_loop().create_future()
        if rollout.gone:
            rollout.given_up.set_result(None)
        begun = await self._call(rollout, "reset", partial(self._begun, rollout), self._seconds)
        failure, last = None, begun.task
        if isinstance(begun.result, Failure):
            failure = begun.result
        else:
            with self._changed:
                rollout.state = begun.result
        while (text := await rollout.inbox.get()) is not None:
            answer: Observation | Failure
            if failure is not None:
                answer, state = failure, None
            else:
                stepped = await self._call(rollout, "step", partial(_stepped, rollout, text), self._seconds)
                last = stepped.task
                if isinstance(stepped.result, Failure):
                    answer, state = stepped.result, None
                    failure = stepped.result
                else:
                    answer, state = stepped.result
            with self._changed:
                if self._rollouts.get(rollout.name) is rollout and rollout.lost is None:
                    self._publish(rollout, answer, state)
        await self._finish(rollout, last)

    async def _finish(self, rollout: _Rollout, last: asyncio.Task[Any]) -> None:
        """Close the environment, once the last call is over: its methods are never called at the same time."""
        await asyncio.wait({last}, timeout=LINGER_SECONDS)
        if rollout.environment is None and last.done():
            return
        if rollout.environment is not None and last.done():
            rollout.given_up = asyncio.get_running_loop().create_future()
            limit = min(self._seconds, CLOSE_SECONDS)
            ended = await self._call(rollout, "close", rollout.environment.close, limit)
            if not isinstance(ended.result, Failure):
                return
        with self._changed:
            self.not_closed += 1

    async def _begun(self, rollout: _Rollout) -> dict[str, Any]:
        environment = rollout.environment = self.world.environment()
        if rollout.state:
            await environment.restore(rollout.problem, rollout.key, rollout.state["state"])
        else:
            await environment.reset(rollout.problem, rollout.key)
        return _state(environment)

    async def _call(self, rollout: _Rollout, what: str, call: Callable[[], Awaitable[T]], seconds: float) -> Ended[T]:
        thread = rollout.thread

        def mark(runs: bool) -> None:
            thread.running = (rollout.name, what) if runs else None

        return await guarded(what, call, seconds, mark, rollout.given_up)

    async def _close_world(self) -> None:
        """Wait for all lives to end, then close the world."""
        thread = self._thread
        if thread.lives:
            await asyncio.wait(thread.lives, timeout=CLOSE_SECONDS + LINGER_SECONDS)
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await guarded("close of the world", self.world.close, CLOSE_SECONDS, lambda _: None, never)

    # --------------------------------------------------------------------------------------------------- the watchdog

    def _watch(self) -> None:
        """Replace the thread when it stops turning. Counts looks, not seconds: a stopped process is not a hang."""
        limit = math.ceil((self._seconds + BLOCKED_SECONDS) / TICK)
        seen, still = (self._thread, -1), 0
        while not self._stop_watching.wait(TICK):
            now = (self._thread, self._thread.beats)
            still = still + 1 if now == seen else 0
            seen = now
            if still >= limit:
                self._replace()
                still = 0

    def _replace(self) -> None:
        old = self._thread
        detail = f"{old.culprit()} blocked the thread of all environments for more than {self._seconds:g} s"
        with self._changed:
            if self._closed:
                return
            self._thread = LoopThread()
            for rollout in [rollout for rollout in self._rollouts.values() if rollout.thread is old]:
                rollout.lost = Failure("timeout", detail)
                if rollout.asked is not None and rollout.answer is None:
                    self._publish(rollout, rollout.lost, None)
        old.abandon()


@dataclass(eq=False)
class _Rollout:
    """One name between `begin` and `end`."""

    name: Any
    problem: Problem
    key: tuple[int, ...]
    thread: LoopThread
    state: dict[str, Any]
    """`{"state": ...}` behind the last answer that was fetched; empty before the first, if it was not restored."""
    next_state: dict[str, Any] | None = None
    environment: Environment | None = None
    asked: float | None = None
    """When its step was asked for, until its answer is fetched."""
    answer: Observation | Failure | None = None
    lost: Failure | None = None
    """Its thread is gone."""
    inbox: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue)
    gone: bool = False
    given_up: asyncio.Future[None] = field(init=False)
    """Set by its life, in the thread."""

    def give_up(self) -> None:
        """In the thread: end the call under way, then the life."""
        self.inbox.put_nowait(None)
        if not self.gone and "given_up" in self.__dict__ and not self.given_up.done():
            self.given_up.set_result(None)
        self.gone = True


async def _stepped(rollout: _Rollout, text: str) -> tuple[Observation, dict[str, Any]]:
    assert rollout.environment is not None
    found = checked(await rollout.environment.step(text))
    return found, _state(rollout.environment)


def _state(environment: Environment) -> dict[str, Any]:
    """A copy of its state, plain JSON types.

    Raises:
        TypeError, ValueError: it is not made of those.
    """
    return {"state": json.loads(json.dumps(dict(environment.state()), allow_nan=False))}
