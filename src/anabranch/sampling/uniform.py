"""Every problem once per epoch, in an order shuffled anew each epoch; epochs flow into each other.

The state is two numbers beside the settings, and the order is a pure function of (seed, epoch), so a resumed run draws
exactly what the uninterrupted one would have drawn.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from anabranch.errors import CheckpointError, explain
from anabranch.records import Int32

_WORD = 2**64


@dataclass(frozen=True)
class UniformState:
    """Where the sampler stands."""

    num_problems: int
    """N."""
    seed: int
    epoch: int = 0
    offset: int = 0
    """How many problems of this epoch were drawn, in [0, N)."""


def init(num_problems: int, seed: int) -> UniformState:
    """The state before the first draw.

    Raises:
        ValueError: no problem to draw from.
    """
    if num_problems < 1:
        raise ValueError(explain("num_problems", num_problems, "there must be something to draw", "give a problem"))
    return UniformState(num_problems, seed)


def draw(state: UniformState, count: int) -> tuple[Int32, UniformState]:
    """The next `count` problem indices and the state after them.

    Draws of any sizes give together what one long draw gives. `count` may exceed the number of problems.

    Returns:
        int32 [count], each in [0, N).
    """
    parts: list[Int32] = []
    left = count
    while left > 0:
        part = order(state.num_problems, state.seed, state.epoch)[state.offset : state.offset + left]
        parts.append(part)
        left -= len(part)
        offset = state.offset + len(part)
        at_end = offset == state.num_problems
        state = replace(state, epoch=state.epoch + at_end, offset=0 if at_end else offset)
    return np.concatenate([np.zeros(0, np.int32), *parts]), state


def draw_others(state: UniformState, count: int, taken: Collection[int]) -> tuple[list[int], UniformState]:
    """The next `count` problems that are not among `taken`, each once, and the state after them.

    What is passed over counts as drawn: where an epoch ends and the next begins within a step, the next one is shorter
    by the problems that the step has already.

    Returns:
        Fewer than `count` indices if there are not so many others; then nothing else is left.
    """
    found: list[int] = []
    seen = set(taken)
    wanted = min(count, state.num_problems - len(seen))
    while len(found) < wanted:
        indices, state = draw(state, wanted - len(found))
        for index in indices.tolist():
            if index not in seen:
                seen.add(index)
                found.append(index)
    return found, state


def order(num_problems: int, seed: int, epoch: int) -> Int32:
    """The order of one epoch: the ranks of raw 64-bit words of a Philox generator with key (seed, epoch).

    Raw words and a stable sort: unlike numpy's `permutation`, these never change between versions.
    """
    words = np.random.Philox(key=np.array([seed % _WORD, epoch % _WORD], dtype=np.uint64)).random_raw(num_problems)
    return np.argsort(words, kind="stable").astype(np.int32)


def to_json(state: UniformState) -> dict[str, Any]:
    """The state as plain JSON types."""
    return asdict(state)


def from_json(saved: dict[str, Any], num_problems: int) -> UniformState:
    """The state that `to_json` was given.

    Args:
        saved: what `to_json` returned.
        num_problems: how many problems there are now.

    Raises:
        CheckpointError: the state is of another number of problems.
    """
    state = UniformState(**saved)
    if state.num_problems != num_problems:
        raise CheckpointError(
            explain(
                "sampler state",
                f"{num_problems} problems",
                f"the run was saved with {state.num_problems}",
                "resume with the data that the run was started with",
            )
        )
    return state
