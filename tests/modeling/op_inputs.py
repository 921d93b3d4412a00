"""Small tensors, rotary angles and rows for tests of single operations."""

from __future__ import annotations

import torch
from torch import Tensor

from anabranch.modeling.attention import attention_batch
from anabranch.modeling.block_attention import AttentionBatch
from anabranch.records import Segment, StreamGraph
from anabranch.structure.blocks import batches, query_blocks
from anabranch.structure.layout import Layout, lay_out

EPS = 1e-5
DTYPES = [torch.float32, torch.bfloat16]
CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 0.016, "atol": 0.03}}
"""In bfloat16 values of up to 4 are rounded to 1/128 on the way."""


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def angles(tokens: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions: both halves of the width turn alike."""
    rate = 1.0 / 10 ** torch.arange(width // 2, dtype=torch.float64)
    turn = torch.cat([torch.arange(1, tokens + 1)[:, None] * rate] * 2, -1)
    return turn.cos().to(dtype), turn.sin().to(dtype)


def row() -> Layout:
    """A prompt of 3 with answers of 2, 1 and 3, and a join of the first two."""
    parts = ((3, ()), (2, (0,)), (1, (0,)), (3, (0,)), (2, (1, 2)))
    return lay_out(StreamGraph(tuple(Segment([7] * size, parents) for size, parents in parts)))


def blocks(layout: Layout, padded_to: int, dtype: torch.dtype, size: int = 4) -> list[AttentionBatch]:
    """Batches of up to three blocks."""
    cut = query_blocks(layout, padded_to, size=size, key_bucket=4)
    return [attention_batch(some, dtype, torch.device("cpu")) for some in batches(cut, 3 * size * 12)]


def pull(out: Tensor) -> Tensor:
    """A sum with uneven weights, so that an error in one entry cannot hide."""
    return (out * torch.linspace(-1, 2, out.numel(), dtype=torch.float64).to(out.dtype).view(out.shape)).sum()
