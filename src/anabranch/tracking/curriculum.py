"""Which problems a run drew, by how often they were answered right: a picture of its curriculum over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anabranch.errors import DataError, explain
from anabranch.tracking.curve import COLOURS, ticks
from anabranch.tracking.svg import box, opening, rule, words

PANELS = {"drawn": "drawn", "problems": "all problems"}
"""Families of metrics, and what stands above their panels."""
TENTHS = 10
_LEFT, _RIGHT, _TOP, _BOTTOM, _BETWEEN = 64, 20, 44, 48, 28
MOST_COLUMNS = 120
"""More steps than this share a column: the mean of a few."""


def curriculum_svg(records: Sequence[Mapping[str, Any]], *, width: int = 720, height: int = 300) -> str:
    """Draw two maps: step by step, the share of a step's problems in every tenth of values, and that of all problems.

    Args:
        records: of `metrics.jsonl` of a run that tracks values; others among them are left out.
        width: of the picture, in pixels.
        height: of the picture, in pixels.

    Returns:
        The text of an SVG file with a transparent ground; the darker, the larger the share, 100 % in full colour.

    Raises:
        DataError: no record has values.
    """
    steps = [record for record in records if any(name.startswith("drawn/") for name in record)]
    if not steps:
        need = "values are known where algorithm.baseline is tracker, or sampling.kind prioritised"
        raise DataError(explain("curriculum", f"{len(records)} records without values", need, "name another run"))
    body = opening("problems by value over rl steps", width, height)
    panel = (width - _LEFT - _RIGHT - _BETWEEN) / len(PANELS)
    for number, (family, title) in enumerate(PANELS.items()):
        left = _LEFT + number * (panel + _BETWEEN)
        body += _panel(steps, family, title, left, panel, height, COLOURS[number])
    for tenth in range(0, TENTHS + 1, 5):
        body.append(words(_LEFT - 8, _row(tenth, height) + 4, f"{tenth / TENTHS:g}", "end"))
    body.append(words(8, 20, "value", "start"))
    return "\n".join([*body, "</svg>"]) + "\n"


def _row(tenth: float, height: int) -> float:
    """Where a tenth begins, from below."""
    return height - _BOTTOM - (height - _TOP - _BOTTOM) * tenth / TENTHS


def _panel(
    steps: Sequence[Mapping[str, Any]], family: str, title: str, left: float, width: float, height: int, colour: str
) -> list[str]:
    body = [words(left + width / 2, 20, title, "middle")]
    columns = min(len(steps), MOST_COLUMNS)
    wide, tall = width / columns, _row(0, height) - _row(1, height)
    for column in range(columns):
        part = steps[column * len(steps) // columns : (column + 1) * len(steps) // columns]
        for tenth in range(TENTHS):
            share = sum(record.get(f"{family}/{tenth}", 0.0) for record in part) / len(part)
            if share:
                body.append(
                    box(left + column * wide, _row(tenth + 1, height), wide, tall, colour=colour, opacity=share)
                )
    bottom = _row(0, height)
    body.append(rule(left, bottom, left + width, bottom, opacity=1))
    first, last = float(steps[0]["step"]), float(steps[-1]["step"])
    for value in ticks(first, last, 4, whole=True):
        place = left + width * (value - first + 0.5) / (last - first + 1)
        body.append(rule(place, bottom, place, bottom + 5, opacity=1))
        body.append(words(place, bottom + 20, f"{value:g}", "middle"))
    body.append(words(left + width / 2, height - 8, "step", "middle"))
    return body
