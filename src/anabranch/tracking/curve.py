"""The curve of one or more runs as a small SVG picture, written by hand: no drawing library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from anabranch.errors import DataError, explain
from anabranch.tracking.metrics import find
from anabranch.tracking.svg import opening, rule, words

COLOURS = ("#3b82c4", "#d97706", "#2f9e6e", "#b4559b", "#7a6ff0", "#8a7f2b")
"""Middle tones: readable on a light and on a dark page; after the last one the first comes again."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 44, 48

Points = list[tuple[float, float]]


def curve_svg(
    records_by_label: Mapping[str, Sequence[Mapping[str, Any]]],
    y: str = "accuracy",
    *,
    stage: str = "rl",
    width: int = 720,
    height: int = 360,
) -> str:
    """Draw one line a run: a metric over the steps of a stage.

    Args:
        records_by_label: for each line its label and the records of its `metrics.jsonl`.
        y: name of a metric; a share is drawn from 0 to 100 %.
        stage: whose records are drawn.
        width: of the picture, in pixels.
        height: of the picture, in pixels.

    Returns:
        The text of an SVG file with a transparent ground.

    Raises:
        ValueError: y is not in the registry.
        DataError: a run has no such number.
    """
    share = find(y).unit == "share"
    lines = {label: _points(label, records, y, stage) for label, records in records_by_label.items()}
    if not lines:
        raise DataError(explain("curve", "no run", "there has to be something to draw", "name at least one run"))
    xs = [point[0] for points in lines.values() for point in points]
    ys = [point[1] for points in lines.values() for point in points]
    x_ticks = ticks(min(xs), max(xs), 8, whole=True)
    y_ticks = ticks(0.0, 1.0, 5) if share else ticks(min(ys), max(ys), 5)
    x_span = (min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) - 1, max(xs) + 1)
    y_span = (min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys)))

    def place(x: float, value: float) -> tuple[float, float]:
        along = (x - x_span[0]) / (x_span[1] - x_span[0])
        up = (value - y_span[0]) / (y_span[1] - y_span[0])
        return _LEFT + along * (width - _LEFT - _RIGHT), height - _BOTTOM - up * (height - _TOP - _BOTTOM)

    body = opening(f"{y} over {stage} steps", width, height)
    for value in y_ticks:
        _, row = place(x_span[0], value)
        text = f"{value:.0%}" if share else f"{value:g}"
        body.append(rule(_LEFT, row, width - _RIGHT, row, opacity=0.3))
        body.append(words(_LEFT - 8, row + 4, text, "end"))
    for value in x_ticks:
        column, bottom = place(value, y_span[0])
        body.append(rule(column, bottom, column, bottom + 5, opacity=1))
        body.append(words(column, bottom + 20, f"{value:g}", "middle"))
    body.append(words((_LEFT + width - _RIGHT) / 2, height - 8, "step", "middle"))
    body.append(words(8, 20, y, "start"))
    for index, points in enumerate(lines.values()):
        body += _line([place(*point) for point in points], COLOURS[index % len(COLOURS)])
    return "\n".join([*body, *_legend(list(lines), _LEFT + 8.0 + 8 * len(y)), "</svg>"]) + "\n"


def ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """At most about `most` round numbers (1, 2 or 5 times a power of ten apart) that cover low to high.

    Args:
        low: smallest value to show.
        high: largest value, at least `low`.
        most: how many intervals are wanted at most.
        whole: only whole numbers, and only those between low and high.
    """
    span = high - low if high > low else max(abs(high), 1.0)
    power = 10.0 ** math.floor(math.log10(span / most))
    size = next(factor * power for factor in (1, 2, 5, 10) if factor * power * most >= span * (1 - 1e-9))
    if whole:
        size = max(1.0, size)
        return [size * count for count in range(math.ceil(low / size), math.floor(high / size) + 1)]
    first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    return [round(size * count, 12) for count in range(first, max(last, first + 1) + 1)]


def _points(label: str, records: Sequence[Mapping[str, Any]], y: str, stage: str) -> Points:
    points = [(float(r["step"]), float(r[y])) for r in records if r["stage"] == stage and y in r]
    if not points:
        need = f"a curve of {y!r} needs records of stage {stage!r} that hold it"
        raise DataError(explain(f"curve of {label!r}", f"{len(records)} records without it", need, "name another run"))
    return points


def _legend(labels: Sequence[str], column: float) -> list[str]:
    parts = []
    for index, label in enumerate(labels):
        parts.append(rule(column, 16, column + 18, 16, colour=COLOURS[index % len(COLOURS)], opacity=1, thick=3))
        parts.append(words(column + 24, 20, label, "start"))
        column += 44 + 7.5 * len(label)  # text is not measured: 7.5 pixels a letter is a generous guess
    return parts


def _line(places: list[tuple[float, float]], colour: str) -> list[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    line = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5" stroke-linejoin="round"/>'
    if len(places) > 40:  # dots would run into each other
        return [line]
    return [line, *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places)]
