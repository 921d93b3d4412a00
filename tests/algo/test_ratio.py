"""What token and sequence ratios promise."""

import math

import pytest
import torch

from anabranch.algo.ratio import RATIOS, log_ratio, sequence_ratio, token_ratio
from anabranch.errors import ShapeError


def test_a_token_ratio_is_new_over_old():
    new_M, old_M = torch.tensor([0.3, 0.2]).log(), torch.tensor([0.2, 0.4]).log()
    torch.testing.assert_close(token_ratio(new_M, old_M, torch.tensor([0, 0])), torch.tensor([1.5, 0.5]))


def test_L9_a_sequence_ratio_is_the_geometric_mean_wherever_the_tokens_stand():
    # answer 0: 1.5; answer 1: 0.5, 1.0, 1.3, product 0.65, third root 0.866239
    log_M = torch.tensor([0.5, 1.5, 1.0, 1.3], dtype=torch.float64).log()
    ratio_M = sequence_ratio(log_M, torch.zeros_like(log_M), torch.tensor([1, 0, 1, 1]))
    expected = torch.tensor([0.866239, 1.5, 0.866239, 0.866239], dtype=torch.float64)
    torch.testing.assert_close(ratio_M, expected, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_sequence_ratio_reaches_all_its_tokens_and_no_others():
    logprob_M = torch.tensor([0.5, 1.5, 1.0, 1.3], dtype=torch.float64).log().requires_grad_()
    ratio_M = sequence_ratio(logprob_M, torch.zeros(4, dtype=torch.float64), torch.tensor([1, 0, 1, 1]))
    (gradient_M,) = torch.autograd.grad(ratio_M[0], logprob_M)  # ds/dl = s / 3 for each of its three tokens
    expected = torch.tensor([0.65 ** (1 / 3) / 3, 0.0, 0.65 ** (1 / 3) / 3, 0.65 ** (1 / 3) / 3], dtype=torch.float64)
    torch.testing.assert_close(gradient_M, expected)


@pytest.mark.parametrize("name", list(RATIOS))
def test_ratios_stay_finite_whatever_the_log_probs_say(name):
    new_M = torch.tensor([0.0, -500.0])
    ratio_M = RATIOS[name](new_M, torch.tensor([-500.0, 0.0]), torch.tensor([0, 1]))
    torch.testing.assert_close(ratio_M, torch.tensor([math.exp(20), math.exp(-20)]))


def test_the_mean_of_a_sequence_is_taken_before_the_limit():
    log_M = torch.tensor([-40.0, 20.0])  # mean -10; limited one by one it would be 0
    assert sequence_ratio(log_M, torch.zeros(2), torch.tensor([0, 0]))[0].item() == pytest.approx(math.exp(-10))


@pytest.mark.parametrize("name", list(RATIOS))
def test_an_unchanged_policy_has_ratio_one_exactly(name):
    logprob_M = torch.randn(5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(RATIOS[name](logprob_M, logprob_M, torch.tensor([0, 1, 0, 2, 1])), torch.ones(5))


@pytest.mark.parametrize("name", list(RATIOS))
def test_no_tokens_have_no_ratios(name):
    assert RATIOS[name](torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_lengths_that_differ_are_refused():
    with pytest.raises(ShapeError, match="old_logprob_M"):
        log_ratio(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ShapeError, match="sequence_M"):
        token_ratio(torch.zeros(2), torch.zeros(2), torch.zeros(3, dtype=torch.int64))
