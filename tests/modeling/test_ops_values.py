"""Every operation computes what `transformers` and torch compute, in float32 and bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb

from anabranch.modeling.block_attention import attend_in_blocks
from anabranch.modeling.ops import (
    add_gated,
    add_projected,
    embed,
    lay_together,
    norm_project,
    rms_norm,
    rotate,
    statistics_dtype,
)
from anabranch.structure.layout import allowed
from tests.modeling.op_inputs import CLOSE, DTYPES, EPS, angles, blocks, draw, pull, row

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_statistics_are_float32_or_better(dtype):
    assert statistics_dtype(dtype) == (torch.float64 if dtype == torch.float64 else torch.float32)
