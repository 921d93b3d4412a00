"""Pictures of a reproduction as SVG files of their own, readable on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from anabranch.reproductions.claims import Curves, Finding
from anabranch.reproductions.measures import MEASURES
from anabranch.study import picture
from anabranch.study.analysis import SHARES, curve
from anabranch.study.outline import Outline
from anabranch.study.report import PICTURES

TITLES: Mapping[str, str] = {
    **PICTURES,
    "reward_std": "Std of rewards within groups",
    "sigma_batch": "Std of rewards over the batch",
    "advantage_max_abs": "Largest advantage of a step",
    "centred_small": "Answers with an advantage within 0.02, before any scale",
    "centred_variance": "Variance of advantages before any scale",
    "calibration_error": "|Value - reward| by decile of the value",
    "rho": "Share of old answers that a value keeps",
    "rho_low": "Problems whose share was held at its lower bound",
    "repeat_ratio": "Cut answers that had fallen into a loop",
}
"""Of curves."""


def pictures_of(finding: Finding, rows: Sequence[Mapping[str, Any]], outline: Outline) -> dict[str, str]:
    """By file name: the intervals of all claims that are in points, then the curves, as far as there are results.

    Args:
        finding: whose pictures.
        rows: its claims as `judging.judge` gives them.
        outline: the results.
    """
    found = {}
    bars = [
        picture.Bar(f"{row['id']} {row['arm']}", row["value"], row["low"], row["high"], row["by_seed"], 0)
        for row in rows
        if "value" in row and MEASURES[row["measure"]].unit == "points"
    ]
    if bars:
        text = f"{finding.id}: arm minus reference, points (dots: single seeds)"
        found[f"{finding.id}-claims.svg"] = picture.file_of(picture.intervals(text, bars, zero=True))
    for number, wanted in enumerate(finding.curves, start=1):
        lines = _lines(wanted, outline)
        if lines:
            title = f"{finding.id}: {TITLES[wanted.metric]}"
            found[f"{finding.id}-{number}-{wanted.metric}.svg"] = picture.file_of(
                picture.curves(title, lines, share=wanted.metric in SHARES)
            )
    return found


def _lines(wanted: Curves, outline: Outline) -> list[picture.Line]:
    arms = {arm.name: arm for arm in outline.arms}
    part = replace(outline, arms=tuple(arms[key] for key in wanted.arms if key in arms))
    return picture.lines_of(curve(part, wanted.metric), wanted.arms)
