"""What a person sees while a study goes on: a live table on a terminal, one line an event everywhere else."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from anabranch.study.jobs import Standing
from anabranch.study.plan import Job
from anabranch.tracking.display import TITLES, duration

LISTED = 6
"""Waiting runs that are named."""


class Progress:
    """Shows a study. A context manager.

    Args:
        stream: a terminal gets a live table, anything else lines.
        metrics: the file of a job's metrics.
        steps: RL steps of a job.
        clock: for tests.
    """

    def __init__(
        self,
        stream: TextIO,
        metrics: Callable[[Job], Path],
        steps: Callable[[Job], int],
        at_once: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = Console(file=stream)
        self._metrics, self._steps, self._at_once, self._clock = metrics, steps, at_once, clock
        self._stack = ExitStack()
        self._live: Live | None = None
        self._looked = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = self._stack.enter_context(Live(console=self._console, refresh_per_second=4, transient=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def note(self, text: str) -> None:
        """A line that stays."""
        self._console.print(Text(text), soft_wrap=True)

    def started(self, job: Job) -> None:
        """See `Watcher.started`."""
        if self._live is None:
            self.note(f"started   {job.title}")

    def ended(self, job: Job, standing: Standing) -> None:
        """See `Watcher.ended`."""
        if job in standing.failed:
            self.note(f"FAILED    {job.title}: {standing.failed[job]}")
            return
        took = duration(standing.seconds[job])
        self.note(f"finished  {job.title}  in {took}{_shown(self._last(job))}  ({self._state(standing)})")

    def look(self, standing: Standing) -> None:
        """See `Watcher.look`: twice a second at most, logs are read."""
        now = self._clock()
        if self._live is not None and now - self._looked >= 0.5:
            self._looked = now
            self._live.update(self.table(standing))

    def table(self, standing: Standing) -> Group:
        """The live display: a head, one row for each process, and what comes next."""
        head = Text(self._state(standing), style="bold")
        table = Table(box=None, show_header=False, padding=(0, 2))
        for job, since in standing.running.items():
            record = self._last(job)
            where = ""
            if record is not None:
                title = TITLES.get(record["stage"], record["stage"])
                where = f"{title} {record['step']}" + (f"/{self._steps(job)}" if record["stage"] == "rl" else "")
            table.add_row("running", job.title, where, _shown(record), duration(self._clock() - since))
        names = ", ".join(job.title for job in standing.waiting[:LISTED])
        more = f" and {len(standing.waiting) - LISTED} more" if len(standing.waiting) > LISTED else ""
        rows: list[Any] = [head, table]
        if names:
            rows.append(Text(f"waiting: {names}{more}", style="dim"))
        return Group(*rows)

    def left(self, standing: Standing) -> float | None:
        """Seconds that are left: jobs of one kind are taken to last as long as those that were seen. None: not known
        yet."""
        shares = {job: self._share(job) for job in standing.running}
        ages = {job: self._clock() - since for job, since in standing.running.items()}
        rest = 0.0
        for cold in (True, False):
            seen = [seconds for job, seconds in standing.seconds.items() if job.cold is cold]
            guesses = [ages[job] / share for job, share in shares.items() if job.cold is cold and share > 0.05]
            waiting = sum(job.cold is cold for job in standing.waiting)
            running = [ages[job] for job in standing.running if job.cold is cold]
            if not (waiting or running):
                continue
            if not (seen or guesses):
                if not cold:
                    return None
                continue  # cold starts are short beside what follows
            usual = sum(seen or guesses) / len(seen or guesses)
            rest += usual * waiting + sum(max(0.0, usual - age) for age in running)
        return rest / self._at_once

    def _share(self, job: Job) -> float:
        record = self._last(job)
        return record["step"] / self._steps(job) if record is not None and record["stage"] == "rl" else 0.0

    def _state(self, standing: Standing) -> str:
        left = self.left(standing)
        return self._counts(standing) + ("" if left is None else f", about {duration(left)} left")

    def _counts(self, standing: Standing) -> str:
        total = sum(map(len, (standing.done, standing.running, standing.waiting, standing.failed)))
        failed = f", {len(standing.failed)} failed" if standing.failed else ""
        return f"{len(standing.done)} of {total} done{failed}"

    def _last(self, job: Job) -> dict[str, Any] | None:
        return last_record(self._metrics(job))


def last_record(path: Path) -> dict[str, Any] | None:
    """The last whole record of a log that somebody writes to; None if there is none yet."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65536))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    return json.loads(lines[-1]) if len(lines) > 1 or (lines and lines[0].startswith(b"{")) else None


def _shown(record: dict[str, Any] | None) -> str:
    if record is None:
        return ""
    parts = [
        f"{name} {record[name]:.{digits}}" for name, digits in (("accuracy", "1%"), ("reward", "3f")) if name in record
    ]
    return "  " + "  ".join(parts) if parts else ""
