"""What the two surrogates promise, and that the masks of touched tokens tell the truth. Numbers: check L11."""

import itertools

import pytest
import torch

from anabranch.algo.surrogate import Bounds, capped_tokens, clipped, clipped_tokens, detached
from anabranch.errors import ShapeError

SYMMETRIC = Bounds(0.2, 0.2)
BOUNDS = [
    SYMMETRIC,
    Bounds(0.2, 0.28),
    Bounds(None, 0.28),
    Bounds(0.2, None),
    Bounds(None, None),
    Bounds(0.2, 0.2, dual=3.0),
    Bounds(None, None, dual=1.4),
]


def grid():
    """Every combination of a ratio and an advantage, away from the kinks of `BOUNDS`."""
    pairs = list(itertools.product([0.1, 0.5, 0.9, 1.0, 1.1, 1.25, 1.5, 2.9, 5.0], [-2.0, -0.5, 0.0, 1.0]))
    rho_M, advantage_M = torch.tensor(pairs, dtype=torch.float64).T
    return rho_M.clone(), advantage_M.clone()


def value(rho, advantage, bounds):
    return clipped(torch.tensor([rho]), torch.tensor([advantage]), torch.zeros(1), bounds).item()


@pytest.mark.parametrize(
    ("rho", "advantage", "expected"),
    [(1.5, 1.0, 1.2), (0.5, 1.0, 0.5), (0.5, -1.0, -0.8), (1.3, -1.0, -1.3), (1.1, 2.0, 2.2), (9.0, 0.0, 0.0)],
)
def test_the_clip_is_pessimistic(rho, advantage, expected):
    assert value(rho, advantage, SYMMETRIC) == pytest.approx(expected)


def test_a_missing_bound_is_no_bound():
    assert value(0.01, -1.0, Bounds(None, 0.2)) == pytest.approx(-0.01)
    assert value(50.0, 1.0, Bounds(0.2, None)) == pytest.approx(50.0)


@pytest.mark.parametrize(("dual", "loss"), [(None, 5.0), (3.0, 3.0), (1.4, 1.4)])
def test_L11_the_dual_clip_bounds_the_loss_of_a_bad_token_that_became_likely(dual, loss):
    assert -value(5.0, -1.0, Bounds(0.2, 0.2, dual)) == pytest.approx(loss)


def test_L11_the_dual_clip_leaves_good_tokens_alone():
    assert value(5.0, 1.0, Bounds(0.2, 0.2, 1.1)) == value(5.0, 1.0, SYMMETRIC)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_a_token_loses_its_gradient_exactly_where_the_mask_says_so(bounds):
    rho_M, advantage_M = grid()
    rho_M.requires_grad_()
    (gradient_M,) = torch.autograd.grad(clipped(rho_M, advantage_M, rho_M, bounds).sum(), rho_M)
    touched = clipped_tokens(rho_M, advantage_M, bounds)
    stopped_M = touched.low_M | touched.high_M | touched.dual_M
    torch.testing.assert_close(gradient_M, torch.where(stopped_M, 0.0, advantage_M))


@pytest.mark.parametrize("bounds", BOUNDS)
def test_the_clipped_surrogate_has_the_gradient_that_differences_show(bounds):
    rho_M, advantage_M = grid()
    rho_M.requires_grad_()
    assert torch.autograd.gradcheck(lambda rho: clipped(rho, advantage_M, rho.detach(), bounds), (rho_M,))


@pytest.mark.parametrize("bounds", [bounds for bounds in BOUNDS if bounds.dual is None])
def test_the_detached_surrogate_weighs_every_token_and_lets_none_go(bounds):
    rho_M, advantage_M = grid()
    rho_M.requires_grad_()
    logprob_M = torch.full_like(rho_M, -0.7).detach().requires_grad_()
    objective_M = detached(rho_M, advantage_M, logprob_M, bounds)
    assert torch.autograd.grad(objective_M.sum(), rho_M, retain_graph=True, allow_unused=True) == (None,)
    (gradient_M,) = torch.autograd.grad(objective_M.sum(), logprob_M)
    assert torch.equal(gradient_M == 0, advantage_M == 0)
    touched = capped_tokens(rho_M, advantage_M, bounds)
    torch.testing.assert_close(gradient_M != rho_M * advantage_M, touched.low_M | touched.high_M)


def test_a_dual_clip_on_a_detached_weight_is_refused():
    with pytest.raises(ValueError, match="fix: dual=None"):
        detached(torch.ones(1), torch.ones(1), torch.zeros(1), Bounds(None, 0.28, 3.0))


@pytest.mark.parametrize("surrogate", [clipped, detached])
def test_lengths_that_differ_are_refused(surrogate):
    with pytest.raises(ShapeError, match="advantage_M: found 3 values"):
        surrogate(torch.ones(2), torch.ones(3), torch.ones(2), SYMMETRIC)
