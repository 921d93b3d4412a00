"""What the report says about `anabranch bench waiting`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.goals import Goal, Outcome, Unit, unlike
from benchmarks.markdown import block, code, command, counted, middle, table, values

Report = Mapping[str, Any]

SLOW = 0.25
WAITING = Goal(
    "A batch of answers that come first, against whole groups; a quarter of the calls slow", 4.35, Unit.TIMES
)
SIZES = {"batch": 24, "in flight": 48, "group": 8}
"""Of the paper's illustration (arXiv:2509.13232, section 5.4)."""


def waiting_outcomes(report: Report | None) -> Iterator[Outcome]:
    """Whether the ratio is reached; the figure without slow calls has no goal, and stands beside it."""
    ratio = None if report is None else report["summary"].get(_ratio("measured", SLOW))
    if report is None or ratio is None:
        yield WAITING.missing()
        return
    measured = f"{middle(ratio)}, without computing {Unit.TIMES.show(_middle(report, 'drawn', SLOW))}"
    if _ratio("measured", 0) in report["summary"]:
        measured += f"; without slow calls {Unit.TIMES.show(_middle(report, 'measured', 0))}"
    yield WAITING.outcome(ratio["median"], measured, unlike(report["settings"], SIZES))


def waiting_text(report: Report) -> Iterator[str]:
    """Both sides at every share of slow calls."""
    rows = []
    for share in report["settings"]["slow shares"]:
        found = {name: report["summary"].get(f"{share:g}/{name}") for name in COLUMNS}
        ratios = [report["summary"].get(_ratio(what, share)) for what in ("measured", "drawn")]
        if all(found.values()) and all(ratios):
            rows.append((f"{share:.0%}", *(middle(spread) for spread in (*found.values(), *ratios))))
    if rows:
        names = ("slow calls", *COLUMNS.values(), "ratio", "ratio, drawn")
        yield table(names, rows)
    yield (
        "Seconds until a batch is complete, median (extremes). *drawn*: as long as calls were drawn to take, without "
        "anything that is computed. The ratio is that of each round, and a property of the share of slow calls "
        "(docs/spo.md), not of the method."
    )
    yield block(command(report["machine"]["command"]))
    settings, where = report["settings"], report["machine"]
    yield (
        f"{settings['model']}; {settings['in flight']} answers in flight for a batch of {settings['batch']}, groups of "
        f"{settings['group']}; calls take {settings['scale']:g} of the seconds drawn; {where['dtype']}, "
        f"{counted(where['threads'], 'thread')}, {counted(settings['repeats'], 'round')}. "
        f"Environment: {code(values(where['variables'])) or 'nothing that matters'}."
    )


COLUMNS = {
    "group/seconds": "whole groups, s",
    "group/drawn_seconds": "drawn, s",
    "free/seconds": "first to come, s",
    "free/drawn_seconds": "drawn, s ",
}
"""Names in the report, and what stands above them."""


def _ratio(what: str, share: float) -> str:
    return f"ratio/{what} at {share:g} slow"


def _middle(report: Report, what: str, share: float) -> float:
    return float(report["summary"][_ratio(what, share)]["median"])
