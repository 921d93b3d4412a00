"""`anabranch simulate group-latency`: what waiting for groups costs, as a table, a picture and JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anabranch.analysis.latency import (
    LARGE_SPEED_UP,
    QUANTILES,
    Outcome,
    Setting,
    Stragglers,
    paper_illustration,
    simulate,
)
from anabranch.errors import RunFolderError, explain
from anabranch.study import picture
from anabranch.tracking.display import make_display
from anabranch.tracking.files import write_atomic
from anabranch.tracking.tables import TextTable

READING = (
    "How long answers take is assumed (usually 100 s, stragglers 480 s: a reconstruction of ours that fits the paper's "
    "one draw). The speed-up is a property of the assumed share of stragglers, not of SPO: report it with the "
    "distribution."
)
PAPER = "the paper's one draw"


def group_latency(setting: Setting, out: Path | None, json_file: Path | None) -> None:
    """Simulate, print the table, and write what was asked for.

    Args:
        setting: what is started, and what is waited for.
        out: SVG file.
        json_file: all numbers.

    Raises:
        RunFolderError: a file cannot be written; known before anything is simulated.
    """
    for path in (out, json_file):
        if path is not None:
            check_place(path)
    outcomes = simulate(setting)
    with make_display(sys.stdout) as display:
        display.table(table(setting, outcomes))
        display.note(READING)
        if out is not None:
            write_atomic(out, drawing(setting, outcomes))
            display.note(f"picture: {out}")
        if json_file is not None:
            write_atomic(json_file, json.dumps(record(setting, outcomes), indent=1) + "\n")
            display.note(f"numbers: {json_file}")


def check_place(path: Path) -> None:
    """A file can be written there.

    Raises:
        RunFolderError: it cannot: a folder has that name, or there is none to write it into.
    """
    if path.is_dir() or not path.absolute().parent.is_dir():
        found = "a folder" if path.is_dir() else "no folder to write it into"
        raise RunFolderError(explain(str(path), found, "it is a file to be written", "name a file in a folder"))


def described(setting: Setting) -> str:
    """What is started and what is waited for, in words."""
    return (
        f"{setting.groups} groups of {setting.group_size} started; a batch: the first {setting.picked} groups, or the "
        f"first {setting.batch} answers"
    )


def table(setting: Setting, outcomes: Sequence[Outcome]) -> TextTable:
    """One row for the paper's illustration, then one a distribution."""
    based, free = paper_illustration()
    low, high = (f"{100 * quantile:g} %" for quantile in QUANTILES)
    rows = [(PAPER, f"{based:.0f}", f"{free:.0f}", f"{based / free:.4f}", "-", "-", "-")]
    rows += [
        (
            each.latency.label,
            f"{each.group_based:.1f}",
            f"{each.group_free:.1f}",
            f"{each.mean:.2f}",
            f"{each.median:.2f}",
            f"{each.low:.2f} to {each.high:.2f}",
            f"{each.large:.2f}",
        )
        for each in outcomes
    ]
    return TextTable(
        f"{described(setting)} ({setting.trials:,} trials, seed {setting.seed})",
        (
            "latency",
            "groups, s",
            "no groups, s",
            "mean speed-up",
            "median",
            f"{low} to {high}",
            f"share > {LARGE_SPEED_UP:g}",
        ),
        tuple(rows),
    )


def drawing(setting: Setting, outcomes: Sequence[Outcome]) -> str:
    """The speed-up over the share of stragglers, as an SVG file."""
    mixed = [(each, each.latency.share) for each in outcomes if isinstance(each.latency, Stragglers)]
    percent = [100 * share for _, share in mixed]

    def line(label: str, number: int, mean: list[float], band: bool = False) -> picture.Line:
        low, high = ([each.low for each, _ in mixed], [each.high for each, _ in mixed]) if band else (mean, mean)
        return picture.Line(label, percent, mean, low, high, number)

    based, free = paper_illustration()
    lines = [
        line(f"median, and {100 * QUANTILES[0]:g} to {100 * QUANTILES[1]:g} %", 0, [e.median for e, _ in mixed], True),
        line("mean", 1, [each.mean for each, _ in mixed]),
        line(f"{PAPER} ({based / free:.2f})", 2, [based / free] * len(mixed)),
    ]
    title = f"Speed-up without groups: {setting.batch} of {setting.answers} answers, groups of {setting.group_size}"
    return picture.file_of(picture.curves(title, lines, share=False, along="% stragglers"))


def record(setting: Setting, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All numbers as plain JSON types."""
    based, free = paper_illustration()
    return {
        "setting": asdict(setting),
        "quantiles": list(QUANTILES),
        "reading": READING,
        "paper": {"group_based": based, "group_free": free, "speed_up": based / free},
        "outcomes": [{"distribution": each.latency.label, **asdict(each)} for each in outcomes],
    }
