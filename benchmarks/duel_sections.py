"""Sections of the report about duels: what `benchmarks.duel` wrote, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from benchmarks import generate_transformers, generate_vllm, startup, step
from benchmarks.duel import number, spread
from benchmarks.goals import Goal, Outcome, Unit, unlike
from benchmarks.markdown import block, code, command, counted, extremes, middle, percent, quartiles, table, values
from benchmarks.step_task import Size

Report = Mapping[str, Any]
"""One file of results."""

STEP = Goal("GRPO step of 8 x 8 answers of 64 tokens, samples/s over TRL's", step.GOAL, Unit.TIMES)
STEP_UNTOUCHED = Goal("the same, TRL's environment variables left as they come", step.GOAL, Unit.TIMES)
MEMORY = Goal("peak memory of that step, over TRL's", step.MEMORY_GOAL, Unit.TIMES, at_least=False)
MEMORY_UNTOUCHED = Goal(STEP_UNTOUCHED.what, step.MEMORY_GOAL, Unit.TIMES, at_least=False)
VLLM = {
    answers: Goal(f"generation, {answers} answers of one prompt, tokens/s over vLLM's", goal, Unit.TIMES)
    for answers, goal in generate_vllm.GOALS.items()
}
TRANSFORMERS = {
    answers: Goal(f"generation, {answers} answers of one prompt, tokens/s over transformers'", goal, Unit.TIMES)
    for answers, goal in generate_transformers.GOALS.items()
}
START = Goal("start-up to the first token, cached model", startup.GOAL_SECONDS, Unit.SECONDS, at_least=False)


# ------------------------------------------------------------------------------------------------------- outcomes


def ratio_outcome(goal: Goal, report: Report | None, sizes: Mapping[str, Any]) -> Outcome:
    """A duel's ratio against its goal; `sizes` are the arguments that the goal is about."""
    if report is None or report["summary"] is None:
        return goal.missing()
    ratio = report["summary"]["ratio"]
    measured = f"{Unit.TIMES.show(ratio['median'])} ({extremes(ratio)})"
    return goal.outcome(ratio["median"], measured + loud(report), unlike({**report["args"], **model(report)}, sizes))


def step_outcome(goal: Goal, report: Report | None) -> Outcome:
    return ratio_outcome(goal, report, {"model": step.MODEL, **Size().as_dict()})


def generation_outcome(goal: Goal, report: Report | None, answers: int) -> Outcome:
    return ratio_outcome(goal, report, {"model": step.MODEL, "answers": answers, "tokens": 64})


def memory_outcome(goal: Goal, report: Report | None) -> Outcome:
    """Peaks of the steps that counted."""
    if report is None or report["summary"] is None:
        return goal.missing()
    ratio = step.memory(report)["steps_ratio"]
    sizes = {"model": step.MODEL, **Size().as_dict()}
    return goal.outcome(ratio, Unit.TIMES.show(ratio), unlike({**report["args"], **model(report)}, sizes))


def start_outcome(report: Report | None) -> Outcome:
    if report is None or report["summary"] is None:
        return START.missing()
    seconds = spread([round["seconds"] for round in report["sides"]["anabranch"]["rounds"]])
    measured = f"{Unit.SECONDS.show(seconds['median'])} ({extremes(seconds)})"
    asked = report["sides"]["anabranch"]["settings"]["command"]
    other = "" if step.MODEL in asked else f"the model is not {step.MODEL}"
    return START.outcome(seconds["median"], measured + loud(report), other)


def model(report: Report) -> dict[str, Any]:
    """What our side was told to load."""
    return {"model": report["sides"]["anabranch"]["settings"]["model"]}


def loud(report: Report) -> str:
    """What stands behind a number measured while others used the machine."""
    summary = report["summary"]
    return "" if summary["quiet"] else f", others kept {number(summary['other_cores'])} cores busy"


# ---------------------------------------------------------------------------------------------------- whole duels


def duel_text(report: Report) -> Iterator[str]:
    """Speed of both sides, the command, their settings, and the search; Markdown blocks."""
    summary, unit = report["summary"], report["unit"]
    if summary is None:
        yield "Interrupted before the first round."
        return
    rows = [
        (name, number(rate["median"]), quartiles(rate), extremes(rate), number(peak))
        for name, rate, peak in zip(report["sides"], summary["rates"], summary["peak_mb"], strict=True)
    ]
    yield table(("", f"{unit}/s (median)", "quartiles", "extremes", "peak MB"), rows)
    ours, theirs = report["sides"]
    ratio = summary["ratio"]
    count = len(report["sides"][ours]["rounds"])
    yield (
        f"Ratio, {ours} over {theirs}: median {number(ratio['median'])}, quartiles {quartiles(ratio)}, extremes "
        f"{extremes(ratio)}; {counted(count, 'round')} of each side in turns{loud(report)}."
    )
    yield from how(report)
    yield from search_text(report)


def how(report: Report) -> Iterator[str]:
    """The command, what both sides were asked for, and their settings."""
    yield block(command(report["command"]))
    asked = {name: f"{len(value)} tokens" if name == "prompt" else value for name, value in report["args"].items()}
    if asked:
        yield "Asked of both sides: " + ", ".join(f"{name} {value}" for name, value in asked.items()) + "."
    yield table(
        ("", "settings", "environment"),
        [
            (name, code(values(_shown(side["settings"]))), code(values(side["env"])))
            for name, side in report["sides"].items()
        ],
    )


def _shown(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, but for the token ids that a program gets as arguments and the folder of temporary files."""
    found = dict(settings)
    if "command" in found:
        found["command"] = " ".join(word for word in found["command"] if not word.isdigit())
    if "rollouts" in found:
        found["rollouts"] = PurePath(found["rollouts"]).name
    return found


def search_text(report: Report) -> Iterator[str]:
    """What the search tried: each candidate by what it has other than its side's first one."""
    if not report["search"]:
        yield "Settings were given: this run searched for none."
        return
    if report.get("searched"):
        yield f"The search is that of an earlier run, of {report['searched'][:16]} UTC."
    for name in report["sides"]:
        tried = [one for one in report["search"] if one["side"] == name]
        if not tried:
            yield f"Settings of {name} were given."
            continue
        if "searched_with" in tried[0]:
            found_with = tried[0]["searched_with"]
            yield f"Settings of {name} are those that the search with {counted(found_with, 'answer')} found."
            continue
        first = _all_settings(tried[0])
        best = max((one["rate"] for one in tried if "rate" in one and not one.get("for_comparison")), default=None)
        yield f"Search for the settings of {name}, beginning with {code(values(first))}:"
        yield table(
            ("tried", f"{report['unit']}/s", "peak MB", ""),
            [_candidate(one, first, best, report["unit"]) for one in tried],
        )


def _all_settings(tried: Mapping[str, Any]) -> dict[str, Any]:
    return {**tried["settings"], **tried["env"]}


def _candidate(
    one: Mapping[str, Any], first: Mapping[str, Any], best: float | None, unit: str
) -> tuple[str, str, str, str]:
    own = _all_settings(one)
    changed = {name: value for name, value in own.items() if name not in first or first[name] != value}
    name = code(values(changed)) or "the first"
    if "rate" not in one:
        return name, "", "", one["error"] if one["error"].startswith("not back") else "cannot run"
    note = "for comparison only" if one.get("for_comparison") else "chosen" if one["rate"] == best else ""
    return name, number(one["rate"]), number(one["peak_mb"]), note


def phases_text(report: Report) -> Iterator[str]:
    """Median seconds of every phase that a side tells of, and its share of the round; the engine's own phases lie
    within `generate`."""
    sides = report["sides"]
    times = {name: _phases(side["rounds"]) for name, side in sides.items()}
    if not any(times.values()):
        return
    whole = {name: statistics.median([round["seconds"] for round in side["rounds"]]) for name, side in sides.items()}
    rows = []
    for phase in dict.fromkeys(phase for found in times.values() for phase in found):
        cells = [phase]
        for name, found in times.items():
            there = phase in found
            cells += [number(found[phase]), percent(found[phase] / whole[name])] if there else ["", ""]
        rows.append(cells)
    rows.append(["whole", *(cell for name in times for cell in (number(whole[name]), percent(1)))])
    columns = ["phase", *(cell for name in times for cell in (f"{name}, s", "share"))]
    yield "Phases, medians over rounds (`generate: ...` are parts of `generate`):"
    yield table(columns, rows)


def _phases(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Medians, in the order of the first round, the engine's behind `generate`."""
    found: dict[str, list[float]] = {}
    for round in rounds:
        for phase, seconds in round.get("phases", {}).items():
            found.setdefault(phase, []).append(seconds)
            if phase == "generate":
                for part, spent in round.get("engine", {}).items():
                    found.setdefault(f"generate: {part}", []).append(spent)
    return {phase: statistics.median(seconds) for phase, seconds in found.items()}


# --------------------------------------------------------------------------------------------- single kinds of duel


def memory_text(report: Report) -> Iterator[str]:
    """Peaks of the counted steps, and of the whole life of the processes."""
    if report["summary"] is None:
        return
    found = step.memory(report)
    rows = [(name, number(found[name]["steps_mb"]), number(found[name]["process_mb"])) for name in report["sides"]]
    rows.append(("ratio", number(found["steps_ratio"]), number(found["process_ratio"])))
    yield table(("", "peak MB of a counted step", "peak MB since the start of the process"), rows)


def gradients_text(report: Report) -> Iterator[str]:
    """How far the gradients of the two trainers lie apart."""
    if "gradients" not in report:
        yield "Gradients: interrupted before they were written."
        return
    rows = [
        (
            name,
            f"{found['relative_error']:.2e}",
            f"{found['cosine']:.8f}",
            f"{found['norm_ratio']:.6f}",
            f"{found['worst']['relative_error']:.2e} ({found['worst']['name']})",
        )
        for name, found in report["gradients"].items()
    ]
    yield "Gradients of one step from the same weights and answers, just before the optimizer, unclipped:"
    yield table(("", "relative error", "cosine", "ratio of norms", "worst parameter"), rows)


def start_text(report: Report) -> Iterator[str]:
    """Seconds to the first line of a program, and its memory."""
    if report["summary"] is None:
        yield "Interrupted before the first round."
        return
    rows = [
        (
            name,
            middle(spread([round["seconds"] for round in side["rounds"]])),
            middle(spread([round["until_end"] for round in side["rounds"]])),
            number(max(round["program_peak_mb"] for round in side["rounds"])),
        )
        for name, side in report["sides"].items()
    ]
    columns = ("median (extremes)", "seconds to the first line", "seconds to the end", "peak MB")
    yield table(columns, rows)
    yield from how(report)
