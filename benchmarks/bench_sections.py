"""Sections of the report about what `anabranch bench ... --json FILE` wrote, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.duel import number
from benchmarks.goals import Goal, Outcome, Unit, unlike
from benchmarks.markdown import block, code, command, counted, extremes, middle, percent, quartiles, table, values
from benchmarks.step import MODEL
from benchmarks.step_task import Size

Report = Mapping[str, Any]
"""One file of results."""

PRODUCTS = Goal("forward and backward: time of the matrix products alone, over the whole", 0.70, Unit.SHARE)
BREADTH = {
    kind: Goal(f"N = 512 over N = 16, as many samples, samples/s {of}", 2.0, Unit.TIMES)
    for kind, of in (("generate", "of generation"), ("step", "of the whole step"))
}
"""BroRL's own figure is of generation; the step is held to the same."""
BREADTH_SIZES = {"model": MODEL, "wide": 512, "narrow": 16}
BREADTH_PROMPT = 200
"""Tokens that its prompts have at least."""
GROWTH = {
    axis: Goal(f"growth: seconds a step against linear, {axis} doubled", 0.10, Unit.MORE, at_least=False)
    for axis in ("answers", "prompts", "samples")
}
FLAT = {
    axis: Goal(f"growth: peak memory of a step, {axis} doubled", 0.10, Unit.MORE, at_least=False)
    for axis in ("answers", "prompts")
}
"""That memory is flat means here: within the tenth that time is allowed."""

SIDES = ("ours", "plain")
TOP = 8
"""How many products a table names."""


# ------------------------------------------------------------------------------------------------------- outcomes


def products_outcome(report: Report | None) -> Outcome:
    if report is None or not report["runs"]:
        return PRODUCTS.missing()
    share = report["summary"]["ours/products_share"]
    measured = f"{Unit.SHARE.show(share['median'])} ({_shares(share)})"
    return PRODUCTS.outcome(share["median"], measured, unlike(report["settings"], {"model": MODEL, **Size().as_dict()}))


def _shares(found: Mapping[str, float]) -> str:
    return f"{100 * found['min']:.1f} to {100 * found['max']:.1f}"


def breadth_outcomes(kind: str, report: Report | None) -> Iterator[Outcome]:
    """Whether the ratio of samples/s is reached with answers of each length; `kind` is `step` or `generate`."""
    rows = [] if report is None else [row for row in report.get("breadth", []) if row["kind"] == kind]
    if report is None or not rows:
        yield BREADTH[kind].missing()
        return
    asked = report["settings"]["breadth"]
    other = unlike({"model": report["settings"]["model"], **asked}, BREADTH_SIZES)
    if asked["prompt_tokens"] < BREADTH_PROMPT:
        other = ", ".join(filter(None, (other, f"prompts have {asked['prompt_tokens']} tokens, not {BREADTH_PROMPT}")))
    for row in rows:
        goal, ratio = (
            replace(BREADTH[kind], what=f"{BREADTH[kind].what}, answers of {row['tokens']} tokens"),
            row["ratio"],
        )
        computed = f"tokens computed {Unit.TIMES.show(row['computed_ratio'])}"
        measured = f"{Unit.TIMES.show(ratio['median'])} ({extremes(ratio)}), {computed}"
        yield goal.outcome(ratio["median"], measured, other)


def growth_outcome(goal: Goal, axis: str, number_of: str, report: Report | None) -> Outcome:
    """The worst size of an axis.

    Args:
        goal: of `GROWTH` or `FLAT`.
        axis: what doubles.
        number_of: `time_against_linear` or `memory_against_base`.
        report: of `anabranch bench scale`.
    """
    rows = [] if report is None else report.get("growth", {}).get(axis, [])
    if report is None or not rows:
        return goal.missing()
    worst = max(rows, key=lambda row: row[number_of])
    measured = f"{Unit.MORE.show(worst[number_of])} at x {worst['factor']}, the worst of {len(rows)}"
    return goal.outcome(worst[number_of], measured, unlike(report["settings"], {"model": MODEL}))


# ------------------------------------------------------------------------------------------------------ the reports


def asked_text(report: Report) -> Iterator[str]:
    """The command, sizes and settings."""
    yield block(command(report["machine"]["command"]))
    settings, where = report["settings"], report["machine"]
    sizes = {name: settings[name] for name in ("prompts", "answers", "tokens", "prompt_tokens")}
    count = max((int(found["runs"]) for found in report["summary"].values()), default=0)
    unfinished = "" if report["complete"] else ", interrupted"
    yield (
        f"{settings['model']}; {', '.join(f'{name} {value}' for name, value in sizes.items())}; {where['dtype']}, "
        f"{counted(where['threads'], 'thread')}, {counted(count, 'run')}{unfinished}. "
        f"Environment: {code(values(where['variables'])) or 'nothing that matters'}."
    )


def numbers_text(report: Report) -> Iterator[str]:
    """Every number, and the command."""
    rows = [
        (name, number(found["median"]), quartiles(found), extremes(found)) for name, found in report["summary"].items()
    ]
    if rows:
        yield table(("", "median", "quartiles", "extremes"), rows)
    yield from asked_text(report)


def side_by_side(report: Report, prefix: str, sides: Sequence[str]) -> str | None:
    """Median and extremes of `<prefix><side>/<name>`, a column a side, and of `ratio/<prefix><name>` where it is; None
    if there is no such number."""
    found = report["summary"]
    starts = [f"{prefix}{side}/" for side in sides]
    names = dict.fromkeys(name.removeprefix(start) for start in starts for name in found if name.startswith(start))

    def cell(name: str) -> str:
        return middle(found[name]) if name in found else ""

    rows = [(name, *(cell(start + name) for start in starts), cell(f"ratio/{prefix}{name}")) for name in names]
    return table(("median (extremes)", *sides, "ratio"), rows) if rows else None


def train_text(report: Report) -> Iterator[str]:
    """Both sides of forward and backward, where the time goes, and the dearest products."""
    speeds = side_by_side(report, "", SIDES)
    if speeds is None:
        yield "Interrupted before the first run."
        return
    yield speeds
    roofline, products = report.get("roofline", {}), report.get("products", {})
    if set(roofline) == set(SIDES):
        yield "Where the time goes, as shares of forward and backward:"
        yield _roofline(roofline)
    for side, found in products.items():
        yield f"Matrix products of {side} alone, the {min(TOP, len(found))} dearest of {len(found)} different ones:"
        yield table(
            ("product", "calls", "s", "TFLOP/s"),
            [(code(p["product"]), str(p["calls"]), number(p["seconds"]), number(p["teraflops"])) for p in found[:TOP]],
        )
    yield from asked_text(report)
    yield f"Plain transformers computes {report['settings']['plain_answers']} answers at a time."


def _roofline(shares: Mapping[str, Mapping[str, float]]) -> str:
    last = ("all other operations", "in between")
    names = dict.fromkeys(name for side in SIDES for name in shares[side])
    ordered = [*(name for name in names if name not in last), *last]
    rows = [
        (name, *(percent(shares[side][name]) if name in shares[side] else "" for side in SIDES)) for name in ordered
    ]
    return table(("", *SIDES), rows)


def growth_text(report: Report) -> Iterator[str]:
    """Time and memory of every size against the smallest."""
    rows = [
        (
            f"{axis} x {row['factor']}",
            f"{row['prompts']} x {row['answers']}",
            middle(row["seconds"]),
            Unit.MORE.show(row["time_against_linear"]),
            middle(row["memory_peak_mb"]),
            Unit.MORE.show(row["memory_against_base"]),
        )
        for axis, measured in report.get("growth", {}).items()
        for row in measured
    ]
    if rows:
        columns = ("", "prompts x answers", "seconds", "time against linear", "peak MB", "memory against smallest")
        yield table(columns, rows)
    yield from asked_text(report)


def breadth_text(report: Report) -> Iterator[str]:
    """One prompt with many answers beside many prompts with few: the whole step, and generation."""
    asked = report["settings"].get("breadth")
    if asked is None:
        return
    yield (
        f"{asked['wide']} answers on both sides, to prompts of {asked['prompt_tokens']} tokens. *wide*: all to one "
        f"prompt. *narrow*: {asked['narrow']} to each of {asked['wide'] // asked['narrow']}."
    )
    names = {"generate": "generation alone", "step": "the whole step"}
    measured = report.get("breadth", [])
    if measured:
        rows = [
            (
                names[row["kind"]],
                str(row["tokens"]),
                *(middle(row[figure]) for figure in ("wide", "narrow", "ratio")),
                Unit.TIMES.show(row["computed_ratio"]),
            )
            for row in measured
        ]
        columns = (
            "",
            "tokens an answer",
            "wide, answers/s",
            "narrow, answers/s",
            "ratio",
            "tokens computed, narrow/wide",
        )
        yield table(columns, rows)
        yield (
            "*tokens computed*: those that go through the model, prompts and answers, in prefill, decoding and "
            "training. Were every token equally dear, the ratio would be this one: sharing by itself gives no more."
        )
    for row in measured:
        found = side_by_side(report, f"breadth/{row['kind']}/{row['tokens']}/", ("wide", "narrow"))
        if found is not None:
            yield f"In parts, {names[row['kind']]}, answers of {row['tokens']} tokens:"
            yield found
    yield from asked_text(report)
