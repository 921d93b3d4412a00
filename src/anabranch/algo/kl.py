"""Estimators of a KL divergence from the log-probs of sampled tokens (Schulman 2020, "Approximating KL divergence").

For a token drawn from p and x = log p - log q, all three estimate KL(p || q):

    k1 = x                 unbiased; can be negative; largest variance
    k2 = x^2 / 2           biased (the second-order term of the divergence); never negative
    k3 = exp(-x) + x - 1   unbiased; never negative

"Unbiased" speaks of the *value*, for tokens drawn from p itself. The *gradient* of an estimator in a loss is another
matter; with p the current policy, tokens drawn from it, and the draw held fixed:

    k1: E[grad] = E[grad log p] = 0: as a loss it is noise around nothing. Its place is in the reward.
    k2: E[grad] = E[x grad log p] = grad KL(p || q): the divergence it stands for.
    k3: E[grad] = E[(1 - q/p) grad log p] = grad KL(q || p): the other direction.

Published losses bound an estimator, in one of two places (`limited`): x itself before it is estimated, which stops the
gradient beyond the bound, or the estimate, which stops it where the estimate is larger.

Letters: M trained tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from anabranch.algo.ratio import log_ratio
from anabranch.algo.shapes import check_flat

KlEstimator = Callable[[Tensor, Tensor], Tensor]
"""(logprob_M, ref_logprob_M) -> estimate_M."""


def k1(logprob_M: Tensor, ref_logprob_M: Tensor) -> Tensor:
    """x = log p - log q, float [M]. Unbiased for KL(p || q) on tokens drawn from p.

    Not a loss: for tokens drawn from p the expected gradient through `logprob_M` is 0, not that of the divergence.

    Raises:
        ShapeError: lengths differ.
    """
    check_flat(logprob_M=logprob_M, ref_logprob_M=ref_logprob_M)
    return logprob_M - ref_logprob_M


def k2(logprob_M: Tensor, ref_logprob_M: Tensor) -> Tensor:
    """x^2 / 2, float [M]. Biased for KL(p || q) on tokens drawn from p, right to second order in x.

    As a loss its expected gradient through `logprob_M` is that of KL(p || q), exactly, on tokens drawn from p.

    Raises:
        ShapeError: lengths differ.
    """
    return k1(logprob_M, ref_logprob_M).square() / 2


def k3(logprob_M: Tensor, ref_logprob_M: Tensor) -> Tensor:
    """exp(-x) + x - 1, float [M]. Unbiased for KL(p || q) on tokens drawn from p, and never negative.

    As a loss (GRPO, arXiv:2402.03300) its expected gradient through `logprob_M` is that of KL(q || p). x is held within
    +-20, so that exp stays finite; beyond that there is no gradient.

    Raises:
        ShapeError: lengths differ.
    """
    check_flat(logprob_M=logprob_M, ref_logprob_M=ref_logprob_M)
    x_M = log_ratio(logprob_M, ref_logprob_M)
    return torch.expm1(-x_M) + x_M  # expm1: near x = 0 the two terms cancel


KL_ESTIMATORS: Mapping[str, KlEstimator] = {"k1": k1, "k2": k2, "k3": k3}


def limited(estimate: KlEstimator, *, input_limit: float | None, output_limit: float | None) -> KlEstimator:
    """The estimator with its argument, its result, or both held within bounds; without gradient where one is held.

        clip(estimate(clip(x, +-input_limit)), +-output_limit)        x = log p - log q

    With x = 15 and k2: an input limit of 10 gives 50 (ProRLv2), an output limit of 10 gives 10 (OpenRLHF).

    Args:
        estimate: one of `KL_ESTIMATORS`.
        input_limit: positive; None: x as it is (k3 holds it within +-20 in any case).
        output_limit: positive; None: the estimate as it is.
    """
    if input_limit is None and output_limit is None:
        return estimate

    def bounded(logprob_M: Tensor, ref_logprob_M: Tensor) -> Tensor:
        if input_limit is None:
            estimate_M = estimate(logprob_M, ref_logprob_M)
        else:
            x_M = k1(logprob_M, ref_logprob_M).clamp(-input_limit, input_limit)
            estimate_M = estimate(x_M, torch.zeros_like(x_M))
        return estimate_M if output_limit is None else estimate_M.clamp(-output_limit, output_limit)

    return bounded
