"""`anabranch simulate mass-balance`: one token and many draws, as a table beside reference bands, picture and JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.analysis.group_latency import check_place
from anabranch.analysis.mass_balance import Adam, Outcome, Setting, simulate
from anabranch.analysis.mass_balance_reference import SIZES, Size, misses, order_misses
from anabranch.errors import RecipeError, explain
from anabranch.study import picture
from anabranch.tracking.display import Display, make_display
from anabranch.tracking.files import write_atomic
from anabranch.tracking.tables import TextTable

READING = (
    "Q_pos: probability of a correct token. Improved: correct tokens more probable than at the start. Worst: change of "
    "the correct token that lost most. Where few are drawn Q_pos falls below its start: that is AdamW, whose eps is "
    "above the gradients, and its weight decay; not the theorem. Reference: bands that we measured for any seed."
)
SECONDS_BETWEEN_LINES = 10.0
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Asked:
    """What the command line asks for.

    Raises:
        RecipeError: an unknown size, no N, a number outside its range.
    """

    size: str = "ci"
    draws: tuple[int, ...] = ()
    """Every N; empty: those of the size."""
    steps: int | None = None
    """None: those of the size."""
    seeds: int = 1
    """Runs of each N."""
    seed: int = 0
    """Of the first of them; the others follow it."""
    adam: Adam = Adam()

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise RecipeError(explain("--size", self.size, f"there are {', '.join(SIZES)}", "--size ci"))
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise RecipeError(explain("--seeds", self.seeds, f"it is 1 to {MOST_SEEDS}", "--seeds 1"))
        self.settings()

    @property
    def of_size(self) -> Size:
        """The vocabulary and all that goes with it."""
        return SIZES[self.size]

    @property
    def comparable(self) -> bool:
        """Whether the reference bands are of this setting."""
        return self.steps in (None, self.of_size.steps) and self.adam == Adam()

    def settings(self) -> list[list[Setting]]:
        """For each N, in rising order, one simulation a seed."""
        size, steps = self.of_size, self.of_size.steps if self.steps is None else self.steps
        seeds = range(self.seed, self.seed + self.seeds)
        return [
            [Setting(size.vocabulary, size.correct, draws, steps, seed, self.adam) for seed in seeds]
            for draws in sorted(set(self.draws or size.bands))
        ]


def parse_draws(text: str | None) -> tuple[int, ...]:
    """`4,16,512` as numbers; nothing for None.

    Raises:
        RecipeError: something else than whole numbers with commas between.
    """
    if text is None:
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        need = "it is whole numbers with commas between"
        raise RecipeError(explain("--n", text or "nothing", need, "--n 4,16,512")) from None


def mass_balance(asked: Asked, out: Path | None, json_file: Path | None) -> None:
    """Simulate, print the table, and write what was asked for.

    Args:
        asked: the setting.
        out: SVG file.
        json_file: all numbers.

    Raises:
        RunFolderError: a file cannot be written; known before anything is simulated.
    """
    for path in (out, json_file):
        if path is not None:
            check_place(path)
    with make_display(sys.stdout) as display:
        runs = [[_told(setting, display) for setting in settings] for settings in asked.settings()]
        display.table(table(asked, runs))
        display.note(READING)
        for line in verdicts(asked, runs):
            display.note(line)
        if out is not None:
            write_atomic(out, drawing(asked, runs))
            display.note(f"picture: {out}")
        if json_file is not None:
            write_atomic(json_file, json.dumps(record(asked, runs), indent=1) + "\n")
            display.note(f"numbers: {json_file}")


def _told(setting: Setting, display: Display) -> Outcome:
    """Simulate, with a line at the end and now and then before it."""
    name, start = f"N = {setting.draws:,}, seed {setting.seed}", time.monotonic()
    last = start

    def after_step(number: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and number < setting.steps:
            last = now
            left = (now - start) / number * (setting.steps - number)
            display.note(f"{name}: {number:,} of {setting.steps:,} steps, {left:.0f} s left")

    outcome = simulate(setting, after_step)
    seconds = time.monotonic() - start
    display.note(f"{name}: Q_pos {outcome.correct_mass:.4f} after {setting.steps:,} steps, {seconds:.1f} s")
    return outcome


# ---------------------------------------------------------------------------------------------------------- showing


def table(asked: Asked, runs: Sequence[Sequence[Outcome]]) -> TextTable:
    """One row for each N: the mean of all seeds, or from the smallest to the largest, beside the reference bands."""
    size = asked.of_size
    rows = []
    for outcomes in runs:
        band = size.bands.get(outcomes[0].setting.draws) if asked.comparable else None
        within = "-"
        if band is not None:
            missed = list(dict.fromkeys(name for outcome in outcomes for name in misses(band, outcome)))
            within = f"no: {', '.join(missed)}" if missed else "yes"
        rows.append(
            (
                f"{outcomes[0].setting.draws:,}",
                _range([each.correct_mass for each in outcomes], ".4f"),
                "-" if band is None else f"{band.correct_mass[0]:g} to {band.correct_mass[1]:g}",
                _range([100 * each.improved for each in outcomes], ".1f"),
                "-" if band is None else f"{100 * band.improved[0]:g} to {100 * band.improved[1]:g}",
                _range([each.worst for each in outcomes], ".1e"),
                "-" if band is None else {-1: "< 0", 0: "either", 1: "> 0"}[band.worst_sign],
                _range([each.worst_of_all for each in outcomes], ".1e"),
                within,
            )
        )
    first = runs[0][0]
    title = (
        f"{size.vocabulary:,} tokens, {size.correct:,} correct; {first.setting.steps:,} steps, {asked.seeds} "
        f"seed{'s' if asked.seeds > 1 else ''} from {asked.seed}; Q_pos starts at {first.curve.correct_mass[0]:.6f}"
    )
    heads = (
        "N",
        "Q_pos",
        "reference",
        "improved, %",
        "reference",
        "worst",
        "reference",
        "worst of all steps",
        "within",
    )
    return TextTable(title, heads, tuple(rows))


def _range(values: Sequence[float], form: str) -> str:
    texts = list(dict.fromkeys((format(min(values), form), format(max(values), form))))
    return " to ".join(texts)


def verdicts(asked: Asked, runs: Sequence[Sequence[Outcome]]) -> list[str]:
    """What the reference says about all N together, as sentences; nothing where it is of another setting."""
    if not asked.comparable:
        return ["No reference: it is of other steps, or of another optimizer."]
    if sum(outcomes[0].setting.draws in asked.of_size.bands for outcomes in runs) < 2:
        return []
    missed = order_misses(asked.of_size, runs)
    return [f"Not as the reference: {miss}." for miss in missed] or [
        "Q_pos and the share improved rise with N, as in the reference."
    ]


def drawing(asked: Asked, runs: Sequence[Sequence[Outcome]]) -> str:
    """Q_pos, share improved and worst change over steps for all N, one below the other, as an SVG file.

    With several seeds: the mean, and a band from the smallest to the largest.
    """

    def lines(read: Callable[[Outcome], Sequence[float]]) -> list[picture.Line]:
        found = []
        for number, outcomes in enumerate(runs):
            values = np.array([read(outcome) for outcome in outcomes])
            mean, low, high = (part.tolist() for part in (values.mean(0), values.min(0), values.max(0)))
            label = f"N = {outcomes[0].setting.draws:,}"
            found.append(picture.Line(label, outcomes[0].curve.step, mean, low, high, number))
        return found

    size = asked.of_size
    parts = [
        picture.curves("Q_pos, the probability of a correct token", lines(lambda o: o.curve.correct_mass), share=False),
        picture.curves("Correct tokens above their start", lines(lambda o: o.curve.improved), share=True),
        picture.curves("Change of the correct token that did worst", lines(lambda o: o.curve.worst), share=False),
    ]
    title = f"N draws of one token a step: {size.vocabulary:,} tokens, {size.correct:,} correct"
    return picture.file_of(picture.stacked(title, parts))


def record(asked: Asked, runs: Sequence[Sequence[Outcome]]) -> dict[str, Any]:
    """All numbers as plain JSON types."""
    bands = asked.of_size.bands if asked.comparable else {}
    return {
        "asked": asdict(asked),
        "reading": READING,
        "comparable": asked.comparable,
        "order": order_misses(asked.of_size, runs) if asked.comparable else None,
        "runs": [_run_record(outcome, bands) for outcomes in runs for outcome in outcomes],
    }


def _run_record(outcome: Outcome, bands: Any) -> dict[str, Any]:
    band = bands.get(outcome.setting.draws)
    return {
        **asdict(outcome),
        "final": {"correct_mass": outcome.correct_mass, "improved": outcome.improved, "worst": outcome.worst},
        "reference": None if band is None else {**asdict(band), "misses": misses(band, outcome)},
    }
