"""Repeated measurements: warm-up, spread, what the machine is, and a report that is kept whatever happens."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.text import Text

from anabranch.recipe.tree import Model
from anabranch.tracking.environment import cpu_flags, describe_environment
from anabranch.tracking.files import write_atomic, writing
from anabranch.tracking.metrics import find
from anabranch.tracking.tables import TextTable

Values = Mapping[str, float]
"""What one run measured, by name."""

CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Features of x86 CPUs that decide how fast matrix products are."""

VARIABLES = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "LD_PRELOAD", "MALLOC_ARENA_MAX")
"""Environment variables that change how fast torch is."""

UNITS = {
    "seconds": "seconds",
    "cpu_seconds": "seconds",
    "drawn_seconds": "seconds",
    "samples_per_second": "answers/s",
    "computed_tokens": "tokens",
    "computed_tokens_per_second": "tokens/s",
    "other": "seconds",
    "products_seconds": "seconds",
    "products_share": "share",
    "linear_share": "share",
    "teraflops": "TFLOP/s",
    "products_teraflops": "TFLOP/s",
}
"""Units of what only benchmarks measure; all other names are those of docs/metrics.md."""


def unit(name: str) -> str:
    """The unit of a measured number, whatever stands before it (`ours/seconds`); empty for ratios."""
    if name.startswith("ratio/"):
        return ""
    *_, group, own = ("", *name.split("/"))
    return UNITS[own] if own in UNITS else find(f"time/{own}" if group == "time" else own).unit


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles (linear interpolation), extremes, and how many values there are.

    >>> spread([4.0, 1.0, 2.0, 3.0, 5.0])
    {'median': 3.0, 'q1': 2.0, 'q3': 4.0, 'min': 1.0, 'max': 5.0, 'runs': 5}
    """
    low, first, middle, third, high = (float(value) for value in np.percentile(values, [0, 25, 50, 75, 100]))
    return {"median": middle, "q1": first, "q3": third, "min": low, "max": high, "runs": len(values)}


def summary(runs: Sequence[Values]) -> dict[str, dict[str, float]]:
    """The spread of every number over the runs that have it, in the order in which numbers first appear."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: spread([run[name] for run in runs if name in run]) for name in names}


def restart_peak() -> str:
    """Let the peak of this process's resident memory count from now on, where the system can (Linux).

    Returns:
        What it counts from, in words.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return "start of the process"
    return "end of warm-up"


def load_average() -> list[float]:
    """Of the last 1, 5 and 15 minutes: take it before anything is loaded, so that it is that of others."""
    return list(os.getloadavg())


def machine(model: Model, load: Sequence[float]) -> dict[str, Any]:
    """Plain JSON types: the environment of a run, and what else decides about speed.

    Args:
        model: settled; for its dtype, device and threads.
        load: of `load_average`, before the start.
    """
    info = Path("/proc/cpuinfo")
    flags = cpu_flags(info.read_text(encoding="utf-8", errors="replace")) if info.exists() else set()
    return {
        **describe_environment(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
        "load_average": list(load),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "dtype": model.dtype,
        "device": model.device,
        "threads": model.threads,
        "accelerator": torch.cuda.get_device_name(model.device) if model.device.startswith("cuda") else None,
    }


def number(value: float) -> str:
    """Four digits that count, for tables: `0.01234`, `12.35`, `1,235`."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@dataclass
class Report:
    """What a benchmark found, written to a file after every run, so that an interrupted one keeps what is finished.

    Use it as a context: at the end, also after Ctrl-C or an error, what is there is printed.
    """

    name: str
    """Which benchmark."""
    settings: dict[str, Any]
    """Everything that was asked for; plain JSON types."""
    machine: dict[str, Any]
    """Of `machine`."""
    path: Path | None = None
    """Where to write it as JSON; None: only print."""
    console: Console = field(default_factory=Console)
    runs: list[dict[str, float]] = field(default_factory=list)
    parts: dict[str, Any] = field(default_factory=dict)
    """Whatever else was found; plain JSON types."""
    tables: Callable[[Report], list[TextTable]] = lambda report: [table_of(report)]
    """What is printed at the end."""
    complete: bool = False

    def add(self, run: Values) -> None:
        """Keep the numbers of a run."""
        self.runs.append(dict(run))
        self.write()

    def to_json(self) -> dict[str, Any]:
        """Everything, with the summary over runs."""
        return {
            "bench": self.name,
            "complete": self.complete,
            "settings": self.settings,
            "machine": self.machine,
            "summary": summary(self.runs),
            **self.parts,
            "runs": self.runs,
        }

    def write(self) -> None:
        """Write what there is so far.

        Raises:
            RunFolderError: it could not be written.
        """
        if self.path is not None:
            write_atomic(self.path, json.dumps(self.to_json(), indent=1) + "\n")

    def __enter__(self) -> Report:
        if self.path is not None:
            with writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
        self.write()  # a path that cannot be written is an error before anything is measured
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.complete = error is None
        self.write()
        if self.runs:
            for table in self.tables(self):
                self.console.print(
                    table.rich() if self.console.is_terminal else Text(f"{table.plain()}\n"), soft_wrap=True
                )


def table_of(report: Report) -> TextTable:
    """Every measured number: median, quartiles and extremes over the runs."""
    rows = tuple(
        (name, number(s["median"]), f"{number(s['q1'])} - {number(s['q3'])}", _extremes(s), unit(name))
        for name, s in summary(report.runs).items()
    )
    return TextTable(title(report), ("", "median", "quartiles", "extremes", "unit"), rows)


def side_by_side(report: Report, prefix: str, sides: Sequence[str], heading: str) -> TextTable:
    """Median and extremes of `<prefix><side>/<name>`, a column a side, and of `ratio/<prefix><name>` where it is."""
    spreads = summary(report.runs)
    known = [f"{prefix}{side}/" for side in sides]
    names = dict.fromkeys(name.removeprefix(start) for start in known for name in spreads if name.startswith(start))

    def cell(name: str) -> str:
        if name not in spreads:
            return ""
        return f"{number(spreads[name]['median'])} ({_extremes(spreads[name])})"

    rows = tuple(
        (name, *(cell(f"{start}{name}") for start in known), cell(f"ratio/{prefix}{name}"), unit(name))
        for name in names
    )
    return TextTable(heading, ("median (extremes)", *sides, "ratio", "unit"), rows)


def _extremes(found: Mapping[str, float]) -> str:
    return f"{number(found['min'])} - {number(found['max'])}"


def title(report: Report) -> str:
    """`bench step: prompts 8, answers 8, ...; bfloat16, 2 threads, 5 runs`."""
    settings = ", ".join(f"{name} {value}" for name, value in report.settings.items() if isinstance(value, int))
    where, count = report.machine, len(report.runs)
    unfinished = "" if report.complete else ", interrupted"
    threads = f"{where['threads']} thread{'' if where['threads'] == 1 else 's'}"
    runs = f"{count} run{'' if count == 1 else 's'}{unfinished}"
    return f"bench {report.name}: {settings}; {where['dtype']}, {threads}, {runs}"


def repeat(run: Callable[[int], Values], report: Report, *, warmup: int, repeats: int) -> None:
    """Run, and keep the numbers of all runs but the first `warmup`, which compile kernels and fill caches.

    Args:
        run: called with 0, 1, 2, ...; another number draws other tokens.
        report: gets the numbers, and the name of what peak memory counts from.
        warmup: runs that do not count.
        repeats: runs that do.
    """
    for index in range(warmup):
        run(index)
        say(f"{report.name}: warm-up {index + 1}/{warmup}")
    report.parts["memory_counts_from"] = restart_peak()
    for index in range(repeats):
        report.add(run(warmup + index))
        say(f"{report.name}: run {index + 1}/{repeats}")


def say(text: str) -> None:
    """A line of progress, beside the results: on standard error."""
    print(text, file=sys.stderr, flush=True)
