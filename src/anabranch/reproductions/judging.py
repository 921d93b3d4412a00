"""From results to verdicts on claims and findings. Plain data; the statistics are those of `anabranch.study`.

A claim expects the difference arm minus reference in an open region (`Claim.region`). With its 95 % interval it

* *agrees* if the interval lies inside the region,
* *disagrees* if the interval lies outside of it,
* is *not shown* otherwise: the interval holds both.

p is the smallest 1 - level at which that side of the matter is still told, adjusted by Holm's rule for all claims.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import numpy as np

from anabranch.reproductions.claims import Claim, Expect, Finding
from anabranch.reproductions.measures import FINAL, MEASURES, Measure
from anabranch.study.analysis import ALPHA, FEWEST_SEEDS, difference, identical, spread_of
from anabranch.study.outline import ArmOutline, Outline
from anabranch.study.results import RunResult
from anabranch.study.statistics import TINY, Spread, holm

ROOM = 0.02
"""Accuracies of both arms below this, or above 1 minus this, leave no room for a difference: nothing is shown."""


class Verdict(StrEnum):
    """On a claim, or on a finding."""

    AGREES = "agrees"
    DISAGREES = "disagrees"
    PARTLY = "partly agrees"
    """Findings only: some claims agree, others do not."""
    NOT_SHOWN = "not shown"
    NO_VERDICT = "no verdict"
    """Too few seeds."""
    OURS = "nothing claimed"
    """Findings only: the paper claims nothing of it, whatever came out."""
    NOT_RUN = "not run"


def judge(outline: Outline, findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Every finding with its claims and verdicts, as plain JSON types.

    Args:
        outline: a study; arms of claims that it does not have count as not run.
        findings: of the reproduction, all of them: p-values are adjusted for all of their claims.
    """
    rows = {claim.id: _measured(claim, outline) for finding in findings for claim in finding.claims}
    tested = [row for row in rows.values() if "p" in row]
    for row, adjusted in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = adjusted
        row["firm"] = row["verdict"] in (Verdict.AGREES, Verdict.DISAGREES) and adjusted < ALPHA
    return [_finding(finding, [rows[claim.id] for claim in finding.claims]) for finding in findings]


def _finding(finding: Finding, rows: list[dict[str, Any]]) -> dict[str, Any]:
    paper = [Verdict(row["verdict"]) for row in rows if row["of_paper"]]
    shown = paper or [Verdict(row["verdict"]) for row in rows]
    counted = {verdict: shown.count(verdict) for verdict in dict.fromkeys(shown)}
    return {
        "id": finding.id,
        "title": finding.title,
        "verdict": overall(paper) if paper else Verdict.OURS,
        "counts": ("" if paper else "ours: ") + ", ".join(f"{verdict}: {n}" for verdict, n in counted.items()),
        "claims": rows,
    }


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on a finding from those on the paper's claims.

    All told claims agree: agrees. None agrees and at least one disagrees: disagrees. Some agree and others do not, in
    whatever way: partly. None agrees and none disagrees: not shown. Claims that were not run, or with too few seeds,
    count only if nothing else is there, and turn an "agrees" into "partly".
    """
    told = [v for v in verdicts if v in (Verdict.AGREES, Verdict.DISAGREES, Verdict.NOT_SHOWN)]
    if not told:
        return Verdict.NO_VERDICT if Verdict.NO_VERDICT in verdicts else Verdict.NOT_RUN
    if Verdict.AGREES in told:
        return Verdict.AGREES if set(verdicts) == {Verdict.AGREES} else Verdict.PARTLY
    return Verdict.DISAGREES if Verdict.DISAGREES in told else Verdict.NOT_SHOWN


# ----------------------------------------------------------------------------------------------------------- claims


def _measured(claim: Claim, outline: Outline) -> dict[str, Any]:
    """The difference that a claim is about, over the seeds that both arms have, and the verdict."""
    measure = MEASURES[claim.measure]
    row: dict[str, Any] = {**claim.to_json(), "seeds": [], "verdict": Verdict.NOT_RUN, "why": ""}
    arms = {arm.name: arm for arm in outline.arms}
    if claim.arm not in arms or claim.reference not in arms:
        return row | {"why": "not part of this study"}
    seeds = [s for s in outline.seeds if {(claim.arm, s), (claim.reference, s)} <= set(outline.runs)]
    if not seeds:
        return row | {"why": "no seed is finished in both arms"}
    here, there = ([outline.runs[key, seed] for seed in seeds] for key in (claim.arm, claim.reference))
    ends = [(measure.read(one), measure.read(other)) for one, other in zip(here, there, strict=True)]
    pairs = {s: (a, b) for s, (a, b) in zip(seeds, ends, strict=True) if a is not None and b is not None}
    row["seeds"] = list(pairs)
    if not pairs:
        return row | {"verdict": Verdict.NOT_SHOWN, "why": f"no run has this number ({measure.title})"}
    row["by_seed"] = [a - b for a, b in pairs.values()]
    row["means"] = [float(np.mean([pair[side] for pair in pairs.values()])) for side in (0, 1)]
    found = _spread(claim, outline, arms[claim.arm], arms[claim.reference], row)
    if found is None:
        return row | {"verdict": Verdict.NO_VERDICT, "why": "one number shows nothing"}
    low, high = found.interval()
    row |= {"value": found.value, "low": low, "high": high}
    if len(pairs) < FEWEST_SEEDS:
        return row | {"verdict": Verdict.NO_VERDICT, "why": f"fewer than {FEWEST_SEEDS} seeds tell nothing from luck"}
    row["p"] = p_value(claim, found)
    row["verdict"] = verdict_on(claim, low, high)
    return row | _reservations(claim, measure, row, here, there)


def _spread(
    claim: Claim, outline: Outline, arm: ArmOutline, reference: ArmOutline, row: dict[str, Any]
) -> Spread | None:
    if claim.measure == FINAL:
        return difference(outline, arm, reference, row["seeds"])
    return spread_of(row["by_seed"])


def verdict_on(claim: Claim, low: float, high: float) -> Verdict:
    """Where an interval of the difference lies: inside of the region, outside, or neither."""
    least, most = claim.region
    if _inside(claim, low, high):
        return Verdict.AGREES
    return Verdict.DISAGREES if high < least - TINY or low > most + TINY else Verdict.NOT_SHOWN


def _inside(claim: Claim, low: float, high: float) -> bool:
    least, most = claim.region
    return low > least + TINY and high < most - TINY


def p_value(claim: Claim, found: Spread) -> float:
    """The smallest 1 - level at which the interval still lies on the side of the region on which the value lies."""
    inside = _inside(claim, found.value, found.value)
    side = Verdict.AGREES if inside else Verdict.DISAGREES
    return found.smallest_tail(lambda low, high: verdict_on(claim, low, high) is side)


def _reservations(
    claim: Claim, measure: Measure, row: dict[str, Any], here: Sequence[RunResult], there: Sequence[RunResult]
) -> dict[str, Any]:
    """What takes a verdict back, or explains it."""
    if identical(here, there):
        return {"why": "the very same numbers in every run"}
    no_room = all(mean < ROOM for mean in row["means"]) or all(mean > 1 - ROOM for mean in row["means"])
    closeness = claim.expect in (Expect.EQUAL, Expect.AT_LEAST, Expect.AT_MOST)
    if measure.bounded and closeness and no_room:
        end = "right in nearly all" if row["means"][0] > 0.5 else "right in nearly no"
        return {"verdict": Verdict.NOT_SHOWN, "why": f"both arms are {end} answers: they could not differ"}
    return {"why": ""}
