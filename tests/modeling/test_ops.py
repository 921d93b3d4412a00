"""Every operation is what `transformers` computes, with the gradients that numerical differences give.

`CASES` names each operation in the forms that models use; the promises about gradients hold for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb

from anabranch.modeling import ops
from anabranch.modeling.attention import attention_batch
from anabranch.modeling.block_attention import AttentionBatch, attend_in_blocks
from anabranch.modeling.ops import (
    add_gated,
    add_projected,
    embed,
    hand_over,
    joined,
    lay_together,
    norm_project,
    rms_norm,
    rotate,
    statistics_dtype,
    sums_of,
)
from anabranch.records import Segment, StreamGraph
from anabranch.structure.blocks import batches, query_blocks
from anabranch.structure.layout import Layout, allowed, lay_out

EPS = 1e-5
DTYPES = [torch.float32, torch.bfloat16]
CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 0.016, "atol": 0.03}}
"""In bfloat16 values of up to 4 are rounded to 1/128 on the way."""


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def angles(tokens: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions: both halves of the width turn alike."""
    rate = 1.0 / 10 ** torch.arange(width // 2, dtype=torch.float64)
    turn = torch.cat([torch.arange(1, tokens + 1)[:, None] * rate] * 2, -1)
    return turn.cos().to(dtype), turn.sin().to(dtype)


def row() -> Layout:
    """A prompt of 3 with answers of 2, 1 and 3, and a join of the first two."""
    parts = ((3, ()), (2, (0,)), (1, (0,)), (3, (0,)), (2, (1, 2)))
    return lay_out(StreamGraph(tuple(Segment([7] * size, parents) for size, parents in parts)))


def blocks(layout: Layout, padded_to: int, dtype: torch.dtype, size: int = 4) -> list[AttentionBatch]:
    """Batches of up to three blocks."""
    cut = query_blocks(layout, padded_to, size=size, key_bucket=4)
    return [attention_batch(some, dtype, torch.device("cpu")) for some in batches(cut, 3 * size * 12)]


# ------------------------------------------------------------------------------------- what holds for every operation


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


def pull(out: Tensor) -> Tensor:
    """A sum with uneven weights, so that an error in one entry cannot hide."""
    return (out * torch.linspace(-1, 2, out.numel(), dtype=torch.float64).to(out.dtype).view(out.shape)).sum()


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


# ------------------------------------------------------------------------------------------ as transformers computes it


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_is_that_of_transformers(dtype):
    theirs = LlamaRMSNorm(16, EPS).to(dtype)
    theirs.weight.data = draw(16, dtype=dtype, seed=1)
    for x in (draw(3, 16, dtype=dtype), 1e-3 * draw(2, 3, 16, dtype=dtype), torch.zeros(1, 16, dtype=dtype)):
        torch.testing.assert_close(rms_norm(x, theirs.weight, EPS), theirs(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_rotation_is_that_of_transformers(dtype):
    query, key, (cos, sin) = draw(5, 2, 8, dtype=dtype), draw(5, 1, 8, dtype=dtype, seed=1), angles(5, 8, dtype)
    theirs = apply_rotary_pos_emb(query.transpose(0, 1)[None], key.transpose(0, 1)[None], cos[None], sin[None])
    for x, expected in zip((query, key), theirs, strict=True):
        torch.testing.assert_close(rotate(x, cos, sin), expected[0].transpose(0, 1), **CLOSE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_the_gated_layer_is_that_of_transformers(dtype, bias):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        theirs = LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=24, mlp_bias=bias)).to(dtype)
    gate, up, down = theirs.gate_proj, theirs.up_proj, theirs.down_proj
    x, norm = draw(5, 32, dtype=dtype), draw(32, dtype=dtype, seed=1)
    for together in (False, True):
        if together:
            lay_together([gate.weight, up.weight])
        inner = norm_project(x, norm, EPS, [gate.weight, up.weight], [gate.bias, up.bias])
        ours = add_gated(x, inner, down.weight, down.bias)
        torch.testing.assert_close(ours, x + theirs(rms_norm(x, norm, EPS)), **CLOSE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biases", [(True, True, True), (False, True, False), (False, False, False)])
def test_projections_side_by_side_are_linear_layers_behind_a_norm(dtype, biases):
    x, norm = draw(5, 4, dtype=dtype), draw(4, dtype=dtype, seed=1)
    weights = [draw(rows, 4, dtype=dtype, seed=rows) for rows in (6, 3, 2)]
    given = [draw(len(w), dtype=dtype, seed=7) if bias else None for w, bias in zip(weights, biases, strict=True)]
    expected = [
        nn.functional.linear(rms_norm(x, norm, EPS), weight, bias) for weight, bias in zip(weights, given, strict=True)
    ]
    torch.testing.assert_close(norm_project(x, norm, EPS, weights, given), torch.cat(expected, 1), **CLOSE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_projection_is_added_to_what_was_there(dtype):
    x, inner, weight, bias = (draw(*shape, dtype=dtype) for shape in ((5, 4), (5, 3), (4, 3), (4,)))
    before = x.clone()
    for given in (bias, None):
        expected = x + nn.functional.linear(inner, weight, given)
        torch.testing.assert_close(add_projected(x, inner, weight, given), expected, **CLOSE[dtype])
    assert torch.equal(x, before)


@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_attention_in_blocks_is_that_over_the_dense_mask(heads, size):
    query, key, value = (draw(count, 14, 3, seed=count) for count in (heads, 2, 2))
    mask_TT = torch.from_numpy(allowed(row(), 14))
    expected = nn.functional.scaled_dot_product_attention(
        query[None], key[None], value[None], attn_mask=mask_TT, scale=0.4, enable_gqa=True
    )
    by_token = (part.transpose(0, 1) for part in (query, key, value))
    ours = attend_in_blocks(*by_token, blocks(row(), 14, torch.float64, size), 0.4)
    torch.testing.assert_close(ours, expected[0].transpose(0, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("padding", [None, 1])
def test_the_embedding_is_that_of_torch_in_value_and_gradient(padding):
    tokens = torch.tensor([[3, 1, 3], [6, 1, 2]])  # 3 occurs twice, 0, 4, 5 and 7 never
    ours, theirs = (nn.Parameter(draw(8, 4, dtype=torch.float32)) for _ in range(2))
    expected = nn.functional.embedding(tokens, theirs, padding_idx=padding)
    found = embed(tokens, ours, padding)
    assert torch.equal(found, expected)
    pull(found).backward()
    pull(expected).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert (ours.grad[1] == 0).all() == (padding == 1)


@pytest.mark.parametrize("padding", [None, 1])
def test_the_embedding_touches_only_the_sums_of_tokens_that_occur(padding):
    tokens = torch.tensor([3, 1, 3, 3])
    weight = nn.Parameter(draw(8, 4, dtype=torch.bfloat16))
    weight.grad_dtype = torch.float32
    before = draw(8, 4, dtype=torch.float32, seed=1)
    sums = weight.grad = before.clone()
    grad = torch.tensor([1.0, 2.0, 1 / 256, 1 / 256], dtype=torch.bfloat16)[:, None].expand(4, 4)
    embed(tokens, weight, padding).backward(grad)
    assert weight.grad is sums
    changed = sums - before
    assert torch.equal(changed[[0, 2, 4, 5, 6, 7]], torch.zeros(6, 4))
    torch.testing.assert_close(changed[3], torch.full((4,), 1 + 2 / 256))  # 1 in bfloat16: below 2 its steps are 1/128
    torch.testing.assert_close(changed[1], torch.full((4,), 0.0 if padding == 1 else 2.0))


def test_sums_over_many_rows_are_not_rounded_to_bfloat16_on_the_way():
    # the gradient of a norm's weight adds up 4096 values of about 1: bfloat16 stops at 256, where its steps are 2
    x, weight = torch.ones(4096, 4, dtype=torch.bfloat16), nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    rms_norm(x, weight, EPS).sum().backward()
    assert weight.grad.tolist() == [4096] * 4
    # 4096 tokens of one word
    table = nn.Parameter(torch.ones(2, 4, dtype=torch.bfloat16))
    embed(torch.ones(4096, dtype=torch.int64), table, None).sum().backward()
    assert table.grad.tolist() == [[0] * 4, [4096] * 4]


# ---------------------------------------------------------------------------------------------- weights side by side


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_statistics_are_float32_or_better(dtype):
    assert statistics_dtype(dtype) == (torch.float64 if dtype == torch.float64 else torch.float32)
