"""One packed row through the model: hidden states, and log-probs of chosen tokens by (source, target) pairs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from anabranch.errors import ModelError, explain
from anabranch.modeling.attention import NAME, RowNeighbourhood, hidden_states
from anabranch.modeling.fused import fuse
from anabranch.modeling.load import load_model
from anabranch.modeling.logprob import check_head, chosen_logprobs
from anabranch.records import Segment, StreamGraph
from anabranch.structure.layout import Layout, lay_out

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


STREAM_GAP = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.1}
"""How much probability rounding may move from some tokens to others, on average over `_BRANCH` predictions;
`check_stream` takes more for an error. Measured on SmolLM2-135M: 2e-6 in float32, up to 0.04 in
bfloat16, 0.33 where answers see each other."""

_BRANCH = 8
"""Tokens of the prompt and of each of the two answers that `check_stream` looks at."""


def load_streaming(source: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A model whose attention asks streams, proved to compute what it would compute by itself (see `check_stream`).

    Raises:
        ModelError: it cannot be loaded, or streams cannot stand in for its attention.
    """
    model = load_model(source, dtype, device, attention=NAME)
    fuse(model)
    check_stream(model)
    return model


@torch.no_grad()
def check_stream(model: PreTrainedModel) -> None:
    """Refuse a model that the stream attention computes wrongly: call it once, after loading.

    A prompt with two answers is computed as one row, and each answer behind its prompt by the model's own eager
    attention. A model agrees only if everything that mixes tokens goes through the attention interface and honours
    mask and positions; recurrent or convolutional layers, attention biases and local layers do not. Three forward
    passes over at most 24 tokens; the model is left as it was.

    Raises:
        ModelError: the two differ by more than rounding; or the model says itself that it cannot agree.
    """
    _check_kind(model)
    ids = (np.arange(3 * _BRANCH) * 7919 + 11) % model.get_input_embeddings().weight.shape[0]
    prompt, first, second = np.split(ids, 3)
    layout = lay_out(StreamGraph((Segment(prompt), Segment(first, (0,)), Segment(second, (0,)))))
    hidden_TD, stream = run_row(model, layout, _Counting)
    assert isinstance(stream, _Counting)
    expected = list(range(model.config.get_text_config(decoder=True).num_hidden_layers))
    if stream.layers != expected:
        raise _unfit(model, f"{len(stream.layers)} of {len(expected)} layers in use", "each layer must use it once")
    weight_VD, bias_V = check_head(model)
    row_TV = torch.nn.functional.linear(hidden_TD[: len(layout)], weight_VD, bias_V).float().softmax(-1)
    with _eager(model):
        plain = [_plain_probabilities(model, np.concatenate([prompt, answer])) for answer in (first, second)]
    plain_TV = torch.cat([plain[0], plain[1][_BRANCH:]])
    gap_T = (row_TV - plain_TV).abs().sum(-1) / 2
    gap = float(gap_T.view(3, _BRANCH).mean(-1).max())  # a mean, since in bfloat16 an expert may change by rounding
    if not gap <= STREAM_GAP[model.dtype]:
        raise _unfit(
            model,
            f"a row's next-token probabilities {gap:.2g} off the model's own",
            f"{STREAM_GAP[model.dtype]:g} is rounding: some layer does not honour the row's mask or positions",
        )


class _Counting(RowNeighbourhood):
    """A row that notes which layers asked for attention."""

    def __init__(self, layout: Layout, *, padded_to: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layout, padded_to=padded_to, dtype=dtype, device=device)
        self.layers: list[int] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `Neighbourhood.attend`."""
        self.layers.append(layer)
        return super().attend(layer, query, key, value, scale)


def _check_kind(model: PreTrainedModel) -> None:
    if model.config._attn_implementation != NAME:
        raise ModelError(
            explain(
                f"attention of {type(model).__name__}",
                repr(model.config._attn_implementation),
                f"rows need {NAME!r}",
                f"load_model(..., attention={NAME!r})",
            )
        )
    layers = model.config.get_text_config(decoder=True).to_dict().get("layer_types") or ()
    odd = sorted(set(layers) - {"full_attention"})
    if odd:
        raise _unfit(model, f"layers of type {', '.join(odd)}", "every layer must be full attention")


def _unfit(model: PreTrainedModel, found: str, need: str) -> ModelError:
    return ModelError(
        explain(
            f"attention of {type(model).__name__}",
            found,
            need,
            "use a model with plain attention, for instance of the Llama, Qwen or GPT-NeoX families",
        )
    )


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(NAME)


def _plain_probabilities(model: PreTrainedModel, tokens_T: NDArray[np.int64]) -> Tensor:
    """Probabilities of what comes after each token, float32 [T, V], in the model's own forward pass."""
    logits_TV: Tensor = model(input_ids=torch.from_numpy(tokens_T)[None].to(model.device), use_cache=False).logits[0]
    return logits_TV.float().softmax(-1)


def _padded(values_T: NDArray[np.int32], size: int, device: torch.device) -> Tensor:
    padded_1T = torch.zeros(1, size, dtype=torch.int64)
    padded_1T[0, : len(values_T)] = torch.from_numpy(values_T.astype(np.int64))
    return padded_1T.to(device)
