"""Every operation has the gradients that numerical differences give, and adds them up where sums are kept.

`CASES` names each operation in the forms that models use; the promises hold for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from anabranch.modeling import ops
from anabranch.modeling.block_attention import attend_in_blocks
from anabranch.modeling.ops import (
    add_gated,
    add_projected,
    embed,
    hand_over,
    lay_together,
    norm_project,
    rms_norm,
    rotate,
    sums_of,
)
from tests.modeling.op_inputs import DTYPES, EPS, angles, blocks, draw, pull, row

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Case:
    compute: Callable[..., Tensor]
    shapes: dict[str, tuple[int, ...]]
    weights: tuple[str, ...] = ()
    """Those whose gradient may be added where `sums_of` says."""
    together: list[tuple[str, ...]] = field(default_factory=list)
    """Weights that lie one behind the other in memory."""

    def inputs(self, dtype: torch.dtype) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {
            name: nn.Parameter(draw(*shape, dtype=dtype, seed=seed))
            for seed, (name, shape) in enumerate(self.shapes.items())
        }
        for names in self.together:
            lay_together([made[name] for name in names])
        return made


TOKENS = torch.tensor([[3, 1, 0], [6, 4, 2]])

QKV = {"q": (6, 4), "k": (3, 4), "v": (2, 4)}


def projections(weights: str, biases: str = "", together: bool = False) -> Case:
    """`norm_project` by the letters of its weights and of those among them that have a bias."""

    def compute(x: Tensor, norm: Tensor, **given: Tensor) -> Tensor:
        return norm_project(
            x, norm, EPS, [given[name] for name in weights], [given.get(f"{name}_bias") for name in weights]
        )

    shapes = {"x": (5, 4), "norm": (4,), **{name: QKV[name] for name in weights}}
    shapes |= {f"{name}_bias": QKV[name][:1] for name in biases}
    return Case(compute, shapes, ("norm", *weights), [tuple(weights)] if together else [])


def attention(heads: int) -> Case:
    at_hand = {dtype: blocks(row(), 13, dtype) for dtype in (torch.float64, *DTYPES)}

    def compute(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend_in_blocks(query, key, value, at_hand[key.dtype], 0.4)

    return Case(compute, {"query": (13, heads, 2), "key": (13, 2, 2), "value": (13, 2, 2)})


def turn(x: Tensor) -> Tensor:
    return rotate(x, *angles(5, 4, x.dtype))


CASES = {
    "norm": Case(lambda x, weight: rms_norm(x, weight, EPS), {"x": (5, 4), "weight": (4,)}, ("weight",)),
    "norm of heads": Case(  # of a part of what was projected, as queries are
        lambda x, weight: rms_norm(x[:, :2], weight, EPS), {"x": (5, 3, 4), "weight": (4,)}, ("weight",)
    ),
    "one projection": projections("q"),
    "two projections together": projections("qk", together=True),
    "three projections apart": projections("qkv"),
    "three projections together": projections("qkv", together=True),
    "three projections with biases": projections("qkv", biases="qkv", together=True),
    "three projections, one with a bias": projections("qkv", biases="k"),
    "rotation": Case(turn, {"x": (5, 2, 4)}),
    "rotation of a part": Case(lambda x: turn(x[:, 1:3]), {"x": (5, 4, 4)}),
    "residual": Case(
        lambda x, inner, weight: add_projected(x, inner, weight, None),
        {"x": (5, 4), "inner": (5, 3), "weight": (4, 3)},
        ("weight",),
    ),
    "residual with a bias": Case(
        lambda x, inner, weight, bias: add_projected(x, inner, weight, bias),
        {"x": (5, 4), "inner": (5, 3), "weight": (4, 3), "bias": (4,)},
        ("weight",),
    ),
    "gated": Case(
        lambda x, gate_up, weight: add_gated(x, gate_up, weight, None),
        {"x": (5, 4), "gate_up": (5, 6), "weight": (4, 3)},
        ("weight",),
    ),
    "gated with a bias": Case(
        lambda x, gate_up, weight, bias: add_gated(x, gate_up, weight, bias),
        {"x": (5, 4), "gate_up": (5, 6), "weight": (4, 3), "bias": (4,)},
        ("weight",),
    ),
    "attention": attention(2),
    "attention of grouped queries": attention(6),
    "embedding": Case(lambda weight: embed(TOKENS, weight, None), {"weight": (8, 4)}, ("weight",)),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request, monkeypatch) -> Case:
    monkeypatch.setattr(ops, "NORM_ROWS", 2)  # five rows then take three rounds
    return request.param


def gradients(case: Case, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    pull(case.compute(**inputs)).backward()
    found = {name: tensor.grad for name, tensor in inputs.items() if tensor.grad is not None}
    assert all(grad.abs().sum() > 0 for grad in found.values())
    return found


def test_numerical_gradients_agree_in_float64(case):
    inputs = case.inputs(torch.float64)
    names = list(inputs)
    assert torch.autograd.gradcheck(
        lambda *values: case.compute(**dict(zip(names, values, strict=True))), tuple(inputs.values())
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_gradients_the_values_are_the_same(case, dtype):
    inputs = case.inputs(dtype)
    expected = case.compute(**inputs)
    with torch.no_grad():
        found = case.compute(**inputs)
    assert torch.equal(found, expected.detach())
    assert not found.requires_grad


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_the_gradients_that_are_asked_for_come_back(case, dtype):
    expected = gradients(case, case.inputs(dtype))
    assert set(expected) == set(case.shapes)
    for wanted in case.shapes:
        inputs = case.inputs(dtype)
        for name in set(inputs) - {wanted}:
            inputs[name].requires_grad_(False)
        found = gradients(case, inputs)
        assert set(found) == {wanted}
        assert torch.equal(found[wanted], expected[wanted])


def test_gradients_are_added_where_float32_sums_are_kept_exactly_as_through_autograd(case):
    usual, added = case.inputs(torch.bfloat16), case.inputs(torch.bfloat16)
    for name in case.weights:
        usual[name].grad_dtype = added[name].grad_dtype = torch.float32
    before = {name: draw(*case.shapes[name], dtype=torch.float32, seed=99) for name in case.weights}
    places = {name: tensor.clone() for name, tensor in before.items()}
    for name, place in places.items():
        added[name].grad = place
    expected, found = gradients(case, usual), gradients(case, added)
    for name, grad in expected.items():
        if name in case.weights:
            assert found[name] is places[name]
            assert torch.equal(found[name], before[name] + grad)
        else:
            assert torch.equal(found[name], grad)


def test_a_second_backward_pass_adds_to_the_first(case):
    inputs = case.inputs(torch.bfloat16)
    for name in case.weights:
        inputs[name].grad_dtype = torch.float32
    once = {name: grad.clone() for name, grad in gradients(case, inputs).items()}  # makes the places for the next
    twice = gradients(case, inputs)
    for name in case.weights:
        assert torch.equal(twice[name], 2 * once[name])


def test_a_frozen_weight_keeps_the_gradient_that_it_has(case):
    inputs = case.inputs(torch.bfloat16)
    for name in case.weights[1:] or case.weights:  # the first stays, so that there is a backward pass
        inputs[name].grad_dtype = torch.float32
        inputs[name].grad = torch.full(case.shapes[name], 7.0)
        inputs[name].requires_grad_(False)
    if any(tensor.requires_grad for tensor in inputs.values()):
        pull(case.compute(**inputs)).backward()
    assert all((inputs[name].grad == 7).all() for name in case.weights[1:] or case.weights)


def test_where_sums_are_kept():
    weight = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    weight.grad_dtype = torch.float32
    grad = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    assert sums_of(weight) is None
    assert hand_over(weight, grad) is grad
    weight.grad = torch.tensor([0.5, 0.25])
    assert sums_of(weight) is weight.grad
    assert hand_over(weight, grad) is None
    assert weight.grad.tolist() == [1.5, 2.25]
    assert sums_of(weight * 2) is None  # nothing is ever added up on what was computed
    same = nn.Parameter(torch.ones(2))
    same.grad = torch.zeros(2)
    assert hand_over(same, torch.ones(2)) is not None  # autograd adds in place by itself
    assert same.grad.tolist() == [0, 0]
