"""Advantages: what is subtracted from a reward, what it is divided by, and what is done to the result.

    advantage = (reward - baseline) / scale, then the same for the whole batch if whitened

Every value of the axes `baseline` and `scale` is one function in a mapping; a method is a pair of names:

    method                               baseline       scale           paper
    GRPO                                 group_mean     group_std       arXiv:2402.03300
    Dr. GRPO                             group_mean     none            arXiv:2503.20783
    RLOO                                 leave_one_out  none            arXiv:2402.14740
    Lite PPO                             group_mean     batch_std_raw   arXiv:2508.08221
    REINFORCE++ (whitened over tokens)   none           none            arXiv:2501.03262

Rewards never carry gradients. Letters: B rollouts, M trained tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from anabranch.algo.groups import Std, one_group, sum_by, weighted_mean, weighted_std
from anabranch.algo.shapes import check_flat, check_index

Baseline = Callable[[Tensor, Tensor], Tensor]
"""(reward_B, group_B) -> baseline_B."""
Scale = Callable[[Tensor, Tensor, Tensor, Tensor, Std], Tensor]
"""(reward_B, centred_B, group_B, length_B, std) -> scale_B."""

ZERO_SCALE = 1e-6
"""A scale at or below this counts as zero."""

# -------------------------------------------------------------------------------------------------------- baselines


def no_baseline(reward_B: Tensor, group_B: Tensor) -> Tensor:
    """Zero for every rollout, float [B]."""
    check_flat(reward_B=reward_B, group_B=group_B)
    return torch.zeros_like(reward_B)


def group_mean(reward_B: Tensor, group_B: Tensor) -> Tensor:
    """Mean reward of the rollout's own group, float [B]. A group of one is its own mean: advantage 0."""
    return weighted_mean(reward_B, group_B, torch.ones_like(reward_B))[group_B]


def leave_one_out(reward_B: Tensor, group_B: Tensor) -> Tensor:
    """Mean reward of the *other* rollouts of the group (RLOO), float [B].

    From the mean m of all n: r - b = (r - m) n/(n-1), so b = r - (r - m) n/(n-1). A group of one has no others; its own
    reward stands in, so that its advantage is 0.
    """
    ones_B = torch.ones_like(reward_B)
    centred_B = reward_B - group_mean(reward_B, group_B)
    size_B = sum_by(group_B, ones_B, check_index("group_B", group_B))[group_B]
    return reward_B - centred_B * size_B / (size_B - 1).clamp(min=1)


def batch_mean(reward_B: Tensor, group_B: Tensor) -> Tensor:
    """Mean reward of all rollouts, float [B]."""
    check_flat(reward_B=reward_B, group_B=group_B)
    return group_mean(reward_B, one_group(reward_B))


BASELINES: Mapping[str, Baseline] = {
    "none": no_baseline,
    "group_mean": group_mean,
    "leave_one_out": leave_one_out,
    "batch_mean": batch_mean,
}

# ----------------------------------------------------------------------------------------------------------- scales


def no_scale(reward_B: Tensor, centred_B: Tensor, group_B: Tensor, length_B: Tensor, std: Std) -> Tensor:
    """One for every rollout, float [B]."""
    return torch.ones_like(reward_B)


def group_std(reward_B: Tensor, centred_B: Tensor, group_B: Tensor, length_B: Tensor, std: Std) -> Tensor:
    """Standard deviation of the rewards of the rollout's own group, float [B]; 0 for a group of one."""
    return weighted_std(reward_B, group_B, torch.ones_like(reward_B), std)[group_B]


def batch_std_raw(reward_B: Tensor, centred_B: Tensor, group_B: Tensor, length_B: Tensor, std: Std) -> Tensor:
    """Standard deviation of the raw rewards of all rollouts, float [B] (Lite PPO)."""
    everyone_B = one_group(reward_B)
    return weighted_std(reward_B, everyone_B, torch.ones_like(reward_B), std)[everyone_B]


def batch_std_centred(reward_B: Tensor, centred_B: Tensor, group_B: Tensor, length_B: Tensor, std: Std) -> Tensor:
    """Standard deviation of reward - baseline over all rollouts, float [B].

    Smaller than `batch_std_raw` under a group baseline: the spread between the groups is gone.
    """
    everyone_B = one_group(reward_B)
    return weighted_std(centred_B, everyone_B, torch.ones_like(reward_B), std)[everyone_B]


def token_std(reward_B: Tensor, centred_B: Tensor, group_B: Tensor, length_B: Tensor, std: Std) -> Tensor:
    """Standard deviation of reward - baseline over all tokens, float [B]: a rollout counts as often as it is long."""
    everyone_B = one_group(reward_B)
    return weighted_std(centred_B, everyone_B, length_B.to(reward_B.dtype), std)[everyone_B]


SCALES: Mapping[str, Scale] = {
    "none": no_scale,
    "group_std": group_std,
    "batch_std_raw": batch_std_raw,
    "batch_std_centred": batch_std_centred,
    "token_std": token_std,
}

# -------------------------------------------------------------------------------------------------- put them together


def divide(centred_B: Tensor, scale_B: Tensor, eps: float = ZERO_SCALE) -> Tensor:
    """centred / scale, and exactly 0 where the scale is at or below `eps`, never NaN.

    `eps` is a gate and is not added to the divisor: a spread of 1e-4 is scaled in full.

    Raises:
        ShapeError: lengths differ.
    """
    check_flat(centred_B=centred_B, scale_B=scale_B)
    open_B = scale_B > eps
    return torch.where(open_B, centred_B / torch.where(open_B, scale_B, 1), 0)


def whiten(value_B: Tensor, weight_B: Tensor, std: Std) -> Tensor:
    """(value - mean) / std over the whole batch, float [B]; all 0 where the std counts as zero.

    Args:
        value_B: one value a rollout, or one a token.
        weight_B: how often each value counts: ones for rollouts or for tokens; the length in tokens where the values of
            rollouts are whitened over tokens (REINFORCE++, arXiv:2501.03262).
        std: "unbiased" divides the weighted squares by the sum of weights - 1.

    Raises:
        ShapeError: lengths differ.
    """
    weight_B = weight_B.to(value_B.dtype)
    everyone_B = one_group(value_B)
    mean_B = weighted_mean(value_B, everyone_B, weight_B)[everyone_B]
    return divide(value_B - mean_B, weighted_std(value_B, everyone_B, weight_B, std)[everyone_B])


def return_to_go(reward_M: Tensor, sequence_M: Tensor, order_M: Tensor) -> Tensor:
    """What each token still earns: the sum of the token rewards from itself to the end of its answer (gamma 1).

    Args:
        reward_M: float [M], reward of each token.
        sequence_M: int64 [M], the answer of each token; its tokens may stand anywhere.
        order_M: int [M], text order: within an answer, larger comes later. No ties within an answer.

    Returns:
        float [M], in the order of the input.

    Raises:
        ShapeError: lengths differ, or an index is not usable.
    """
    check_flat(reward_M=reward_M, sequence_M=sequence_M, order_M=order_M)
    size = check_index("sequence_M", sequence_M)
    by_order_M = torch.argsort(order_M, stable=True)
    sorted_M = by_order_M[torch.argsort(sequence_M[by_order_M], stable=True)]
    # One running sum over all answers, then the part that belongs to earlier answers is taken off. In float64: what is
    # taken off can be much larger than what is left.
    running_M = reward_M.double()[sorted_M].cumsum(0)
    count = torch.bincount(sequence_M, minlength=size)
    end = count.cumsum(0) - 1
    owner_M = sequence_M[sorted_M]
    result_M = torch.empty_like(reward_M)
    result_M[sorted_M] = (running_M[end[owner_M]] - running_M + reward_M.double()[sorted_M]).to(reward_M.dtype)
    return result_M
