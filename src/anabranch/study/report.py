"""The report of a study in three forms: JSON for programs, Markdown for a repository, one HTML file for reading."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from anabranch.study import picture
from anabranch.study.analysis import SHARES, analyse
from anabranch.study.outline import Outline
from anabranch.tracking.display import duration
from anabranch.tracking.files import write_atomic, writing
from anabranch.tracking.tables import TextTable

PICTURES = {
    "held_out": "Held-out accuracy",
    "accuracy": "Training accuracy",
    "reward": "Training reward",
    "entropy": "Entropy, nats a token",
    "answer_length_mean": "Tokens of an answer",
    "truncated": "Answers cut at the limit",
    "dead_groups": "Groups that agree",
    "clip_high": "Tokens at the upper clip bound",
    "grad_norm": "Gradient norm",
}
"""Curves that are drawn, and their titles."""

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  background: Canvas; color: CanvasText; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; text-align: right;
  border-bottom: 1px solid color-mix(in srgb, CanvasText 20%, Canvas); }
th:first-child, td:first-child { text-align: left; }
svg { width: 100%; max-width: 45rem; height: auto; display: block; margin: 1rem 0; }
pre { overflow-x: auto; padding: .6rem .8rem; background: color-mix(in srgb, CanvasText 7%, Canvas); }
.verdict { font-weight: 600; }
.missing { border-left: 4px solid #d97706; padding-left: .8rem; }
"""


def write_report(outline: Outline, folder: Path) -> dict[str, Any]:
    """Write `report.json`, `report.md` and `report.html` into a folder; returns what the first holds.

    Raises:
        RunFolderError: something cannot be written.
    """
    found = analyse(outline)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "report.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    write_atomic(folder / "report.md", markdown(found))
    write_atomic(folder / "report.html", html(found))
    return found


# ----------------------------------------------------------------------------------------------------------- tables


def arms_table(found: Mapping[str, Any]) -> TextTable:
    """One row an arm: accuracy with its interval, learning speed, cost."""
    speed = f"mean {found['speed_of']} on the way, %"
    heads = ("arm", "seeds", "accuracy, %", "before RL, %", speed, "answers", "tokens", "time of RL")
    return TextTable("Held-out accuracy, and what it cost (means over seeds)", heads, tuple(map(_row, found["arms"])))


def _row(arm: Mapping[str, Any]) -> tuple[str, ...]:
    if not arm["seeds"]:
        return arm["name"], "0", *["-"] * 6
    cost = arm["cost"]
    return (
        arm["name"],
        str(len(arm["seeds"])),
        _percent(arm["accuracy"]),
        f"{100 * arm['before']:.1f}",
        _percent(arm["speed"]),
        f"{cost['answers']:,.0f}",
        f"{cost['tokens']:,.0f}",
        duration(cost["seconds"]),
    )


def differences_table(found: Mapping[str, Any]) -> TextTable:
    """One row an arm but the first: difference, p-values, verdict."""
    heads = (f"against {found['reference']}", "seeds", "points", "p", "adjusted p", "speed, points", "verdict")
    rows = [
        (
            c["arm"],
            str(len(c["seeds"])),
            _percent(c.get("difference"), "+"),
            p_text(c.get("p")),
            p_text(c.get("p_holm")),
            _percent(c.get("speed_difference"), "+"),
            c["verdict"],
        )
        for c in found["comparisons"]
    ]
    return TextTable("Paired differences of held-out accuracy", heads, tuple(rows))


def summary_table(found: Mapping[str, Any]) -> TextTable:
    """What fits on a terminal: accuracy and difference of every arm."""
    against = {c["arm"]: _percent(c.get("difference"), "+") for c in found["comparisons"]}
    rows = [
        (arm["name"], _percent(arm.get("accuracy")), against.get(arm["name"], "reference")) for arm in found["arms"]
    ]
    return TextTable("Held-out accuracy after RL, means over seeds", ("arm", "%", "points"), tuple(rows))


def _percent(ends: Mapping[str, float] | None, sign: str = "") -> str:
    if ends is None:
        return "-"
    value, low, high = (f"{100 * ends[name]:{sign}.1f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def p_text(value: float | None) -> str:
    """A p-value as people read it; `-` where there is none."""
    return "-" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def seeds_table(found: Mapping[str, Any]) -> TextTable:
    """Final accuracy of every run."""
    rows = []
    for arm in found["arms"]:
        values = dict(zip(arm["seeds"], arm.get("by_seed", ()), strict=True))
        rows.append((arm["name"], *(f"{100 * values[s]:.1f}" if s in values else "missing" for s in found["seeds"])))
    heads = ("arm", *(f"seed {seed}" for seed in found["seeds"]))
    return TextTable("Held-out accuracy of every run, %", heads, tuple(rows))


def missing_sentence(found: Mapping[str, Any]) -> str | None:
    """Which runs there are no results of; None if all are there."""
    if not found["missing"]:
        return None
    runs = ", ".join(f"{run['arm']} seed {run['seed']}" for run in found["missing"])
    count = len(found["missing"])
    few = "1 run is" if count == 1 else f"{count} runs are"
    return f"{few} missing: {runs}. Everything below is without {'it' if count == 1 else 'them'}."


def title(found: Mapping[str, Any]) -> str:
    """One line that names the study."""
    return f"{found['base']}: {len(found['arms'])} arms, {len(found['seeds'])} seeds"


def _setting(found: Mapping[str, Any]) -> str:
    facts, compute = found["facts"], found["compute"]
    common = " ".join(found["overrides"]) or "none"
    commit = f", commit {facts['git_commit'][:12]}" if facts.get("git_commit") else ""
    threads = "1 thread" if compute["threads"] == 1 else f"{compute['threads']} threads"
    return (
        f"Changes common to all arms: {common}. Computed in {compute['dtype']} on {compute['device']} with "
        f"{threads} ({facts['cpu']}, {facts['cores']} cores); anabranch {facts['version']}{commit}; "
        f"started {facts['started']}. Times depend on the machine and on what ran beside; all other numbers do not."
    )


# --------------------------------------------------------------------------------------------------------- markdown


def markdown(found: Mapping[str, Any]) -> str:
    """The report as Markdown, without pictures."""
    missing = missing_sentence(found)
    parts = [f"# {title(found)}", ""]
    parts += [f"**{md(missing)}**", ""] if missing else []
    parts += [*(f"* {md(c['sentence'])}" for c in found["comparisons"]), "", md(_setting(found)), ""]
    for table in (differences_table(found), arms_table(found), seeds_table(found)):
        parts += [f"## {table.title}", "", md_row(table.columns), md_row(["---"] * len(table.columns))]
        parts += [*map(md_row, table.rows), ""]
    parts += ["## How to read this", "", *(f"* {md(text)}" for text in found["statistics"]), ""]
    parts += ["## To do it again", "", "```sh", found["commands"]["study"], "```", ""]
    parts += ["One run of each arm alone:", "", "```sh", *found["commands"]["arms"].values(), "```", ""]
    return "\n".join(parts)


def md(text: str) -> str:
    """Text in which nothing is markup."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|" else letter for letter in text)


def md_row(cells: Sequence[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(cell if set(cell) == {"-"} else md(cell) for cell in cells) + " |"


# ------------------------------------------------------------------------------------------------------------- html


def html(found: Mapping[str, Any]) -> str:
    """The report as one HTML file: no script, nothing that is loaded from elsewhere."""
    missing = missing_sentence(found)
    body = [f"<h1>{escape(title(found))}</h1>"]
    body += [f'<p class="missing">{escape(missing)}</p>'] if missing else []
    body += ["<ul>", *(f"<li>{_sentence(c)}</li>" for c in found["comparisons"]), "</ul>"]
    body += [f"<p>{escape(_setting(found))}</p>", *_interval_pictures(found)]
    body += [_html_table(differences_table(found)), _html_table(arms_table(found)), "<h2>Learning curves</h2>"]
    names = [arm["name"] for arm in found["arms"]]
    for name, text in PICTURES.items():
        if name in found["curves"]:
            lines = picture.lines_of(found["curves"][name], names)
            body.append(picture.curves(text, lines, share=name in SHARES))
    body += [_html_table(seeds_table(found)), "<h2>How to read this</h2>", "<ul>"]
    body += [*(f"<li>{escape(text)}</li>" for text in found["statistics"]), "</ul>", "<h2>To do it again</h2>"]
    body += [f"<pre>{escape(found['commands']['study'])}</pre>", "<p>One run of each arm alone:</p>"]
    body.append(f"<pre>{escape(chr(10).join(found['commands']['arms'].values()))}</pre>")
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title(found))}</title>\n<style>{_STYLE}</style>\n</head>\n<body>"
    )
    return "\n".join([head, *body, "</body>\n</html>\n"])


def _sentence(comparison: Mapping[str, Any]) -> str:
    return f'<span class="verdict">{escape(comparison["verdict"])}</span>: {escape(comparison["sentence"])}'


def _interval_pictures(found: Mapping[str, Any]) -> list[str]:
    names = [arm["name"] for arm in found["arms"]]
    differences = [
        picture.Bar(c["arm"], **c["difference"], points=c["by_seed"], number=names.index(c["arm"]))
        for c in found["comparisons"]
        if c.get("difference")
    ]
    accuracies = [
        picture.Bar(arm["name"], **arm["accuracy"], points=arm["by_seed"], number=number)
        for number, arm in enumerate(found["arms"])
        if arm.get("accuracy")
    ]
    parts = []
    if differences:
        text = f"Held-out accuracy against {found['reference']}, points (dots: single seeds)"
        parts.append(picture.intervals(text, differences, zero=True))
    if accuracies:
        parts.append(picture.intervals("Held-out accuracy, % (dots: single seeds)", accuracies, zero=False))
    return parts


def _html_table(table: TextTable) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.columns)
    rows = ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows]
    return "\n".join([f"<h3>{escape(table.title)}</h3>", "<table>", f"<tr>{head}</tr>", *rows, "</table>"])
