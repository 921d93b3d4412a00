"""Advantages without groups, their loss, the arithmetic behind them: checks 8, 9, 10, 12 of "spo" section 14."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.algo import value_tracker
from anabranch.algo.groups import informative_groups
from anabranch.algo.surrogate import Bounds, clipped
from anabranch.algo.value_tracker import Prior
from anabranch.batching.credit import assign_credit
from anabranch.presets import load
from anabranch.recipe.tree import Algorithm

SPO = load("spo").algorithm
REWARDS, VALUES = (1.0, 0.0, 1.0, 0.0), (0.25, 0.5, 0.75, 0.0)


def credit(algorithm: Algorithm = SPO, rewards=REWARDS, values=VALUES, lengths=None, minibatches=None):
    lengths = lengths or [1] * len(rewards)
    size = len(rewards)
    return assign_credit(
        algorithm,
        reward_B=torch.tensor(rewards, dtype=torch.float64),
        group_B=torch.arange(size),
        sequence_M=torch.arange(size).repeat_interleave(torch.tensor(lengths)),
        truncated_B=torch.zeros(size, dtype=torch.bool),
        max_new_tokens=200,
        minibatch_B=None if minibatches is None else torch.tensor(minibatches),
        value_B=None if values is None else torch.tensor(values, dtype=torch.float64),
    )


def test_S8_advantages_are_rewards_over_values_standardised_over_the_batch():
    found = credit()
    assert found.advantage_B.tolist() == [0.75, -0.5, 0.25, 0]
    assert found.advantage_M.tolist() == pytest.approx([1.200961, -1.200961, 0.240192, -0.240192], abs=1e-6)
    population = credit(SPO.but(std="population")).advantage_M.tolist()
    assert population == pytest.approx([1.386750, -1.386750, 0.277350, -0.277350], abs=1e-6)


def test_S8_values_from_after_the_update_would_give_other_advantages():
    keys, prior = list("abcd"), Prior(0.5, 1.0)
    state = value_tracker.init("beta", keys, list(VALUES), 8)
    after = value_tracker.update(state, keys, REWARDS, [0.875] * 4, prior=prior, duplicates="joint")
    wrong = credit(values=value_tracker.value(after, keys, prior).tolist())
    assert wrong.advantage_B.tolist() == pytest.approx([0.65625, -0.4375, 0.21875, 0])
    assert wrong.advantage_M.tolist() == pytest.approx(credit().advantage_M.tolist())  # the common factor cancels


def test_what_a_baseline_leaves_is_measured_before_it_is_standardised():
    """Rewards minus values (0.75, -0.5, 0.25, 0): one of four within 0.02; their unbiased std is 0.520416, see S8.
    Without values they are (1, 0, 1, 0): mean 1/2, variance 4 (1/2)^2 / 3."""
    stats = credit().stats
    assert (stats["centred_small_share"], stats["centred_variance"]) == pytest.approx((0.25, 0.520416**2), abs=1e-6)
    raw = credit(SPO.but(baseline="none"), values=None).stats
    assert (raw["centred_small_share"], raw["centred_variance"]) == pytest.approx((0.5, 1 / 3))
    assert credit(values=(0.981, 0.0201, 0.979, 0.0)).stats["centred_small_share"] == 0.5  # 0.019 away, and 0
    assert "centred_variance" not in credit(rewards=[1.0], values=[0.5]).stats


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 7))
def test_S8_a_batch_that_agrees_teaches_nothing(reward, value, size):
    found = credit(rewards=[reward] * size, values=[value] * size)
    assert found.advantage_M.tolist() == [0.0] * size


def test_S9_standardised_over_answers_is_not_standardised_over_tokens():
    lengths = [100, 10, 50, 40]
    weight = torch.tensor(lengths, dtype=torch.float64) / 200
    over_answers = credit(lengths=lengths).advantage_M
    assert float(over_answers.mean()) == pytest.approx(0.552442, abs=1e-6)
    over_tokens = credit(SPO.but(whiten="tokens", std="population"), lengths=lengths).advantage_M
    firsts = over_tokens[[0, 100, 110, 160]]
    assert firsts.tolist() == pytest.approx([0.904534, -2.445592, -0.435516, -1.105542], abs=1e-6)
    assert float(over_tokens.mean()) == pytest.approx(0, abs=1e-12)
    raw = torch.tensor([0.75, -0.5, 0.25, 0], dtype=torch.float64)
    mean = float((weight * raw).sum())
    assert (mean, float((weight * (raw - mean) ** 2).sum().sqrt())) == pytest.approx((0.4125, 0.373120), abs=1e-6)


def test_statistics_are_of_the_whole_batch_whatever_the_mini_batches():
    assert torch.equal(credit(minibatches=[0, 0, 1, 1]).advantage_M, credit().advantage_M)


def test_values_are_given_with_that_baseline_and_only_then():
    with pytest.raises(ValueError, match="value_B: found nothing"):
        credit(values=None)
    with pytest.raises(ValueError, match="value_B: found a tensor"):
        credit(SPO.but(baseline="none"))


def test_S10_the_loss_of_a_token():
    cases = [(1.5, 1, -1.28), (1.5, -1, 1.5), (0.5, 1, -0.5), (0.5, -1, 0.8), (20, -1, 10), (1, 1, -1), (1, -1, 1)]
    rho, advantage, loss = (torch.tensor(column, dtype=torch.float64) for column in zip(*cases, strict=True))
    bounds = Bounds(SPO.clip.low, SPO.clip.high, SPO.clip.dual)
    assert (-clipped(rho, advantage, rho.log(), bounds)).tolist() == pytest.approx(loss.tolist())


def test_S10_the_mean_is_over_tokens():
    weight_M = credit(rewards=(1.0, 0.0), values=(0.5, 0.5), lengths=[1, 3]).weight_M
    assert float((weight_M * torch.tensor([4.0, 0, 0, 0])).sum()) == 1.0  # over answers it would be 2


def test_S12_how_often_a_group_agrees():
    p, outcomes = 0.9, list(itertools.product((1.0, 0.0), repeat=8))
    group_B = torch.arange(len(outcomes)).repeat_interleave(8)
    differs_G = informative_groups(torch.tensor(outcomes).flatten(), group_B)
    odds_G = torch.tensor([p ** sum(o) * (1 - p) ** (8 - sum(o)) for o in outcomes], dtype=torch.float64)
    agrees = float(odds_G[~differs_G].sum())
    assert agrees == pytest.approx(0.430467, abs=1e-6)
    assert (1 + 1 / 8) / (1 - agrees) == pytest.approx(1.97530, abs=1e-5)  # many answers behind a value
    assert (1 + 1 / 8) / (1 + 1 / 9) / (1 - agrees) == pytest.approx(1.7778, abs=1e-4)  # 8 of them


def test_S12_how_many_answers_until_both_outcomes_are_seen():
    expected = 1 / (0.1 * 0.9) - 1
    assert expected == pytest.approx(10.1111, abs=1e-4)
    right = torch.rand(200_000, 200, generator=torch.Generator().manual_seed(1)) < 0.1
    other = right != right[:, :1]
    first = torch.where(other.any(1), other.int().argmax(1), 200) + 1
    assert float(first.double().mean()) == pytest.approx(expected, rel=0.01)
