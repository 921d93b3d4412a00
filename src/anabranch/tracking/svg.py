"""Pieces of SVG pictures, written by hand: no drawing library."""

from __future__ import annotations

from xml.sax.saxutils import escape

GREY = "#808080"
"""Of axes and words: readable on a light and on a dark page."""


def opening(title: str, width: int, height: int) -> list[str]:
    """The first lines of a picture with a transparent ground; `</svg>` closes it."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="system-ui, sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
    ]


def rule(x1: float, y1: float, x2: float, y2: float, *, opacity: float, colour: str = GREY, thick: float = 1) -> str:
    """A straight line."""
    where = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {where} stroke="{colour}" stroke-opacity="{opacity:g}" stroke-width="{thick:g}"/>'


def words(x: float, y: float, text: str, anchor: str) -> str:
    """Text whose `anchor` (start, middle, end) is at x."""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{GREY}" text-anchor="{anchor}">{escape(text)}</text>'


def box(x: float, y: float, width: float, height: float, *, colour: str, opacity: float) -> str:
    """A filled rectangle."""
    where = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect {where} fill="{colour}" fill-opacity="{opacity:.3f}"/>'
