"""Whole next-token distributions behind a few texts: for looking, not for training.

Letters: K texts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from anabranch.batching.pack import best_fit
from anabranch.modeling.forward import run_row
from anabranch.modeling.logprob import check_head
from anabranch.records import Segment, StreamGraph
from anabranch.structure.layout import concatenate, lay_out


@torch.no_grad()
def next_probabilities(
    model: PreTrainedModel, texts: Sequence[NDArray[np.int32]], *, temperature: float, row_tokens: int
) -> Tensor:
    """Probability of every token to come next, float64 [K, V], on the CPU.

    Logits are those of the model in its own dtype; softmax and what follows are float64, so that small changes of small
    probabilities are not lost. Needs 8 K V bytes and as much again on the way.

    Args:
        model: loaded with the stream attention.
        texts: K texts of at least one token each, int32.
        temperature: logits are divided by it.
        row_tokens: texts share rows of at most so many tokens; a longer text has a row of its own.
    """
    weight_VD, bias_V = check_head(model)
    found_KV = torch.zeros(len(texts), weight_VD.shape[0], dtype=torch.float64)
    for chosen in best_fit([len(text) for text in texts], row_tokens):
        layouts = [lay_out(StreamGraph((Segment(texts[index]),))) for index in chosen]
        hidden_TD, _ = run_row(model, concatenate(layouts))
        ends = np.cumsum([len(texts[index]) for index in chosen]) - 1
        logits = torch.nn.functional.linear(hidden_TD[torch.from_numpy(ends).to(hidden_TD.device)], weight_VD, bias_V)
        found_KV[torch.tensor(chosen)] = torch.softmax(logits.cpu().double() / temperature, -1)
    return found_KV
