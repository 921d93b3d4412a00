"""The objective of one token, to be maximised, and which tokens its clip touched.

Letters: M trained tokens. rho is the ratio new / old, A the advantage.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from anabranch.algo.shapes import check_flat
from anabranch.errors import explain


class Bounds(NamedTuple):
    """Where the ratio is clipped: to [1 - low, 1 + high]; None means no bound on that side.

    `dual` bounds the objective of tokens with A < 0 from below, at dual * A (arXiv:1912.09729); None means no bound.
    """

    low: float | None
    high: float | None
    dual: float | None = None


class Touched(NamedTuple):
    """Which tokens the bounds acted on: bool [M] each."""

    low_M: Tensor
    high_M: Tensor
    dual_M: Tensor


Surrogate = Callable[[Tensor, Tensor, Tensor, Bounds], Tensor]
"""(rho_M, advantage_M, logprob_M, bounds) -> objective_M."""
TouchedBy = Callable[[Tensor, Tensor, Bounds], Touched]
"""(rho_M, advantage_M, bounds) -> which tokens the bounds acted on."""


def _limits(bounds: Bounds) -> tuple[float, float]:
    lowest = -math.inf if bounds.low is None else 1 - bounds.low
    highest = math.inf if bounds.high is None else 1 + bounds.high
    return lowest, highest


def clipped(rho_M: Tensor, advantage_M: Tensor, logprob_M: Tensor, bounds: Bounds) -> Tensor:
    """min(rho A, clip(rho) A), float [M] (PPO, arXiv:1707.06347); for A < 0 at least dual * A if there is a dual clip.

    Pessimistic: the gradient is zero exactly where the policy has already moved beyond the bound in the direction that
    the advantage asks for (rho > 1 + high with A > 0, rho < 1 - low with A < 0), and with a dual clip also where
    rho > dual with A < 0.

    Args:
        rho_M: float [M], carries the gradient.
        advantage_M: float [M].
        logprob_M: float [M]; not used, it makes all surrogates interchangeable.
        bounds: where to clip.

    Raises:
        ShapeError: lengths differ.
    """
    check_flat(rho_M=rho_M, advantage_M=advantage_M, logprob_M=logprob_M)
    # Inside the bounds both branches are equal; torch.minimum then gives each half the gradient, and they add up.
    objective_M = torch.minimum(rho_M * advantage_M, rho_M.clamp(*_limits(bounds)) * advantage_M)
    if bounds.dual is None:
        return objective_M
    return torch.where(advantage_M < 0, torch.maximum(objective_M, bounds.dual * advantage_M), objective_M)


def detached(rho_M: Tensor, advantage_M: Tensor, logprob_M: Tensor, bounds: Bounds) -> Tensor:
    """clip(rho) A logprob with the gradient stopped at clip(rho), float [M] (CISPO, arXiv:2506.13585).

    A plain log-prob gradient with a bounded weight: no token ever loses its gradient. There is no dual clip: `high`
    bounds the weight of tokens with A < 0 too.

    Args:
        rho_M: float [M]; no gradient flows through it.
        advantage_M: float [M].
        logprob_M: float [M], carries the gradient.
        bounds: limits of the weight.

    Raises:
        ShapeError: lengths differ.
        ValueError: `bounds` has a dual clip.
    """
    check_flat(rho_M=rho_M, advantage_M=advantage_M, logprob_M=logprob_M)
    if bounds.dual is not None:
        raise ValueError(
            explain("dual", bounds.dual, "a detached weight is bounded by `high` for every sign of A", "dual=None")
        )
    return rho_M.detach().clamp(*_limits(bounds)) * advantage_M * logprob_M


def clipped_tokens(rho_M: Tensor, advantage_M: Tensor, bounds: Bounds) -> Touched:
    """The tokens that get no gradient from `clipped`, by the bound that stopped them.

    Raises:
        ShapeError: lengths differ.
    """
    check_flat(rho_M=rho_M, advantage_M=advantage_M)
    lowest, highest = _limits(bounds)
    dual = math.inf if bounds.dual is None else bounds.dual
    return Touched(
        low_M=(rho_M < lowest) & (advantage_M < 0),
        high_M=(rho_M > highest) & (advantage_M > 0),
        dual_M=(rho_M > dual) & (advantage_M < 0),
    )


def capped_tokens(rho_M: Tensor, advantage_M: Tensor, bounds: Bounds) -> Touched:
    """The tokens whose weight `detached` changed. They keep their gradient; tokens with A = 0 have none to change.

    Raises:
        ShapeError: lengths differ.
    """
    check_flat(rho_M=rho_M, advantage_M=advantage_M)
    lowest, highest = _limits(bounds)
    matters_M = advantage_M != 0
    return Touched(
        low_M=(rho_M < lowest) & matters_M,
        high_M=(rho_M > highest) & matters_M,
        dual_M=torch.zeros_like(matters_M),
    )
