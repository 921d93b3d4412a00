"""From the objectives of tokens to one loss: what each token weighs.

    loss = -(weight_M * objective_M).sum()

The denominators are arguments. Count them once per optimizer step, over all micro-batches and ranks; counted per
micro-batch, "token_mean" silently drifts towards "seq_mean_token_mean".

Letters: B rollouts, M trained tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from anabranch.algo.groups import sum_by
from anabranch.algo.shapes import check_flat, check_index
from anabranch.errors import explain


class Denominators(NamedTuple):
    """What the sums of an optimizer step are divided by."""

    num_tokens: int
    """Trained tokens of the rollouts that are kept."""
    num_sequences: int
    """Rollouts that are kept; one without a trained token counts."""
    constant: int
    """Divisor of each answer's token sum; of use to `token_sum_constant` only."""


Aggregate = Callable[[Tensor, Denominators], Tensor]
"""(length_B, denominators) -> what each token of the rollout weighs, float [B]."""


def token_mean(length_B: Tensor, denominators: Denominators) -> Tensor:
    """Every token weighs the same: 1 / tokens (DAPO, Lite PPO)."""
    return torch.full_like(length_B, 1 / max(denominators.num_tokens, 1))


def seq_mean_token_mean(length_B: Tensor, denominators: Denominators) -> Tensor:
    """Every answer weighs the same: 1 / (answers x its own length) (GRPO, GSPO)."""
    return 1 / (max(denominators.num_sequences, 1) * length_B.clamp(min=1))


def seq_mean_token_sum(length_B: Tensor, denominators: Denominators) -> Tensor:
    """Token sums, averaged over answers: 1 / answers."""
    return torch.full_like(length_B, 1 / max(denominators.num_sequences, 1))


def token_sum_constant(length_B: Tensor, denominators: Denominators) -> Tensor:
    """Token sums over a constant, averaged over answers: 1 / (answers x constant) (Dr. GRPO, arXiv:2503.20783)."""
    return torch.full_like(length_B, 1 / (max(denominators.num_sequences, 1) * denominators.constant))


AGGREGATES: Mapping[str, Aggregate] = {
    "token_mean": token_mean,
    "seq_mean_token_mean": seq_mean_token_mean,
    "seq_mean_token_sum": seq_mean_token_sum,
    "token_sum_constant": token_sum_constant,
}


def count(sequence_M: Tensor, keep_B: Tensor, constant: int) -> Denominators:
    """The denominators of exactly these rollouts; sum them over ranks where there are several.

    Raises:
        ShapeError: an index names no rollout.
    """
    check_index("sequence_M", sequence_M, len(keep_B))
    return Denominators(int(keep_B[sequence_M].sum()), int(keep_B.sum()), constant)


def token_weights(
    aggregate: Aggregate, sequence_M: Tensor, keep_B: Tensor, denominators: Denominators, dtype: torch.dtype
) -> Tensor:
    """What each token weighs in the loss, float [M]; 0 for the tokens of rollouts that are not kept.

    Args:
        aggregate: one of `AGGREGATES`.
        sequence_M: int64 [M], the rollout of each token; all trained tokens of a rollout are present.
        keep_B: bool [B]; False takes a rollout out of the loss. It must be out of the denominators too.
        denominators: of the whole optimizer step, of which these rollouts may be a part.
        dtype: of the result.

    Raises:
        ShapeError: `keep_B` is not flat, or an index names no rollout.
        ValueError: the denominators count less than is here.
    """
    check_flat(keep_B=keep_B)
    here = count(sequence_M, keep_B, denominators.constant)
    if here.num_tokens > denominators.num_tokens or here.num_sequences > denominators.num_sequences:
        raise ValueError(
            explain(
                "denominators",
                f"{denominators.num_tokens} tokens of {denominators.num_sequences} rollouts",
                f"{here.num_tokens} tokens of {here.num_sequences} rollouts are kept here alone",
                "count them over all micro-batches and ranks of the optimizer step",
            )
        )
    ones_M = torch.ones(len(sequence_M), dtype=dtype, device=sequence_M.device)
    weight_B = aggregate(sum_by(sequence_M, ones_M, len(keep_B)), denominators)
    return torch.where(keep_B, weight_B, 0)[sequence_M]
