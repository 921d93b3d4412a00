"""Corrections for an engine whose probabilities are not the trainer's: a weight for every token.

Answers are drawn by the engine, the gradient is taken by the trainer. The two disagree by rounding (and by more where
the engine's weights are older, quantised, or a mixture of experts takes another route), so that answers come from a
slightly other policy than the loss believes. The importance weight of a token puts that right:

    w = exp(old_logprob - engine_logprob)     old: the trainer, with the weights that were to sample

    tis            w held within the bounds                               truncated importance sampling; BroRL
    icepop         w within the bounds, else 0                            the public ProRLv2 scripts
    sequence_mask  w where the geometric mean of the answer's w is        ProRLv2.1
                   within the bounds, else 0 for the whole answer

Weights multiply the token's policy loss and carry no gradient. Letters: M trained tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from anabranch.algo.ratio import sequence_ratio, token_ratio


class Bounds(NamedTuple):
    """Both ends belong to what is allowed; None means no bound on that side."""

    low: float | None
    high: float | None

    def hold(self, value_M: Tensor) -> Tensor:
        """bool [M]: which values are within."""
        lowest, highest = self.limits
        return (value_M >= lowest) & (value_M <= highest)

    @property
    def limits(self) -> tuple[float, float]:
        """As numbers."""
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high


Correction = Callable[[Tensor, Tensor, Tensor, Bounds], Tensor]
"""(old_logprob_M, engine_logprob_M, sequence_M, bounds) -> weight_M."""


def truncated(old_logprob_M: Tensor, engine_logprob_M: Tensor, sequence_M: Tensor, bounds: Bounds) -> Tensor:
    """w held within the bounds, float [M]: no token is lost, none weighs too much. `low` None: min(w, high).

    Raises:
        ShapeError: lengths differ.
    """
    return _raw(old_logprob_M, engine_logprob_M, sequence_M).clamp(*bounds.limits)


def icepop(old_logprob_M: Tensor, engine_logprob_M: Tensor, sequence_M: Tensor, bounds: Bounds) -> Tensor:
    """w where it is within the bounds, 0 where it is not, float [M]: tokens that disagree too much teach nothing.

    Raises:
        ShapeError: lengths differ.
    """
    raw_M = _raw(old_logprob_M, engine_logprob_M, sequence_M)
    return torch.where(bounds.hold(raw_M), raw_M, 0)


def sequence_mask(old_logprob_M: Tensor, engine_logprob_M: Tensor, sequence_M: Tensor, bounds: Bounds) -> Tensor:
    """w for every token of the answers whose geometric mean of w is within the bounds, 0 for the others, float [M].

    Args:
        old_logprob_M: float [M].
        engine_logprob_M: float [M].
        sequence_M: int64 [M], the answer of each token; all trained tokens of an answer are here.
        bounds: of the geometric mean, so close to 1: 0.999 and 1.002 in ProRLv2.1.

    Raises:
        ShapeError: lengths differ, or an index is not usable.
    """
    raw_M = _raw(old_logprob_M, engine_logprob_M, sequence_M)
    mean_M = sequence_ratio(old_logprob_M.detach(), engine_logprob_M.detach(), sequence_M)
    return torch.where(bounds.hold(mean_M), raw_M, 0)


def _raw(old_logprob_M: Tensor, engine_logprob_M: Tensor, sequence_M: Tensor) -> Tensor:
    return token_ratio(old_logprob_M.detach(), engine_logprob_M.detach(), sequence_M)


CORRECTIONS: Mapping[str, Correction] = {"tis": truncated, "icepop": icepop, "sequence_mask": sequence_mask}
