"""Entry checks: flat tensors that belong together have one length, and an index vector holds usable indices."""

from __future__ import annotations

import torch
from torch import Tensor

from anabranch.errors import ShapeError, explain


def check_flat(**tensors: Tensor) -> None:
    """All tensors are one-dimensional and equally long; the first one says how long.

    Raises:
        ShapeError: one of them is not.
    """
    (first, head), *_ = tensors.items()
    for name, tensor in tensors.items():
        if tensor.ndim != 1:
            raise ShapeError(
                explain(name, f"shape {tuple(tensor.shape)}", "values are flat, one a rollout or token", "flatten it")
            )
        if len(tensor) != len(head):
            raise ShapeError(
                explain(name, f"{len(tensor)} values", f"{first} has {len(head)}", "pass tensors of the same rollouts")
            )


def check_index(name: str, index: Tensor, size: int | None = None) -> int:
    """`index` is a flat int64 vector of values in 0..size-1.

    Args:
        name: how to call it in the error.
        index: the vector.
        size: how many things can be named; None: as many as the largest index asks for.

    Returns:
        `size`, or 1 + the largest index where size is None (0 for an empty vector).

    Raises:
        ShapeError: not flat, not int64, or a value out of range.
    """
    if index.ndim != 1 or index.dtype != torch.int64:
        raise ShapeError(
            explain(name, f"{index.dtype} of shape {tuple(index.shape)}", "an index is flat int64", f"{name}.long()")
        )
    low, high = (int(index.min()), int(index.max())) if len(index) else (0, -1)
    if low < 0 or (size is not None and high >= size):
        limit = "0.." if size is None else f"0..{size - 1}"
        raise ShapeError(explain(name, f"values {low} to {high}", f"ids are {limit}", "number them from 0"))
    return high + 1 if size is None else size
