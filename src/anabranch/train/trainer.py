"""One optimizer step over packed rows. Knows no algorithm: it is handed rows and an objective.

Letters: M trained tokens of a row, N trained tokens of the whole batch (slots, in flat order).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from anabranch.batching.pack import Row
from anabranch.modeling.forward import row_logprobs
from anabranch.train.clock import Clock
from anabranch.train.objective import add_up
from anabranch.train.optimizer import MasterOptimizer

Objective = Callable[[Row, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""(row, logprob_M, entropy_M) -> the row's part of the loss, and sums for the metrics (see `objective.add_up`). Both
tensors carry a gradient; one that the loss does not use costs nothing."""


@dataclass(frozen=True)
class Update:
    """What one optimizer step did."""

    loss: float
    grad_norm: float
    sums: Mapping[str, float]
    """Added up over rows."""
    entropy_sum: float
    """Sum over trained tokens, nats."""
    num_tokens: int
    """Trained tokens that were in the rows."""
    logprob_N: Tensor
    """float32 [N]: the log-probs before the step; NaN in slots that were in no row."""


def score(model: PreTrainedModel, rows: Sequence[Row], num_slots: int, *, temperature: float) -> Tensor:
    """Log-probs of all trained tokens of the rows under `model`, without gradient: float32 [N], NaN elsewhere."""
    logprob_N = torch.full((num_slots,), torch.nan)
    with torch.no_grad():
        for row in rows:
            logprob_M, _ = row_logprobs(model, row.layout, row.target_M, temperature=temperature)
            logprob_N[torch.from_numpy(row.slot_M)] = logprob_M.cpu()
    return logprob_N


def accumulate(
    model: PreTrainedModel,
    rows: Sequence[Row],
    objective: Objective,
    num_slots: int,
    *,
    temperature: float,
    clock: Clock | None = None,
) -> tuple[float, dict[str, float], float, Tensor]:
    """Forward and backward over all rows, one at a time; gradients add up on the model.

    With a clock, it takes the times of the phases `forward` (the loss too) and `backward`.

    Returns:
        loss, sums for the metrics, sum of entropies, logprob_N.
    """
    clock = clock or Clock()
    logprob_N = torch.full((num_slots,), torch.nan)
    loss_sum, entropy_sum = 0.0, 0.0
    parts: list[dict[str, Tensor]] = []
    for row in rows:
        with clock.phase("forward"):
            logprob_M, entropy_M = row_logprobs(model, row.layout, row.target_M, temperature=temperature)
            loss, sums = objective(row, logprob_M, entropy_M)
        with clock.phase("backward"):
            torch.autograd.backward(loss)
        parts.append(sums)
        loss_sum += float(loss.detach())
        entropy_sum += float(entropy_M.detach().sum())
        logprob_N[torch.from_numpy(row.slot_M)] = logprob_M.detach().cpu()
    totals = {name: float(value) for name, value in add_up(parts).items()}
    return loss_sum, totals, entropy_sum, logprob_N


def update(
    model: PreTrainedModel,
    optimizer: MasterOptimizer,
    rows: Sequence[Row],
    objective: Objective,
    num_slots: int,
    *,
    lr: float,
    temperature: float,
    clock: Clock | None = None,
) -> Update:
    """One optimizer step: backward over all rows, clip, AdamW, weights written back in place.

    With a clock, it takes the times of the phases `forward`, `backward` and `optimizer`.

    Raises:
        ValueError: no row.
        TrainingError: the gradient is not finite; the weights are as they were.
    """
    clock = clock or Clock()
    with clock.phase("backward"):
        optimizer.zero_gradients()
    loss, sums, entropy_sum, logprob_N = accumulate(
        model, rows, objective, num_slots, temperature=temperature, clock=clock
    )
    with clock.phase("optimizer"):
        grad_norm = optimizer.step(lr)
    return Update(loss, grad_norm, sums, entropy_sum, sum(len(row.target_M) for row in rows), logprob_N)
