"""What a step learns from, and what the ratios of each of its updates are to.

Letters: N trained tokens of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anabranch.batching.credit import Credit
from anabranch.batching.pack import Row
from anabranch.train.trainer import Update


@dataclass(frozen=True)
class Lesson:
    """What a step learns from: credit, rows for each optimizer step, and the log-probs they are compared with."""

    credit: Credit
    rows: Sequence[Sequence[Row]]
    """By mini-batch."""
    old_N: Tensor | None
    """float32 [N], NaN where not needed; None: nothing was scored, because the first update finds them (see
    `old_logprobs`)."""
    ref_N: Tensor | None
    """float32 [N]; None: no KL term."""


def old_logprobs(lesson: Lesson, before: Sequence[Update]) -> Tensor | None:
    """What the next update's ratios are to, float32 [N]: the log-probs under the weights that sampled, for all passes.

    Args:
        lesson: of the batch.
        before: the updates on it so far, in order. The first one found the log-probs of its tokens with the weights
            that sampled, so that nobody has to score those.

    Returns:
        NaN for tokens that the next update does not see; None: the current weights are those that sampled.
    """
    if not before:
        return None
    first_N = before[0].logprob_N
    return first_N if lesson.old_N is None else torch.where(first_N.isnan(), lesson.old_N, first_N)
