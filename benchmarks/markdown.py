"""Numbers, spreads, tables and commands as Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from benchmarks.duel import number

Spread = Mapping[str, float]
"""Median, extremes and quartiles, of `duel.spread` or of `anabranch.bench.measure.spread`."""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; every column but the first is aligned to the right if all its cells begin with a digit or a sign."""
    lines = [_line(columns), _line(["---", *("---:" if _numeric(cells) else "---" for cells in _columns(rows))])]
    return "\n".join([*lines, *map(_line, rows)])


def _columns(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [list(cells) for cells in zip(*rows, strict=True)][1:]


def _numeric(cells: Sequence[str]) -> bool:
    return all(cell == "" or cell[0] in "+-.0123456789" for cell in cells)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def extremes(found: Spread) -> str:
    """`4.9 to 5.4`: the smallest and the largest."""
    return f"{number(found['min'])} to {number(found['max'])}"


def quartiles(found: Spread) -> str:
    """`5.01 to 5.2`."""
    low, high = ("q1", "q3") if "q1" in found else ("lower_quartile", "upper_quartile")
    return f"{number(found[low])} to {number(found[high])}"


def middle(found: Spread) -> str:
    """`5.12 (4.9 to 5.4)`: the median, and the extremes."""
    return f"{number(found['median'])} ({extremes(found)})"


def percent(share: float) -> str:
    """`71.2 %`."""
    return f"{100 * share:.1f} %"


def counted(count: int, noun: str) -> str:
    """`1 round`, `5 rounds`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def command(argv: Sequence[str]) -> str:
    """What to type in the repository to run `argv` (a `sys.argv`) again."""
    program, *arguments = argv
    path = PurePath(program)
    if path.suffix == ".py":
        start = [".venv/bin/python", "-m", f"benchmarks.{path.stem}"]
    else:
        start = [f".venv/bin/{path.name}"]
    return shlex.join([*start, *arguments])


def values(found: Mapping[str, Any]) -> str:
    """`dtype=bfloat16 eager=True`."""
    return " ".join(f"{name}={value}" for name, value in found.items())


def code(text: str) -> str:
    """Text in the line as code; nothing where there is none."""
    return f"`{text}`" if text else ""


def block(text: str) -> str:
    """Text as a block of code, by indentation."""
    return "\n".join(f"    {line}" for line in text.splitlines())
