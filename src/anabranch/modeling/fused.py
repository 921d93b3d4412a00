"""Decoder layers of the Llama family, computed with the operations of `modeling.ops`.

`fuse` changes the class of a model's decoder layers: same parameters under the same names, same arguments, another
`forward`. The model stays a `transformers` model that is saved, sharded and generated from as before; the arithmetic is
the same but for rounding, and `forward.check_stream` compares it with the model's own. Other models are left alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from anabranch.modeling.attention import Neighbourhood
from anabranch.modeling.ops import add_gated, add_projected, embed, lay_together, norm_project, rms_norm, rotate

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type` of the models whose layers are known: pre-norm, rotary positions, gated SiLU, parts named alike."""


def fuse(model: PreTrainedModel) -> bool:
    """Let the model's decoder layers compute with fused operations, if they are of a known kind (see `FAMILIES`).

    Sliding windows, attention dropout and other activations than SiLU are left to the model's own layers. The weights
    of projections that read the same input are laid one behind the other in memory (see `join_weights`).

    Hooks and adapters on modules inside a layer (a projection, the gated layer) are bypassed by streams.

    Returns:
        Whether the model's layers are fused now.
    """
    config = model.config.to_dict()
    known = config["model_type"] in FAMILIES and config["hidden_act"] in ("silu", "swish")
    windows = set(config.get("layer_types") or ()) - {"full_attention"} or (
        config["model_type"] == "mistral" and config.get("sliding_window") is not None
    )
    if not known or windows or config.get("attention_dropout"):
        return False
    for layer in model.base_model.layers:
        _change_class(layer, _FusedLayer)
    _change_class(model.base_model.norm, _FusedNorm)
    _change_class(model.get_input_embeddings(), _FusedEmbedding)
    join_weights(model)
    return True


def join_weights(model: PreTrainedModel) -> None:
    """Lay the weights of a fused model that are multiplied in one product one behind the other in memory.

    In a copy of a model, or one that was converted, every weight has a place of its own: it computes the same, but puts
    such weights together anew in every forward pass. Layers that are not fused are left as they are.
    """
    for layer in model.modules():
        if isinstance(layer, _FusedLayer):
            attention, mlp = layer.self_attn, layer.mlp
            lay_together([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
            lay_together([mlp.gate_proj.weight, mlp.up_proj.weight])


def is_fused(model: PreTrainedModel) -> bool:
    """Whether `fuse` has changed the model."""
    return isinstance(model.get_input_embeddings(), _FusedEmbedding)


def _change_class(module: nn.Module, fused: type[nn.Module]) -> None:
    plain = type(module)
    if not issubclass(plain, fused):
        module.__class__ = type(f"Fused{plain.__name__}", (fused, plain), {})


class _FusedNorm(nn.Module):
    """The norm behind the last layer."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, self.weight, self.variance_epsilon)


class _FusedEmbedding(nn.Module):
    weight: Tensor
    padding_idx: int | None

    def forward(self, tokens: Tensor) -> Tensor:
        return embed(tokens, self.weight, self.padding_idx)


class _FusedLayer(nn.Module):
    """Forward of one decoder layer. Without a stream it is the layer's own."""

    self_attn: Any
    mlp: Any
    input_layernorm: Any
    post_attention_layernorm: Any

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        stream: Neighbourhood | None = None,
        **other: Any,
    ) -> Tensor:
        if stream is None:
            plain: Tensor = super().forward(hidden_states, position_embeddings=position_embeddings, **other)
            return plain
        assert position_embeddings is not None
        B, T, width = hidden_states.shape
        cos, sin = position_embeddings
        x = hidden_states.reshape(B * T, width)
        x = _attend(self.self_attn, self.input_layernorm, x, cos.expand(B, T, -1), sin.expand(B, T, -1), stream)
        x = _gated(self.mlp, self.post_attention_layernorm, x)
        return x.view(B, T, width)


def _attend(attention: Any, norm: Any, x: Tensor, cos_BTD: Tensor, sin_BTD: Tensor, stream: Neighbourhood) -> Tensor:
    """x + attention(norm(x)), x [B * T, width]."""
    B, T, D = cos_BTD.shape
    q, k, v, o = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    projected = norm_project(
        x, norm.weight, norm.variance_epsilon, [q.weight, k.weight, v.weight], [q.bias, k.bias, v.bias]
    )
    heads = projected.view(B * T, -1, D)
    C, H = len(q.weight) // D, len(k.weight) // D
    query, key, value = heads[:, :C], heads[:, C : C + H], heads[:, C + H :]
    cos, sin = cos_BTD.reshape(B * T, D), sin_BTD.reshape(B * T, D)
    if "q_norm" in attention._modules:
        query = rms_norm(query, attention.q_norm.weight, attention.q_norm.variance_epsilon)
        key = rms_norm(key, attention.k_norm.weight, attention.k_norm.variance_epsilon)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    else:
        rotated = rotate(heads[:, : C + H], cos, sin)
        query, key = rotated[:, :C], rotated[:, C:]
    attended = stream.attend(
        attention.layer_idx,
        query.view(B, T, C, D).transpose(1, 2),
        key.view(B, T, H, D).transpose(1, 2),
        value.view(B, T, H, D).transpose(1, 2),
        attention.scaling,
    )
    return add_projected(x, attended.transpose(1, 2).reshape(B * T, C * D), o.weight, o.bias)


def _gated(mlp: Any, norm: Any, x: Tensor) -> Tensor:
    """x + mlp(norm(x)), x [B * T, width]."""
    gate, up, down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    inner = norm_project(x, norm.weight, norm.variance_epsilon, [gate.weight, up.weight], [gate.bias, up.bias])
    return add_gated(x, inner, down.weight, down.bias)
