"""Whether an answer that was cut had fallen into a loop: the repeat ratio of "Tricks or Traps" (arXiv:2508.08221).

The paper walks back from the cut and flags what repeats "above a threshold", without the numbers. Here an answer loops
if it ends in one piece that stands there at least `TIMES` times in a row (the first time perhaps only its end), and if
that is at least `SHARE` of the answer.
"""

from __future__ import annotations

import math

import numpy as np

from anabranch.records import Int32, Rollout

SHARE = 0.5
"""How much of the answer the repetition must fill."""
TIMES = 3
"""How often its piece must stand there in full, at least."""


def loop_period(token_T: Int32) -> int | None:
    """The length of the piece that an answer ends in repeating; None if it does not.

    The smallest p so that, of the last max(SHARE * T, TIMES * p) tokens, every one but the first p equals the token p
    places before it.

    Args:
        token_T: int [T], the answer as it was when it was cut.
    """
    T = len(token_T)
    for period in range(1, T // TIMES + 1):
        if token_T[T - 1 - period] == token_T[T - 1]:  # most periods end here, at the price of one comparison
            span = max(math.ceil(SHARE * T), TIMES * period)
            if np.array_equal(token_T[T - span + period :], token_T[T - span : T - period]):
                return period
    return None


def loops(rollout: Rollout) -> bool:
    """Whether an answer was cut while it repeated itself."""
    if not rollout.truncated:
        return False
    return loop_period(np.concatenate([segment.tokens for segment in rollout.graph.segments[1:]])) is not None
