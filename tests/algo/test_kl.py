"""What the KL estimators promise, in value and in gradient. Numbers: check L15 of the Lite PPO spec."""

import math

import pytest
import torch

from anabranch.algo.kl import KL_ESTIMATORS, k1, k2, k3
from anabranch.errors import ShapeError


@pytest.mark.parametrize(("name", "expected"), [("k1", 0.405465), ("k2", 0.082201), ("k3", 0.072132)])
def test_L15_estimators_at_a_ratio_of_three_halves(name, expected):
    # x = ln 1.5; x^2 / 2; 1/1.5 + x - 1
    logprob_M = torch.tensor([math.log(0.6)], dtype=torch.float64)
    ref_logprob_M = torch.tensor([math.log(0.4)], dtype=torch.float64)
    assert KL_ESTIMATORS[name](logprob_M, ref_logprob_M).item() == pytest.approx(expected, abs=1e-6)


def softmaxes():
    """Current policy (with gradient) and reference over four tokens: small enough to take expectations exactly."""
    logits_V = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    reference_V = torch.tensor([-0.2, 0.5, 0.4, 0.0], dtype=torch.float64).log_softmax(0)
    return logits_V, logits_V.log_softmax(0), reference_V


@pytest.mark.parametrize("estimate", [k1, k3])
def test_k1_and_k3_are_unbiased_on_tokens_of_the_policy(estimate):
    _, logprob_V, ref_V = softmaxes()
    divergence = (logprob_V.exp() * (logprob_V - ref_V)).sum()
    torch.testing.assert_close((logprob_V.exp() * estimate(logprob_V, ref_V)).sum(), divergence)


def expected_gradient(estimate):
    logits_V, logprob_V, ref_V = softmaxes()
    # the draw is held fixed: only the estimate carries a gradient, not the probability of the token
    (gradient_V,) = torch.autograd.grad((logprob_V.exp().detach() * estimate(logprob_V, ref_V)).sum(), logits_V)
    return gradient_V


def test_the_gradient_of_k1_as_a_loss_is_nothing():
    torch.testing.assert_close(expected_gradient(k1), torch.zeros(4, dtype=torch.float64))


def test_the_gradient_of_k2_as_a_loss_is_that_of_the_kl_from_the_reference():
    logits_V, logprob_V, ref_V = softmaxes()
    (expected_V,) = torch.autograd.grad((logprob_V.exp() * (logprob_V - ref_V)).sum(), logits_V)
    torch.testing.assert_close(expected_gradient(k2), expected_V)


def test_the_gradient_of_k3_as_a_loss_is_that_of_the_reverse_kl():
    logits_V, logprob_V, ref_V = softmaxes()
    (expected_V,) = torch.autograd.grad((ref_V.exp() * (ref_V - logprob_V)).sum(), logits_V)
    torch.testing.assert_close(expected_gradient(k3), expected_V)


def test_k3_is_precise_for_tiny_gaps_and_finite_for_huge_ones():
    gap_M = torch.tensor([1e-4, -1000.0, 1000.0])
    tiny, low, high = k3(gap_M, torch.zeros(3)).tolist()
    assert tiny == pytest.approx(5e-9, rel=0.3)  # x^2 / 2; exp(-x) - 1 + x in float32 would be off by 6e-8
    assert math.isfinite(low)
    assert math.isfinite(high)


@pytest.mark.parametrize("name", list(KL_ESTIMATORS))
def test_log_probs_of_different_tokens_are_refused(name):
    with pytest.raises(ShapeError, match="ref_logprob_M: found 3 values"):
        KL_ESTIMATORS[name](torch.zeros(2), torch.zeros(3))
