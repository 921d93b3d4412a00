"""The policy loss of one micro-batch: ratio x surrogate x weights, the KL to the reference, the entropy bonus.

Knows no method, only the values of the axes. Letters: M trained tokens of the micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from anabranch.algo.groups import sum_by
from anabranch.algo.kl import KL_ESTIMATORS, KlEstimator, k1, k3, limited
from anabranch.algo.mismatch import CORRECTIONS
from anabranch.algo.mismatch import Bounds as RatioBounds
from anabranch.algo.ratio import RATIOS, Ratio, token_ratio
from anabranch.algo.shapes import check_flat, check_index
from anabranch.algo.surrogate import Bounds, Surrogate, TouchedBy, capped_tokens, clipped, clipped_tokens, detached
from anabranch.errors import explain
from anabranch.recipe.tree import Algorithm, Kl, Mismatch


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

KL_KINDS: Mapping[str, str] = {"reward_k1": "k1", "loss_k1": "k1", "loss_k2": "k2", "loss_k3": "k3"}
"""Which estimator a kind of KL term takes."""

MAXIMA = frozenset({"ratio_max"})
"""Metrics of which the largest value counts; all others add up."""

Sums = dict[str, Tensor]


def kl_in_loss(algorithm: Algorithm) -> bool:
    """Whether the KL to the reference is a term of the loss."""
    return algorithm.kl.kind.startswith("loss_")


def teaches_everywhere(algorithm: Algorithm) -> bool:
    """Whether the loss has a term on every token, whatever its advantage: a KL, or an entropy bonus."""
    return kl_in_loss(algorithm) or algorithm.entropy_coef > 0


def kl_estimator(kl: Kl) -> KlEstimator:
    """The estimator of the KL term, within the recipe's limits: (logprob_M, ref_logprob_M) -> estimate_M.

    Raises:
        KeyError: there is no KL term.
    """
    return limited(KL_ESTIMATORS[KL_KINDS[kl.kind]], input_limit=kl.input_limit, output_limit=kl.output_limit)


def policy_objective(
    algorithm: Algorithm,
    *,
    logprob_M: Tensor,
    old_logprob_M: Tensor,
    advantage_M: Tensor,
    weight_M: Tensor,
    sequence_M: Tensor,
    ref_logprob_M: Tensor | None = None,
    engine_logprob_M: Tensor | None = None,
    entropy_M: Tensor | None = None,
) -> tuple[Tensor, Sums]:
    """The part of the loss that these tokens contribute; parts of an optimizer step add up to its loss.

        loss = - sum_M weight * w * surrogate(ratio, advantage)
               + kl.coef * sum_M weight * k(logprob, ref_logprob)
               - entropy_coef * sum_M weight * entropy

    w corrects for the engine (see `anabranch.algo.mismatch`); it is a constant, and 1 without such a correction.

    The gradient of the KL term flows through `logprob_M`. On tokens drawn from the current policy, that of k2 is the
    gradient of KL(policy || reference), that of k3 the gradient of KL(reference || policy), and that of k1 is not the
    gradient of a KL: it is 0 in expectation (see `anabranch.algo.kl`).

    Args:
        algorithm: which ratio, clip, correction, KL and bonus.
        logprob_M: float [M], current policy; carries the gradient.
        old_logprob_M: float [M], the policy at the start of the step. No gradient flows through it.
        advantage_M: float [M].
        weight_M: float [M], from `Credit.weight_M`: denominators of the whole optimizer step.
        sequence_M: int64 [M], the answer of each token; ids may be local to the micro-batch, but all trained tokens of
            an answer are here.
        ref_logprob_M: float [M], the reference policy; given if and only if the KL is in the loss.
        engine_logprob_M: float [M], as the engine recorded them; given if and only if there is a mismatch correction.
        entropy_M: float [M], of the distribution that each token was drawn from, nats; carries a gradient; given if and
            only if there is an entropy bonus.

    Returns:
        The loss, a scalar to minimise, and detached scalars for the metrics. Those of `MAXIMA` combine over
        micro-batches by maximum, the others are sums (see `add_up`).

        Over tokens whose weight is not 0: `tokens`, how many; `clip_low`, `clip_high`, `clip_dual`, on how many the
        bound acted; `ratio_sum`, `ratio_max`; `kl_old_k1`, `kl_old_k3`, sums that estimate KL(old || current);
        `kl_ref`, the sum of the loss's own estimates of the KL to the reference, if the KL is in the loss.

        `loss_kl` and `loss_entropy`, the two terms as they enter the loss, where they do. With a mismatch correction:
        see `_corrected`.

    Raises:
        ShapeError: lengths differ, or an index is not usable.
        ValueError: one of the last three is missing where the algorithm needs it, or given where it does not; the
            engine has no log-prob of a token; a dual clip with the detached ratio.
    """
    check_flat(logprob_M=logprob_M, old_logprob_M=old_logprob_M, advantage_M=advantage_M, weight_M=weight_M)
    _check_given(algorithm, ref_logprob_M, engine_logprob_M, entropy_M)
    old_logprob_M = old_logprob_M.detach()
    form = FORMS[algorithm.ratio]
    bounds = clip_bounds(algorithm)
    rho_M = form.ratio(logprob_M, old_logprob_M, sequence_M)
    objective_M = form.surrogate(rho_M, advantage_M, logprob_M, bounds)
    with torch.no_grad():
        counts_M = weight_M != 0
        sums = _ratio_sums(rho_M, logprob_M, old_logprob_M, counts_M)
        touched = form.touched(rho_M, advantage_M, bounds)
        for name, touched_M in zip(("clip_low", "clip_high", "clip_dual"), touched, strict=True):
            sums[name] = (touched_M & counts_M).sum()
    if engine_logprob_M is None:
        loss = -(weight_M * objective_M).sum()
    else:
        trust_M, found = _corrected(algorithm.mismatch, old_logprob_M, engine_logprob_M, sequence_M, counts_M)
        sums.update(found)
        loss = -(weight_M * trust_M * objective_M).sum()
    if ref_logprob_M is not None:
        estimate_M = kl_estimator(algorithm.kl)(logprob_M, ref_logprob_M.detach())
        kl_loss = algorithm.kl.coef * (weight_M * estimate_M).sum()
        sums["kl_ref"] = estimate_M.detach()[counts_M].sum()
        sums["loss_kl"] = kl_loss.detach()
        loss = loss + kl_loss
    if entropy_M is not None:
        entropy_loss = -algorithm.entropy_coef * (weight_M * entropy_M).sum()
        sums["loss_entropy"] = entropy_loss.detach()
        loss = loss + entropy_loss
    return loss, sums


def clip_bounds(algorithm: Algorithm) -> Bounds:
    """Where the ratio is clipped."""
    return Bounds(algorithm.clip.low, algorithm.clip.high, algorithm.clip.dual)


def _ratio_sums(rho_M: Tensor, logprob_M: Tensor, old_logprob_M: Tensor, counts_M: Tensor) -> Sums:
    ratio_M = torch.where(counts_M, rho_M, 0)
    return {
        "tokens": counts_M.sum(),
        "ratio_sum": ratio_M.sum(),
        "ratio_max": torch.cat([ratio_M, ratio_M.new_zeros(1)]).amax(),  # 0 stands for "no token"
        "kl_old_k1": k1(old_logprob_M, logprob_M)[counts_M].sum(),
        "kl_old_k3": k3(old_logprob_M, logprob_M)[counts_M].sum(),
    }


@torch.no_grad()
def _corrected(
    mismatch: Mismatch, old_logprob_M: Tensor, engine_logprob_M: Tensor, sequence_M: Tensor, counts_M: Tensor
) -> tuple[Tensor, Sums]:
    """What to multiply each token's policy loss with, float [M], and sums over the tokens that count.

    `mismatch_log_abs`: of |old_logprob - engine_logprob|. `mismatch_bounded`: tokens whose weight is not exp of that
    difference, but held at a bound or 0. `mismatch_dropped`: answers all of whose tokens have weight 0, of
    `mismatch_sequences`.
    """
    check_flat(old_logprob_M=old_logprob_M, engine_logprob_M=engine_logprob_M)
    missing = int(engine_logprob_M.isnan().sum())
    if missing:
        found = f"nothing for {missing} tokens"
        need = f"mismatch '{mismatch.kind}' compares all trained tokens with what the engine recorded"
        raise ValueError(explain("engine_logprob_M", found, need, "algorithm.mismatch.kind=none"))
    bounds = RatioBounds(mismatch.low, mismatch.high)
    trust_M = CORRECTIONS[mismatch.kind](old_logprob_M, engine_logprob_M, sequence_M, bounds)
    raw_M = token_ratio(old_logprob_M, engine_logprob_M, sequence_M)
    size = check_index("sequence_M", sequence_M)
    here_B = sum_by(sequence_M, counts_M.to(trust_M.dtype), size) > 0
    left_B = sum_by(sequence_M, torch.where(counts_M, trust_M, 0), size) > 0
    sums = {
        "mismatch_log_abs": (old_logprob_M - engine_logprob_M).abs()[counts_M].sum(),
        "mismatch_bounded": ((trust_M != raw_M) & counts_M).sum(),
        "mismatch_sequences": here_B.sum(),
        "mismatch_dropped": (here_B & ~left_B).sum(),
    }
    return trust_M, sums


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


def _check_given(
    algorithm: Algorithm, ref_logprob_M: Tensor | None, engine_logprob_M: Tensor | None, entropy_M: Tensor | None
) -> None:
    """Each of the three is here if and only if a term of the loss reads it."""
    rules = (
        ("ref_logprob_M", ref_logprob_M, kl_in_loss(algorithm), f"algorithm.kl.kind is {algorithm.kl.kind!r}"),
        (
            "engine_logprob_M",
            engine_logprob_M,
            algorithm.mismatch.kind in CORRECTIONS,
            f"algorithm.mismatch.kind is {algorithm.mismatch.kind!r}",
        ),
        ("entropy_M", entropy_M, algorithm.entropy_coef > 0, f"algorithm.entropy_coef is {algorithm.entropy_coef:g}"),
    )
    for name, tensor, needed, need in rules:
        if needed != (tensor is not None):
            found = "nothing" if tensor is None else "a tensor"
            raise ValueError(explain(name, found, need, "pass it where the loss reads it, and only there"))
