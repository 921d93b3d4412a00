"""The parts of a decoder layer as differentiable operations that keep little for the backward pass.

`transformers` writes each part as a chain of small operations, and autograd keeps what every link computed: 1.5 MB a
token with SmolLM2-135M in bfloat16, and half of the time goes into passes over memory. Here each part is one operation
with a backward pass of its own, which computes again what is cheap (norms, activations). Statistics of norms are taken
in float32 or better. Attention is in `modeling.block_attention`.

Letters: T tokens, I values a token going in, O values a token coming out, F width of the gated layer, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

NORM_ROWS = 512
"""Rows of a norm's backward pass at a time: its float32 intermediates then stay in cache."""


SUM_ROWS = 1024
"""Rows of a gradient that are added at a time."""


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and softmax statistics over values of `dtype`: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def sums_of(weight: Tensor) -> Tensor | None:
    """Where a weight's gradients are added up in another dtype than its own (see `train.optimizer`), or None.

    Backward passes add to it by themselves and return nothing for the weight. Autograd would convert a gradient to that
    dtype first, in new memory, and add it then: three passes over every weight for each row of tokens, where this is
    one. Without such a place gradients go the usual way, through autograd.
    """
    if weight.is_leaf and weight.requires_grad and weight.grad is not None and weight.grad.dtype != weight.dtype:
        return weight.grad
    return None


def hand_over(weight: Tensor, grad: Tensor) -> Tensor | None:
    """What a backward pass returns for a weight: its gradient, or None if it could be added where `sums_of` says."""
    sums = sums_of(weight)
    if sums is None:
        return grad
    add_up(sums, grad)
    return None


def add_up(sums: Tensor, grad: Tensor) -> None:
    """sums += grad, a thousand rows at a time: torch converts a gradient of another dtype into new memory first."""
    for some_sums, some_grad in zip(torch.split(sums, SUM_ROWS), torch.split(grad, SUM_ROWS), strict=True):
        some_sums.add_(some_grad)


# ------------------------------------------------------------------------------------------------ embedding


def embed(tokens: Tensor, weight_VD: Tensor, padding: int | None) -> Tensor:
    """Rows of the embedding, [*tokens.shape, D]; `padding` is a token whose row gets no gradient, as in torch."""
    embedded: Tensor = _Embed.apply(tokens, weight_VD, padding)  # type: ignore[no-untyped-call]
    return embedded


class _Embed(torch.autograd.Function):
    """Only the rows of tokens that occur are touched where `sums_of` has a place for them."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight_VD: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(tokens, weight_VD)
        ctx.padding = padding
        return torch.nn.functional.embedding(tokens, weight_VD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weight_VD = ctx.saved_tensors
        token_T, grad_TD = tokens.flatten(), grad.flatten(0, -2)
        if ctx.padding is not None:
            grad_TD = grad_TD.masked_fill((token_T == ctx.padding)[:, None], 0)
        sums_VD = sums_of(weight_VD)
        if sums_VD is not None:
            sums_VD.index_add_(0, token_T, grad_TD.to(sums_VD.dtype))
            return None, None, None
        stats = statistics_dtype(grad.dtype)
        grad_VD = torch.zeros_like(weight_VD, dtype=stats).index_add_(0, token_T, grad_TD.to(stats))
        return None, grad_VD.to(weight_VD.dtype), None


# ------------------------------------------------------------------------------------------------ norm


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x ** 2) + eps) * weight over the last dimension; differentiable, keeps only its arguments."""
    normed: Tensor = _RmsNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return normed


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=statistics_dtype(x.dtype))
    return norm.pow_(2).div_(x.shape[-1]).add_(eps).rsqrt_()


def _normed(x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    return x.to(inverse.dtype).mul(inverse).to(x.dtype).mul_(weight)


def _norm_backward(grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight.

    With u = x * inverse and g = grad * weight: dx = inverse * (g - u * mean(g * u)); dweight sums grad * u over rows.
    """
    width = x.shape[-1]
    rows_x, rows_grad, rows_inverse = x.reshape(-1, width), grad.reshape(-1, width), inverse.reshape(-1, 1)
    stats = inverse.dtype
    weight_stats = weight.to(stats)
    grad_x = torch.empty_like(rows_x)
    grad_weight = torch.zeros(width, dtype=stats, device=x.device)
    for start in range(0, len(rows_x), NORM_ROWS):
        rows = slice(start, start + NORM_ROWS)
        u = rows_x[rows].to(stats).mul(rows_inverse[rows])
        g = rows_grad[rows].to(stats)
        grad_weight += (g * u).sum(0)
        g = g * weight_stats
        mean = torch.linalg.vecdot(g, u).div_(-width)
        grad_x[rows] = g.addcmul_(u, mean[:, None]).mul_(rows_inverse[rows])
    return grad_x.view_as(x), grad_weight.to(weight.dtype)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _normed(x, weight, _inverse_rms(x, eps))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = _norm_backward(grad, x, weight, _inverse_rms(x, ctx.eps))
        return grad_x, hand_over(weight, grad_weight), None


# ------------------------------------------------------------------------------------------------ norm + projections


def norm_project(
    x_TI: Tensor, norm_I: Tensor, eps: float, weights_OI: Sequence[Tensor], biases_O: Sequence[Tensor | None]
) -> Tensor:
    """Several linear layers that read one normed input, their outputs side by side.

    Args:
        x_TI: [T, I].
        norm_I: weight of the norm in front, [I].
        eps: of the norm.
        weights_OI: one [O_i, I] a layer. Those that lie one behind the other in memory are multiplied in one product.
        biases_O: one [O_i] or None a layer.

    Returns:
        [T, sum of O_i].
    """
    projected: Tensor = _NormProject.apply(  # type: ignore[no-untyped-call]
        x_TI, norm_I, eps, len(weights_OI), *weights_OI, *biases_O
    )
    return projected


def joined(weights_OI: Sequence[Tensor]) -> Tensor:
    """Weights below each other, [sum of O_i, I]: a view if they lie so in memory (see `lay_together`), else a copy."""
    first = weights_OI[0].detach()
    if len(weights_OI) == 1:
        return first
    expected = first.data_ptr()
    for weight in weights_OI:
        if weight.data_ptr() != expected or not weight.is_contiguous():
            return torch.cat([weight.detach() for weight in weights_OI])
        expected += weight.numel() * weight.element_size()
    if first.untyped_storage().data_ptr() + first.untyped_storage().nbytes() < expected:
        return torch.cat([weight.detach() for weight in weights_OI])  # neighbours by chance, of other storages
    rows = sum(len(weight) for weight in weights_OI)
    whole: Tensor = torch.as_strided(first, (rows, *first.shape[1:]), first.stride())
    return whole


@torch.no_grad()
def lay_together(weights_OI: Sequence[torch.nn.Parameter]) -> None:
    """Move the memory of parameters into one array, one behind the other, so that `joined` copies nothing."""
    whole = torch.cat([weight.detach() for weight in weights_OI])
    start = 0
    for weight in weights_OI:
        weight.data = whole[start : start + len(weight)]
        start += len(weight)


def joined_biases(biases_O: Sequence[Tensor | None], weights_OI: Sequence[Tensor]) -> Tensor | None:
    """Biases of `joined` weights, zeros where one is None; None if all are."""
    if all(bias is None for bias in biases_O):
        return None
    pairs = zip(biases_O, weights_OI, strict=True)
    return torch.cat([weight.new_zeros(len(weight)) if bias is None else bias.detach() for bias, weight in pairs])


class _NormProject(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, norm_I: Tensor, eps: float, count: int, *parts: Tensor | None) -> Tensor:
        weights, biases = parts[:count], parts[count:]
        ctx.save_for_backward(x_TI, norm_I, *weights)
        ctx.eps, ctx.count = eps, count
        normed_TI = _normed(x_TI, norm_I, _inverse_rms(x_TI, eps))
        present = [weight for weight in weights if weight is not None]
        return torch.nn.functional.linear(normed_TI, joined(present), joined_biases(biases, present))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, norm_I, *weights = ctx.saved_tensors
        inverse = _inverse_rms(x_TI, ctx.eps)
        grad_x, grad_norm = _norm_backward(grad_TO @ joined(weights), x_TI, norm_I, inverse)
        sizes = [len(weight) for weight in weights]
        grad_weights: Sequence[Tensor | None] = [None] * ctx.count
        if any(ctx.needs_input_grad[4 : 4 + ctx.count]):
            parts = torch.split(grad_TO.T @ _normed(x_TI, norm_I, inverse), sizes)
            grad_weights = [hand_over(weight, part) for weight, part in zip(weights, parts, strict=True)]
        needs_bias = ctx.needs_input_grad[4 + ctx.count :]
        grad_biases: list[Tensor | None] = [None] * ctx.count
        for index, part in enumerate(torch.split(grad_TO, sizes, 1)):
            if needs_bias[index]:
                grad_biases[index] = part.sum(0)
        return grad_x, hand_over(norm_I, grad_norm), None, None, *grad_weights, *grad_biases


# ------------------------------------------------------------------------------------------------ rotary positions


def rotate(x: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Rotary positions: x * cos + (-x2, x1) * sin, where x1 and x2 are the halves of the last dimension.

    Args:
        x: [T, heads, D].
        cos_TD: [T, D].
        sin_TD: [T, D].
    """
    if not torch.is_grad_enabled():
        return _rotated(x, cos_TD, sin_TD, 1)  # while decoding, the detour through autograd takes longer than the work
    rotated: Tensor = _Rotate.apply(x, cos_TD, sin_TD)  # type: ignore[no-untyped-call]
    return rotated


def _rotated(x: Tensor, cos_TD: Tensor, sin_TD: Tensor, sign: int) -> Tensor:
    first, second = x.chunk(2, -1)
    rotated = torch.mul(x, cos_TD[:, None])
    to_first, to_second = rotated.chunk(2, -1)
    sin_first, sin_second = sin_TD[:, None].chunk(2, -1)
    to_first.addcmul_(second, sin_first, value=-sign)
    to_second.addcmul_(first, sin_second, value=sign)
    return rotated


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        ctx.save_for_backward(cos_TD, sin_TD)
        return _rotated(x, cos_TD, sin_TD, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """A rotation's transpose turns the other way; the two halves of the angles are equal."""
        cos_TD, sin_TD = ctx.saved_tensors
        return _rotated(grad, cos_TD, sin_TD, -1), None, None


# ------------------------------------------------------------------------------------------------ residual projection


def add_projected(x_TO: Tensor, inner_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """x + inner @ weight.T + bias, [T, O]."""
    added: Tensor = _AddProjected.apply(x_TO, inner_TI, weight_OI, bias_O)  # type: ignore[no-untyped-call]
    return added


class _AddProjected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TO: Tensor, inner_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(inner_TI, weight_OI)
        added_TO = torch.addmm(x_TO, inner_TI, weight_OI.T)
        return added_TO if bias_O is None else added_TO.add_(bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        inner_TI, weight_OI = ctx.saved_tensors
        needs_weight, needs_bias = ctx.needs_input_grad[2:]
        grad_weight_OI = hand_over(weight_OI, grad_TO.T @ inner_TI) if needs_weight else None
        return grad_TO, grad_TO @ weight_OI, grad_weight_OI, grad_TO.sum(0) if needs_bias else None


# ------------------------------------------------------------------------------------------------ gated layer


def add_gated(x_TO: Tensor, gate_up_TF: Tensor, weight_OF: Tensor, bias_O: Tensor | None) -> Tensor:
    """x + (silu(gate) * up) @ weight.T + bias, gate and up being the halves of `gate_up_TF` [T, 2 * F]."""
    added: Tensor = _AddGated.apply(x_TO, gate_up_TF, weight_OF, bias_O)  # type: ignore[no-untyped-call]
    return added


class _AddGated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TO: Tensor, gate_up_TF: Tensor, weight_OF: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(gate_up_TF, weight_OF)
        gate_TF, up_TF = gate_up_TF.chunk(2, -1)
        added_TO = torch.addmm(x_TO, torch.nn.functional.silu(gate_TF).mul_(up_TF), weight_OF.T)
        return added_TO if bias_O is None else added_TO.add_(bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        gate_up_TF, weight_OF = ctx.saved_tensors
        gate_TF, up_TF = gate_up_TF.chunk(2, -1)
        grad_inner_TF = grad_TO @ weight_OF
        active_TF = torch.nn.functional.silu(gate_TF)
        grad_gate_up_TF = torch.empty_like(gate_up_TF)
        grad_gate_TF, grad_up_TF = grad_gate_up_TF.chunk(2, -1)
        torch.mul(grad_inner_TF, active_TF, out=grad_up_TF)
        torch.ops.aten.silu_backward.grad_input(grad_inner_TF.mul_(up_TF), gate_TF, grad_input=grad_gate_TF)
        needs_weight, needs_bias = ctx.needs_input_grad[2:]
        grad_weight_OF = hand_over(weight_OF, grad_TO.T @ active_TF.mul_(up_TF)) if needs_weight else None
        return grad_TO, grad_gate_up_TF, grad_weight_OF, grad_TO.sum(0) if needs_bias else None
