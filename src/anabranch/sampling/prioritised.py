"""Problems drawn by weight, without replacement: those that are sometimes right and sometimes wrong come more often.

    weight = sqrt(v (1 - v)) / N^gamma + eps          SPO, arXiv:2509.13232, Eq 11

with v how often a problem is answered right and N how many answers that is known from. Draw number n depends on (seed,
n), on the weights and on nothing else: each problem has its own number u in (0, 1) there, and those with the smallest
-log(u) / weight are drawn, which is the same as drawing one after the other by weight (Efraimidis and Spirakis 2006).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.errors import CheckpointError, explain
from anabranch.records import Int32

Float64 = NDArray[np.float64]

_WORD = 2**64
_BY_WEIGHT, _POOL = 0, 1
"""Streams of random numbers of one draw."""


@dataclass(frozen=True)
class PriorityState:
    """Where the sampler stands."""

    num_problems: int
    """P."""
    seed: int
    draws: int = 0
    """How many draws were made: the number of the next one."""


def init(num_problems: int, seed: int) -> PriorityState:
    """The state before the first draw.

    Raises:
        ValueError: no problem to draw from.
    """
    if num_problems < 1:
        raise ValueError(explain("num_problems", num_problems, "there must be something to draw", "give a problem"))
    return PriorityState(num_problems, seed)


def weights(value_P: Float64, count_P: Float64, *, eps: float, gamma: float) -> Float64:
    """sqrt(v (1 - v)) / N^gamma + eps, float64 [P]. A value outside [0, 1] by rounding counts as the bound."""
    value_P = np.clip(value_P, 0, 1)
    return np.sqrt(value_P * (1 - value_P)) / count_P**gamma + eps


def draw(state: PriorityState, weight_P: Float64, count: int, pool: int | None = None) -> tuple[Int32, PriorityState]:
    """The problems of the next draw, and the state after it.

    All are different as long as there are enough. If more are asked for than there are, every one is drawn, and the
    rest as if by a further draw. Where no weight is left, the choice is uniform.

    Args:
        state: before the draw.
        weight_P: float64 [P], not negative.
        count: how many problems.
        pool: draw from so many problems only, chosen uniformly at random anew for each draw; None: from all.

    Returns:
        int32 [count], in the order in which they were drawn.

    Raises:
        ValueError: not one weight a problem, or one that is negative or not finite.
    """
    if weight_P.shape != (state.num_problems,) or not np.all((weight_P >= 0) & np.isfinite(weight_P)):
        found = f"shape {weight_P.shape}, {weight_P.min(initial=0):g} to {weight_P.max(initial=0):g}"
        need = f"{state.num_problems} problems have a finite weight of at least 0 each"
        raise ValueError(explain("weight_P", found, need, "look at the values that they are made from"))
    parts: list[Int32] = [np.zeros(0, np.int32)]
    left = count
    while left > 0:
        drawn = _one_draw(state, weight_P, pool)[:left]
        parts.append(drawn)
        left -= len(drawn)
        state = replace(state, draws=state.draws + 1)
    return np.concatenate(parts), state


def _one_draw(state: PriorityState, weight_P: Float64, pool: int | None) -> Int32:
    """All problems of the pool in the order in which they are drawn."""
    u_P = _uniform(state, _BY_WEIGHT)
    drawable_P = weight_P > 0
    wait_P = np.full(state.num_problems, np.inf)
    wait_P[drawable_P] = -np.log(u_P[drawable_P]) / weight_P[drawable_P]
    order = np.lexsort((u_P, wait_P)).astype(np.int32)  # by waiting time; where that is infinite, by u
    if pool is None:
        return order
    chosen = np.zeros(state.num_problems, dtype=np.bool_)
    chosen[np.argsort(_uniform(state, _POOL), kind="stable")[:pool]] = True
    return order[chosen[order]]


def _uniform(state: PriorityState, stream: int) -> Float64:
    """A number in (0, 1) for each problem, float64 [P]: the upper 53 bits of raw 64-bit Philox words, half a step up.

    The key is (seed, number of the draw), the stream stands in the upper half of the counter.
    """
    key = np.array([state.seed % _WORD, state.draws % _WORD], dtype=np.uint64)
    counter = np.array([0, 0, 0, stream], dtype=np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(state.num_problems)
    return ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def effective(weight_P: Float64) -> float:
    """How many problems a draw is spread over, as a share of all: 1 / sum p^2 / P, 1 if all weights are the same.

    Weights that are all 0 draw uniformly: 1.
    """
    total = weight_P.sum()
    return 1.0 if total == 0 else float(total**2 / np.square(weight_P).sum() / len(weight_P))


def to_json(state: PriorityState) -> dict[str, Any]:
    """The state as plain JSON types."""
    return asdict(state)


def from_json(saved: dict[str, Any], num_problems: int) -> PriorityState:
    """The state that `to_json` was given.

    Raises:
        CheckpointError: the state is of another number of problems.
    """
    state = PriorityState(**saved)
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
