"""One packed row through the model: hidden states, and log-probs of chosen tokens by (source, target) pairs."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from anabranch.modeling.attention import RowNeighbourhood, hidden_states
from anabranch.modeling.logprob import check_head, chosen_logprobs
from anabranch.structure.layout import Layout

LENGTH_BUCKET = 64
"""Rows are padded to multiples of this: CPU kernels are compiled for every shape, so few shapes must occur."""


def round_up(size: int, bucket: int) -> int:
    """The smallest multiple of `bucket` that is at least `size`."""
    return -(-size // bucket) * bucket


def run_row(
    model: PreTrainedModel, layout: Layout, neighbourhood: type[RowNeighbourhood] = RowNeighbourhood
) -> tuple[Tensor, RowNeighbourhood]:
    """Hidden states of a packed row, [T rounded up, hidden], and the neighbourhood that computed attention."""
    padded = round_up(len(layout), LENGTH_BUCKET)
    stream = neighbourhood(layout, padded_to=padded, dtype=model.dtype, device=model.device)
    tokens_1T = _padded(layout.tokens_T, padded, model.device)
    positions_1T = _padded(layout.positions_T, padded, model.device)
    return hidden_states(model, tokens_1T, positions_1T, stream)[0], stream


def row_logprobs(
    model: PreTrainedModel, layout: Layout, target_M: NDArray[np.int64], *, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probs of chosen tokens of a row, and the entropy of the distribution each was chosen from.

    Args:
        model: loaded with the stream attention.
        layout: the row.
        target_M: row indices of the tokens; each must have a source.
        temperature: logits are divided by it.

    Returns:
        logprob float32 [M], entropy float32 [M] in nats; both differentiable.
    """
    hidden_TD, _ = run_row(model, layout)
    source_M = layout.source_T[target_M].astype(np.int64)
    assert (source_M >= 0).all()
    row_R, row_M = np.unique(source_M, return_inverse=True)  # a prompt's last token predicts many first tokens
    weight_VD, bias_V = check_head(model)
    device = model.device
    row_index_M = torch.from_numpy(row_M.astype(np.int64)).to(device)
    logprob_M, entropy_R = chosen_logprobs(
        hidden_TD[torch.from_numpy(row_R).to(device)],
        weight_VD,
        bias_V,
        row_index_M,
        torch.from_numpy(layout.tokens_T[target_M].astype(np.int64)).to(device),
        temperature=temperature,
    )
    assert entropy_R is not None
    return logprob_M, entropy_R[row_index_M]


def _padded(values_T: NDArray[np.int32], size: int, device: torch.device) -> Tensor:
    padded_1T = torch.zeros(1, size, dtype=torch.int64)
    padded_1T[0, : len(values_T)] = torch.from_numpy(values_T.astype(np.int64))
    return padded_1T.to(device)
