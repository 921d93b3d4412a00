"""Attention of a packed row in blocks of queries that meet only the keys they see, as one differentiable operation.

Nothing of size [T, T] exists; attention weights are computed again in the backward pass, block by block, in cache.

Letters: T tokens, H key-value heads, G query heads a key-value head, C = H * G, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from anabranch.modeling.ops import statistics_dtype


@dataclass(frozen=True, eq=False)
class AttentionBatch:
    """Several `structure.blocks.QueryBlock` of equal size on a device, computed together.

    Letters: B blocks, Q queries and N keys of each, M queries of all blocks without surplus.
    """

    query_M: Tensor
    """int64: the queries' places in the row."""
    place_M: Tensor
    """int64: their places in the blocks laid one behind the other, [B * Q]; blocks may have fewer queries than Q."""
    key_BN: Tensor
    """int64: the keys' places in the row."""
    bias_BQN: Tensor
    """0 where a query sees a key, -inf elsewhere, in float32 or better. Surplus queries see some key as well."""


def attend_in_blocks(
    query_TCD: Tensor, key_THD: Tensor, value_THD: Tensor, batches: Sequence[AttentionBatch], scale: float
) -> Tensor:
    """Softmax attention of every block of queries over its own keys; attention weights are computed again in backward.

    Args:
        query_TCD: [T, C, D], C = H * G heads, those of one key-value head side by side.
        key_THD: [T, H, D].
        value_THD: [T, H, D].
        batches: cover all T queries.
        scale: factor on the dot products.

    Returns:
        [T, C, D].
    """
    attended: Tensor = _AttendInBlocks.apply(query_TCD, key_THD, value_THD, batches, scale)  # type: ignore[no-untyped-call]
    return attended


def _queries(batch: AttentionBatch, value_TCD: Tensor, heads: int) -> Tensor:
    """What belongs to the queries of all blocks, [B * H, Q * G, D]; zeros for surplus queries."""
    B, Q, _ = batch.bias_BQN.shape
    T, C, D = value_TCD.shape
    flat_TX = value_TCD.reshape(T, C * D)
    if len(batch.query_M) == B * Q:
        taken = flat_TX.index_select(0, batch.query_M)
    else:
        taken = flat_TX.new_zeros(B * Q, C * D)
        taken[batch.place_M] = flat_TX.index_select(0, batch.query_M)
    return taken.view(B, Q, heads, -1, D).transpose(1, 2).reshape(B * heads, -1, D)


def _put_queries(batch: AttentionBatch, target_TCD: Tensor, value: Tensor, heads: int) -> None:
    """The way back: write [B * H, Q * G, D] to the queries' places in the row."""
    B, Q, _ = batch.bias_BQN.shape
    T, C, D = target_TCD.shape
    flat = value.view(B, heads, Q, C // heads, D).transpose(1, 2).reshape(B * Q, C * D)
    if len(batch.query_M) < B * Q:
        flat = flat.index_select(0, batch.place_M)
    target_TCD.view(T, C * D).index_copy_(0, batch.query_M, flat)


def _keys(batch: AttentionBatch, value_THD: Tensor) -> Tensor:
    """Keys or values of all blocks, [B * H, N, D]."""
    B, N = batch.key_BN.shape
    T, H, D = value_THD.shape
    taken = value_THD.reshape(T, H * D).index_select(0, batch.key_BN.flatten())
    return taken.view(B, N, H, D).transpose(1, 2).reshape(B * H, N, D)


def _add_keys(batch: AttentionBatch, sums_THD: Tensor, value: Tensor) -> None:
    """The way back: add [B * H, N, D] to the keys' places in the row. Hidden keys add zeros."""
    B, N = batch.key_BN.shape
    T, H, D = sums_THD.shape
    flat = value.view(B, H, N, D).transpose(1, 2).reshape(B * N, H * D)
    sums_THD.view(T, H * D).index_add_(0, batch.key_BN.flatten(), flat.to(sums_THD.dtype))


def _weights(batch: AttentionBatch, query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Attention weights [B * H, Q * G, N]."""
    B, Q, N = batch.bias_BQN.shape
    score = torch.bmm(query, key.transpose(1, 2)).view(B, -1, Q, query.shape[1] // Q, N)
    biased = score.to(batch.bias_BQN.dtype).mul_(scale).add_(batch.bias_BQN[:, None, :, None])
    return biased.softmax(-1).to(query.dtype).view(-1, query.shape[1], N)


class _AttendInBlocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_TCD: Tensor,
        key_THD: Tensor,
        value_THD: Tensor,
        batches: Sequence[AttentionBatch],
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(query_TCD, key_THD, value_THD)
        ctx.batches, ctx.scale = batches, scale
        H = key_THD.shape[1]
        attended_TCD = torch.empty_like(query_TCD, memory_format=torch.contiguous_format)
        for batch in batches:
            weight = _weights(batch, _queries(batch, query_TCD, H), _keys(batch, key_THD), scale)
            _put_queries(batch, attended_TCD, torch.bmm(weight, _keys(batch, value_THD)), H)
        return attended_TCD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TCD: Tensor) -> tuple[Tensor | None, ...]:
        """With weights P = softmax(S): dV = P' dO, dP = dO V', dS = P * (dP - sum(P * dP)), dQ = dS K, dK = dS' Q."""
        query_TCD, key_THD, value_THD = ctx.saved_tensors
        H = key_THD.shape[1]
        stats = statistics_dtype(key_THD.dtype)
        grad_query_TCD = torch.empty_like(query_TCD, memory_format=torch.contiguous_format)
        grad_key_THD = torch.zeros(key_THD.shape, dtype=stats, device=key_THD.device)
        grad_value_THD = torch.zeros_like(grad_key_THD)
        for batch in ctx.batches:
            query, key, value = _queries(batch, query_TCD, H), _keys(batch, key_THD), _keys(batch, value_THD)
            weight = _weights(batch, query, key, ctx.scale)
            grad = _queries(batch, grad_TCD, H)
            _add_keys(batch, grad_value_THD, torch.bmm(weight.transpose(1, 2), grad))
            grad_weight = torch.bmm(grad, value.transpose(1, 2))
            grad_score = torch._softmax_backward_data(grad_weight, weight, -1, weight.dtype).mul_(ctx.scale)
            _put_queries(batch, grad_query_TCD, torch.bmm(grad_score, key), H)
            _add_keys(batch, grad_key_THD, torch.bmm(grad_score.transpose(1, 2), query))
        return grad_query_TCD, grad_key_THD.to(key_THD.dtype), grad_value_THD.to(value_THD.dtype), None, None
