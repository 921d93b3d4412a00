"""One call of an environment's method, whatever that does: it ends in time, with a result or with a `Failure`."""

from __future__ import annotations

import asyncio
import math
import traceback
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from anabranch.environments.base import Observation

T = TypeVar("T")

LONGEST_TEXT = 1_000_000
"""Characters; an observation that is longer is a failure."""
DETAIL_CHARS = 300


@dataclass(frozen=True)
class Failure:
    """An environment did not do what it should. Its rollout is over."""

    kind: Literal["timeout", "crash"]
    """timeout: no answer in time. crash: anything else."""
    detail: str
    """For people: which method, and what happened."""


class Clock:
    """The deadline of one call. It stands still while the call waits for its turn at something shared.

    Args:
        seconds: of wall clock, from now on.
    """

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self.expired: asyncio.Future[None] = self._loop.create_future()
        self._left = seconds
        self._waiting = 0
        self._go_on()

    def stop(self) -> None:
        """The call is over."""
        self._handle.cancel()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time in here does not count."""
        if not self._waiting:
            self._left = self._handle.when() - self._loop.time()
            self._handle.cancel()
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting and not self.expired.done():
                self._go_on()

    def _go_on(self) -> None:
        self._handle = self._loop.call_later(max(0.0, self._left), self._expire)

    def _expire(self) -> None:
        if not self.expired.done():
            self.expired.set_result(None)


_CLOCK: ContextVar[Clock | None] = ContextVar("anabranch_environment_clock", default=None)
"""Of the call that runs: every call has its own context."""


@contextmanager
def queued() -> Iterator[None]:
    """For environments that share something: the time spent in here is not counted as the rollout's own.

        with queued():
            await slots.acquire()

    What is waited for must be sure to come, for instance because every holder has a deadline.
    """
    clock = _CLOCK.get()
    if clock is None:
        yield
    else:
        with clock.paused():
            yield


@dataclass(frozen=True)
class _Raised:
    """What a call raised."""

    error: BaseException


class _Driven(Generic[T]):
    """Awaits a coroutine, and notes around every stretch of it that it is the one that runs.

    Whatever the coroutine raises, cancellation apart, is given back as `_Raised`: also SystemExit and its like, which
    would otherwise end the loop.
    """

    def __init__(self, call: Awaitable[T], mark: Callable[[bool], None]) -> None:
        self._call = call
        self._mark = mark

    def __await__(self) -> Generator[Any, Any, T | _Raised]:
        inner = self._call.__await__()
        value: Any = None
        error: BaseException | None = None
        while True:
            self._mark(True)
            try:
                wanted = inner.send(value) if error is None else inner.throw(error)
            except StopIteration as stop:
                result: T = stop.value
                return result
            except asyncio.CancelledError:
                raise
            except BaseException as raised:  # noqa: BLE001 - the boundary: an environment may raise anything
                return _Raised(raised)
            finally:
                self._mark(False)
            value = error = None
            try:
                value = yield wanted
            except GeneratorExit:
                inner.close()
                raise
            except BaseException as thrown:  # noqa: BLE001 - cancellation, above all: it belongs to the environment
                error = thrown


@dataclass(frozen=True)
class Ended(Generic[T]):
    """How a call ended."""

    result: T | Failure
    task: asyncio.Task[Any]
    """Done, unless the call did not obey when it was cancelled."""


async def guarded(
    what: str,
    call: Callable[[], Awaitable[T]],
    seconds: float,
    mark: Callable[[bool], None],
    given_up: asyncio.Future[None],
) -> Ended[T]:
    """Call a method of an environment.

    Args:
        what: its name, for details.
        call: calls it.
        seconds: its deadline; then it is cancelled, and not waited for.
        mark: told True before every stretch of it that runs without a pause, and False behind.
        given_up: nobody wants the result any more; then it is cancelled, too.
    """

    async def run() -> T | _Raised:
        async def inner() -> T:
            return await call()  # in here, so that a method that is not async is an error like any other

        return await _Driven(inner(), mark)

    clock = Clock(seconds)
    context = copy_context()
    context.run(_CLOCK.set, clock)
    task = asyncio.get_running_loop().create_task(run(), context=context)
    try:
        first: set[asyncio.Future[Any]] = {task, clock.expired, given_up}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    finally:
        clock.stop()
    if not task.done():
        task.cancel()
        reason = "was given up" if given_up.done() else f"did not answer within {seconds:g} s"
        return Ended(Failure("timeout", f"{what} {reason}"), task)
    if task.cancelled():
        return Ended(Failure("crash", f"{what} raised CancelledError"), task)
    found = task.result()
    return Ended(Failure("crash", f"{what} raised {_told(found.error)}") if isinstance(found, _Raised) else found, task)


def _told(error: BaseException) -> str:
    """An exception in a line: its type, its text, and where it was raised."""
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - the boundary: that is the environment's code, too
        text = "(no text)"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}"[:DETAIL_CHARS] + place


def checked(found: object) -> Observation:
    """What `step` gave, if it is what the contract says.

    Raises:
        TypeError, ValueError: it is not; says what is wrong.
    """
    if not isinstance(found, Observation):
        raise TypeError(f"step gave {type(found).__name__}, not an Observation")
    text, reward = found.text, found.reward
    if not isinstance(text, str) or not isinstance(found.outcome, str):
        raise TypeError("text and outcome of an Observation are str")
    if not text and not found.done:
        raise ValueError("an Observation without text, but not done")
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"an Observation of {len(text)} characters (at most {LONGEST_TEXT})")
    text.encode()  # raises where half a surrogate pair could not be encoded for the model either
    if reward is not None and not (isinstance(reward, Real) and math.isfinite(reward) and 0 <= reward <= 1):
        raise ValueError(f"reward {str(reward)[:50]}: must be in [0, 1], or None")
    reward = None if reward is None else float(reward)
    return replace(found, done=bool(found.done), reward=reward, marks=bool(found.marks))
