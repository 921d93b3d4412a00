"""Statistics within groups of a flat tensor. The whole batch is one group: pass zeros.

Letters: B values (rollouts or tokens), G groups.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from anabranch.algo.shapes import check_flat, check_index

Std = Literal["unbiased", "population"]
"""Divisor of a variance. unbiased: sum of weights - 1 (n - 1 without weights). population: sum of weights."""

LOST_DEGREES: dict[Std, int] = {"unbiased": 1, "population": 0}


def one_group(value_B: Tensor) -> Tensor:
    """The group index that puts everything into one group, int64 [B] of zeros."""
    return torch.zeros(len(value_B), dtype=torch.int64, device=value_B.device)


def group_sizes(group_B: Tensor) -> Tensor:
    """How many rollouts each group has, int64 [G]; G is 1 + the largest id, and an id nobody bears has size 0.

    Raises:
        ShapeError: `group_B` is not a flat int64 vector of ids from 0 up.
    """
    return torch.bincount(group_B, minlength=check_index("group_B", group_B))


def informative_groups(reward_B: Tensor, group_B: Tensor) -> Tensor:
    """Which groups disagree: bool [G], True where at least two rewards differ.

    Keyed on exact equality, not on a small spread: a group whose rewards are all the same, whatever they are, teaches a
    group-relative method nothing (DAPO's dynamic sampling, arXiv:2503.14476, drops it). A group of one, and an id that
    nobody bears, is not informative.

    Args:
        reward_B: float [B].
        group_B: int64 [B], ids 0..G-1 in any order.

    Raises:
        ShapeError: lengths differ, or an id is not usable.
    """
    check_flat(reward_B=reward_B, group_B=group_B)
    low_G = reward_B.new_zeros(check_index("group_B", group_B))
    high_G = low_G.scatter_reduce(0, group_B, reward_B, "amax", include_self=False)
    low_G = low_G.scatter_reduce(0, group_B, reward_B, "amin", include_self=False)
    return low_G != high_G


def sum_by(index_B: Tensor, value_B: Tensor, size: int) -> Tensor:
    """Sum of the values that bear each index, float [size]. Differentiable in `value_B`."""
    return value_B.new_zeros(size).index_add(0, index_B, value_B)


def weighted_mean(value_B: Tensor, group_B: Tensor, weight_B: Tensor) -> Tensor:
    """Weighted mean of each group, float [G]. A group without weight has no mean: its smallest value stands in.

    Computed from differences to the smallest value of the group, so that the mean of equal values is exactly that value
    and a group that agrees is centred to exactly 0, in every dtype.

    Raises:
        ShapeError: lengths differ, or an id is not usable.
    """
    check_flat(value_B=value_B, group_B=group_B, weight_B=weight_B)
    size = check_index("group_B", group_B)
    least_G = value_B.new_zeros(size).scatter_reduce(0, group_B, value_B, "amin", include_self=False)
    total_G = sum_by(group_B, weight_B, size)
    above_G = sum_by(group_B, weight_B * (value_B - least_G[group_B]), size)
    return least_G + above_G / torch.where(total_G > 0, total_G, 1)


def weighted_std(value_B: Tensor, group_B: Tensor, weight_B: Tensor, std: Std) -> Tensor:
    """Weighted standard deviation of each group about its weighted mean, float [G].

    Weights are counts (1 a rollout, or its length in tokens): "unbiased" divides by their sum - 1. Where that is not
    positive (a group of one) there is no spread to speak of and the result is 0.

    Raises:
        ShapeError: lengths differ, or an id is not usable.
    """
    mean_G = weighted_mean(value_B, group_B, weight_B)
    square_G = sum_by(group_B, weight_B * (value_B - mean_G[group_B]).square(), len(mean_G))
    degrees_G = sum_by(group_B, weight_B, len(mean_G)) - LOST_DEGREES[std]
    enough_G = degrees_G > 0
    return torch.where(enough_G, square_G / torch.where(enough_G, degrees_G, 1), 0).sqrt()
