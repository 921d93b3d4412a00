"""Stream attention: one attention function, registered with `transformers`, that asks a `Neighbourhood` who sees whom.

Any decoder-only model of `transformers` that calls its attention through the attention interface works: the model
computes queries, keys and values (rotary positions applied), the neighbourhood does the rest. Trainer and engine use
the same weights through the same model code; only the neighbourhood differs. Masks come from `anabranch.structure`.

Letters: B batch rows, T tokens of a row, H key-value heads, G query heads a key-value head, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from anabranch.errors import ModelError, explain
from anabranch.modeling.block_attention import AttentionBatch, attend_in_blocks
from anabranch.modeling.ops import statistics_dtype
from anabranch.records import Bool
from anabranch.structure.blocks import QueryBlock, batches, query_blocks
from anabranch.structure.layout import Layout, allowed

NAME = "anabranch_stream"
"""Name of the attention implementation: `from_pretrained(..., attn_implementation=NAME)`."""


class Neighbourhood(Protocol):
    """Who sees whom in one forward pass."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of one layer.

        Args:
            layer: index of the layer.
            query: [B, H * G, T, D], positions applied.
            key: [B, H, T, D], positions applied.
            value: [B, H, T, D].
            scale: factor on the dot products.

        Returns:
            [B, H * G, T, D].
        """
        ...


_REFUSED = ("sliding_window", "softcap", "s_aux", "position_bias")
"""Arguments by which models change what attention computes; a stream honours none of them."""


def _stream_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    stream: Neighbourhood | None = None,
    dropout: float = 0.0,
    **other: Any,
) -> tuple[Tensor, None]:
    if stream is None:
        raise ModelError(
            explain(
                f"attention of {type(module).__name__}",
                "no stream",
                "the model must be called by `hidden_states` and hand the stream on to its attention",
                "choose a model that does; call this one directly only after set_attn_implementation('eager')",
            )
        )
    for name in _REFUSED:
        if other.get(name) is not None:
            raise ModelError(
                explain(
                    f"attention of {type(module).__name__}",
                    f"{name}={other[name]}" if name == "sliding_window" else f"`{name}`",
                    "streams compute plain attention over a token's ancestors",
                    "choose a model without it",
                )
            )
    if dropout:
        raise ModelError(
            explain("attention dropout", dropout, "log-probs must be repeatable", "set it to 0 in config.json")
        )
    if key.shape != value.shape:
        raise ModelError(
            explain(
                f"attention of {type(module).__name__}",
                f"keys of shape {tuple(key.shape)} and values of shape {tuple(value.shape)}",
                "streams keep both in one shape",
                "choose a model without latent attention",
            )
        )
    assert isinstance(module.layer_idx, int)
    attended = stream.attend(module.layer_idx, query, key, value, scaling)
    return attended.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _stream_attention)


def hidden_states(model: PreTrainedModel, tokens_BT: Tensor, positions_BT: Tensor, stream: Neighbourhood) -> Tensor:
    """Last hidden states of a model loaded with `attn_implementation=NAME`, before the language-model head.

    Returns:
        [B, T, hidden], in the model's dtype.
    """
    output = model.base_model(
        input_ids=tokens_BT, position_ids=positions_BT, attention_mask=None, use_cache=False, stream=stream
    )
    hidden_BTD: Tensor = output.last_hidden_state
    return hidden_BTD


QUERY_BLOCK = 64
KEY_BUCKET = 32
"""Blocks of a row on a CPU: most queries of a block, and what numbers of keys are rounded up to."""

BATCH_PAIRS = 1 << 16
"""Most (query, key) pairs of blocks that are computed together: their attention weights should stay in cache."""


class RowNeighbourhood:
    """A packed row: what the trainer uses, and what prefills prompts. Batch size 1.

    On a CPU attention runs over blocks of queries that meet only the keys they see. Elsewhere the fused kernel gets a
    dense mask. `in_blocks` asks for one of the two whatever the device.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        padded_to: int,
        dtype: torch.dtype,
        device: torch.device,
        in_blocks: bool | None = None,
    ) -> None:
        self._batches: list[AttentionBatch] | None = None
        if device.type == "cpu" if in_blocks is None else in_blocks:
            blocks = query_blocks(layout, padded_to, size=QUERY_BLOCK, key_bucket=KEY_BUCKET)
            self._batches = [attention_batch(some, dtype, device) for some in batches(blocks, BATCH_PAIRS)]
        else:
            self._bias_TT = _bias(allowed(layout, padded_to), dtype, device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `Neighbourhood.attend`; B must be 1."""
        if self._batches is not None:
            query_TCD, key_THD, value_THD = (part[0].transpose(0, 1) for part in (query, key, value))
            return attend_in_blocks(query_TCD, key_THD, value_THD, self._batches, scale).transpose(0, 1)[None]
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=self._bias_TT, scale=scale, enable_gqa=key.shape[1] != query.shape[1]
        )


def attention_batch(blocks: Sequence[QueryBlock], dtype: torch.dtype, device: torch.device) -> AttentionBatch:
    """Blocks with equally many keys, ready to be computed together in `dtype` on `device`."""
    Q = max(block.stop - block.start for block in blocks)
    mask_BQN = np.ones((len(blocks), Q, len(blocks[0].key_N)), dtype=np.bool_)  # surplus queries see everything
    for mask_QN, block in zip(mask_BQN, blocks, strict=True):
        mask_QN[: block.stop - block.start] = block.mask_QN
    queries = [np.arange(block.start, block.stop) for block in blocks]
    places = [np.arange(len(query)) + index * Q for index, query in enumerate(queries)]
    return AttentionBatch(
        query_M=torch.from_numpy(np.concatenate(queries)).to(device),
        place_M=torch.from_numpy(np.concatenate(places)).to(device),
        key_BN=torch.from_numpy(np.stack([block.key_N for block in blocks])).to(device),
        bias_BQN=_bias(mask_BQN, statistics_dtype(dtype), device),
    )


def _bias(mask: Bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 where the mask is True, -inf elsewhere."""
    seen = torch.from_numpy(mask).to(device)
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))


class CapturingNeighbourhood(RowNeighbourhood):
    """A row whose keys and values are kept, layer by layer: the prompts that answers will share."""

    def __init__(self, layout: Layout, *, padded_to: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layout, padded_to=padded_to, dtype=dtype, device=device)
        self.keys_HTD: list[Tensor] = []
        self.values_HTD: list[Tensor] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `Neighbourhood.attend`; layers must come in order."""
        assert layer == len(self.keys_HTD)
        self.keys_HTD.append(key[0])
        self.values_HTD.append(value[0])
        return super().attend(layer, query, key, value, scale)
