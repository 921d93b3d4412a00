"""Weights side by side in memory are joined without a copy, all others by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anabranch.modeling.ops import joined, lay_together
from tests.modeling.op_inputs import draw

pytestmark = pytest.mark.usefixtures("one_thread")


def weights_of(*rows: int) -> list[nn.Parameter]:
    return [nn.Parameter(draw(count, 4, dtype=torch.float32, seed=count)) for count in rows]


def test_weights_that_were_laid_together_are_joined_without_a_copy():
    weights = weights_of(3, 2, 1)
    before = [weight.detach().clone() for weight in weights]
    lay_together(weights)
    whole = joined(weights)
    for weight, old in zip(weights, before, strict=True):
        assert torch.equal(weight, old)
        assert weight.requires_grad
        assert weight.is_leaf
    assert torch.equal(whole, torch.cat(before))
    with torch.no_grad():
        weights[1].fill_(7)
    assert (whole[3:5] == 7).all()  # what an optimizer writes in place is seen at once
    whole[5] = 8
    assert (weights[2] == 8).all()
    assert torch.equal(joined(weights), whole)
    assert not whole.requires_grad


def test_some_of_the_weights_that_lie_together_are_joined_too():
    weights = weights_of(3, 2, 1)
    lay_together(weights)
    for part in (weights[:2], weights[1:], weights[2:]):
        assert joined(part).data_ptr() == part[0].data_ptr()
        assert torch.equal(joined(part), torch.cat([weight.detach() for weight in part]))


def is_copy(weights: list[Tensor]) -> bool:
    whole = joined(weights)
    assert torch.equal(whole, torch.cat([weight.detach() for weight in weights]))
    before = whole.clone()
    with torch.no_grad():
        for weight in weights:
            weight.add_(1)
    return torch.equal(whole, before)


def test_weights_elsewhere_are_copied():
    assert is_copy(weights_of(3, 2))


def test_weights_that_lie_together_in_another_order_or_with_a_gap_are_copied():
    weights = weights_of(3, 2, 1)
    lay_together(weights)
    assert is_copy([weights[1], weights[0]])
    assert is_copy([weights[0], weights[2]])
    assert not is_copy(weights)


def test_a_weight_that_is_not_laid_out_row_by_row_is_copied():
    whole = torch.arange(16.0)
    assert is_copy([whole[:8].view(2, 4), whole[8:].view(4, 2).T])


def test_neighbours_by_chance_in_memory_of_two_owners_are_copied():
    memory = np.arange(20, dtype=np.float32).reshape(5, 4)
    weights = [torch.from_numpy(memory[:3]), torch.from_numpy(memory[3:])]
    assert weights[0].data_ptr() + 3 * 4 * 4 == weights[1].data_ptr()
    assert is_copy(weights)


def test_one_weight_is_itself():
    (weight,) = weights_of(3)
    assert joined([weight]).data_ptr() == weight.data_ptr()
