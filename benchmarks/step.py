"""One full on-policy GRPO step against TRL's `GRPOTrainer`: samples a second, and memory.

    python -m benchmarks.step --tune --rounds 5

Both sides answer the same prompts with the same forced number of tokens, draw at temperature 1, give the same rewards,
and take one AdamW step on the same loss: GRPO without a KL term. `--tune` looks for the settings that make TRL fastest
on this machine, and for our dtype; without it, what `--trl` says or `TRL_SETTINGS` is played. Everything tried is in
the JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.duel import RESULTS, Side, SideError, Worker, duel
from benchmarks.step_task import Size
from benchmarks.tune import fastest

GOAL = 5.0
"""Samples a second, ours over TRL's."""
MEMORY_GOAL = 0.5
"""Peak memory of a step, ours over TRL's: at most."""

MODEL = "smollm2-135m-instruct"

TRL_SETTINGS: dict[str, Any] = {"dtype": "bfloat16", "attention": "sdpa", "micro_batch": 16}
"""Played when nothing else is asked for."""

KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""Environment with which the C library keeps freed memory, instead of having the system clear it again each time."""

Change = Mapping[str, Any]
Stage = tuple[str, Sequence[Change]]

STAGES: tuple[Stage, ...] = (
    (
        "dtype and attention",
        [
            {"dtype": dtype, "autocast": autocast, "attention": attention}
            for dtype, autocast in (("float32", False), ("float32", True), ("bfloat16", False), ("bfloat16", True))
            for attention in ("sdpa", "eager")
        ],
    ),
    ("micro-batch", [{"micro_batch": 8}, {"micro_batch": 32}, {"micro_batch": 64}]),
    ("cache of generation", [{"cache": "static"}]),
    ("continuous batching", [{"continuous": True}]),
    ("allocator", [{"env": KEEP_MEMORY}]),
    ("torch.compile", [{"compile": True}]),
)
"""The search: what one stage finds best is kept in the next. It begins with micro-batches of 16."""

WARMUP_TOKENS = 4
"""New tokens of the step with which a candidate of the search warms up; the step that counts has all of them."""


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    size = Size(asked.prompts, asked.answers, asked.tokens)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    ours, theirs = our_side(size, asked), trl_side(size, asked)
    search: list[dict[str, Any]] = []
    if asked.tune:
        log = asked.out.with_name(f"{asked.out.stem}-search.log")
        theirs, search = tuned(theirs, STAGES, log)
        candidates = [replace(ours, settings={**ours.settings, "dtype": dtype}) for dtype in ("bfloat16", "float32")]
        ours, tried = fastest(candidates, args={}, log=log, unit="samples")
        search += tried
    report = duel(
        "step",
        ours,
        theirs,
        rounds=asked.rounds,
        args=size.as_dict(),
        out=asked.out,
        unit="samples",
        goal=GOAL,
        warmups=asked.warmups,
        search=search,
    )
    check_same_prompts(report)
    report["memory"] = memory(report)
    asked.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(memory_text(report["memory"]))


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.split("\n\n")[0])
    found.add_argument("--rounds", type=int, default=5, help="rounds of each side that count")
    found.add_argument("--warmups", type=int, default=1, help="rounds of each side before those")
    found.add_argument("--tune", action="store_true", help="search the settings first (half an hour)")
    found.add_argument("--out", type=Path, default=RESULTS / "step.json", help="the JSON file")
    add_common(found)
    return found


def add_common(found: argparse.ArgumentParser) -> None:
    """Options of the step and of the replay."""
    found.add_argument("--prompts", type=int, default=8, choices=range(1, 9), metavar="1..8")
    found.add_argument("--answers", type=int, default=8, help="answers a prompt")
    found.add_argument("--tokens", type=int, default=64, help="new tokens an answer")
    found.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of both sides")
    found.add_argument("--dtype", default="auto", help="of ours: auto, bfloat16 or float32")
    found.add_argument("--trl", type=json.loads, help='TRL\'s settings as JSON, such as \'{"dtype": "float32"}\'')
    found.add_argument("--peer", default=".peers/trl/bin/python", help="Python of the environment with TRL")


def our_side(size: Size, asked: argparse.Namespace) -> Side:
    python = ".venv/bin/python"
    settings = {"model": MODEL, "dtype": asked.dtype, "threads": asked.threads, **size.as_dict()}
    return Side("anabranch", [python, "-m", "benchmarks.ours_step"], settings, threads(asked.threads))


def trl_side(size: Size, asked: argparse.Namespace) -> Side:
    from anabranch.modeling.load import resolve  # converts the model if this is the first time

    given = TRL_SETTINGS if asked.trl is None else asked.trl
    settings = {"model": from_home(Path(resolve(MODEL))), "threads": asked.threads, **size.as_dict(), **given}
    settings["micro_batch"] = min(settings.get("micro_batch", 16), size.samples)
    return Side("trl", [asked.peer, "-m", "benchmarks.peers.trl_step"], settings, threads(asked.threads))


def from_home(path: Path) -> str:
    """The path as `~/...` if it is below the home folder: results are read elsewhere."""
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def threads(count: int) -> dict[str, str]:
    """Environment of a side that is to use so many threads."""
    return {"OMP_NUM_THREADS": str(count)}


# --------------------------------------------------------------------------------------------------------- search


def tuned(start: Side, stages: Sequence[Stage], log: Path) -> tuple[Side, list[dict[str, Any]]]:
    """Stage after stage, take the change that makes `start` fastest, if one does; each is tried with one step.

    Returns:
        The fastest, and what was tried.

    Raises:
        SideError: nothing that was tried could run.
    """
    best, best_rate = start, 0.0
    tried: list[dict[str, Any]] = []
    for stage, changes in stages:
        winner = best
        for side in [changed(best, change) for change in changes]:
            record = {"stage": stage, **_try(side, log)}
            tried.append(record)
            print(search_line(record), flush=True)
            if record.get("rate", 0.0) > best_rate:
                winner, best_rate = side, record["rate"]
        if not best_rate:
            raise SideError(f"nothing of stage {stage!r} can run; the last:\n{tried[-1]['error']}")
        best = winner
    print(f"  best: {best.settings} {dict(best.env)}")
    return best, tried


def changed(side: Side, change: Change) -> Side:
    """The side with other settings; `env` adds to its environment. A micro-batch is at most the whole batch."""
    settings = {**side.settings, **{name: value for name, value in change.items() if name != "env"}}
    settings["micro_batch"] = min(settings["micro_batch"], settings["prompts"] * settings["answers"])
    return replace(side, settings=settings, env={**side.env, **change.get("env", {})})


def _try(side: Side, log: Path) -> dict[str, Any]:
    """One step after a warm-up; with `torch.compile` the warm-up is a whole step, for every length is compiled."""
    record: dict[str, Any] = {"side": side.name, "settings": dict(side.settings), "env": dict(side.env)}
    warmup = {} if side.settings.get("compile") else {"tokens": min(WARMUP_TOKENS, side.settings["tokens"])}
    try:
        with Worker(side, log) as worker:
            worker.ready()
            worker.run({"round": -1, **warmup})
            result = worker.run({"round": 0})
    except SideError as error:
        return {**record, "error": str(error)}
    found = {name: result[name] for name in ("rate", "seconds", "phases")}
    return {**record, **found, "peak_mb": result["memory"]["peak_mb"]}


def search_line(record: Mapping[str, Any]) -> str:
    """A row of the table that the search prints."""
    shown = ("dtype", "autocast", "attention", "micro_batch", "cache", "continuous", "compile")
    settings = ", ".join(f"{name} {record['settings'][name]}" for name in shown if record["settings"].get(name))
    kept = ", keeps freed memory" if "MALLOC_MMAP_MAX_" in record["env"] else ""
    if "error" in record:
        return f"  {settings}{kept}: cannot run"
    return f"  {settings}{kept}: {record['rate']:.3f} samples/s, peak {record['peak_mb']:.0f} MB"


# --------------------------------------------------------------------------------------------------------- results


def check_same_prompts(report: Mapping[str, Any]) -> None:
    """Raises ValueError if the sides were given different tokens."""
    told = {round["prompts"] for side in report["sides"].values() for round in side["rounds"]}
    if len(told) != 1:
        raise ValueError(f"the sides answered different prompts: {sorted(told)}")


def memory(report: Mapping[str, Any]) -> dict[str, Any]:
    """Peak memory in MB: of the steps that counted, and since each side's process began; ours over theirs."""
    peaks = {
        name: {
            "steps_mb": max(round["memory"]["peak_mb"] for round in side["rounds"]),
            "process_mb": max(
                round["memory"]["peak_mb"] for round in (side["ready"], *side["warmups"], *side["rounds"])
            ),
        }
        for name, side in report["sides"].items()
    }
    ours, theirs = peaks.values()
    return {
        **peaks,
        "steps_ratio": ours["steps_mb"] / theirs["steps_mb"],
        "process_ratio": ours["process_mb"] / theirs["process_mb"],
        "goal": MEMORY_GOAL,
    }


def memory_text(found: Mapping[str, Any]) -> str:
    return (
        f"  peak memory of a step: {found['steps_ratio']:.2f} of TRL's, goal at most {found['goal']:g} "
        f"(since the start of the process: {found['process_ratio']:.2f})"
    )


if __name__ == "__main__":
    main()
