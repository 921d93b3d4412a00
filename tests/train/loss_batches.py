"""What policy losses are tried on: the batch of check L7 of the Lite PPO spec, and random ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from anabranch.algo.aggregate import AGGREGATES, count, token_weights
from anabranch.recipe.tree import Algorithm
from anabranch.train.objective import policy_objective

Batch = dict[str, Tensor | None]
"""Arguments of `policy_objective`."""

# L7: answer a is one token with ratio 1.5 and advantage +1; answer b three tokens, 0.5, 1.0, 1.3, with advantage -1.
NEW = torch.tensor([0.3, 0.2, 0.5, 0.65], dtype=torch.float64)  # the probabilities of L10
RHO = torch.tensor([1.5, 0.5, 1.0, 1.3], dtype=torch.float64)
ADVANTAGE = torch.tensor([1.0, -1.0, -1.0, -1.0], dtype=torch.float64)
SEQUENCE = torch.tensor([0, 1, 1, 1])


def weights(aggregate: str, sequence_M: Tensor, keep_B: Tensor, constant: int = 4) -> Tensor:
    """Of every token in the loss, float64 [M]."""
    return token_weights(AGGREGATES[aggregate], sequence_M, keep_B, count(sequence_M, keep_B, constant), torch.float64)


def random_batch(generator: torch.Generator, lengths: Sequence[int]) -> dict[str, Tensor]:
    """Random log-probs and advantages of answers with so many tokens, which are shuffled."""
    size = sum(lengths)
    sequence = torch.tensor([index for index, length in enumerate(lengths) for _ in range(length)], dtype=torch.int64)

    def normal() -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    logprob_M = -normal().abs() - 0.1
    return {
        "logprob_M": logprob_M.requires_grad_(),
        "old_logprob_M": logprob_M.detach() - 0.4 * normal(),
        "advantage_M": torch.randint(-2, 3, (size,), generator=generator).double() / 2,
        "sequence_M": sequence[torch.randperm(size, generator=generator)],
        "ref_logprob_M": logprob_M.detach() - 0.3 * normal(),
    }


def seeded(seed: int) -> torch.Generator:
    """A generator for `random_batch`."""
    return torch.Generator().manual_seed(seed)


def dealt(batch: dict[str, Tensor], home: Sequence[int]) -> Iterator[dict[str, Tensor]]:
    """Micro-batches of whole answers; answer b is in number `home[b]`, and answers are counted anew in each."""
    home_M = torch.tensor(home)[batch["sequence_M"]]
    for micro in set(home_M.tolist()):
        part = {name: value[home_M == micro] for name, value in batch.items()}
        _, part["sequence_M"] = part["sequence_M"].unique(return_inverse=True)
        yield part


def evaluate(algorithm: Algorithm, batch: Batch, weight_M: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss, its gradient with respect to the current log-probs, and the sums for the metrics."""
    loss, sums = policy_objective(algorithm, weight_M=weight_M, **batch)
    (gradient_M,) = torch.autograd.grad(loss, batch["logprob_M"])
    return loss.detach(), gradient_M, sums
