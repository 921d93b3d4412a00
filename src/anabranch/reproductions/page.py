"""The page of a reproduction: Markdown made of results and nothing else, the same bytes each time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anabranch.reproductions import offline
from anabranch.reproductions.claims import Expect, Finding, Reproduction
from anabranch.reproductions.judging import ROOM, judge
from anabranch.reproductions.measures import MEASURES
from anabranch.reproductions.pictures import pictures_of
from anabranch.study.analysis import ALPHA, FEWEST_SEEDS, arm_record, commands, runs_of
from anabranch.study.outline import ArmOutline, Outline
from anabranch.study.report import arms_table, md, md_row, p_text
from anabranch.study.results import Clipped
from anabranch.tracking.display import duration
from anabranch.tracking.tables import TextTable

LISTED = 12
"""Clipped tokens that are named."""


@dataclass(frozen=True)
class Page:
    """What is written about a reproduction."""

    markdown: str
    pictures: Mapping[str, str]
    """SVG by file name."""
    judged: Sequence[Mapping[str, Any]]
    """See `judging.judge`."""


def make_page(reproduction: Reproduction, outline: Outline, pictures: str) -> Page:
    """Judge the results, and write the page.

    Args:
        reproduction: its claims.
        outline: the results of its study, or of a part of it.
        pictures: the folder of the pictures, as the page names it.
    """
    judged = judge(outline, reproduction.findings)
    drawn = {
        finding.id: pictures_of(finding, rows["claims"], outline)
        for finding, rows in zip(reproduction.findings, judged, strict=True)
    }
    parts = [
        f"# {reproduction.title}",
        "",
        f"{md(reproduction.source)}.",
        "",
        *_missing(outline),
        *_summary(judged),
        *_setting(reproduction, outline),
        *_method(reproduction, outline, judged),
    ]
    for finding, found in zip(reproduction.findings, judged, strict=True):
        parts += _finding(finding, found, outline, [f"{pictures}/{name}" for name in drawn[finding.id]])
    parts += _arms(outline) + _again(reproduction, outline)
    files = {name: svg for several in drawn.values() for name, svg in several.items()}
    return Page("\n".join(parts), files, judged)


def _table(table: TextTable) -> list[str]:
    return [md_row(table.columns), md_row(["---"] * len(table.columns)), *map(md_row, table.rows), ""]


def summary(judged: Sequence[Mapping[str, Any]]) -> TextTable:
    """One row a finding."""
    rows = [(f"{found['id']} {found['title']}", found["verdict"], found["counts"]) for found in judged]
    return TextTable("Findings", ("finding", "verdict", "claims"), tuple(rows))


def _summary(judged: Sequence[Mapping[str, Any]]) -> list[str]:
    return ["## In short", "", *_table(summary(judged))]


def _missing(outline: Outline) -> list[str]:
    missing = outline.missing()
    if not missing:
        return []
    total = len(outline.arms) * len(outline.seeds)
    named = ", ".join(f"{arm} seed {seed}" for arm, seed in missing[:6])
    more = f" and {len(missing) - 6} more" if len(missing) > 6 else ""
    return [f"**{len(missing)} of {total} runs are missing ({md(named)}{more}): what follows is without them.**", ""]


def _setting(reproduction: Reproduction, outline: Outline) -> list[str]:
    facts, runs = outline.facts, list(outline.runs.values())
    arms = [arm for arm in outline.arms if runs_of(outline, arm)[1]]
    seeds = sorted({run.seed for run in runs})
    steps = sorted({run.steps for run in runs})
    samples = sorted({(len(run.final.scores), run.final.samples) for run in runs})
    packages = facts.get("packages") or {}
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers") if packages.get(name))
    commit = f", commit {facts['git_commit'][:12]}" if facts.get("git_commit") else ""
    computed = f"{outline.compute['dtype']} on {outline.compute['device']}, {outline.compute['threads']} thread a run"
    lines = [
        f"{len(arms)} arms, seeds {', '.join(map(str, seeds))}, {_several(steps)} RL steps: {len(runs)} runs, "
        f"{sum(run.cost['answers'] for run in runs):,.0f} answers, "
        f"{duration(sum(run.cost['seconds'] for run in runs))} of RL if they ran one after the other.",
        "Held out: " + "; ".join(f"{problems} problems, {each} answers each" for problems, each in samples) + ". Every "
        "seed has problems of its own, the same in all arms with the same data.",
        f"{facts['cpu']}, {facts['cores']} cores, {computed}; anabranch {facts['version']}{commit}, {versions}; "
        f"started {facts['started']}.",
        *facts.get("models", ()),
    ]
    return [
        "## What is different from the paper",
        "",
        *(f"* {md(text)}" for text in reproduction.setting),
        "",
        "## What was run",
        "",
        *(f"* {md(text)}" for text in lines),
        "",
    ]


def _several(numbers: Sequence[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _method(reproduction: Reproduction, outline: Outline, judged: Sequence[Mapping[str, Any]]) -> list[str]:
    """How verdicts come about, and whether the claims are those that were registered."""
    rows = [row for found in judged for row in found["claims"] if "p" in row]
    sided = sum(row["expect"] in (Expect.HIGHER, Expect.LOWER) for row in rows)
    lines = [
        "Every claim was written down before the first run, with the side on which the difference arm minus reference "
        "is expected, and the margin where there is one. " + _registered(reproduction, outline),
        "A claim *agrees* if the 95 % interval of the difference lies on the expected side ('equal': within the margin "
        "on both sides; 'at least', 'at most': not beyond it on one), *disagrees* if it lies on the other side, and is "
        "*not shown* if it holds both. 'Not shown' is not 'no difference'.",
        "Differences are paired by seed, final accuracy by problem, too; intervals are those of `anabranch ablate` "
        f"(bootstrap, widened for few seeds: docs/ablate.md). Fewer than {FEWEST_SEEDS} seeds give no verdict.",
        f"Intervals are not adjusted: of the {sided} tested claims of a higher or lower number {0.025 * sided:.1f} "
        "would be expected to agree, and as many to disagree, if nothing made a difference. 'Adjusted p' is by Holm's "
        f"rule for all {len(rows)} tested claims; a verdict in **bold** stands at {ALPHA:.2g} after that, too.",
        f"Where both arms are right in fewer than {100 * ROOM:.0f} % or more than {100 - 100 * ROOM:.0f} % of the "
        "answers, 'equal', 'at least' and 'at most' are not shown: they could not differ.",
        "A finding *agrees* if all claims of the paper on it do, *disagrees* if none agrees and one disagrees, *partly "
        "agrees* if some agree and others do not, and is *not shown* if none agrees and none disagrees. Claims in "
        "brackets are not the paper's and have no part in that; a finding that has no others is one of ours.",
    ]
    return ["## How verdicts come about", "", *(f"* {text}" for text in lines), ""]


def _registered(reproduction: Reproduction, outline: Outline) -> str:
    """Whether the claims are those that the manifest of the study holds."""
    registered = {claim["id"]: claim for claim in outline.facts.get("registered", ())}
    now = {claim.id: claim.to_json() for claim in reproduction.claims}
    changed = [name for name in (*now, *(set(registered) - set(now))) if now.get(name) != registered.get(name)]
    if not changed:
        return "They are in the study's manifest since it began, and have not changed."
    return f"**Changed since the study began: {', '.join(sorted(changed))}.**"


# --------------------------------------------------------------------------------------------------------- findings


def _finding(finding: Finding, found: Mapping[str, Any], outline: Outline, pictures: Sequence[str]) -> list[str]:
    parts = [
        f"## {finding.id}. {md(finding.title)}",
        "",
        f"**Verdict: {found['verdict']}** ({found['counts']}).",
        "",
        f"*The paper:* {md(finding.paper)}",
        "",
        f"*Here:* {md(finding.here)}",
        "",
    ]
    if finding.cannot:
        parts += [f"*Cannot be told here:* {md(finding.cannot)}", ""]
    heads = ("claim", "arm", "against", "of", "expected", "difference [95 %]", "seeds", "p", "adjusted p", "verdict")
    parts += [md_row(heads), md_row(["---"] * len(heads)), *(_claim_row(row) for row in found["claims"]), ""]
    notes = [f"{row['id']}: {row['why']}." for row in found["claims"] if row["why"]]
    parts += [md(" ".join(notes)), ""] if notes else []
    parts += _clipped(finding, outline)
    for name in pictures:
        parts += [f"![{finding.id}]({name})", ""]
    return parts


def _claim_row(row: Mapping[str, Any]) -> str:
    words = f"{row['id']} {row['words']}"
    verdict = md(row["verdict"])
    cells = (
        words if row["of_paper"] else f"({words})",
        row["arm"],
        row["reference"],
        MEASURES[row["measure"]].title,
        _expected(row),
        difference_text(row),
        str(len(row["seeds"])),
        p_text(row.get("p")),
        p_text(row.get("p_holm")),
    )
    return f"{md_row(cells)} {'**' + verdict + '**' if row.get('firm') else verdict} |"


def _expected(row: Mapping[str, Any]) -> str:
    measure, margin = MEASURES[row["measure"]], row["margin"]
    size = f"{measure.factor * margin:g} {measure.unit}"
    return {
        Expect.HIGHER: "higher",
        Expect.LOWER: "lower",
        Expect.EQUAL: f"equal within {size}",
        Expect.AT_LEAST: f"at least -{size}",
        Expect.AT_MOST: f"at most +{size}",
    }[Expect(row["expect"])]


def difference_text(row: Mapping[str, Any]) -> str:
    """The difference of a claim with its interval and unit; `-` where there is none."""
    if "value" not in row:
        return "-"
    measure = MEASURES[row["measure"]]
    digits = 1 if measure.unit in ("points", "tokens") else 3
    value, low, high = (f"{measure.factor * row[name]:+.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}] {measure.unit}"


# ---------------------------------------------------------------------------------------------------------- clipped


def _clipped(finding: Finding, outline: Outline) -> list[str]:
    """A table of what the upper bound acted on, for the arms of a finding that has one."""
    arms = {arm.name: arm for arm in outline.arms}
    rows = [row for key in finding.clipped if key in arms for row in _clipped_rows(arms[key], outline)]
    if not rows:
        return []
    heads = ("arm", "clipped a run", "first of a line", *CLASSES, "most frequent")
    return [
        "What the upper bound acted on (shares of all it acted on, all seeds together):",
        "",
        *_table(TextTable("", heads, tuple(rows))),
    ]


CLASSES = ("digits", "signs", "spaces", "new lines", "letters", "others")
"""Of characters."""


def class_of(text: str) -> str:
    """Which of `CLASSES` a token is of."""
    if text == "\n":
        return "new lines"
    if text == " ":
        return "spaces"
    if len(text) == 1 and text.isdigit():
        return "digits"
    if text.isalpha():
        return "letters"
    return "signs" if text in tuple("+-=:") else "others"


def _clipped_rows(arm: ArmOutline, outline: Outline) -> list[tuple[str, ...]]:
    runs = runs_of(outline, arm)[1]
    found: list[Clipped] = [run.clipped["high"] for run in runs if "high" in run.clipped]
    counts: dict[str, int] = {}
    for text, count, _ in (token for clipped in found for token in clipped.tokens):
        counts[text] = counts.get(text, 0) + count
    total = sum(counts.values())
    if not total:
        return [(arm.name, "0", *["-"] * (len(CLASSES) + 2))] if runs else []
    starts = sum(first for clipped in found for _, _, first in clipped.tokens)
    by_class = {name: sum(n for text, n in counts.items() if class_of(text) == name) for name in CLASSES}
    frequent = sorted(counts, key=lambda text: (-counts[text], text))[:LISTED]
    return [
        (
            arm.name,
            f"{sum(clipped.count for clipped in found) / len(runs):,.0f}",
            _share(starts, total),
            *(_share(by_class[name], total) for name in CLASSES),
            " ".join(f"{_shown(text)} {_share(counts[text], total)}" for text in frequent),
        )
    ]


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if math.isfinite(whole) and whole else "-"


def _shown(text: str) -> str:
    return {"\n": "newline", " ": "space"}.get(text, text)


# ------------------------------------------------------------------------------------------------------------- arms


def _arms(outline: Outline) -> list[str]:
    arms = [arm_record(outline, arm) for arm in outline.arms]
    held_out = all(len(run.evaluations) > 2 for run in outline.runs.values())
    table = arms_table({"arms": arms, "speed_of": "held-out accuracy" if held_out else "training accuracy"})
    return ["## All arms", "", *_table(table)]


def _again(reproduction: Reproduction, outline: Outline) -> list[str]:
    typed = commands(outline)
    samples = reproduction.value_samples
    values = None if samples is None else offline.command(outline, samples)
    return [
        "## To do it again",
        "",
        "```sh",
        typed["study"],
        "```",
        "",
        "One run of each arm alone (numbers other than times come out the same, bit for bit, on the same processor and "
        "versions):",
        "",
        "```sh",
        *([] if values is None else ["# first, for the arms that start from offline values", values]),
        *(line for key, text in typed["arms"].items() for line in (f"# {key}", offline.outside(text))),
        "```",
        "",
    ]
