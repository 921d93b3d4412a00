"""Log-probs of chosen tokens, and entropies, without ever holding [tokens, vocabulary] logits.

With 1000 trained tokens and a vocabulary of 49k the logits alone are 200 MB in float32, and autograd keeps several such
arrays. Here the head runs over a few hundred rows at a time; the backward pass computes the logits again.

Letters: R hidden states that predict something, D their width, V vocabulary, M targets. One row may have many targets:
the last token of a prompt predicts the first token of every answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from anabranch.errors import ModelError, ShapeError, explain

CHUNK_ROWS = 512
"""Rows of one matrix product. Measured on two cores with a vocabulary of 49k: 256 rows make the backward pass a quarter
slower in bfloat16 and a tenth in float32, since the weight's gradient is added up once a chunk."""

CACHE_VALUES = 1 << 20
"""Softmax statistics on a CPU are taken over blocks of about so many logits, which stay in cache: six times faster."""

LOGIT_CHANGES = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
    "output_logit_soft_cap",
    "logits_soft_cap",
    "logits_mup_width_multiplier",
    "softcap",
)
"""Names under which configs of `transformers` ask for logits other than hidden @ weight.T + bias."""


def check_head(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """The head of a causal language model as plain tensors: logits = hidden @ weight.T + bias.

    Returns:
        weight [V, D] and bias [V] or None: the model's own parameters, not copies.

    Raises:
        ModelError: the logits are something else (scaled, soft-capped, or of a head that is no linear layer).
    """
    config = model.config.get_text_config(decoder=True)
    settings = config.to_dict()
    for name in LOGIT_CHANGES:
        if settings.get(name) not in (None, 1, 1.0):
            raise ModelError(
                explain(
                    f"config of {config.model_type}",
                    f"{name}={settings[name]!r}",
                    "logits must be hidden @ weight.T + bias; scaled or capped logits are not supported",
                    "use a model without it, for instance of the Llama, Qwen or GPT-NeoX families",
                )
            )
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise ModelError(
            explain(
                f"head of {type(model).__name__}",
                type(head).__name__,
                "the head must be one linear layer",
                "use a causal language model with a plain `lm_head`",
            )
        )
    return head.weight, head.bias


def chosen_logprobs(
    hidden_RD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    row_M: Tensor,
    target_M: Tensor,
    *,
    temperature: float = 1.0,
    chunk_rows: int = CHUNK_ROWS,
    with_entropy: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """log softmax((hidden @ weight.T + bias) / temperature) at chosen (row, token) pairs, and the entropy of every row.

    The matrix products run in the dtype of `hidden_RD`, softmax and sums over the vocabulary in float32 (float64 for
    float64 inputs). Memory beyond inputs and outputs: one [chunk_rows, V] array in the compute dtype; backward adds the
    gradient of the weight, which is summed over chunks in float32. A bfloat16 weight whose `grad_dtype` is float32 (see
    `train.optimizer`) receives that sum unrounded, any other gets it rounded once. Both results can be differentiated,
    once.

    Args:
        hidden_RD: final hidden states (after the last norm) of the rows that predict something.
        weight_VD: head weight, the same dtype.
        bias_V: head bias or None.
        row_M: int64 [M] in [0, R): the row that predicts target m. Any order, repeats allowed.
        target_M: int64 [M] in [0, V): the token that was chosen.
        temperature: logits are divided by it; positive.
        chunk_rows: rows of one matrix product. The result does not depend on it beyond rounding.
        with_entropy: False saves two passes over the logits.

    Returns:
        logprob float32 [M] and entropy float32 [R] in nats (None without `with_entropy`).

    Raises:
        ShapeError: shapes that do not fit each other, or a row or target out of range.
        ValueError: temperature or chunk_rows not positive.
    """
    _check_shapes(hidden_RD, weight_VD, bias_V, row_M, target_M)
    if temperature <= 0 or chunk_rows <= 0:
        raise ValueError(
            explain(
                "chosen_logprobs", f"temperature={temperature}, chunk_rows={chunk_rows}", "both are > 0", "raise them"
            )
        )
    logprob_M, entropy_R = _ChosenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_RD, weight_VD, bias_V, row_M, target_M, temperature, chunk_rows, with_entropy
    )
    return logprob_M, entropy_R


def _check_shapes(hidden_RD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, row_M: Tensor, target_M: Tensor) -> None:
    shapes = [None if t is None else tuple(t.shape) for t in (hidden_RD, weight_VD, bias_V, row_M, target_M)]
    fits = (
        hidden_RD.ndim == weight_VD.ndim == 2
        and hidden_RD.shape[1] == weight_VD.shape[1]
        and (bias_V is None or bias_V.shape == weight_VD.shape[:1])
        and row_M.ndim == 1
        and row_M.shape == target_M.shape
    )
    if not fits:
        raise ShapeError(
            explain("chosen_logprobs", f"shapes {shapes}", "they are [R, D], [V, D], [V] or None, [M], [M]", "reshape")
        )
    for name, index_M, limit in (("row_M", row_M, len(hidden_RD)), ("target_M", target_M, len(weight_VD))):
        if len(index_M) and (int(index_M.min()) < 0 or int(index_M.max()) >= limit):
            raise ShapeError(
                explain(
                    f"chosen_logprobs: {name}",
                    f"values from {int(index_M.min())} to {int(index_M.max())}",
                    f"they index {limit} entries",
                    f"keep them in [0, {limit})",
                )
            )


def _stats_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _blocks(num_rows: int, vocabulary: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Row ranges over which softmax statistics are taken: cache-sized on a CPU, everything at once elsewhere."""
    size = max(1, CACHE_VALUES // vocabulary) if device.type == "cpu" else num_rows
    for start in range(0, num_rows, size):
        yield start, min(start + size, num_rows)


class _Targets:
    """Targets sorted by row, so that those of a run of rows are a slice."""

    def __init__(self, row_M: Tensor, target_M: Tensor, num_rows: int) -> None:
        self.order_M = torch.argsort(row_M, stable=True)
        self.row_M = row_M[self.order_M]
        self.target_M = target_M[self.order_M]
        bounds = torch.arange(num_rows + 1, device=row_M.device)
        self.first = torch.searchsorted(self.row_M, bounds).tolist()

    def of_rows(self, start: int, stop: int) -> tuple[slice, Tensor, Tensor]:
        """Sorted targets that rows [start, stop) predict: their slice, rows counted from `start`, and tokens."""
        at = slice(self.first[start], self.first[stop])
        return at, self.row_M[at] - start, self.target_M[at]


def _logits(hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, buffer: Tensor) -> Tensor:
    """Logits of a chunk, written to `buffer`: new memory for each chunk costs as much as a pass over it."""
    out = buffer[: len(hidden_CD)]
    if bias_V is None:
        return torch.mm(hidden_CD, weight_VD.T, out=out)
    return torch.addmm(bias_V, hidden_CD, weight_VD.T, out=out)


class _ChosenLogprobs(torch.autograd.Function):
    """The chunked head. Nothing of size [R, V] is kept: backward computes the logits a second time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        row_M: Tensor,
        target_M: Tensor,
        temperature: float,
        chunk_rows: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        num_rows, vocabulary = len(hidden_RD), len(weight_VD)
        stats = _stats_dtype(hidden_RD.dtype)
        targets = _Targets(row_M, target_M, num_rows)
        sorted_M = hidden_RD.new_empty(len(row_M), dtype=stats)
        entropy_R = hidden_RD.new_empty(num_rows, dtype=stats) if with_entropy else None
        buffer = hidden_RD.new_empty(min(chunk_rows, num_rows), vocabulary)
        for begin in range(0, num_rows, chunk_rows):
            logits_CV = _logits(hidden_RD[begin : begin + chunk_rows], weight_VD, bias_V, buffer)
            for start, stop in _blocks(len(logits_CV), vocabulary, logits_CV.device):
                logprob_KV = _log_softmax(logits_CV[start:stop], temperature, stats)
                at, row_k, target_k = targets.of_rows(begin + start, begin + stop)
                sorted_M[at] = logprob_KV[row_k, target_k]
                if entropy_R is not None:
                    entropy_R[begin + start : begin + stop] = -(logprob_KV.exp().mul_(logprob_KV)).sum(-1)
        ctx.save_for_backward(hidden_RD, weight_VD, bias_V)
        ctx.targets, ctx.temperature, ctx.chunk_rows = targets, temperature, chunk_rows
        ctx.set_materialize_grads(False)  # an entropy that is only logged then costs nothing in backward
        logprob_M = torch.empty_like(sorted_M)
        logprob_M[targets.order_M] = sorted_M
        return logprob_M, entropy_R

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor | None, grad_entropy_R: Tensor | None) -> tuple[Tensor | None, ...]:
        """With p = softmax(z), z = logits / temperature, H = entropy, g the incoming gradients:

        d log p[t] / dz[v] = [v = t] - p[v]   and   dH / dz[v] = -p[v] (log p[v] + H).
        """
        hidden_RD, weight_VD, bias_V = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        targets, num_rows, vocabulary = ctx.targets, len(hidden_RD), len(weight_VD)
        stats = _stats_dtype(hidden_RD.dtype)
        sorted_M = (
            hidden_RD.new_zeros(len(targets.row_M), dtype=stats)
            if grad_M is None
            else grad_M[targets.order_M].to(stats)
        )
        # all that row r's targets pull together: the factor of -p in the row's gradient
        total_R1 = hidden_RD.new_zeros(num_rows, dtype=stats).index_add_(0, targets.row_M, sorted_M)[:, None]
        grad_hidden_RD = torch.empty_like(hidden_RD) if needs_hidden else None
        grad_weight_VD = None
        grad_bias_V = hidden_RD.new_zeros(vocabulary, dtype=stats) if needs_bias else None
        buffer = hidden_RD.new_empty(min(ctx.chunk_rows, num_rows), vocabulary)
        for begin in range(0, num_rows, ctx.chunk_rows):
            hidden_CD = hidden_RD[begin : begin + ctx.chunk_rows]
            grad_CV = _logits(hidden_CD, weight_VD, bias_V, buffer)
            for start, stop in _blocks(len(grad_CV), vocabulary, grad_CV.device):
                rows = slice(begin + start, begin + stop)
                at, row_k, target_k = targets.of_rows(rows.start, rows.stop)
                block_KV = _grad_softmax(
                    grad_CV[start:stop],
                    ctx.temperature,
                    total_R1[rows],
                    None if grad_entropy_R is None else grad_entropy_R[rows].to(stats)[:, None],
                )
                block_KV.index_put_((row_k, target_k), sorted_M[at], accumulate=True)
                if ctx.temperature != 1.0:
                    block_KV.div_(ctx.temperature)
                if grad_bias_V is not None:
                    grad_bias_V += block_KV.sum(0)
                grad_CV[start:stop] = block_KV  # over the logits it came from
            if grad_hidden_RD is not None:
                torch.mm(grad_CV, weight_VD, out=grad_hidden_RD[begin : begin + ctx.chunk_rows])
            if needs_weight:
                chunk_VD = (grad_CV.T @ hidden_CD).to(stats)
                grad_weight_VD = chunk_VD if grad_weight_VD is None else grad_weight_VD.add_(chunk_VD)
        if needs_weight and grad_weight_VD is None:  # no rows
            grad_weight_VD = torch.zeros_like(weight_VD)
        return grad_hidden_RD, grad_weight_VD, grad_bias_V, None, None, None, None, None


def _scaled(logits_KV: Tensor, temperature: float, stats: torch.dtype) -> Tensor:
    scaled_KV = logits_KV.to(stats)
    return scaled_KV if temperature == 1.0 else scaled_KV / temperature


def _log_softmax(logits_KV: Tensor, temperature: float, stats: torch.dtype) -> Tensor:
    return torch.log_softmax(_scaled(logits_KV, temperature, stats), dim=-1)


def _grad_softmax(logits_KV: Tensor, temperature: float, total_K1: Tensor, grad_entropy_K1: Tensor | None) -> Tensor:
    """-p (G + gH (log p + H)): the gradient of the scaled logits, but for the chosen tokens' own +g."""
    if grad_entropy_K1 is None:
        return torch.softmax(_scaled(logits_KV, temperature, total_K1.dtype), dim=-1).mul_(-total_K1)
    logprob_KV = _log_softmax(logits_KV, temperature, total_K1.dtype)
    p_KV = logprob_KV.exp()
    entropy_K1 = -(p_KV * logprob_KV).sum(-1, keepdim=True)
    return logprob_KV.add_(entropy_K1).mul_(grad_entropy_K1).add_(total_K1).mul_(p_KV).neg_()
