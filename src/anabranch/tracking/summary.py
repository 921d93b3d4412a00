"""Evaluation records, and the table at the end of a run: before, after the cold start, after RL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from anabranch.tracking.tables import TextTable

LABELS = {"before": "before", "cold_start": "after cold start", "sft": "after SFT", "rl": "after RL"}
"""Stages of an evaluation, in the order of a run, and their names in the table."""

_SINCE = {"before": "the start", "cold_start": "the cold start", "sft": "SFT", "rl": "RL"}


class Interval(Protocol):
    """A value with its interval over problems; `evaluation.metrics.Estimate` is one."""

    @property
    def value(self) -> float:
        """Share in [0, 1], or a difference of two."""

    @property
    def low(self) -> float:
        """Lower end."""

    @property
    def high(self) -> float:
        """Upper end."""

    @property
    def num_problems(self) -> int:
        """Problems behind it."""

    @property
    def num_samples(self) -> int:
        """Answers behind it."""


def evaluation_record(
    *,
    step: int,
    stage: str,
    policy_version: int,
    estimates: Mapping[str, Interval],
    level: float = 0.95,
    change: tuple[str, Interval] | None = None,
) -> dict[str, Any]:
    """One line of `evaluations.jsonl`.

    Args:
        step: steps of the stage that were done.
        stage: a key of `LABELS`: `before` any training, after `cold_start`, after `sft`, or during and after `rl`.
        policy_version: of the weights that answered.
        estimates: by name (`mean@2`, `pass@2`), all over the same answers; at least one, the main one first.
        level: confidence level of the intervals.
        change: an earlier stage, and the paired difference of the main estimate to it.

    Raises:
        ValueError: an unknown stage, or no estimate (a bug of ours).
    """
    if stage not in LABELS or (change is not None and change[0] not in LABELS):
        raise ValueError(f"stage {stage!r} or that of the change is not one of {list(LABELS)}")
    if not estimates:
        raise ValueError("an evaluation has at least one estimate")
    main = next(iter(estimates.values()))
    record: dict[str, Any] = {
        "step": step,
        "stage": stage,
        "policy_version": policy_version,
        "num_problems": main.num_problems,
        "num_samples": main.num_samples,
        "level": level,
        "estimates": {name: _ends(estimate) for name, estimate in estimates.items()},
    }
    if change is not None:
        record["change"] = {"since": change[0], **_ends(change[1])}
    return record


def _ends(interval: Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def summary_table(records: Iterable[Mapping[str, Any]]) -> TextTable:
    """The last evaluation of every stage, as percentages with intervals.

    Args:
        records: lines of `evaluations.jsonl`, in their order.

    Raises:
        ValueError: no record at all (a bug of ours: nothing was evaluated, so there is nothing to sum up).
    """
    last = {record["stage"]: record for record in records}
    shown = [last[stage] for stage in LABELS if stage in last]
    if not shown:
        raise ValueError("a summary needs at least one evaluation record")
    names = list(dict.fromkeys(name for record in shown for name in record["estimates"]))
    with_change = any("change" in record for record in shown)
    heads = ["held-out problems", *names, *(["change, points"] if with_change else []), "problems", "answers"]
    levels = sorted({f"{100 * record['level']:g} %" for record in shown})
    counted = "in % (mean: the scorer's value, pass: right in full)"
    title = f"On problems never trained on, {counted}, with {' / '.join(levels)} intervals over problems"
    return TextTable(title, tuple(heads), tuple(_row(record, names, with_change) for record in shown))


def _row(record: Mapping[str, Any], names: Sequence[str], with_change: bool) -> tuple[str, ...]:
    estimates = record["estimates"]
    label = LABELS[record["stage"]] + (f" ({_steps(record['step'])})" if record["step"] else "")
    cells = [label, *(_percent(estimates[name]) if name in estimates else "-" for name in names)]
    if with_change:
        change = record.get("change")
        cells.append("-" if change is None else f"{_points(change)} since {_SINCE[change['since']]}")
    return (*cells, str(record["num_problems"]), str(record["num_samples"]))


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"


def _percent(ends: Mapping[str, float]) -> str:
    return f"{100 * ends['value']:.1f} [{100 * ends['low']:.1f}, {100 * ends['high']:.1f}]"


def _points(ends: Mapping[str, float]) -> str:
    return f"{100 * ends['value']:+.1f} [{100 * ends['low']:+.1f}, {100 * ends['high']:+.1f}]"
