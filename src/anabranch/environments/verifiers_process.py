"""The trainer's end of `anabranch.environments.verifiers_host`."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from anabranch.errors import WorldError, explain

COMMAND = (sys.executable, "-m", "anabranch.environments.verifiers_host")
STOP_SECONDS = 3.0
"""How long a process may take to tidy up before it is killed."""
BLOCKED_SECONDS = 3.0
"""A process that does not take note of the end of a rollout within this is blocked by the code of one, and killed."""
KEPT_LINES = 20
"""How much of what it printed last an error shows."""


class HostProcess:
    """A process in which environments run. Its methods may be called by any thread.

    Args:
        opening: arguments of the operation `open`.
    """

    def __init__(self, opening: Mapping[str, Any]) -> None:
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
        )
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._asked: dict[int, Future[Any]] = {}
        self._printed: deque[str] = deque(maxlen=KEPT_LINES)
        self._why = ""
        self._errors = threading.Thread(target=self._read_errors, daemon=True)
        self._answers = threading.Thread(target=self._read, daemon=True)
        self._errors.start()
        self._answers.start()
        self.opened: Future[list[str]] = self.ask("open", **opening)
        """The tools that the model may call, as JSON."""

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return not self._why and self._process.poll() is None

    def ask(self, op: str, **arguments: Any) -> Future[Any]:
        """Send an operation; its result, or a `WorldError`."""
        future: Future[Any] = Future()
        with self._lock:
            number = next(self._numbers)
            self._asked[number] = future
            try:
                assert self._process.stdin is not None
                self._process.stdin.write(json.dumps({"id": number, "op": op, **arguments}) + "\n")
            except (OSError, ValueError):  # it has ended, or its input is closed
                del self._asked[number]
                future.set_exception(self._gone())
        return future

    def end(self, rollout: int) -> None:
        """Give up a rollout; does not wait. A process that cannot even note it is killed, with the rollouts in it."""
        noted = self.ask("end", rollout=rollout)
        found = f"code of an environment blocked its process for more than {BLOCKED_SECONDS:g} s: it was ended"
        watch = threading.Timer(BLOCKED_SECONDS, self.kill, (found,))
        watch.daemon = True
        watch.start()
        noted.add_done_callback(lambda _: watch.cancel())

    def kill(self, why: str) -> None:
        """End it at once, with all that it started; what was asked fails with `why`."""
        self._why = self._why or why
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End it. Waits until it is gone."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(json.dumps({"id": -1, "op": "stop"}) + "\n")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self.kill("it was closed")  # also what it left behind
        self._process.wait()
        self._answers.join()
        self._errors.join()
        with contextlib.suppress(OSError):  # something unsent for a process that is gone
            self._process.stdin.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found = json.loads(line)
            with self._lock:
                future = self._asked.pop(found["id"])
            if not future.set_running_or_notify_cancel():
                continue
            if "error" in found:
                future.set_exception(WorldError(found["error"]))
            else:
                future.set_result(found["ok"])
        self._process.stdout.close()
        self._process.wait()
        with self._lock:
            left, self._asked = self._asked, {}
        for future in left.values():
            if future.set_running_or_notify_cancel():
                future.set_exception(self._gone())

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        while line := self._process.stderr.readline(10_000):
            self._printed.append(line)
        self._process.stderr.close()

    def _gone(self) -> WorldError:
        found = self._why or f"its process ended ({self._process.poll()}): {''.join(self._printed).strip()[-500:]}"
        return WorldError(explain("environment", found, "it must live", "see what its code does"))
