"""What a finished run came to, in a few KB: curves, evaluations problem by problem, costs. All that a report needs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from anabranch.recipe.io import from_yaml
from anabranch.tracking.checkpoints import complete
from anabranch.tracking.jsonl import read_jsonl
from anabranch.tracking.run_folder import RunPaths, is_run

CURVES = (
    "reward",
    "accuracy",
    "reward_std",
    "sigma_batch",
    "advantage_max_abs",
    "centred_small",
    "centred_variance",
    "dead_groups",
    "entropy",
    "clip_low",
    "clip_high",
    "grad_norm",
    "answer_length_mean",
    "truncated",
    "repeat_ratio",
    "calibration_error",
    "rho",
    "rho_low",
)
"""Metrics of RL steps that are kept."""
DIGITS = 5
"""Significant digits of curves; scores are kept exactly."""
CLIPPED_TOKENS = 40
"""Of the tokens that a clip bound acted on, so many are kept."""


@dataclass(frozen=True)
class Evaluated:
    """One evaluation: the state after `step` RL steps; 0 is before RL."""

    step: int
    scores: tuple[float, ...]
    """Mean score of every held-out problem, in their order."""
    samples: int
    """Answers a problem."""


@dataclass(frozen=True)
class Clipped:
    """What a bound of the clip acted on in a run, all updates together."""

    count: int
    """How often it acted."""
    tokens: tuple[tuple[str, int, int], ...]
    """Text, how often, and how often of those as the first token of an answer, a sentence or a line; the most frequent
    first. A step lists its 20 most frequent tokens, so that a rare one may be missing in some steps."""


@dataclass(frozen=True)
class RunResult:
    """One finished run of an arm."""

    arm: str
    seed: int
    curves: Mapping[str, tuple[float | None, ...]]
    """By metric, one number for each RL step; None where the step has none."""
    evaluations: tuple[Evaluated, ...]
    """In the order of steps; the first one is before RL."""
    cost: Mapping[str, float]
    """Of RL alone: answers, tokens (sampled), trained_tokens, seconds (steps alone, without evaluations)."""
    environment: Mapping[str, Any]
    """version, commit: of the code that started the run."""
    clipped: Mapping[str, Clipped] = field(default_factory=dict)
    """By bound (low, high, dual), those that ever acted."""

    @property
    def steps(self) -> int:
        """RL steps that were made."""
        return len(next(iter(self.curves.values())))

    @property
    def final(self) -> Evaluated:
        """The last evaluation."""
        return self.evaluations[-1]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> RunResult:
        """The inverse of `to_json`."""
        return cls(
            arm=stored["arm"],
            seed=stored["seed"],
            curves={name: tuple(values) for name, values in stored["curves"].items()},
            evaluations=tuple(Evaluated(e["step"], tuple(e["scores"]), e["samples"]) for e in stored["evaluations"]),
            cost=stored["cost"],
            environment=stored["environment"],
            clipped={
                bound: Clipped(found["count"], tuple((text, count, starts) for text, count, starts in found["tokens"]))
                for bound, found in stored.get("clipped", {}).items()
            },
        )


def is_finished(run: Path) -> bool:
    """Whether the last checkpoint of a run is that of its end: nothing is left to do.

    Raises:
        AnabranchError: the run cannot be read.
    """
    if not is_run(run):
        return False
    paths = RunPaths(run)
    saved = complete(paths.checkpoints)
    if not saved:
        return False
    recipe = from_yaml(paths.recipe)
    parts = [part.steps for part in (recipe.cold_start, recipe.sft) if part is not None]
    steps = [*parts, *([recipe.steps] if recipe.steps else [])]
    state = json.loads((saved[-1] / "state.json").read_text())["state"]
    if state["stage"] != len(steps) - 1:
        return False
    timed_out = recipe.steps > 0 and recipe.seconds is not None and state["seconds"] >= recipe.seconds
    return bool(state["step"] >= steps[-1] or timed_out)


def extract(run: Path, arm: str, seed: int) -> RunResult:
    """Read a finished run.

    Raises:
        AnabranchError: a log is missing or damaged.
    """
    paths = RunPaths(run)
    records = [record for record in read_jsonl(paths.log("metrics")) if record["stage"] == "rl"]
    evaluations = list(read_jsonl(paths.log("evaluations")))
    environment = json.loads(paths.environment.read_text(encoding="utf-8"))
    return RunResult(
        arm=arm,
        seed=seed,
        curves={name: _curve(records, name) for name in CURVES if any(name in record for record in records)},
        evaluations=_evaluated(evaluations),
        cost={
            "answers": _total(records, "generated_rollouts"),
            "tokens": _total(records, "sampled_tokens"),
            "trained_tokens": _total(records, "trained_tokens"),
            "seconds": round(_total(records, "time/step"), 2),
        },
        environment={"version": environment["packages"]["anabranch"], "commit": environment["git_commit"]},
        clipped=_clipped(read_jsonl(log) if (log := paths.log("clipped_tokens")).exists() else ()),
    )


def _evaluated(records: Sequence[Mapping[str, Any]]) -> tuple[Evaluated, ...]:
    """The last evaluation before RL, then those of RL; of several at one step the last."""
    by_step = {record["step"] if record["stage"] == "rl" else 0: record for record in records}
    return tuple(
        Evaluated(step, tuple(record["per_problem"]), record["num_samples"] // record["num_problems"])
        for step, record in sorted(by_step.items())
    )


def _clipped(records: Iterable[Mapping[str, Any]]) -> dict[str, Clipped]:
    """All records of a run's clipped tokens together, by bound."""
    totals, counts, starts = Counter[str](), dict[str, Counter[str]](), dict[str, Counter[str]]()
    for record in records:
        for bound, found in record.items():
            if isinstance(found, Mapping):
                totals[bound] += found["count"]
                for token in found["tokens"]:
                    counts.setdefault(bound, Counter())[token["text"]] += token["count"]
                    starts.setdefault(bound, Counter())[token["text"]] += token["starts"]
    return {
        bound: Clipped(
            total,
            tuple(
                (text, count, starts[bound][text])
                for text, count in sorted(counts[bound].items(), key=lambda pair: (-pair[1], pair[0]))[:CLIPPED_TOKENS]
            ),
        )
        for bound, total in totals.items()
    }


def _curve(records: Sequence[Mapping[str, Any]], name: str) -> tuple[float | None, ...]:
    return tuple(float(f"{record[name]:.{DIGITS}g}") if name in record else None for record in records)


def _total(records: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(sum(record[name] for record in records))
