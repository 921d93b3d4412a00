"""`anabranch breadth RUN ...`: what the diagnostics of runs say about breadth, as a table and a picture.

It reads what `diagnostics.mass_balance` and `diagnostics.pass_curve` have left in `metrics.jsonl`; meanings:
docs/metrics.md, groups *mass balance* and *pass@k*.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.analysis.group_latency import check_place
from anabranch.errors import DataError, RunFolderError, explain
from anabranch.study import picture
from anabranch.tracking.display import make_display
from anabranch.tracking.files import write_atomic
from anabranch.tracking.jsonl import read_jsonl
from anabranch.tracking.run_folder import RunPaths, is_run
from anabranch.tracking.tables import TextTable

FORKS = "mass_balance/forks"
PANELS = (
    ("unsampled", "Probability of the undrawn tokens at first forks", True),
    ("unsampled_2_expected", "Expected undrawn sum of p^2", False),
    ("term_unsampled", "Third term: what undrawn tokens do to Q in the theorem's step", False),
    ("total", "All three terms", False),
    ("change", "Measured change of Q, the probability of the right tokens", False),
)
"""Name below `mass_balance/`, title, whether it is a share."""
PASS = "pass_at/"
ENDS = ("", "_low", "_high")
"""Of `pass_at`: the value, and its interval."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Watched:
    """The RL records of one run that its diagnostics have written to."""

    label: str
    forks: Sequence[Record]
    """Of the steps that found a fork."""
    curves: Sequence[Record]
    """Of the steps with pass@k."""

    @property
    def most(self) -> int:
        """Largest k."""
        return max(int(name.removeprefix(PASS)) for name in self.curves[0] if name.startswith(PASS))


def breadth(runs: Sequence[Path], out: Path | None) -> None:
    """Print the table, and draw the picture if asked to.

    Args:
        runs: run folders.
        out: SVG file.

    Raises:
        RunFolderError: no run folder, or the file cannot be written.
        DataError: a run was not watched.
    """
    if out is not None:
        check_place(out)
    watched = [read(run) for run in runs]
    with make_display(sys.stdout) as display:
        display.table(table(watched))
        if out is not None:
            write_atomic(out, drawing(watched))
            display.note(f"picture: {out}")


def read(run: Path) -> Watched:
    """What a run's diagnostics have written.

    Raises:
        RunFolderError: no run folder.
        DataError: nothing was written.
    """
    if not is_run(run):
        raise RunFolderError(explain(str(run), "no run", "a run folder has a recipe.yaml", "name a run folder"))
    log = RunPaths(run).log("metrics")
    records = [record for record in read_jsonl(log) if record["stage"] == "rl"] if log.is_file() else []
    forks = [record for record in records if record.get(FORKS, 0) > 0]
    curves = [record for record in records if PASS + "1" in record]
    if not forks and not curves:
        need = "its steps have to have been watched, and groups whose rewards differ"
        fix = "train with diagnostics.mass_balance=4 or diagnostics.pass_curve=true"
        raise DataError(explain(str(run), "no diagnostics in its RL steps", need, fix))
    return Watched(run.resolve().name, forks, curves)


def table(watched: Sequence[Watched]) -> TextTable:
    """One row a run: means over the steps that found a fork, and pass@k of the last step."""

    def mean(run: Watched, name: str, form: str) -> str:
        return format(np.mean([record[f"mass_balance/{name}"] for record in run.forks]), form) if run.forks else "-"

    rows = [
        (
            run.label,
            str(len(run.forks)),
            mean(run, "kinds", ".1f"),
            mean(run, "unsampled", ".3g"),
            mean(run, "unsampled_2", ".2e"),
            mean(run, "unsampled_2_expected", ".2e"),
            mean(run, "total", ".2e"),
            mean(run, "change", ".2e"),
            mean(run, "agreement", ".0%"),
            _told(run, 1),
            _told(run, run.most) if run.curves else "-",
        )
        for run in watched
    ]
    heads = (
        "run",
        "steps",
        "kinds",
        "undrawn",
        "U_2",
        "E[U_2]",
        "three terms",
        "change of Q",
        "agree",
        "pass@1",
        "pass@N",
    )
    return TextTable("First forks: means over steps; pass@k: of the last step", heads, tuple(rows))


def _told(run: Watched, k: int) -> str:
    if not run.curves:
        return "-"
    last = run.curves[-1]
    value, low, high = (last[f"pass_at{end}/{k}"] for end in ENDS)
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}] %"


def drawing(watched: Sequence[Watched]) -> str:
    """One panel a number, with a line a run; pass@1 and pass@N with their intervals. An SVG file."""
    runs, parts = list(enumerate(watched)), []
    for name, title, share in PANELS:
        key = f"mass_balance/{name}"
        lines = [_line(number, run.label, run.forks, key, key, key) for number, run in runs if run.forks]
        parts += [picture.curves(title, lines, share=share)] if lines else []
    for title, widest in (("pass@1", False), ("pass@N", True)):
        lines = [
            _line(number, run.label, run.curves, *(f"pass_at{end}/{run.most if widest else 1}" for end in ENDS))
            for number, run in runs
            if run.curves
        ]
        parts += [picture.curves(f"{title} of the step's answers", lines, share=True)] if lines else []
    return picture.file_of(picture.stacked("Breadth", parts))


def _line(number: int, label: str, records: Sequence[Record], value: str, low: str, high: str) -> picture.Line:
    values, lows, highs = ([record[name] for record in records] for name in (value, low, high))
    return picture.Line(label, [record["step"] for record in records], values, lows, highs, number)
