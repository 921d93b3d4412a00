"""The matrix products of a computation: which are counted, and that they are run again just as they were."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from anabranch.bench.products import Operand, Product, Replay, record
from anabranch.modeling.tiny import tiny_llama

T = 20
"""Tokens: 2 rows of 10."""


@pytest.fixture(scope="module")
def products():
    """Of forward and backward of a Llama: 2 layers, hidden 16, 2 key-value heads of 4, width 32, 101 tokens."""
    model = tiny_llama(vocab_size=101, hidden=16, layers=2, heads=4, kv_heads=2)
    model.set_attn_implementation("sdpa")

    def compute() -> None:
        logits = model(input_ids=torch.arange(T).view(2, 10), use_cache=False).logits
        torch.autograd.backward(logits.log_softmax(-1).square().sum())

    return record(model, compute)


def test_products_are_those_worked_out_by_hand(products):
    # (in, out) of a layer's linear maps: queries and output, keys and values, gate and up, down
    linear = [(16, 16)] * 2 + [(16, 8)] * 2 + [(16, 32)] * 2 + [(32, 16)]
    expected = Counter()
    for into, out in linear * 2:  # two layers
        expected[T, into, out] += 1  # y = x W
        expected[T, out, into] += 1  # dx = dy W
        expected[out, T, into] += 1  # dW = dy x
    assert Counter(product.size[1:] for product in products if not product.in_head) == expected
    head = Counter(product.size[1:] for product in products if product.in_head)
    assert head == {(T, 16, 101): 1, (T, 101, 16): 1, (101, T, 16): 1}
    assert {product.size[0] for product in products} == {1}  # attention's are inside the fused kernel


def test_flops_are_three_times_two_for_every_weight_and_token(products):
    # forward, dx and dW: 2 * T * weights each. Weights: (2 * 256 + 2 * 128 + 3 * 512) * 2 layers + 16 * 101 of the head
    weights = (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 32) * 2 + 16 * 101
    assert sum(product.flops for product in products) == 3 * 2 * T * weights


def test_batched_products_and_those_with_a_bias_or_an_output_are_seen():
    a, b, out = torch.ones(3, 4, 5), torch.ones(3, 5, 6), torch.ones(4, 6)

    def compute() -> None:
        torch.bmm(a, b)
        torch.matmul(a, b[0])  # one product: the batch is folded into the rows
        torch.addmm(torch.ones(6), a[0], b[0])
        torch.baddbmm(torch.ones(3, 1, 6), a, b)
        torch.mm(a[0], b[0], out=out)

    found = record(tiny_llama(), compute)
    assert [product.name for product in found] == [
        "bmm [3, 4, 5] x [3, 5, 6] float32",
        "mm [12, 5] x [5, 6] float32",
        "addmm [4, 5] x [5, 6] float32",
        "baddbmm [3, 4, 5] x [3, 5, 6] float32",
        "mm [4, 5] x [5, 6] float32",
    ]
    assert [product.flops for product in found] == [2 * 3 * 4 * 5 * 6, 2 * 12 * 5 * 6, 240, 720, 240]
    assert [product.batched for product in found] == [True, False, False, True, False]


def test_a_replay_runs_the_same_operations_on_operands_that_look_the_same(products):
    replay = Replay(products)
    seconds: dict[Product, float] = {}
    again = record(tiny_llama(), lambda: seconds.update(replay.run()))
    assert [(p.op, p.args, p.kwargs) for p in again] == [(p.op, p.args, p.kwargs) for p in products]
    assert set(seconds) == set(products)
    assert sum(replay.counts.values()) == len(products)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(3, 4),
        torch.ones(4, 3).T,
        torch.ones(3, 8)[:, ::2],
        torch.ones(1, 4).expand(3, 4),
        torch.ones(0, 4),
        torch.ones(3, 4, dtype=torch.bfloat16),
    ],
    ids=["plain", "transposed", "strided", "broadcast", "empty", "bfloat16"],
)
def test_an_operand_has_shape_strides_and_dtype_of_what_it_stands_for(tensor):
    operand = Operand.of(tensor)
    assert Operand.of(operand.make()) == operand
