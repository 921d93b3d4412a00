"""Log-probs of chosen tokens, and entropies, without ever holding [tokens, vocabulary] logits.

With 1000 trained tokens and a vocabulary of 49k the logits alone are 200 MB in float32, and autograd keeps several such
arrays. Here the head runs over a slice of the vocabulary at a time; the backward pass computes the logits again.

Letters: R hidden states that predict something, K a run of them, D their width, V vocabulary, C words of a slice (or
slices), M targets. One row may have many targets:
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
from anabranch.modeling.ops import add_up, statistics_dtype, sums_of

CHUNK_VALUES = 1 << 23
"""Logits that exist at once, in the compute dtype. Measured on two cores with 2048 rows and a vocabulary of 49k: the
products over slices of 4096 words run at full rate, those over the whole vocabulary at two thirds of it, since their
result leaves the cache."""

SLICE_WIDTHS = (512, 8192)
"""Narrowest and widest slice of the vocabulary, however many rows there are."""

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
    chunk_values: int = CHUNK_VALUES,
    with_entropy: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """log softmax((hidden @ weight.T + bias) / temperature) at chosen (row, token) pairs, and the entropy of every row.

    The matrix products run in the dtype of `hidden_RD`, over slices of the vocabulary; softmax and sums over the
    vocabulary are float32 (float64 for float64 inputs). Memory beyond inputs and outputs: `chunk_values` logits in the
    compute dtype; backward adds the gradients of weight and hidden states. Both results can be differentiated, once.

    Args:
        hidden_RD: final hidden states (after the last norm) of the rows that predict something.
        weight_VD: head weight, the same dtype.
        bias_V: head bias or None.
        row_M: int64 [M] in [0, R): the row that predicts target m. Any order, repeats allowed.
        target_M: int64 [M] in [0, V): the token that was chosen.
        temperature: logits are divided by it; positive.
        chunk_values: about how many logits exist at once. The result does not depend on it beyond rounding.
        with_entropy: False saves two passes over the logits.

    Returns:
        logprob float32 [M] and entropy float32 [R] in nats (None without `with_entropy`).

    Raises:
        ShapeError: shapes that do not fit each other, or a row or target out of range.
        ValueError: temperature or chunk_values not positive.
    """
    _check_shapes(hidden_RD, weight_VD, bias_V, row_M, target_M)
    if temperature <= 0 or chunk_values <= 0:
        found = f"temperature={temperature}, chunk_values={chunk_values}"
        raise ValueError(explain("chosen_logprobs", found, "both are > 0", "raise them"))
    narrowest, widest = SLICE_WIDTHS
    width = min(len(weight_VD), widest, max(narrowest, chunk_values // max(1, len(hidden_RD))))
    logprob_M, entropy_R = _ChosenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_RD, weight_VD, bias_V, row_M, target_M, temperature, width, with_entropy
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


class _Slices:
    """How the work is cut: slices of the vocabulary, and runs of rows whose softmax stays in cache."""

    def __init__(self, row_M: Tensor, target_M: Tensor, num_rows: int, vocabulary: int, width: int) -> None:
        self.vocabulary, self.width = vocabulary, width
        self.count = -(-vocabulary // width)
        self.height = max(1, CACHE_VALUES // width) if row_M.device.type == "cpu" else max(1, num_rows)
        self.num_rows = num_rows
        key_M = target_M // width * num_rows + row_M
        self.order_M = torch.argsort(key_M, stable=True)
        self.row_M = row_M[self.order_M]
        self.word_M = target_M[self.order_M] % width
        runs = max(1, -(-num_rows // self.height))
        starts = torch.arange(runs) * self.height + (torch.arange(self.count) * num_rows)[:, None]
        bounds = torch.searchsorted(key_M[self.order_M], starts.flatten().to(row_M.device)).tolist()
        self._first = [*bounds, len(row_M)]
        self._runs = runs

    def words(self, index: int) -> slice:
        """The words of slice `index`."""
        return slice(index * self.width, min((index + 1) * self.width, self.vocabulary))

    def runs(self, index: int) -> Iterator[tuple[slice, slice]]:
        """Runs of rows, and the sorted targets among the words of slice `index` that each predicts."""
        for run in range(self._runs):
            at = index * self._runs + run
            rows = slice(run * self.height, min((run + 1) * self.height, self.num_rows))
            yield rows, slice(self._first[at], self._first[at + 1])


def _logits(hidden_RD: Tensor, weight_CD: Tensor, bias_C: Tensor | None, buffer: Tensor) -> Tensor:
    """Logits of a slice, written to `buffer`: new memory for each slice costs as much as a pass over it."""
    out = buffer[: len(hidden_RD) * len(weight_CD)].view(len(hidden_RD), len(weight_CD))
    if bias_C is None:
        return torch.mm(hidden_RD, weight_CD.T, out=out)
    return torch.addmm(bias_C, hidden_RD, weight_CD.T, out=out)


class _ChosenLogprobs(torch.autograd.Function):
    """The head by slices. Nothing of size [R, V] is kept: backward computes the logits a second time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        row_M: Tensor,
        target_M: Tensor,
        temperature: float,
        width: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        num_rows, stats = len(hidden_RD), statistics_dtype(hidden_RD.dtype)
        slices = _Slices(row_M, target_M, num_rows, len(weight_VD), width)
        chosen_M = hidden_RD.new_empty(len(row_M), dtype=stats)
        lse_CR = hidden_RD.new_empty(slices.count, num_rows, dtype=stats)
        mean_CR = torch.zeros_like(lse_CR)  # of the logits of a slice, weighted by their probability within it
        buffer = hidden_RD.new_empty(num_rows * width)
        for index in range(slices.count):
            words = slices.words(index)
            logits_RC = _logits(hidden_RD, weight_VD[words], None if bias_V is None else bias_V[words], buffer)
            for rows, targets in slices.runs(index):
                logits_KC = _scaled(logits_RC[rows], temperature, stats)
                chosen_M[targets] = logits_KC[slices.row_M[targets] - rows.start, slices.word_M[targets]]
                probability_KC = torch.softmax(logits_KC, -1)
                # The largest probability is 1 / sum(exp(logit - largest logit)): cheaper than a logsumexp.
                lse_CR[index, rows] = logits_KC.amax(-1) - probability_KC.amax(-1).log()
                if with_entropy:
                    mean_CR[index, rows] = torch.linalg.vecdot(probability_KC, logits_KC)
        lse_R = lse_CR.logsumexp(0)
        share_CR = (lse_CR - lse_R).exp()
        entropy_R = (lse_R - (share_CR * mean_CR).sum(0)).clamp_(min=0) if with_entropy else None
        ctx.save_for_backward(hidden_RD, weight_VD, bias_V, share_CR, lse_R, entropy_R)
        ctx.slices, ctx.temperature = slices, temperature
        ctx.set_materialize_grads(False)  # an entropy that is only logged then costs nothing in backward
        logprob_M = torch.empty_like(chosen_M)
        logprob_M[slices.order_M] = chosen_M - lse_R[slices.row_M]
        return logprob_M, entropy_R

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor | None, grad_entropy_R: Tensor | None) -> tuple[Tensor | None, ...]:
        """With p = softmax(z), z = logits / temperature, H = entropy, g the incoming gradients:

        d log p[t] / dz[v] = [v = t] - p[v]   and   dH / dz[v] = -p[v] (log p[v] + H).
        """
        hidden_RD, weight_VD, bias_V, share_CR, lse_R, entropy_R = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        slices, temperature, stats = ctx.slices, ctx.temperature, lse_R.dtype
        num_rows = len(hidden_RD)
        sorted_M = (
            hidden_RD.new_zeros(len(slices.row_M), dtype=stats) if grad_M is None else grad_M[slices.order_M].to(stats)
        )
        # all that row r's targets pull together: the factor of -p in the row's gradient
        total_R = hidden_RD.new_zeros(num_rows, dtype=stats).index_add_(0, slices.row_M, sorted_M)
        grad_hidden_RD = torch.zeros_like(hidden_RD, dtype=stats) if needs_hidden else None
        sums_VD = sums_of(weight_VD)
        grad_weight_VD = torch.empty_like(weight_VD) if needs_weight and sums_VD is None else None
        grad_bias_V = hidden_RD.new_zeros(len(weight_VD), dtype=stats) if needs_bias else None
        buffer = hidden_RD.new_empty(num_rows * slices.width)
        for index in range(slices.count):
            words = slices.words(index)
            grad_RC = _logits(hidden_RD, weight_VD[words], None if bias_V is None else bias_V[words], buffer)
            for rows, targets in slices.runs(index):
                logits_KC = _scaled(grad_RC[rows], temperature, stats)
                factor_K1 = -(total_R[rows] * share_CR[index, rows])[:, None]
                block_KC = torch.softmax(logits_KC, -1)
                if grad_entropy_R is None:
                    block_KC.mul_(factor_K1)
                else:
                    assert entropy_R is not None
                    pull_K1 = (grad_entropy_R[rows] * share_CR[index, rows])[:, None].to(stats)
                    surprise_KC = logits_KC.sub(lse_R[rows, None]).add_(entropy_R[rows, None])
                    block_KC.mul_(surprise_KC.mul_(-pull_K1).add_(factor_K1))
                place = slices.row_M[targets] - rows.start, slices.word_M[targets]
                block_KC.index_put_(place, sorted_M[targets], accumulate=True)
                if temperature != 1.0:
                    block_KC.div_(temperature)
                if grad_bias_V is not None:
                    grad_bias_V[words] += block_KC.sum(0)
                grad_RC[rows] = block_KC  # over the logits it came from
            if grad_hidden_RD is not None:
                grad_hidden_RD += grad_RC @ weight_VD[words]
            if grad_weight_VD is not None:
                torch.mm(grad_RC.T, hidden_RD, out=grad_weight_VD[words])
            elif needs_weight and sums_VD is not None:
                add_up(sums_VD[words], grad_RC.T @ hidden_RD)
        if grad_hidden_RD is not None:
            grad_hidden_RD = grad_hidden_RD.to(hidden_RD.dtype)
        return grad_hidden_RD, grad_weight_VD, grad_bias_V, None, None, None, None, None


def _scaled(logits_KC: Tensor, temperature: float, stats: torch.dtype) -> Tensor:
    scaled_KC = logits_KC.to(stats)
    return scaled_KC if temperature == 1.0 else scaled_KC / temperature
