"""A side whose work is to start a program: the time until it writes its first line."""

from __future__ import annotations

import resource
import subprocess
import time
from typing import Any

from benchmarks.worker import Result, Run, Settings, serve


def prepare(settings: Settings) -> Run:
    """Nothing to prepare.

    Args:
        settings: `command`, the program and its arguments.
    """

    def run(_args: dict[str, Any]) -> Result:
        start = time.perf_counter()
        with subprocess.Popen(settings["command"], stdout=subprocess.PIPE, text=True) as program:
            assert program.stdout is not None
            line = program.stdout.readline()
            seconds = time.perf_counter() - start
            program.stdout.read()
            end = time.perf_counter() - start
        if program.returncode != 0 or not line:
            raise RuntimeError(f"{settings['command']} ended with {program.returncode} after the line {line!r}")
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
        return {"work": 1, "seconds": seconds, "until_end": end, "program_peak_mb": peak, "line": line.strip()}

    return run


if __name__ == "__main__":
    serve(prepare)
