"""The policy loss of one micro-batch: ratio x surrogate x weights, and the KL to the reference as a loss.

Knows no method, only the values of the axes. Letters: M trained tokens of the micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from anabranch.algo.kl import KL_ESTIMATORS, KlEstimator, k1, k3
from anabranch.algo.ratio import RATIOS, Ratio
from anabranch.algo.shapes import check_flat
from anabranch.algo.surrogate import Bounds, Surrogate, TouchedBy, capped_tokens, clipped, clipped_tokens, detached
from anabranch.errors import explain
from anabranch.recipe.tree import Algorithm


class _Form(NamedTuple):
    """What a value of the axis `ratio` stands for."""

    ratio: Ratio
    surrogate: Surrogate
    touched: TouchedBy


FORMS: Mapping[str, _Form] = {
    "token": _Form(RATIOS["token"], clipped, clipped_tokens),
    "sequence": _Form(RATIOS["sequence"], clipped, clipped_tokens),
    "detached": _Form(RATIOS["token"], detached, capped_tokens),
}

KL_LOSSES: Mapping[str, KlEstimator] = {f"loss_{name}": estimate for name, estimate in KL_ESTIMATORS.items()}

MAXIMA = frozenset({"ratio_max"})
"""Metrics of which the largest value counts; all others add up."""


def policy_objective(
    algorithm: Algorithm,
    *,
    logprob_M: Tensor,
    old_logprob_M: Tensor,
    advantage_M: Tensor,
    weight_M: Tensor,
    sequence_M: Tensor,
    ref_logprob_M: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The part of the loss that these tokens contribute; parts of an optimizer step add up to its loss.

        loss = - sum_M weight * surrogate(ratio, advantage) + coef * sum_M weight * k(logprob, ref_logprob)

    The gradient of the KL term flows through `logprob_M`. On tokens drawn from the current policy, that of k2 is the
    gradient of KL(policy || reference), that of k3 the gradient of KL(reference || policy), and that of k1 is not the
    gradient of a KL: it is 0 in expectation (see `anabranch.algo.kl`).

    Args:
        algorithm: which ratio, clip and KL.
        logprob_M: float [M], current policy; carries the gradient.
        old_logprob_M: float [M], the policy at the start of the step. No gradient flows through it.
        advantage_M: float [M].
        weight_M: float [M], from `Credit.weight_M`: denominators of the whole optimizer step.
        sequence_M: int64 [M], the answer of each token; ids may be local to the micro-batch, but all trained tokens of
            an answer are here.
        ref_logprob_M: float [M], the reference policy; given if and only if the KL is in the loss.

    Returns:
        The loss, a scalar to minimise, and detached scalars for the metrics. Those of `MAXIMA` combine over
        micro-batches by maximum, the others are sums (see `add_up`).

        Over tokens whose weight is not 0: `tokens`, how many; `clip_low`, `clip_high`, `clip_dual`, on how many the
        bound acted; `ratio_sum`, `ratio_max`; `kl_old_k1`, `kl_old_k3`, sums that estimate KL(old || current);
        `kl_ref`, the sum of the loss's own estimates of the KL to the reference, if the KL is in the loss.

        `loss_kl`, the KL term as it enters the loss, if the KL is in the loss.

    Raises:
        ShapeError: lengths differ, or an index is not usable.
        ValueError: `ref_logprob_M` is missing where the algorithm needs it, or given where it does not; a dual clip
            with the detached ratio.
    """
    check_flat(logprob_M=logprob_M, old_logprob_M=old_logprob_M, advantage_M=advantage_M, weight_M=weight_M)
    _check_reference(algorithm, ref_logprob_M)
    old_logprob_M = old_logprob_M.detach()
    form = FORMS[algorithm.ratio]
    bounds = Bounds(algorithm.clip.low, algorithm.clip.high, algorithm.clip.dual)
    rho_M = form.ratio(logprob_M, old_logprob_M, sequence_M)
    loss = -(weight_M * form.surrogate(rho_M, advantage_M, logprob_M, bounds)).sum()

    with torch.no_grad():
        counts_M = weight_M != 0
        touched = form.touched(rho_M, advantage_M, bounds)
        ratio_M = torch.where(counts_M, rho_M, 0)
        sums = {
            "tokens": counts_M.sum(),
            "clip_low": (touched.low_M & counts_M).sum(),
            "clip_high": (touched.high_M & counts_M).sum(),
            "clip_dual": (touched.dual_M & counts_M).sum(),
            "ratio_sum": ratio_M.sum(),
            "ratio_max": torch.cat([ratio_M, ratio_M.new_zeros(1)]).amax(),  # 0 stands for "no token"
            "kl_old_k1": k1(old_logprob_M, logprob_M)[counts_M].sum(),
            "kl_old_k3": k3(old_logprob_M, logprob_M)[counts_M].sum(),
        }
    if ref_logprob_M is None:
        return loss, sums

    ref_logprob_M = ref_logprob_M.detach()
    estimate_M = KL_LOSSES[algorithm.kl.kind](logprob_M, ref_logprob_M)
    kl_loss = algorithm.kl.coef * (weight_M * estimate_M).sum()
    with torch.no_grad():
        sums["kl_ref"] = estimate_M[counts_M].sum()
        sums["loss_kl"] = kl_loss.detach()
    return loss + kl_loss, sums


def add_up(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The metrics of several micro-batches as those of one: sums add, `MAXIMA` keep the largest.

    Raises:
        ValueError: there is no part.
        KeyError: the parts come from different algorithms.
    """
    if not parts:
        raise ValueError(explain("add_up", "no part", "there is nothing to add up", "call it after a micro-batch"))
    stacked = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    return {name: values.amax() if name in MAXIMA else values.sum() for name, values in stacked.items()}


def _check_reference(algorithm: Algorithm, ref_logprob_M: Tensor | None) -> None:
    if (algorithm.kl.kind in KL_LOSSES) != (ref_logprob_M is not None):
        raise ValueError(
            explain(
                "ref_logprob_M",
                "nothing" if ref_logprob_M is None else "a tensor",
                f"algorithm.kl.kind is {algorithm.kl.kind!r}",
                "pass it with loss_k1, loss_k2 or loss_k3, and only then",
            )
        )
