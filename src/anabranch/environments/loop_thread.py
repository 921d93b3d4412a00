"""A thread with an event loop that belongs to environments: it survives what they raise, and can be left behind."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine, Hashable
from contextlib import suppress
from pathlib import Path
from typing import Any

TICK = 0.1
"""Seconds between two beats of a loop."""
STOP_SECONDS = 1.0
"""So long are cancelled tasks waited for."""


class LoopThread:
    """An event loop that turns in a thread of its own, and can be left behind."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.lives: set[asyncio.Task[None]] = set()
        self.beats = 0
        self.running: tuple[Hashable, str] | None = None
        """The rollout whose environment runs at this moment, and in which method."""
        self._stopping = False
        self._thread = threading.Thread(target=self._turn, name="anabranch environments", daemon=True)
        self._thread.start()

    def post(self, callback: Callable[[], object]) -> None:
        """Have something done in the thread. Nothing happens if it is gone."""
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(callback)

    def culprit(self) -> str:
        """What the thread is doing, in words."""
        running, frame = self.running, sys._current_frames().get(self._thread.ident or 0)
        who = f"{running[1]} of {running[0]!r}" if running else "a task that an environment left behind"
        return who if frame is None else f"{who} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"

    def abandon(self) -> None:
        """Have it end when it turns again."""
        self._stopping = True
        self.post(self.loop.stop)

    def shut(self, last: Callable[[], Coroutine[Any, Any, None]], blocked_seconds: float) -> None:
        """Do a last thing, then end.

        Args:
            last: does it; must end by itself, unless the thread is blocked.
            blocked_seconds: without a beat for so long, the thread is left behind.
        """
        done = threading.Event()
        tasks = []

        async def closing() -> None:
            try:
                await last()
            finally:
                done.set()

        self.post(lambda: tasks.append(self.loop.create_task(closing())))  # kept, as the loop itself keeps none
        looks, seen = 0, -1
        while not done.wait(TICK) and looks * TICK < blocked_seconds:
            looks = looks + 1 if self.beats == seen else 0
            seen = self.beats
        self.abandon()
        self._thread.join(2 * STOP_SECONDS)

    def _beat(self) -> None:
        self.beats += 1
        self.loop.call_later(TICK, self._beat)

    def _turn(self) -> None:
        self.loop.call_soon(self._beat)
        while not self._stopping:
            try:
                self.loop.run_forever()
            except BaseException:  # noqa: BLE001 - SystemExit in a task that an environment started: turn on
                continue
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            with suppress(BaseException):  # as above
                self.loop.run_until_complete(asyncio.wait(tasks, timeout=STOP_SECONDS))
        self.loop.set_exception_handler(lambda loop, context: None)  # of tasks that did not obey; `Runner.not_closed`
        self.loop.close()
