"""Runs jobs in processes of their own, several at a time, each once what it waits for is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from anabranch.errors import RunFolderError, explain
from anabranch.study.plan import Job
from anabranch.study.worker import DISK_FULL
from anabranch.tracking.display import printable
from anabranch.tracking.files import writing

POLL = 0.2
"""Seconds between looks at the processes."""
TAIL = 12
"""Lines of its output by which a failed run is explained."""


@dataclass
class Standing:
    """Where every job of a study stands."""

    waiting: list[Job]
    done: list[Job]
    running: dict[Job, float] = field(default_factory=dict)
    """Since when, by the clock of `time.monotonic`."""
    failed: dict[Job, str] = field(default_factory=dict)
    """What it said last."""
    seconds: dict[Job, float] = field(default_factory=dict)
    """How long the jobs took that were done by this process."""


class Watcher(Protocol):
    """Is told what happens, for a display."""

    def started(self, job: Job) -> None:
        """A process runs."""

    def ended(self, job: Job, standing: Standing) -> None:
        """It is done or has failed."""

    def look(self, standing: Standing) -> None:
        """Time has passed."""


def run_all(
    standing: Standing,
    *,
    command: Callable[[Job], Sequence[str]],
    log: Callable[[Job], Path],
    at_once: int,
    watcher: Watcher,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run what is waiting. Failures are noted, and the others go on.

    Ended by an exception (Ctrl-C among them), it kills what is running; that loses nothing but the time since the last
    checkpoint. Killed itself, its processes die with it.

    Args:
        standing: what waits and what is done; changed in place.
        command: what to run for a job.
        log: where its output goes; appended.
        at_once: most processes at a time.
        watcher: is told.
        environment: of the processes; None: this one's.

    Raises:
        RunFolderError: the disk is full: nothing else is started, what runs is stopped.
    """
    processes: dict[Job, subprocess.Popen[bytes]] = {}
    try:
        while standing.waiting or processes:
            for job in _ready(standing)[: at_once - len(processes)]:
                standing.waiting.remove(job)
                processes[job] = _begin(command(job), log(job), environment)
                standing.running[job] = time.monotonic()
                watcher.started(job)
            for job, process in list(processes.items()):
                if process.poll() is not None:
                    del processes[job]
                    _end(job, process, standing, log(job))
                    watcher.ended(job, standing)
            watcher.look(standing)
            if processes:
                time.sleep(POLL)
    finally:
        for process in processes.values():
            _kill(process)


def _ready(standing: Standing) -> list[Job]:
    """Jobs that wait for nothing but a free place. What waits for a job that failed fails with it."""
    for job in list(standing.waiting):
        broken = next((other for other in standing.failed if _needs(job, other)), None)
        if broken is not None:
            standing.waiting.remove(job)
            standing.failed[job] = f"its {broken.title} failed"
    blocked = [*standing.waiting, *standing.running]
    return [job for job in standing.waiting if not any(_needs(job, other) for other in blocked)]


def _needs(job: Job, other: Job) -> bool:
    return other.cold and job.after == other.arm and job.seed == other.seed


def _begin(command: Sequence[str], log: Path, environment: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
    """A process in a session of its own, so that Ctrl-C reaches only us; it lives as long as its input is open."""
    with writing(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=None if environment is None else dict(environment),
            )


def _end(job: Job, process: subprocess.Popen[bytes], standing: Standing, log: Path) -> None:
    assert process.stdin is not None
    process.stdin.close()
    began = standing.running.pop(job)
    if process.returncode == 0:
        standing.done.append(job)
        standing.seconds[job] = time.monotonic() - began
        return
    if process.returncode == DISK_FULL:
        total = len(standing.done) + len(standing.waiting) + len(standing.running) + len(standing.failed) + 1
        raise RunFolderError(
            explain(
                job.title,
                f"a full disk\n  {_last_lines(log, 3)}",
                f"every run has to be written; {len(standing.done)} of {total} are finished and kept",
                "free some space, then give the same command again",
            )
        )
    ended = f"exit code {process.returncode}"
    if process.returncode < 0:
        ended = f"killed by {signal.Signals(-process.returncode).name}; the same command goes on with it"
    standing.failed[job] = f"{_last_lines(log, TAIL)}\n({ended}; all of its output: {log})".lstrip()


def _last_lines(log: Path, count: int) -> str:
    with suppress(OSError):  # what it printed only explains
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return printable("\n".join(lines[-count:]))
    return ""


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    with suppress(ProcessLookupError):  # it has just ended by itself
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def worker_command(root: Path) -> Callable[[Job], Sequence[str]]:
    """How a job of the study in a folder is run."""

    def command(job: Job) -> Sequence[str]:
        kind = "cold" if job.cold else "run"
        return [sys.executable, "-m", "anabranch.study.worker", str(root), str(job.arm), str(job.seed), kind]

    return command
