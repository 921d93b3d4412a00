"""The same stored answers into both trainers: how far the gradients lie apart, and how long training alone takes.

    python -m benchmarks.replay --rounds 5

Our engine samples answers once. Both trainers get them instead of generating; everything else is that of
`benchmarks.step`. Gradients are those just before the optimizer, unclipped, of one step from the same weights:

* in float32 on both sides, where nothing but rounding may differ. TRL divides by std + 1e-4, we by std, which changes
  the length of each group's share of the gradient; so ours is computed both ways, and compared both ways;
* in the dtype that each side trains in, against TRL's own float32 gradient and against each other.

Then time: a step without generation (rewards, advantages, forward, backward, optimizer), in turns.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import gradients
from benchmarks.duel import Side, Worker
from benchmarks.step import TRL_SETTINGS, changed, options, our_side, play, trl_side
from benchmarks.tune import Change

TRL_ADDS = 1e-4
"""What TRL adds to the std that it divides by."""

UNCLIPPED = 1e9
"""A gradient norm that nothing reaches."""

TOLERANCE = 1e-4
"""Relative error in float32 above which the two do not compute the same gradient."""

PLAIN = {"dtype": "float32", "autocast": False, "compile": False}
"""TRL's settings in float32; attention and micro-batch stay those that are timed."""


def main(arguments: Sequence[str] | None = None) -> None:
    asked = options("replay", __doc__).parse_args(arguments)
    settings = asked.trl or best_of_search(asked.out.with_name("step.json")) or TRL_SETTINGS
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        place, log = Path(folder), asked.out.with_name(f"{asked.out.stem}-gradients.log")
        ours, theirs = our_side(asked), trl_side(asked, settings)
        rollouts = place / "rollouts.json"
        in_process(changed(ours, dtype="float32"), {"save_rollouts": str(rollouts)}, log)
        ours, theirs = (changed(side, rollouts=str(rollouts)) for side in (ours, theirs))
        found = compared(ours, theirs, place, log)
        print(table(found), flush=True)
        play("replay", ours, theirs, asked, more={"gradients": found})
    if found["float32"]["relative_error"] > TOLERANCE:
        sys.exit(f"the float32 gradients differ by more than {TOLERANCE:g}: the two sides do not compute the same loss")


def best_of_search(path: Path) -> Change | None:
    """TRL's settings of the last `benchmarks.step`; None before the first."""
    if not path.exists():
        return None
    side = json.loads(path.read_text(encoding="utf-8"))["sides"]["trl"]
    known = ("dtype", "autocast", "attention", "micro_batch", "cache", "continuous", "compile")
    found = {name: side["settings"][name] for name in known if name in side["settings"]}
    print(f"TRL's settings are those of {path.name}: {found} {side['env']}")
    return Change(found, {name: value for name, value in side["env"].items() if name != "OMP_NUM_THREADS"})


def in_process(side: Side, arguments: Mapping[str, Any], log: Path) -> dict[str, Any]:
    """One run in a process of its own, from untouched weights."""
    with Worker(side, log) as worker:
        worker.ready()
        return worker.run({"round": 0, **arguments})


# ------------------------------------------------------------------------------------------------------ gradients


def compared(ours: Side, theirs: Side, place: Path, log: Path) -> dict[str, Any]:
    """All gradients, each from a process of its own, and the figures of `gradients.compare` for the pairs that say
    something; `place` is a folder for the files."""

    def saved(name: str, side: Side, **arguments: Any) -> Path:
        path = place / f"{name}.safetensors"
        in_process(side, {"save_gradients": str(path), **arguments}, log)
        print(f"  gradient: {name}", flush=True)
        return path

    theirs = changed(theirs, max_grad_norm=UNCLIPPED)
    our_exact, their_exact = changed(ours, dtype="float32"), changed(theirs, **PLAIN)
    reference = saved("trl float32", their_exact)
    figures = {
        "float32": gradients.compare_files(saved("ours float32", our_exact, added_to_std=TRL_ADDS), reference),
        "float32, our own std": gradients.compare_files(saved("ours float32 as it is", our_exact), reference),
    }
    our_fast = saved("ours", ours, added_to_std=TRL_ADDS)
    their_fast = saved("trl", theirs)
    return {
        **figures,
        "as timed, ours against TRL's float32": gradients.compare_files(our_fast, reference),
        "as timed, TRL's against its float32": gradients.compare_files(their_fast, reference),
        "as timed, ours against TRL's": gradients.compare_files(our_fast, their_fast),
    }


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Figures of the gradients, a line a pair."""
    lines = []
    for name, figures in found.items():
        worst = figures["worst"]
        lines.append(
            f"  {name}: relative error {figures['relative_error']:.2g}, cosine {figures['cosine']:.8f}, "
            f"worst {worst['relative_error']:.2g} ({worst['name']})"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
