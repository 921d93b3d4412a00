"""What a person sees while a run goes on: a live line on a terminal, one plain line a step everywhere else."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from anabranch.tracking.tables import TextTable

Record = Mapping[str, Any]

TITLES = {"cold_start": "cold start", "sft": "SFT", "rl": "RL"}
"""Names of stages as people read them; other names are shown as they are."""

UNITS = {"evaluation": ("batch", "batches")}
"""What a stage counts, one and several, where that is not steps."""

_SUPERVISED = (("loss", "loss {:.3f}"), ("lr", "lr {:.2g}"), ("grad_norm", "grad {:.2f}"))
_REINFORCED = (
    ("reward", "reward {:.3f}"),
    ("accuracy", "accuracy {:.1%}"),
    ("entropy", "entropy {:.3f}"),
    ("answer_length_mean", "length {:.0f}"),
    ("truncated", "cut {:.1%}"),
    ("dead_groups", "dead groups {:.0%}"),
    ("grad_norm", "grad {:.2f}"),
)
_SPEED = (
    ("rollouts_per_second", "{:.1f} answers/s"),
    ("tokens_per_second", "{:.0f} tokens/s"),
    ("time/step", "{:.1f} s"),
)
_LIVE = (
    (("loss", "loss {:.3f}"),),
    (
        ("reward", "reward {:.2f}"),
        ("accuracy", "accuracy {:.0%}"),
        ("entropy", "entropy {:.2f}"),
        ("rollouts_per_second", "{:.1f} answers/s"),
        ("tokens_per_second", "{:.0f} tokens/s"),
    ),
)

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """The text without control characters (newline and tab stay): model output must not steer a terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def step_line(record: Record, total: int) -> str:
    """The line of one step that stays: `RL 3/10  reward 0.412  accuracy 41.2%  ...  trained 80/128  ...`.

    Args:
        record: of `metrics.jsonl`; numbers that it does not have are left out.
        total: steps of the stage.
    """
    stage = str(record["stage"])
    parts = [f"{TITLES.get(stage, stage)} {record['step']}/{total}"]
    parts += _formatted(record, _REINFORCED if _has_answers(record) else _SUPERVISED)
    if "trained_rollouts" in record and "generated_rollouts" in record:
        parts.append(f"trained {record['trained_rollouts']}/{record['generated_rollouts']}")
    return "  ".join(parts + _formatted(record, _SPEED))


def _has_answers(record: Record) -> bool:
    """Whether answers were sampled in this step."""
    return "reward" in record or "accuracy" in record


def _formatted(record: Record, fields: tuple[tuple[str, str], ...]) -> list[str]:
    return [pattern.format(record[name]) for name, pattern in fields if name in record]


def duration(seconds: float) -> str:
    """`42 s`, `3:05`, `1:02:03`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Display(ABC):
    """Shows a run. A stage is opened first, then its steps are shown; close at the end, also after an error."""

    @abstractmethod
    def stage(self, name: str, total: int, seconds: float | None = None, *, spent: float = 0.0) -> None:
        """A stage of `total` steps begins, or goes on; it ends earlier if `seconds` of wall clock have passed.

        `spent` of them passed before, in the process that was stopped.
        """

    @abstractmethod
    def phase(self, text: str) -> None:
        """What happens within the step, for instance `generating 57/128`. Shown on terminals only."""

    @abstractmethod
    def step(self, record: Record) -> None:
        """A step is done; `record` is its line of `metrics.jsonl`."""

    @abstractmethod
    def note(self, text: str) -> None:
        """A remark that stays."""

    @abstractmethod
    def table(self, table: TextTable) -> None:
        """A table that stays."""

    @abstractmethod
    def close(self) -> None:
        """Give the terminal back. May be called twice."""

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TimeLeft:
    """Estimates what is left of a stage from the mean time of the steps seen so far."""

    def __init__(self, total: int, seconds: float | None, clock: Callable[[], float], *, spent: float = 0.0) -> None:
        self._total = total
        self._seconds = None if seconds is None else seconds - spent
        self._clock = clock
        self._start = clock()
        self._seen = 0

    def after(self, step: int) -> float:
        """Seconds left once `step` of the stage's steps are done. Call once a step."""
        self._seen += 1
        elapsed = self._clock() - self._start
        by_steps = elapsed / self._seen * max(0, self._total - step)
        return by_steps if self._seconds is None else min(by_steps, max(0.0, self._seconds - elapsed))


class PlainDisplay(Display):
    """One line of text a step, for files and pipes."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._total = 0
        self._left = TimeLeft(0, None, clock)

    def stage(self, name: str, total: int, seconds: float | None = None, *, spent: float = 0.0) -> None:
        """See `Display.stage`."""
        self._total, self._left = total, TimeLeft(total, seconds, self._clock, spent=spent)
        self._print(stage_line(name, total, seconds))

    def phase(self, text: str) -> None:
        """Nothing: a log has no line that changes."""

    def step(self, record: Record) -> None:
        """See `Display.step`."""
        left = duration(self._left.after(int(record["step"])))
        self._print(f"{step_line(record, self._total)}  {left} left")

    def note(self, text: str) -> None:
        """See `Display.note`."""
        self._print(printable(text))

    def table(self, table: TextTable) -> None:
        """See `Display.table`."""
        self._print(printable(table.plain()))

    def close(self) -> None:
        """See `Display.close`."""
        self._stream.flush()

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class LiveDisplay(Display):
    """A live line below lines that stay, for terminals."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._total = 0
        self._left = TimeLeft(0, None, clock)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            TextColumn("{task.completed:.0f}/{task.total:.0f}", markup=False),
            TextColumn("{task.fields[numbers]}", markup=False),
            TextColumn("{task.fields[left]}", markup=False, style="cyan"),
            TextColumn("{task.fields[phase]}", markup=False, style="dim"),
            console=console,
            refresh_per_second=4,
            transient=True,
        )
        self._task = self._progress.add_task("", total=1, visible=False, numbers="", left="", phase="")

    def stage(self, name: str, total: int, seconds: float | None = None, *, spent: float = 0.0) -> None:
        """See `Display.stage`."""
        self._total, self._left = total, TimeLeft(total, seconds, self._clock, spent=spent)
        self._say(Text(stage_line(name, total, seconds), style="bold"))
        title = TITLES.get(name, name)
        self._progress.update(
            self._task, description=title, total=total, completed=0, visible=True, numbers="", left="", phase=""
        )
        self._progress.start()

    def phase(self, text: str) -> None:
        """See `Display.phase`."""
        self._progress.update(self._task, phase=printable(text))

    def step(self, record: Record) -> None:
        """See `Display.step`."""
        done = int(record["step"])
        numbers = "  ".join(_formatted(record, _LIVE[_has_answers(record)]))
        left = f"{duration(self._left.after(done))} left"
        self._progress.update(self._task, completed=done, numbers=numbers, left=left, phase="")
        self._say(Text(step_line(record, self._total)))

    def note(self, text: str) -> None:
        """See `Display.note`."""
        self._say(Text(printable(text)))

    def table(self, table: TextTable) -> None:
        """See `Display.table`."""
        self._console.print(table.rich())

    def close(self) -> None:
        """See `Display.close`."""
        self._progress.stop()

    def _say(self, text: Text) -> None:
        self._console.print(text, highlight=False)


def stage_line(name: str, total: int, seconds: float | None) -> str:
    """`RL: 10 steps, at most 5:00`."""
    limit = "" if seconds is None else f", at most {duration(seconds)}"
    one, several = UNITS.get(name, ("step", "steps"))
    return f"{TITLES.get(name, name)}: {total} {one if total == 1 else several}{limit}"


def make_display(stream: TextIO) -> Display:
    """A live display if `stream` is a terminal that can move its cursor, otherwise plain lines."""
    console = Console(file=stream)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveDisplay(console)
    return PlainDisplay(stream)
