"""What the KL estimators promise, in value and in gradient. Numbers: check L15 of the Lite PPO spec, 12 of BroRL's."""

import math

import pytest
import torch

from anabranch.algo.kl import KL_ESTIMATORS, k1, k2, k3, limited
from anabranch.errors import ShapeError


@pytest.mark.parametrize(("name", "expected"), [("k1", 0.405465), ("k2", 0.082201), ("k3", 0.072132)])
def test_L15_estimators_at_a_ratio_of_three_halves(name, expected):
    # x = ln 1.5; x^2 / 2; 1/1.5 + x - 1
    logprob_M = torch.tensor([math.log(0.6)], dtype=torch.float64)
    ref_logprob_M = torch.tensor([math.log(0.4)], dtype=torch.float64)
    assert KL_ESTIMATORS[name](logprob_M, ref_logprob_M).item() == pytest.approx(expected, abs=1e-6)


def at(estimate, x):
    """Value and gradient at log p - log q = x."""
    logprob_M = torch.tensor([x - 1.0], dtype=torch.float64, requires_grad=True)
    value_M = estimate(logprob_M, torch.tensor([-1.0], dtype=torch.float64))
    (gradient_M,) = torch.autograd.grad(value_M.sum(), logprob_M)
    return value_M.item(), gradient_M.item()


@pytest.mark.parametrize(("x", "expected"), [(0.2, [0.2, 0.02, 0.0187308]), (-0.2, [-0.2, 0.02, 0.0214028])])
def test_B12_estimators_at_a_small_gap(x, expected):
    assert [at(KL_ESTIMATORS[name], x)[0] for name in ("k1", "k2", "k3")] == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("name", list(KL_ESTIMATORS))
@pytest.mark.parametrize("limits", [(None, None), (10.0, None), (None, 10.0)])
def test_B12_a_policy_that_is_its_own_reference_is_at_distance_zero(name, limits):
    estimate = limited(KL_ESTIMATORS[name], input_limit=limits[0], output_limit=limits[1])
    assert at(estimate, 0.0)[0] == 0.0


def test_B12_the_two_published_limits_of_k2():
    prorl_v2 = limited(k2, input_limit=10.0, output_limit=None)
    openrlhf = limited(k2, input_limit=None, output_limit=10.0)
    assert at(prorl_v2, 15.0) == (50.0, 0.0)  # outside the limit of the input there is no gradient
    assert at(openrlhf, 15.0) == (10.0, 0.0)
    for x in (-9.9, -4.5, 0.2, 4.5, 9.9):  # the gradient of k2 is the log-ratio
        assert at(prorl_v2, x) == pytest.approx((x * x / 2, x))
    for x, expected in [(4.4721, (9.99984, 4.4721)), (-4.4721, (9.99984, -4.4721)), (4.4722, (10, 0)), (-9, (10, 0))]:
        assert at(openrlhf, x) == pytest.approx(expected, abs=1e-4)


def test_limits_hold_on_both_sides():
    assert at(limited(k1, input_limit=3.0, output_limit=None), -7.0) == (-3.0, 0.0)
    assert at(limited(k1, input_limit=None, output_limit=3.0), -7.0) == (-3.0, 0.0)
    assert at(limited(k3, input_limit=2.0, output_limit=None), -7.0) == pytest.approx((math.e**2 - 3, 0.0))
    assert at(limited(k3, input_limit=None, output_limit=5.0), -7.0) == (5.0, 0.0)
    assert at(limited(k3, input_limit=2.0, output_limit=4.0), -2.0) == (4.0, 0.0)  # e^2 - 3 = 4.389
    assert at(limited(k3, input_limit=2.0, output_limit=4.0), -1.0) == pytest.approx((math.e - 2, 1 - math.e))


def test_an_estimator_without_limits_is_the_estimator_itself():
    assert limited(k3, input_limit=None, output_limit=None) is k3


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
