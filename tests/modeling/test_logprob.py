"""What `chosen_logprobs` promises: the plain log-softmax, without ever holding it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from anabranch.errors import ModelError, ShapeError
from anabranch.modeling import logprob as module
from anabranch.modeling.logprob import check_head, chosen_logprobs
from anabranch.modeling.tiny import tiny_gpt_neox, tiny_llama


def naive(hidden_RD, weight_VD, bias_V, row_M, target_M, temperature=1.0):
    logits_RV = hidden_RD @ weight_VD.T
    logits_RV = logits_RV if bias_V is None else logits_RV + bias_V
    logprob_RV = torch.log_softmax(logits_RV / temperature, -1)
    return logprob_RV[row_M, target_M], -(logprob_RV.exp() * logprob_RV).sum(-1)


def problem(rows=7, width=5, vocabulary=11, targets=13, dtype=torch.float64, bias=True, seed=0):
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype).requires_grad_()  # noqa: E731
    return (
        draw(rows, width),
        draw(vocabulary, width),
        draw(vocabulary) if bias else None,
        torch.randint(0, max(rows, 1), (targets,), generator=rng),
        torch.randint(0, vocabulary, (targets,), generator=rng),
    )


@contextmanager
def cut(width: int, height: int) -> Iterator[None]:
    """Slices of `width` words, softmax over runs of `height` rows (both fewer where the problem is smaller)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SLICE_WIDTHS", (width, width))
        patch.setattr(module, "CACHE_VALUES", width * height)
        yield


def gradients(outputs: tuple[Tensor, Tensor], inputs: tuple[Tensor | None, ...]) -> list[Tensor]:
    """Gradients of a sum with uneven weights, so that an error in one entry cannot hide."""
    loss = sum((out * torch.linspace(-1, 2, len(out), dtype=out.dtype)).sum() for out in outputs)
    return list(torch.autograd.grad(loss, [t for t in inputs if t is not None]))


def test_two_words_by_hand():
    # logits (0, ln 3): p = (1/4, 3/4); entropy = ln 4 - 3/4 ln 3 = 0.5623351
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(3)]])
    logprob, entropy = chosen_logprobs(hidden, weight, None, torch.tensor([0, 0]), torch.tensor([0, 1]))
    torch.testing.assert_close(logprob, torch.tensor([0.25, 0.75]).log())
    torch.testing.assert_close(entropy, torch.tensor([0.5623351]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 3), (5, 256), (11, 2), (8192, 128)])
def test_values_and_gradients_are_those_of_log_softmax(dtype, bias, temperature, width, height):
    given_ = problem(dtype=dtype, bias=bias)
    with cut(width, height):
        ours = chosen_logprobs(*given_, temperature=temperature)
        our_gradients = gradients(ours, given_[:3])
    theirs = naive(*given_, temperature=temperature)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    # a log-sum-exp of 16 is rounded to 1e-6, which the entropy's gradient (up to 13 here) takes over
    tolerance = {"rtol": 5e-6, "atol": 5e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    for a, b in zip(our_gradients, gradients(theirs, given_[:3]), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize(("width", "height"), [(2, 3), (5, 4)])
def test_numerical_gradients_agree_in_float64(width, height):
    hidden, weight, bias, row, target = problem(rows=4, width=3, vocabulary=5, targets=6)
    with cut(width, height):
        assert torch.autograd.gradcheck(
            lambda h, w, b: chosen_logprobs(h, w, b, row, target, temperature=0.7), (hidden, weight, bias)
        )


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 9),
    targets=st.integers(0, 20),
    vocabulary=st.integers(1, 11),
    width=st.integers(1, 12),
    height=st.integers(1, 10),
    seed=st.integers(0, 1000),
)
def test_no_way_of_cutting_it_up_changes_the_result(rows, targets, vocabulary, width, height, seed):
    # few targets leave rows, runs and whole slices without any; many make rows and pairs repeat
    given_ = problem(rows=rows, targets=targets, vocabulary=vocabulary, bias=seed % 2 == 0, seed=seed)
    theirs = naive(*given_)
    with cut(width, height):
        ours = chosen_logprobs(*given_)
        our_gradients = gradients(ours, given_[:3])
    for a, b in zip((*ours, *our_gradients), (*theirs, *gradients(theirs, given_[:3])), strict=True):
        torch.testing.assert_close(a, b)


def test_large_logits_neither_overflow_nor_lose_the_rare_words():
    # logits of several hundred: exp of them is no float32; slices then differ by hundreds of nats
    hidden, weight, _, row, target = problem(rows=6, vocabulary=12, targets=30, bias=False, seed=3)
    exact = naive(hidden * 200, weight, None, row, target)
    with cut(4, 2):
        logprob, entropy = chosen_logprobs(hidden.float() * 200, weight.float(), None, row, target)
    assert exact[0].min() < -300
    torch.testing.assert_close(logprob.double(), exact[0], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(entropy.double(), exact[1], rtol=1e-5, atol=1e-3)


def test_a_pair_that_repeats_pulls_twice():
    hidden, weight, _, _, _ = problem(bias=False)
    twice = chosen_logprobs(hidden, weight, None, torch.tensor([2, 2]), torch.tensor([5, 5]))[0].sum()
    once = chosen_logprobs(hidden, weight, None, torch.tensor([2]), torch.tensor([5]))[0].sum()
    torch.testing.assert_close(
        torch.autograd.grad(twice, hidden)[0], 2 * torch.autograd.grad(once, hidden)[0], rtol=1e-12, atol=1e-12
    )


def test_an_entropy_that_is_only_logged_leaves_the_gradient_alone():
    given_ = problem()
    with_entropy = torch.autograd.grad(chosen_logprobs(*given_)[0].sum(), given_[0])[0]
    logprob, entropy = chosen_logprobs(*given_, with_entropy=False)
    assert entropy is None
    assert torch.equal(torch.autograd.grad(logprob.sum(), given_[0])[0], with_entropy)


def test_only_the_gradients_that_are_asked_for_come_back():
    hidden, weight, bias, row, target = problem()
    frozen = chosen_logprobs(hidden, weight.detach(), bias.detach(), row, target)[0].sum()
    expected = torch.autograd.grad(chosen_logprobs(hidden, weight, bias, row, target)[0].sum(), hidden)[0]
    torch.testing.assert_close(torch.autograd.grad(frozen, hidden)[0], expected)


def test_no_rows_are_no_targets_and_a_zero_gradient():
    hidden, weight, bias, row, target = problem(rows=0, targets=0)
    logprob, entropy = chosen_logprobs(hidden, weight, bias, row, target)
    assert logprob.shape == entropy.shape == (0,)
    (logprob.sum() + entropy.sum()).backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


class LargestTensor(TorchDispatchMode):
    """Records the largest tensor of each dtype that any operation makes; views of what was there are not counted."""

    def __init__(self):
        super().__init__()
        self.numel: dict[torch.dtype, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given_ = {tensor.untyped_storage().data_ptr() for tensor in tensors_in([*args, *(kwargs or {}).values()])}
        out = func(*args, **(kwargs or {}))
        for tensor in tensors_in([out]):
            if tensor.untyped_storage().data_ptr() not in given_:
                self.numel[tensor.dtype] = max(self.numel.get(tensor.dtype, 0), tensor.numel())
        return out


def tensors_in(values: list) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += tensors_in(list(value))
    return found


def test_neither_pass_makes_a_tensor_of_rows_times_vocabulary(monkeypatch):
    rows, vocabulary, width = 512, 300, 32
    monkeypatch.setattr(module, "SLICE_WIDTHS", (16, 128))
    hidden, weight, _, row, target = problem(rows, 8, vocabulary, 600, torch.float32, bias=False)
    with LargestTensor() as watch:
        logprob, entropy = chosen_logprobs(hidden, weight, None, row, target, chunk_values=rows * width)
        (logprob.sum() + entropy.sum()).backward()
    assert max(watch.numel.values()) == rows * width  # 16384, where rows * vocabulary is 153600
    with LargestTensor() as watch:
        naive(hidden, weight, None, row, target)
    assert max(watch.numel.values()) == rows * vocabulary  # the watch does see such tensors


@pytest.mark.parametrize(("chunk_values", "width"), [(1, 16), (512 * 20, 20), (512 * 20 + 511, 20), (1 << 30, 128)])
def test_chunk_values_sets_the_width_of_a_slice_within_its_limits(monkeypatch, chunk_values, width):
    monkeypatch.setattr(module, "SLICE_WIDTHS", (16, 128))
    given_ = problem(512, 4, 300, 600, torch.float32, bias=False)
    with torch.no_grad(), LargestTensor() as watch:
        ours = chosen_logprobs(*given_, chunk_values=chunk_values)
    assert watch.numel[torch.float32] == max(512 * width, 512 * -(-300 // width))  # statistics of each slice and row
    for a, b in zip(ours, naive(*given_), strict=True):
        torch.testing.assert_close(a, b)


def test_float32_statistics_of_bfloat16_logits_never_exist_for_more_than_a_run_of_rows():
    rows, width, height = 512, 150, 16
    given_ = problem(rows, 4, 300, 600, torch.bfloat16, bias=False)
    with cut(width, height), LargestTensor() as watch:
        logprob, entropy = chosen_logprobs(*given_)
        (logprob.sum() + entropy.sum()).backward()
    assert watch.numel[torch.bfloat16] == rows * width
    assert watch.numel[torch.float32] == height * width  # 2400; the gradient of the hidden states is 512 * 4


def test_nothing_of_vocabulary_size_waits_for_backward():
    saved = []
    hidden, weight, _, row, target = problem(64, 8, 300, 64, torch.float32, bias=False)
    with cut(100, 16), torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        chosen_logprobs(hidden, weight, None, row, target)
    assert {t.data_ptr() for t in saved if t.ndim == 2 and t.shape[1] == 8} == {hidden.data_ptr(), weight.data_ptr()}
    assert {tuple(t.shape) for t in saved} == {(64, 8), (300, 8), (3, 64), (64,)}  # inputs; sums of slices and rows


@pytest.mark.parametrize("width", [100, 8192])
def test_bfloat16_is_close_to_float32(width):
    given_ = problem(rows=40, width=64, vocabulary=500, targets=80, dtype=torch.float32, bias=False)
    small = [t.detach().bfloat16().requires_grad_() for t in given_[:2]]
    with cut(width, 8):
        logprob, entropy = chosen_logprobs(*small, None, *given_[3:])
    exact, exact_entropy = naive(*(t.detach().float() for t in small), None, *given_[3:])
    assert logprob.dtype == entropy.dtype == torch.float32
    # logits up to 32 carry 8 bits: half a unit in the last place is 1/16
    torch.testing.assert_close(logprob, exact, atol=0.1, rtol=0)
    torch.testing.assert_close(entropy, exact_entropy, atol=0.1, rtol=0)
    ours = torch.autograd.grad(logprob.sum(), small)
    theirs = torch.autograd.grad(naive(*given_)[0].sum(), given_[:2])
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.float() - b).norm() < 0.03 * b.norm()


def test_the_gradients_of_several_rows_add_up_beyond_bfloat16_if_the_weight_takes_float32():
    parts = [problem(rows=64, vocabulary=50, targets=64, dtype=torch.bfloat16, bias=False, seed=n) for n in range(3)]
    weight = parts[0][1]
    single = [
        torch.autograd.grad(chosen_logprobs(hidden, weight, *rest)[0].sum(), weight)[0].float()
        for hidden, _, *rest in parts
    ]
    expected = single[0] + single[1] + single[2]
    assert not torch.equal(expected, expected.bfloat16().float())
    weight.grad_dtype = torch.float32
    for hidden, _, *rest in parts:
        chosen_logprobs(hidden, weight, *rest)[0].sum().backward()
    assert weight.grad.dtype == torch.float32
    assert torch.equal(weight.grad, expected)


@pytest.mark.parametrize("bias", [True, False])
def test_the_weight_gradient_is_added_where_float32_sums_are_kept(bias):
    given_ = problem(rows=64, vocabulary=50, width=12, targets=64, dtype=torch.bfloat16, bias=bias)
    hidden, weight, _, *_ = given_
    with cut(16, 8):
        expected = gradients(chosen_logprobs(*given_), given_[:3])
        weight.grad_dtype = torch.float32
        before = torch.randn(50, 12, generator=torch.Generator().manual_seed(9))
        sums = weight.grad = before.clone()
        logprob, entropy = chosen_logprobs(*given_)
        loss = sum((out * torch.linspace(-1, 2, len(out), dtype=out.dtype)).sum() for out in (logprob, entropy))
        with LargestTensor() as watch:
            loss.backward()
    assert weight.grad is sums
    assert torch.equal(sums, before + expected[1].float())
    assert torch.equal(hidden.grad, expected[0])
    if bias:
        assert torch.equal(given_[2].grad, expected[2])
    # of the weight's gradient only a slice exists: in float32 the largest are a run of logits and the hidden states
    assert watch.numel[torch.float32] == max(8 * 16, 64 * 12)


def test_a_frozen_weight_keeps_the_gradient_that_it_has():
    hidden, weight, _, row, target = problem(dtype=torch.bfloat16, bias=False)
    weight.grad_dtype = torch.float32
    weight.grad = torch.full(weight.shape, 7.0)
    weight.requires_grad_(False)
    chosen_logprobs(hidden, weight, None, row, target)[0].sum().backward()
    assert (weight.grad == 7).all()
    assert hidden.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("row", "target", "name"), [([0, 7], [0, 0], "row_M"), ([0, -1], [0, 0], "row_M"), ([0, 0], [0, 11], "target_M")]
)
def test_indices_out_of_range_are_refused(row, target, name):
    hidden, weight, bias, _, _ = problem()
    with pytest.raises(ShapeError, match=name):
        chosen_logprobs(hidden, weight, bias, torch.tensor(row), torch.tensor(target))


def test_shapes_that_do_not_fit_are_refused():
    hidden, weight, bias, row, target = problem()
    with pytest.raises(ShapeError, match=r"\[R, D\]"):
        chosen_logprobs(hidden, weight.T, bias, row, target)
    with pytest.raises(ShapeError):
        chosen_logprobs(hidden, weight, bias, row, target[:-1])
    with pytest.raises(ValueError, match=r"temperature=0\.0"):
        chosen_logprobs(hidden, weight, bias, row, target, temperature=0.0)
    with pytest.raises(ValueError, match="chunk_values=0"):
        chosen_logprobs(hidden, weight, bias, row, target, chunk_values=0)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt_neox])
def test_the_head_explains_the_logits_of_the_model(make):
    model, tokens = make(), torch.tensor([[1, 9, 8, 7]])
    weight, bias = check_head(model)
    hidden = model.base_model(tokens).last_hidden_state[0]
    logprob, _ = chosen_logprobs(hidden, weight, bias, torch.arange(3), tokens[0, 1:])
    expected = torch.log_softmax(model(tokens).logits[0, :-1], -1).gather(1, tokens[0, 1:, None])[:, 0]
    torch.testing.assert_close(logprob, expected)


def test_a_model_that_caps_its_logits_is_refused_by_the_name_of_the_setting():
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 4}
    config = Gemma2Config(num_attention_heads=2, num_key_value_heads=1, final_logit_softcapping=30.0, **sizes)
    with pytest.raises(ModelError, match=r"final_logit_softcapping=30\.0"):
        check_head(Gemma2ForCausalLM(config))


def test_a_neutral_scale_is_not_refused():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    model.config.logits_scaling = 1.0
    assert check_head(model)[0] is model.lm_head.weight


def test_a_head_that_is_no_linear_layer_is_refused():
    model = tiny_llama()
    model.set_output_embeddings(torch.nn.Identity())
    with pytest.raises(ModelError, match="Identity"):
        check_head(model)
