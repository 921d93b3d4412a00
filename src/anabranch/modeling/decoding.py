"""One decode step of a fused model without autograd: as few operations as possible, on weights laid out for it.

A step over a few dozen rows reads every weight once and computes little with it, so what counts is how weights lie in
memory and how many small operations stand between the products. On a CPU in bfloat16 oneDNN multiplies weights that it
has reordered 1.2 to 1.5 times as fast at 64 to 16 rows, and applies residuals and activations while it writes results.
The reordered weights are a second copy, held by `DecodeWeights`; an engine that rests drops it.

Letters: R rows, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu
from transformers import PreTrainedModel

from anabranch.modeling.attention import Neighbourhood
from anabranch.modeling.logprob import check_head
from anabranch.modeling.ops import joined, joined_biases, rotate

_ROWS = 64
"""The number of rows that weights are reordered for; others work as well."""


class _Linear:
    """x @ weight.T + bias, and what can be done to the result while it is written."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        weight = joined(weights)
        mkldnn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        self._reordered = mkldnn and weight.device.type == "cpu" and weight.dtype == torch.bfloat16
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS) if self._reordered else weight
        self._bias = joined_biases(biases, weights)

    def __call__(self, x: Tensor) -> Tensor:
        return self._unary(x, "none") if self._reordered else linear(x, self._weight, self._bias)

    def silu(self, x: Tensor) -> Tensor:
        """silu(x @ weight.T + bias)."""
        return self._unary(x, "swish") if self._reordered else silu(linear(x, self._weight, self._bias))

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """x @ weight.T + bias + other."""
        return self._binary(x, other, "add") if self._reordered else linear(x, self._weight, self._bias).add_(other)

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """(x @ weight.T + bias) * other."""
        return self._binary(x, other, "mul") if self._reordered else linear(x, self._weight, self._bias).mul_(other)

    def _unary(self, x: Tensor, name: str) -> Tensor:
        scalars = [1.0] if name == "swish" else []
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, name, scalars, "")
        return result

    def _binary(self, x: Tensor, other: Tensor, name: str) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self._weight, self._bias, name)
        return result


@dataclass(frozen=True)
class _Norm:
    weight: Tensor
    eps: float

    @classmethod
    def of(cls, module: Any) -> _Norm:
        """The norm of a `transformers` module."""
        return cls(module.weight.detach(), module.variance_epsilon)

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, (len(self.weight),), self.weight, self.eps)


class _Layer:
    """One decoder layer of the Llama family (see `modeling.fused`)."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        q, k, v, o = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
        self._size = attention.head_dim
        self._heads = len(q.weight) // self._size, len(k.weight) // self._size
        self._scale, self._index = attention.scaling, attention.layer_idx
        self._norms = _Norm.of(layer.input_layernorm), _Norm.of(layer.post_attention_layernorm)
        self._qkv = _Linear([q.weight, k.weight, v.weight], [q.bias, k.bias, v.bias])
        self._out = _Linear([o.weight], [o.bias])
        self._head_norms = None
        if "q_norm" in attention._modules:
            self._head_norms = _Norm.of(attention.q_norm), _Norm.of(attention.k_norm)
        self._gate = _Linear([mlp.gate_proj.weight], [mlp.gate_proj.bias])
        self._up = _Linear([mlp.up_proj.weight], [mlp.up_proj.bias])
        self._down = _Linear([mlp.down_proj.weight], [mlp.down_proj.bias])

    def __call__(self, x_RD: Tensor, cos: Tensor, sin: Tensor, stream: Neighbourhood) -> Tensor:
        R = len(x_RD)
        C, H = self._heads
        before, after = self._norms
        heads = self._qkv(before(x_RD)).view(R, C + 2 * H, self._size)
        if self._head_norms is None:
            rotated = rotate(heads[:, : C + H], cos, sin)
            query, key = rotated[:, :C], rotated[:, C:]
        else:
            query_norm, key_norm = self._head_norms
            query = rotate(query_norm(heads[:, :C]), cos, sin)
            key = rotate(key_norm(heads[:, C : C + H]), cos, sin)
        value = heads[:, C + H :]
        attended = stream.attend(self._index, query[:, :, None], key[:, :, None], value[:, :, None], self._scale)
        x_RD = self._out.plus(attended.view(R, C * self._size), x_RD)
        normed_RD = after(x_RD)
        return self._down.plus(self._up.times(normed_RD, self._gate.silu(normed_RD)), x_RD)


class DecodeWeights:
    """A fused model's weights as decode steps read them. They do not follow when the model's weights change.

    Args:
        model: one that `modeling.fused.fuse` has changed.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        with torch.no_grad():
            body: Any = model.base_model
            self._layers = [_Layer(layer) for layer in body.layers]
            weight_VD, bias_V = check_head(model)
            self._head = _Linear([weight_VD], [bias_V])
        self._norm = _Norm.of(body.norm)
        self._embedding = model.get_input_embeddings().weight.detach()
        self._rotary = body.rotary_emb

    @torch.no_grad()
    def step(self, token_R: Tensor, position_R: Tensor, stream: Neighbourhood) -> Tensor:
        """Final hidden states [R, D] of one new token a row.

        Args:
            token_R: int64 [R].
            position_R: int64 [R].
            stream: what each row attends to; B is R rows, T is 1.
        """
        x_RD = torch.nn.functional.embedding(token_R, self._embedding)
        cos_1RD, sin_1RD = self._rotary(x_RD, position_R[None])
        for layer in self._layers:
            x_RD = layer(x_RD, cos_1RD[0], sin_1RD[0], stream)
        return self._norm(x_RD)

    @torch.no_grad()
    def logits(self, hidden_RD: Tensor) -> Tensor:
        """[R, V]."""
        logits_RV: Tensor = self._head(hidden_RD)
        return logits_RV
