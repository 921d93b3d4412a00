"""From the rewards of a rollout batch to what every trained token is worth and weighs.

The order is fixed, for every algorithm: baseline and scale over all rollouts, KL in the reward, whitening, clip of the
advantage, overlong filter, aggregation weights. Letters: B rollouts, M trained tokens, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from anabranch.algo.advantage import BASELINES, SCALES, divide, return_to_go, whiten
from anabranch.algo.aggregate import AGGREGATES, count, token_weights
from anabranch.algo.groups import Std, group_sizes, informative_groups, one_group, sum_by, weighted_mean, weighted_std
from anabranch.algo.shapes import check_flat, check_index
from anabranch.errors import explain
from anabranch.recipe.tree import Algorithm


@dataclass(frozen=True)
class Credit:
    """What `assign_credit` found. Example (Lite PPO, rewards 1 and 0 of one group, answers of 1 and 2 tokens): std
    0.7071, so `advantage_B` = [0.7071, -0.7071], `advantage_M` = [0.7071, -0.7071, -0.7071], `weight_M` = [1/3] * 3.
    """

    advantage_M: Tensor
    """float [M]: what the loss uses."""
    weight_M: Tensor
    """float [M]: loss = -(weight_M * objective_M).sum(); 0 where the rollout is filtered out."""
    keep_B: Tensor
    """bool [B]: False where the rollout is out of the loss and of its denominators."""
    advantage_B: Tensor
    """float [B]: (reward - baseline) / scale, before KL in the reward and before whitening."""
    stats: dict[str, float]
    """For the metrics; the keys are explained at `_stats`."""


def assign_credit(
    algorithm: Algorithm,
    *,
    reward_B: Tensor,
    group_B: Tensor,
    sequence_M: Tensor,
    truncated_B: Tensor,
    max_new_tokens: int,
    kl_penalty_M: Tensor | None = None,
    minibatch_B: Tensor | None = None,
    value_B: Tensor | None = None,
) -> Credit:
    """Advantages and loss weights of one rollout batch.

    Rollouts that the overlong filter takes out still count in every statistic. A rollout without a trained token counts
    as a rollout and has no token.

    Args:
        algorithm: which baseline, scale, whitening, KL, clip of the advantage, filter and aggregation.
        reward_B: float [B].
        group_B: int64 [B], ids 0..G-1 in any order.
        sequence_M: int64 [M], the rollout of each trained token; the tokens of one rollout stand in text order.
        truncated_B: bool [B], True where the answer was cut at the length limit.
        max_new_tokens: the length limit; divisor of `token_sum_constant` where the algorithm names none.
        kl_penalty_M: float [M], k1 = old_logprob - ref_logprob of each token (within the limits of the KL term), for
            KL in the reward only.
        minibatch_B: int64 [B], which optimizer step each rollout goes to; each has denominators of its own. None: all
            go to one.
        value_B: float [B], the value of each rollout's problem before the step, for the baseline "tracker" only.

    Raises:
        ShapeError: lengths differ, or an index is not usable.
        ValueError: a reward is not finite, or `kl_penalty_M` or `value_B` is missing where the algorithm needs it, or
            given where it does not.
    """
    check_flat(reward_B=reward_B, group_B=group_B, truncated_B=truncated_B)
    check_index("sequence_M", sequence_M, len(reward_B))
    _check_finite(reward_B)
    effect_M = _kl_in_reward(algorithm, reward_B, sequence_M, kl_penalty_M)
    length_B = torch.bincount(sequence_M, minlength=len(reward_B))
    centred_B = reward_B - _baseline(algorithm, reward_B, group_B, value_B)
    scale_B = SCALES[algorithm.scale](reward_B, centred_B, group_B, length_B, algorithm.std)
    advantage_B = divide(centred_B, scale_B)
    unclipped_M = WHITENINGS[algorithm.whiten](advantage_B, effect_M, sequence_M, algorithm.std)
    advantage_M = _clipped(unclipped_M, algorithm.advantage_clip)
    keep_B = ~truncated_B if algorithm.overlong.kind == "filter" else torch.ones_like(truncated_B)
    weight_M = _weights(algorithm, reward_B, sequence_M, keep_B, max_new_tokens, minibatch_B)
    stats = _stats(algorithm.std, reward_B, group_B, sequence_M, keep_B, advantage_M)
    stats |= _centred_stats(centred_B, reward_B, group_B)
    if algorithm.advantage_clip is not None:
        stats["advantage_clipped_share"] = _mean(advantage_M != unclipped_M)
    return Credit(advantage_M, weight_M, keep_B, advantage_B, stats)


def _check_finite(reward_B: Tensor) -> None:
    bad = torch.nonzero(~torch.isfinite(reward_B)).flatten().tolist()
    if bad:
        raise ValueError(
            explain(
                f"reward_B[{bad[0]}]",
                float(reward_B[bad[0]]),
                f"rewards are finite numbers ({len(bad)} of {len(reward_B)} are not)",
                "look for the reward term that returns it",
            )
        )


def _baseline(algorithm: Algorithm, reward_B: Tensor, group_B: Tensor, value_B: Tensor | None) -> Tensor:
    """What is subtracted from each reward, float [B]: made from the rewards, or known before them."""
    if (algorithm.baseline == "tracker") != (value_B is not None):
        found = "nothing" if value_B is None else "a tensor"
        need = f"algorithm.baseline is {algorithm.baseline!r}"
        raise ValueError(explain("value_B", found, need, "pass it with baseline tracker, and only then"))
    if value_B is None:
        return BASELINES[algorithm.baseline](reward_B, group_B)
    check_flat(reward_B=reward_B, value_B=value_B)
    return value_B


def _kl_in_reward(algorithm: Algorithm, reward_B: Tensor, sequence_M: Tensor, kl_penalty_M: Tensor | None) -> Tensor:
    """What the KL penalty adds to the advantage of each token, float [M]: minus coef times the k1 still to come."""
    kl = algorithm.kl
    if (kl.kind == "reward_k1") != (kl_penalty_M is not None):
        raise ValueError(
            explain(
                "kl_penalty_M",
                "nothing" if kl_penalty_M is None else "a tensor",
                f"algorithm.kl.kind is {kl.kind!r}",
                "pass it with reward_k1, and only then",
            )
        )
    if kl_penalty_M is None:
        return reward_B.new_zeros(len(sequence_M))
    in_text_order_M = torch.arange(len(sequence_M), device=sequence_M.device)
    return return_to_go(-kl.coef * kl_penalty_M.to(reward_B.dtype), sequence_M, in_text_order_M)


# -------------------------------------------------------------------------------------------------------- whitening


def _not_whitened(advantage_B: Tensor, effect_M: Tensor, sequence_M: Tensor, std: Std) -> Tensor:
    return advantage_B[sequence_M] + effect_M


def _whitened_over_tokens(advantage_B: Tensor, effect_M: Tensor, sequence_M: Tensor, std: Std) -> Tensor:
    advantage_M = advantage_B[sequence_M] + effect_M
    return whiten(advantage_M, torch.ones_like(advantage_M), std)


def _whitened_over_trajectories(advantage_B: Tensor, effect_M: Tensor, sequence_M: Tensor, std: Std) -> Tensor:
    """Every rollout counts once, with the mean of its tokens; without KL in the reward that is its advantage."""
    ones_B, everyone_B = torch.ones_like(advantage_B), one_group(advantage_B)
    length_B = sum_by(sequence_M, torch.ones_like(effect_M), len(advantage_B))
    value_B = advantage_B + sum_by(sequence_M, effect_M, len(advantage_B)) / length_B.clamp(min=1)
    mean_B = weighted_mean(value_B, everyone_B, ones_B)[everyone_B]
    std_B = weighted_std(value_B, everyone_B, ones_B, std)[everyone_B]
    return divide(advantage_B[sequence_M] + effect_M - mean_B[sequence_M], std_B[sequence_M])


WHITENINGS: Mapping[str, Callable[[Tensor, Tensor, Tensor, Std], Tensor]] = {
    "none": _not_whitened,
    "tokens": _whitened_over_tokens,
    "trajectories": _whitened_over_trajectories,
}


def _clipped(advantage_M: Tensor, limit: float | None) -> Tensor:
    return advantage_M if limit is None else advantage_M.clamp(-limit, limit)


# --------------------------------------------------------------------------------------------------- weights, stats


def _weights(
    algorithm: Algorithm,
    reward_B: Tensor,
    sequence_M: Tensor,
    keep_B: Tensor,
    max_new_tokens: int,
    minibatch_B: Tensor | None,
) -> Tensor:
    """Weight of each token, float [M], with the denominators of the optimizer step that its rollout goes to."""
    minibatch_B = one_group(reward_B) if minibatch_B is None else minibatch_B
    check_flat(reward_B=reward_B, minibatch_B=minibatch_B)
    aggregate = AGGREGATES[algorithm.aggregate]
    constant = max_new_tokens if algorithm.constant is None else algorithm.constant
    weight_M = reward_B.new_zeros(len(sequence_M))
    for index in range(check_index("minibatch_B", minibatch_B)):
        here_B = keep_B & (minibatch_B == index)
        denominators = count(sequence_M, here_B, constant)
        weight_M = weight_M + token_weights(aggregate, sequence_M, here_B, denominators, reward_B.dtype)
    return weight_M


def _stats(
    std: Std, reward_B: Tensor, group_B: Tensor, sequence_M: Tensor, keep_B: Tensor, advantage_M: Tensor
) -> dict[str, float]:
    """Numbers for the metrics, over all rollouts, filtered ones included.

    reward_mean, sigma_batch: mean and standard deviation of the raw rewards of the batch.
    sigma_group: standard deviation within a group, averaged over groups.
    advantage_mean: over trained tokens, as the loss uses them; advantage_abs_max: the largest magnitude among them.
    zero_advantage_share: rollouts none of whose tokens has an advantage other than exactly 0.
    dead_groups_share: groups whose rewards are all exactly equal.
    filtered_share: rollouts taken out of the loss.

    advantage_clipped_share, only with a clip of the advantage: tokens whose advantage it changed.
    """
    ones_B, everyone_B = torch.ones_like(reward_B), one_group(reward_B)
    sizes_G = group_sizes(group_B)
    inhabited_G = sizes_G > 0
    largest_B = torch.zeros_like(reward_B).scatter_reduce(0, sequence_M, advantage_M.abs(), "amax")
    return {
        "reward_mean": _mean(reward_B),
        "sigma_batch": float(weighted_std(reward_B, everyone_B, ones_B, std).sum()),  # one group: a sum of one
        "sigma_group": _mean(weighted_std(reward_B, group_B, ones_B, std)[inhabited_G]),
        "advantage_mean": _mean(advantage_M),
        "advantage_abs_max": float(torch.cat([largest_B, largest_B.new_zeros(1)]).amax()),
        "zero_advantage_share": _mean(largest_B == 0),
        "dead_groups_share": _mean(~informative_groups(reward_B, group_B)[inhabited_G]),
        "filtered_share": _mean(~keep_B),
    }


SMALL = 0.02
"""A centred reward within +- this is called small: SPO's figure 3 (arXiv:2509.13232)."""


def _centred_stats(centred_B: Tensor, reward_B: Tensor, group_B: Tensor) -> dict[str, float]:
    """Numbers about reward - baseline, before scale, KL and whitening, so that methods with other scales compare.

    centred_small_share: rollouts where it is within +- `SMALL`; with group means and rewards 0 and 1 those of groups
        that agree.
    centred_variance: unbiased variance over rollouts, without those of larger groups that agree; only if two are left.
    """
    stats = {"centred_small_share": _mean(centred_B.abs() <= SMALL)}
    counts_G = informative_groups(reward_B, group_B) | (group_sizes(group_B) == 1)
    counted = centred_B[counts_G[group_B]]
    if len(counted) > 1:
        stats["centred_variance"] = float(counted.double().var())
    return stats


def _mean(value: Tensor) -> float:
    return float(value.double().sum() / max(len(value), 1))
