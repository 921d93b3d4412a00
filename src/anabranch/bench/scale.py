"""`anabranch bench scale`: how a step grows with answers, prompts and both, and what breadth costs and gains.

Every size is measured in a process of its own. Two that are compared take turns, so that a machine that becomes slower
or faster meanwhile does so for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.bench.alone import KINDS, Alone
from anabranch.bench.generate import settings
from anabranch.bench.measure import Report, load_average, machine, number, say, side_by_side, spread, title
from anabranch.errors import RecipeError, explain
from anabranch.modeling.devices import settle
from anabranch.recipe.tree import Recipe
from anabranch.tracking.tables import TextTable

Grow = Callable[[int, int, int], tuple[int, int]]
"""(prompts, answers, doublings) -> prompts and answers after them."""

AXES: Mapping[str, Grow] = {
    "answers": lambda prompts, answers, times: (prompts, answers * 2**times),
    "prompts": lambda prompts, answers, times: (prompts * 2**times, answers),
    "samples": lambda prompts, answers, times: (prompts * 2 ** (times // 2), answers * 2 ** ((times + 1) // 2)),
}
"""What doubles: answers a prompt, prompts a step, or all answers of a step (answers and prompts in turn)."""


SIDES = ("wide", "narrow")
"""Of breadth."""


@dataclass(frozen=True)
class Breadth:
    """The same number of answers from one prompt, or from many prompts."""

    wide: int
    """Answers in all; to one prompt on the wide side."""
    narrow: int
    """Answers to each prompt on the narrow side; a divisor of `wide`."""
    prompt_tokens: int
    """Length of every prompt; what the wide side saves are prompts."""
    tokens: Sequence[int]
    """Lengths of the answers, compared one after the other: the shorter they are, the more of the work are prompts."""


def scale(
    recipe: Recipe,
    *,
    prompt_tokens: int,
    axes: Sequence[str],
    doublings: int,
    breadth: Breadth | None,
    repeats: int,
    path: Path | None,
) -> Report:
    """Measure growth and breadth; prints tables, and writes JSON to `path`.

    Args:
        recipe: of `workloads.bench_recipe`, of the size that everything is compared with.
        prompt_tokens: length of every prompt.
        axes: of `AXES`: what is doubled.
        doublings: how often.
        breadth: what is compared for breadth; None: nothing.
        repeats: runs of each size, after one that does not count.
        path: where to write; None: nowhere.

    Raises:
        AnabranchError: the model cannot be loaded, a process has no memory left, ...
    """
    if breadth is not None and breadth.wide % breadth.narrow:
        need = "both sides have as many answers in all: the number is a multiple of --narrow"
        raise RecipeError(explain("--wide", breadth.wide, need, f"--wide {breadth.narrow * 32}"))
    load = load_average()
    recipe = recipe.but(model=settle(recipe.model))  # here, once: measured again in each process it could differ
    asked = {**settings(recipe, prompt_tokens, 1, repeats), "axes": list(axes), "doublings": doublings}
    if breadth is not None:
        asked["breadth"] = {**asdict(breadth), "tokens": list(breadth.tokens)}
    report = Report("scale", asked, machine(recipe.model, load), path, tables=tables)
    with report:
        if doublings:
            _grow(report, recipe, prompt_tokens, axes, doublings, repeats)
        if breadth is not None:
            _compare(report, recipe, breadth, repeats)
    return report


def sized(recipe: Recipe, prompts: int, answers: int) -> Recipe:
    """The recipe with other numbers of prompts and of answers to each."""
    return recipe.but(rollout=recipe.rollout.but(prompts=prompts, per_problem=answers))


def _grow(
    report: Report, recipe: Recipe, prompt_tokens: int, axes: Sequence[str], doublings: int, repeats: int
) -> None:
    """Every size in turns with the base, whose process stays; each size once, though two axes may share it."""
    base = (recipe.rollout.prompts, recipe.rollout.per_problem)
    sizes = [AXES[axis](*base, times) for axis in axes for times in range(1, doublings + 1)]
    with Alone("step", recipe, prompt_tokens) as small:
        report.parts["memory_counts_from"] = small.warm_up()
        for size in sorted(set(sizes), key=lambda size: (size[0] * size[1], size)):
            with Alone("step", sized(recipe, *size), prompt_tokens) as large:
                large.warm_up()
                for number_of_run in range(repeats):
                    turn = {"base": small.run(), "grown": large.run()}
                    values = _named(f"growth/{_label(size)}", turn)
                    report.parts["growth"] = growth([*report.runs, values], base, axes, doublings)
                    report.add(values)
                    say(f"scale: {_label(size)} against {_label(base)}, run {number_of_run + 1}/{repeats}")


def growth(
    runs: Sequence[Mapping[str, float]], base: tuple[int, int], axes: Sequence[str], doublings: int
) -> dict[str, list[dict[str, object]]]:
    """By axis, for every number of doublings that was measured, the step against one that grows linearly.

    `time_against_linear` is the median over runs of t(size) / (t(base) * factor) - 1, both of the same turn;
    `memory_against_base` is the median of the peaks' ratio - 1.
    """
    found: dict[str, list[dict[str, object]]] = {}
    for axis in axes:
        rows = found.setdefault(axis, [])
        for times in range(1, doublings + 1):
            prompts, answers = AXES[axis](*base, times)
            name, factor = f"growth/{_label((prompts, answers))}", 2**times
            mine = [run for run in runs if f"{name}/grown/seconds" in run]
            if not mine:
                continue
            seconds = [run[f"{name}/grown/seconds"] for run in mine]
            memory = [run[f"{name}/grown/memory_peak_mb"] for run in mine]
            linear = [run[f"{name}/base/seconds"] * factor for run in mine]
            small = [run[f"{name}/base/memory_peak_mb"] for run in mine]
            rows.append(
                {
                    "prompts": prompts,
                    "answers": answers,
                    "factor": factor,
                    "seconds": spread(seconds),
                    "time_against_linear": float(np.median(np.divide(seconds, linear))) - 1,
                    "memory_peak_mb": spread(memory),
                    "memory_against_base": float(np.median(np.divide(memory, small))) - 1,
                }
            )
    return found


def _compare(report: Report, recipe: Recipe, breadth: Breadth, repeats: int) -> None:
    """Wide and narrow in turns: generation of answers of every length first, then the whole step."""
    sizes = {"wide": (1, breadth.wide), "narrow": (breadth.wide // breadth.narrow, breadth.narrow)}
    for kind, tokens in product(reversed(KINDS), breadth.tokens):
        long = recipe.but(rollout=recipe.rollout.but(max_new_tokens=tokens))
        name = f"breadth/{kind}/{tokens}"
        with ExitStack() as stack:
            sides = {
                side: stack.enter_context(Alone(kind, sized(long, *size), breadth.prompt_tokens))
                for side, size in sizes.items()
            }
            for process in sides.values():
                process.warm_up()
            for number_of_run in range(repeats):
                values = _named(name, {side: process.run() for side, process in sides.items()})
                speed = {side: values[f"{name}/{side}/samples_per_second"] for side in sides}
                values[f"ratio/{name}/samples_per_second"] = speed["wide"] / speed["narrow"]
                report.parts["breadth"] = breadths([*report.runs, values], breadth.tokens)
                report.add(values)
                what = f"{kind} of {breadth.wide} answers of {tokens} tokens"
                say(f"scale: {what}, wide and narrow, run {number_of_run + 1}/{repeats}")


def breadths(runs: Sequence[Mapping[str, float]], lengths: Sequence[int]) -> list[dict[str, Any]]:
    """What was measured of breadth, a row for generation and for the step with answers of each length.

    `wide` and `narrow` are spreads of samples a second, `ratio` that of wide over narrow within each turn.
    `computed_ratio` is narrow over wide in tokens that go through the model, prompts and answers, in prefill, decoding
    and training: as many times as fast is the wide side if every token costs the same, so all that sharing by itself
    can give.
    """
    found = []
    for kind, tokens in product(reversed(KINDS), lengths):
        name = f"breadth/{kind}/{tokens}"
        mine = [run for run in runs if f"ratio/{name}/samples_per_second" in run]
        if not mine:
            continue
        computed = {side: float(np.median([run[f"{name}/{side}/computed_tokens"] for run in mine])) for side in SIDES}
        found.append(
            {
                "kind": kind,
                "tokens": tokens,
                **{side: spread([run[f"{name}/{side}/samples_per_second"] for run in mine]) for side in SIDES},
                "ratio": spread([run[f"ratio/{name}/samples_per_second"] for run in mine]),
                "computed_ratio": computed["narrow"] / computed["wide"],
            }
        )
    return found


def _named(prefix: str, values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {f"{prefix}/{side}/{name}": value for side, found in values.items() for name, value in found.items()}


def _label(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def tables(report: Report) -> list[TextTable]:
    """Growth by axis, and breadth; what was not measured is left out."""
    found = []
    rows = [
        (
            f"{axis} x {row['factor']}",
            f"{row['prompts']} x {row['answers']}",
            number(row["seconds"]["median"]),
            f"{row['time_against_linear']:+.1%}",
            number(row["memory_peak_mb"]["median"]),
            f"{row['memory_against_base']:+.1%}",
        )
        for axis, measured in report.parts.get("growth", {}).items()
        for row in measured
    ]
    columns = ("", "prompts x answers", "seconds", "time against linear", "peak MB", "memory against base")
    if rows:
        found.append(TextTable(title(report), columns, tuple(rows)))
    breadth = report.parts.get("breadth", [])
    if breadth:
        columns = ("breadth", "tokens", "wide, answers/s", "narrow, answers/s", "ratio", "tokens computed, narrow/wide")
        figures = tuple(
            (
                row["kind"],
                str(row["tokens"]),
                *(number(row[figure]["median"]) for figure in (*SIDES, "ratio")),
                number(row["computed_ratio"]),
            )
            for row in breadth
        )
        found.append(TextTable(title(report), columns, figures))
    for row in breadth:
        name = f"{row['kind']}/{row['tokens']}"
        found.append(side_by_side(report, f"breadth/{name}/", SIDES, f"{title(report)}: breadth, {name}"))
    return found
