"""One full on-policy GRPO step against TRL's `GRPOTrainer`: samples a second, and memory.

    python -m benchmarks.step --tune --rounds 5

Both sides answer the same prompts with the same forced number of tokens, draw at temperature 1, give the same rewards,
and take one AdamW step on the same loss: GRPO without a KL term. `--tune` looks for the settings that make TRL fastest
on this machine, and for our dtype; without it, what `--trl` says or `TRL_SETTINGS` is played. Everything tried is in
the JSON file, and stays there, with its date, when the duel is played again.

TRL may well be fastest with weights in bfloat16. They have no float32 copy, so that at a learning rate of 1e-6 most
updates round to nothing: such a trainer is fast, and learns little. Ours keeps float32 weights beside the bfloat16 ones
in every dtype, in time and in memory.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.duel import RESULTS, Side, duel
from benchmarks.step_task import Size
from benchmarks.tune import Change, search

GOAL = 5.0
"""Samples a second, ours over TRL's."""
MEMORY_GOAL = 0.5
"""Peak memory of a step, ours over TRL's: at most."""

MODEL = "smollm2-135m-instruct"

SHORT_SPIN = {"GOMP_SPINCOUNT": "1000"}
"""Environment in which threads that wait sleep soon. Our command line sets it for itself."""

KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""Environment with which the C library keeps freed memory, instead of having the system clear it again each time."""

TRL_SETTINGS = Change({"dtype": "bfloat16", "autocast": True, "attention": "sdpa", "micro_batch": 8}, env=KEEP_MEMORY)
"""Played when nothing else is asked for: the fastest that a search (`--tune`) found on two cores."""

BATCHES = (8, 4, 16, 32, 64)
"""Micro-batches that are tried; the first is where the search begins."""

BEGIN = Change({"dtype": "float32", "autocast": False, "attention": "sdpa", "micro_batch": BATCHES[0]})
"""TRL's settings with which the search begins."""


def trl_axes(samples: int) -> list[list[Change]]:
    """What the search tries with TRL, beginning with `BEGIN`.

    Args:
        samples: of a step; micro-batches have no more.
    """
    computing = [
        Change({"dtype": dtype, "autocast": autocast, "attention": attention})
        for dtype, autocast in (("float32", False), ("float32", True), ("bfloat16", False), ("bfloat16", True))
        for attention in ("sdpa", "eager")
    ]
    return [
        computing[1:],
        [Change({"micro_batch": size}) for size in BATCHES[1:] if size <= samples],
        [Change({"cache": "static"})],
        [Change({"continuous": True})],
        [Change(env=SHORT_SPIN)],
        [Change(env=KEEP_MEMORY)],
        [Change({"compile": True})],
    ]


WARMUP_TOKENS = 4
"""New tokens of the step with which a candidate of the search warms up; the step that counts has all of them."""


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    size = size_of(asked)
    tried: list[dict[str, Any]] = []
    ours, theirs = our_side(asked), trl_side(asked, asked.trl or (BEGIN if asked.tune else TRL_SETTINGS))
    if asked.tune:
        log = asked.out.with_name(f"{asked.out.stem}-search.log")
        how: dict[str, Any] = {"args": {}, "log": log, "unit": "samples"}
        ours, tried = search(changed(ours, dtype="bfloat16"), [[Change({"dtype": "float32"})]], **how)
        warmup = {"tokens": min(WARMUP_TOKENS, size.tokens)}
        theirs, more = search(theirs, trl_axes(size.samples), **how, warmup=warmup)
        tried += more
    report = play("step", ours, theirs, asked, goal=GOAL, search=tried)
    print(memory_text(report["memory"]))


def play(
    name: str, ours: Side, theirs: Side, asked: argparse.Namespace, *, more: Mapping[str, Any] | None = None, **how: Any
) -> dict[str, Any]:
    """The duel, with memory and whatever `more` there is in its file; `how` are arguments of `duel`.

    Raises:
        ValueError: the sides were given different prompts.
    """
    args = size_of(asked).as_dict()
    report = duel(
        name, ours, theirs, rounds=asked.rounds, args=args, out=asked.out, unit="samples", warmups=asked.warmups, **how
    )
    check_same_prompts(report)
    report = {**report, **(more or {}), "memory": memory(report)}
    asked.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def parser() -> argparse.ArgumentParser:
    found = options("step", __doc__)
    found.add_argument("--tune", action="store_true", help="search the settings first (about 45 minutes on two cores)")
    return found


def options(name: str, text: str) -> argparse.ArgumentParser:
    """Options of the step and of the replay, described by the first paragraph of `text`."""
    found = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=text.split("\n\n")[0])
    found.add_argument("--rounds", type=int, default=5, help="rounds of each side that count")
    found.add_argument("--warmups", type=int, default=1, help="rounds of each side before those")
    found.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="the JSON file")
    found.add_argument("--prompts", type=int, default=8, choices=range(1, 9), metavar="1..8")
    found.add_argument("--answers", type=int, default=8, help="answers a prompt")
    found.add_argument("--tokens", type=int, default=64, help="new tokens an answer")
    found.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of both sides")
    found.add_argument("--dtype", default="auto", help="of ours: auto, bfloat16 or float32")
    found.add_argument("--trl", type=Change.parse, help="TRL's settings as JSON, with `env` for its environment")
    found.add_argument("--peer", default=".peers/trl/bin/python", help="Python of the environment with TRL")
    return found


def size_of(asked: argparse.Namespace) -> Size:
    """Of the step that the options ask for."""
    return Size(asked.prompts, asked.answers, asked.tokens)


def our_side(asked: argparse.Namespace) -> Side:
    python = ".venv/bin/python"
    settings = {"model": MODEL, "dtype": asked.dtype, "threads": asked.threads, **size_of(asked).as_dict()}
    return Side("anabranch", [python, "-m", "benchmarks.ours_step"], settings, {**threads(asked.threads), **SHORT_SPIN})


def trl_side(asked: argparse.Namespace, given: Change) -> Side:
    from anabranch.modeling.load import resolve  # converts the model if this is the first time

    size = size_of(asked)
    settings = {"model": from_home(Path(resolve(MODEL))), "threads": asked.threads, **size.as_dict()}
    side = given.of(Side("trl", [asked.peer, "-m", "benchmarks.peers.trl_step"], settings, threads(asked.threads)))
    return changed(side, micro_batch=min(side.settings.get("micro_batch", 16), size.samples))


def changed(side: Side, **settings: Any) -> Side:
    """The side with other settings."""
    return Change(settings).of(side)


def from_home(path: Path) -> str:
    """The path as `~/...` if it is below the home folder: results are read elsewhere."""
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def threads(count: int) -> dict[str, str]:
    """Environment of a side that is to use so many threads."""
    return {"OMP_NUM_THREADS": str(count)}


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
