"""What group sizes and the test for informative groups promise. Numbers: check L13 of the Lite PPO spec."""

import pytest
import torch

from anabranch.algo.groups import group_sizes, informative_groups, one_group, weighted_mean, weighted_std
from anabranch.errors import ShapeError


def test_L13_groups_that_agree_are_not_informative():
    reward_B = torch.tensor([1.0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    group_B = torch.arange(3).repeat_interleave(4)
    assert informative_groups(reward_B, group_B).tolist() == [True, True, False]


def test_L13_dropping_a_group_that_agrees_changes_the_batch_std():
    reward_B = torch.tensor([1.0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0], dtype=torch.float64)
    group_B = torch.arange(3).repeat_interleave(4)
    kept_B = reward_B[informative_groups(reward_B, group_B)[group_B]]
    for rewards, sigma in [(reward_B, 0.514929), (kept_B, 0.517549)]:
        std = weighted_std(rewards, one_group(rewards), torch.ones_like(rewards), "unbiased")
        torch.testing.assert_close(std, torch.tensor([sigma], dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_informative_means_exactly_unequal():
    reward_B = torch.tensor([0.3, 0.3, 0.3, 0.3 + 1e-6], dtype=torch.float64)
    assert informative_groups(reward_B, torch.tensor([0, 0, 1, 1])).tolist() == [False, True]


def test_ragged_groups_in_any_order():
    reward_B = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.5])
    group_B = torch.tensor([3, 0, 0, 3, 3, 1])  # nobody bears id 2; group 1 has one rollout
    assert informative_groups(reward_B, group_B).tolist() == [True, False, False, True]
    assert group_sizes(group_B).tolist() == [2, 1, 0, 3]


def test_no_rollouts_make_no_groups():
    empty = torch.zeros(0, dtype=torch.int64)
    assert group_sizes(empty).tolist() == []
    assert informative_groups(torch.zeros(0), empty).tolist() == []


def test_weighted_moments_by_hand():
    value_B, group_B = torch.tensor([2.0, 5.0, 8.0]), torch.tensor([1, 1, 0])
    weight_B = torch.tensor([2.0, 1.0, 1.0])
    # group 1: values 2 2 5, mean 3, squares 1 + 1 + 4 = 6; group 0: one value
    assert weighted_mean(value_B, group_B, weight_B).tolist() == [8.0, 3.0]
    assert weighted_std(value_B, group_B, weight_B, "unbiased").tolist() == pytest.approx([0.0, 3**0.5])
    assert weighted_std(value_B, group_B, weight_B, "population").tolist() == pytest.approx([0.0, 2**0.5])


def test_lengths_that_differ_are_refused():
    with pytest.raises(ShapeError, match="group_B: found 1 values, but reward_B has 2"):
        informative_groups(torch.zeros(2), torch.zeros(1, dtype=torch.int64))
