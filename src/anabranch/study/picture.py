"""Pictures of a report as inline SVG: curves with bands, and intervals in a row. No drawing library.

Text and rules take the colour of the page (`currentColor`), so that they can be read on a light and on a dark one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from anabranch.tracking.curve import COLOURS, ticks

WIDTH = 720
_LEFT, _RIGHT, _TOP = 60, 16, 34
_GAP = 12
_LETTER = 7.0
"""Text is not measured: a generous guess of the width of a letter, in pixels."""
DASHES = ("", "7 4", "2 3")
"""After the last colour the first comes again with another dash."""
_STYLE = "<style>:root{color:#24292f}@media(prefers-color-scheme:dark){:root{color:#d0d7de}}</style>"


@dataclass(frozen=True)
class Line:
    """One curve with its band; all of one length."""

    label: str
    steps: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    number: int
    """Which colour."""


@dataclass(frozen=True)
class Bar:
    """One interval with its value and single points."""

    label: str
    value: float
    low: float
    high: float
    points: Sequence[float]
    number: int


def colour(number: int) -> str:
    """The colour of arm `number`, from 0."""
    return COLOURS[number % len(COLOURS)]


def dash(number: int) -> str:
    """The dash pattern of arm `number`; empty: solid."""
    return DASHES[number // len(COLOURS) % len(DASHES)]


def curves(title: str, lines: Sequence[Line], *, share: bool, height: int = 260, along: str = "step") -> str:
    """Curves over steps with their bands, and a legend below.

    Args:
        title: what is drawn upwards.
        lines: at least one, each with at least one step.
        share: the values are shares, shown in per cent.
        height: of the field with its axes, in pixels; the legend comes on top of it.
        along: what the steps are.
    """
    x_span = _span([step for line in lines for step in line.steps])
    lows = min(value for line in lines for value in line.low)
    highs = max(value for line in lines for value in line.high)
    y_ticks = ticks(min(0.0, lows) if share else lows, highs if highs > lows else lows + 1.0, 5)
    y_span = min(y_ticks[0], lows), max(y_ticks[-1], highs)
    bottom = height - 34

    def place(x: float, y: float) -> tuple[float, float]:
        along = (x - x_span[0]) / (x_span[1] - x_span[0])
        up = (y - y_span[0]) / (y_span[1] - y_span[0])
        return _LEFT + along * (WIDTH - _LEFT - _RIGHT), bottom - up * (bottom - _TOP)

    body = [_text(8, 18, title, "start", bold=True)]
    for value in y_ticks:
        row = place(x_span[0], value)[1]
        body += [_rule(_LEFT, row, WIDTH - _RIGHT, row, 0.15), _text(_LEFT - 6, row + 4, _number(value, share), "end")]
    for value in ticks(*x_span, 8, whole=True):
        column = place(value, y_span[0])[0]
        body += [_rule(column, bottom, column, bottom + 4, 0.6), _text(column, bottom + 17, f"{value:g}", "middle")]
    body.append(_text(WIDTH - _RIGHT, height - 4, along, "end"))
    for line in lines:
        body += _curve(line, place)
    legend, depth = _legend([(line.label, line.number) for line in lines], height + 14)
    return _svg(title, height + depth, [*body, *legend])


def intervals(title: str, bars: Sequence[Bar], *, zero: bool) -> str:
    """One interval a row: a line from low to high, a square at the value, small dots at single points. In per cent.

    Args:
        title: what is drawn along.
        bars: at least one.
        zero: draw a rule at 0: these are differences.
    """
    left = min(260.0, 24 + _LETTER * max(len(bar.label) for bar in bars))
    ends = [end for bar in bars for end in (bar.low, bar.high, bar.value, *bar.points)] + ([0.0] if zero else [])
    marks = ticks(min(ends), max(ends), 7)
    span = min(marks[0], min(ends)), max(marks[-1], max(ends))
    height = _TOP + 26 * len(bars) + 30

    def along(value: float) -> float:
        return left + (value - span[0]) / (span[1] - span[0]) * (WIDTH - left - _RIGHT - 10)

    body = [_text(8, 18, title, "start", bold=True)]
    for value in marks:
        body.append(_rule(along(value), _TOP, along(value), height - 24, 0.15))
        sign = "+" if zero and value > 0 else ""
        body.append(_text(along(value), height - 8, f"{sign}{100 * value:g}", "middle"))
    if zero:
        body.append(_rule(along(0.0), _TOP - 4, along(0.0), height - 24, 0.8))
    for row, bar in enumerate(bars):
        body += _bar(bar, along, _TOP + 26 * row + 13, left)
    return _svg(title, height, body)


def stacked(title: str, pictures: Sequence[str]) -> str:
    """Pictures of this module one below the other, as one.

    Args:
        title: of the whole, for those who cannot see it.
        pictures: at least one.
    """
    body, top = [], 0.0
    for svg in pictures:
        head, rest = svg.split(">", 1)
        height = float(head.split('viewBox="')[1].split('"')[0].split()[3])
        body.append(f'{head} y="{top:.0f}" width="{WIDTH}" height="{height:.0f}">{rest}')
        top += height + _GAP
    return _svg(title, top - _GAP, body)


def file_of(svg: str) -> str:
    """A picture as a file of its own, readable on a light and on a dark page."""
    head, title, rest = svg.partition("<title>")
    return f"{head}{_STYLE}\n{title}{rest}\n"


def _curve(line: Line, place: Callable[[float, float], tuple[float, float]]) -> list[str]:
    upper = [place(x, y) for x, y in zip(line.steps, line.high, strict=True)]
    lower = [place(x, y) for x, y in zip(line.steps, line.low, strict=True)]
    middle = [place(x, y) for x, y in zip(line.steps, line.mean, strict=True)]
    tint = colour(line.number)
    parts = []
    if upper != lower:
        parts.append(f'<polygon points="{_points([*upper, *reversed(lower)])}" fill="{tint}" fill-opacity="0.13"/>')
    pattern = f' stroke-dasharray="{dash(line.number)}"' if dash(line.number) else ""
    parts.append(
        f'<polyline points="{_points(middle)}" fill="none" stroke="{tint}" stroke-width="2"{pattern}>'
        f"<title>{escape(line.label)}</title></polyline>"
    )
    if len(middle) <= 12:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{tint}"/>' for x, y in middle]
    return parts


def _bar(bar: Bar, along: Callable[[float], float], row: float, left: float) -> list[str]:
    tint = colour(bar.number)
    label = bar.label if len(bar.label) * _LETTER <= left else bar.label[: int(left / _LETTER) - 1] + "…"
    told = f"{bar.label}: {100 * bar.value:.1f} [{100 * bar.low:.1f}, {100 * bar.high:.1f}]"
    parts = [
        _text(left - 14, row + 4, label, "end"),
        f'<line x1="{along(bar.low):.1f}" y1="{row:.1f}" x2="{along(bar.high):.1f}" y2="{row:.1f}" stroke="{tint}" '
        f'stroke-width="3"><title>{escape(told)}</title></line>',
    ]
    dots = "".join(f'<circle cx="{along(point):.1f}" cy="{row:.1f}" r="2.6"/>' for point in bar.points)
    parts.append(f'<g fill="currentColor" fill-opacity="0.55">{dots}</g>')
    parts.append(f'<rect x="{along(bar.value) - 4:.1f}" y="{row - 4:.1f}" width="8" height="8" fill="{tint}"/>')
    return parts


def _legend(labels: Sequence[tuple[str, int]], top: float) -> tuple[list[str], float]:
    """As many labels a row as fit; the parts and the height they need."""
    parts, column, row = [], 8.0, top
    for label, number in labels:
        wide = 40 + _LETTER * len(label)
        if column + wide > WIDTH and column > 8.0:
            column, row = 8.0, row + 20
        pattern = f' stroke-dasharray="{dash(number)}"' if dash(number) else ""
        parts.append(
            f'<line x1="{column:.1f}" y1="{row:.1f}" x2="{column + 18:.1f}" y2="{row:.1f}" stroke="{colour(number)}" '
            f'stroke-width="3"{pattern}/>'
        )
        parts.append(_text(column + 24, row + 4, label, "start"))
        column += wide
    return parts, row - top + 24


def _svg(title: str, height: float, body: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" fill="currentColor" '
        f'font-family="system-ui, sans-serif" font-size="12.5">'
    )
    return "\n".join([head, f"<title>{escape(title)}</title>", *body, "</svg>"])


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - 1, high + 1)


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _number(value: float, share: bool) -> str:
    return f"{100 * value:g} %" if share else f"{value:g}"


def _rule(x1: float, y1: float, x2: float, y2: float, opacity: float) -> str:
    where = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {where} stroke="currentColor" stroke-opacity="{opacity:g}"/>'


def _text(x: float, y: float, text: str, anchor: str, *, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'


def lines_of(curve: Mapping[str, Mapping[str, Sequence[float]]], arms: Sequence[str]) -> list[Line]:
    """The lines of one metric as `anabranch.study.analysis` gives them; every arm keeps its colour in all pictures."""
    return [
        Line(name, found["steps"], found["mean"], found["low"], found["high"], arms.index(name))
        for name, found in curve.items()
    ]
