"""What `MasterOptimizer` promises: AdamW in float32 whatever the model computes in, and exact continuation."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from anabranch.errors import CheckpointError, ModelError, TrainingError
from anabranch.modeling.load import load_model
from anabranch.modeling.tiny import tiny_gpt_neox, tiny_llama
from anabranch.recipe.tree import Optim
from anabranch.train.optimizer import MasterOptimizer, gradient_norm, learning_rate

DTYPES = [torch.float32, torch.bfloat16]


def backward(model, seed, scale=1.0):
    """Gradients of a next-token loss on tokens drawn from the seed."""
    tokens = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(seed))
    (scale * model(tokens, labels=tokens).loss.float()).backward()


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_first_step_by_hand():
    # gradient (3, 4), norm 5, clipped to 1: (0.6, 0.8). AdamW's first step is lr * g / (|g| + eps) = lr * sign(g),
    # and decay takes lr * 0.1 * w off the matrix first: 1 - 0.5 * 0.1 - 0.5 = 0.45
    model = nn.Linear(2, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = MasterOptimizer(model, Optim(lr=1.0, weight_decay=0.1, grad_clip=1.0))
    (model.weight @ torch.tensor([3.0, 4.0])).backward()
    assert optimizer.step(lr=0.5) == 5.0
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[0.45, 0.45]]))
    torch.testing.assert_close(
        optimizer.state_dict()["weight.exp_avg"], torch.tensor([[0.06, 0.08]])
    )  # 0.1 * clipped g
    assert model.weight.grad is None


def test_a_model_in_float32_steps_exactly_as_torch_adamw():
    ours, theirs = tiny_llama(tied=True), tiny_llama(tied=True)
    optimizer = MasterOptimizer(ours, Optim(lr=1e-2, grad_clip=None))
    reference = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.0, fused=True)
    for step in range(3):
        backward(ours, step)
        backward(theirs, step)
        optimizer.step(1e-2)
        reference.step()
        reference.zero_grad()
    assert same(weights(ours), weights(theirs))


def test_a_model_in_float32_is_its_own_master():
    model = tiny_llama()
    optimizer = MasterOptimizer(model, Optim())
    assert all(optimizer.masters[name] is p for name, p in model.named_parameters())


def test_steps_too_small_for_bfloat16_add_up_in_the_master():
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(model.weight)
    optimizer = MasterOptimizer(model, Optim())
    storage = model.weight.data_ptr()
    seen = []
    for _ in range(8):  # bfloat16 below 1 has steps of 2^-8 = 0.0039; eight of 0.0005 make 0.996, nearest 0.99609375
        model(torch.ones(1, dtype=torch.bfloat16)).sum().backward()
        optimizer.step(5e-4)
        seen.append(model.weight.item())
    assert seen[0] == seen[1] == 1.0
    assert seen[-1] == 0.99609375
    assert optimizer.masters["weight"].item() == pytest.approx(0.996, abs=1e-5)
    assert model.weight.data_ptr() == storage  # in place: whoever shares the weights sees them


def test_micro_batches_add_up_in_float32():
    model = tiny_llama(dtype=torch.bfloat16, tied=True)
    MasterOptimizer(model, Optim())
    parts = []
    for seed in range(3):
        backward(model, seed)
        parts.append({name: p.grad for name, p in model.named_parameters()})
        model.zero_grad()
    for seed in range(3):
        backward(model, seed)
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32
        assert torch.equal(parameter.grad, parts[0][name] + parts[1][name] + parts[2][name])


def test_gradients_may_start_from_zeros_in_float32():
    model = tiny_llama(dtype=torch.bfloat16, tied=True)
    model.model.norm.weight.requires_grad_(False)
    optimizer = MasterOptimizer(model, Optim())
    backward(model, 0)
    expected = {name: p.grad for name, p in model.named_parameters()}
    optimizer.zero_gradients()
    for parameter in optimizer.compute.values():
        assert parameter.grad.dtype == torch.float32
        assert not parameter.grad.any()
    backward(model, 0)
    for name, parameter in model.named_parameters():
        if name == "model.norm.weight":
            assert parameter.grad is None
        else:
            assert torch.equal(parameter.grad, expected[name])


def test_tied_weights_count_once():
    model = tiny_llama(tied=True, hidden=32)
    optimizer = MasterOptimizer(model, Optim())
    assert "lm_head.weight" not in optimizer.masters
    backward(model, 0)
    squares = sum(float(p.grad.double().square().sum()) for p in model.parameters())
    assert optimizer.step(0.0) == pytest.approx(math.sqrt(squares), rel=1e-6)


def test_norms_and_biases_are_not_decayed():
    model = tiny_gpt_neox()
    before = dict(zip((n for n, _ in model.named_parameters()), weights(model), strict=True))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    MasterOptimizer(model, Optim(weight_decay=0.5)).step(lr=0.1)
    for name, parameter in model.named_parameters():
        factor = 0.95 if parameter.ndim >= 2 else 1.0  # 1 - lr * decay
        torch.testing.assert_close(parameter.detach(), factor * before[name], msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_small_gradient_is_not_clipped_and_a_large_one_to_the_limit(dtype):
    for scale in (1e-3, 1e3):
        model = tiny_llama(dtype=dtype)
        optimizer = MasterOptimizer(model, Optim(grad_clip=1.0))
        backward(model, 0, scale)
        norm = optimizer.step(1e-3)
        # after one step exp_avg is 0.1 of the gradient that was applied
        applied = math.hypot(
            *(float(m.norm()) * 10 for k, m in optimizer.state_dict().items() if k.endswith("exp_avg"))
        )
        assert applied == pytest.approx(min(norm, 1.0), rel=1e-4)


def test_the_norm_of_a_big_gradient_is_exact():
    grad = torch.full((49152, 64), 0.1)
    assert gradient_norm(grad) == pytest.approx(0.1 * math.sqrt(49152 * 64), rel=1e-5)
    assert gradient_norm(torch.tensor([3.0, 4.0])) == 5.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_the_step_before_any_weight_moves(dtype, value):
    model = tiny_llama(dtype=dtype)
    optimizer = MasterOptimizer(model, Optim())
    backward(model, 0)
    model.model.norm.weight.grad[0] = value
    before, moments = weights(model), {k: v.clone() for k, v in optimizer.state_dict().items()}
    with pytest.raises(TrainingError, match=r"model\.norm\.weight"):
        optimizer.step(1e-3)
    assert same(weights(model), before)
    assert same(optimizer.state_dict().values(), moments.values())


def test_a_step_without_a_gradient_is_refused():
    with pytest.raises(TrainingError, match="no gradient"):
        MasterOptimizer(tiny_llama(), Optim()).step(1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("saved_after", [0, 2])
def test_saved_and_loaded_training_goes_on_bit_for_bit(dtype, saved_after, tmp_path):
    optim = Optim(lr=1e-2, weight_decay=0.1)

    def train(model, optimizer, steps):
        norms = []
        for step in steps:
            backward(model, 2 * step)
            backward(model, 2 * step + 1)
            norms.append(optimizer.step(learning_rate(optim, step, 5)))
        return norms

    model = tiny_llama(dtype=dtype, tied=True)
    optimizer = MasterOptimizer(model, optim)
    norms = train(model, optimizer, range(saved_after))
    save_file(optimizer.state_dict(), tmp_path / "moments.safetensors")
    save_file(optimizer.master_state(), tmp_path / "masters.safetensors")
    norms += train(model, optimizer, range(saved_after, 5))

    resumed = tiny_llama(dtype=dtype, tied=True, seed=99)
    again = MasterOptimizer(resumed, optim)
    again.load_state_dict(load_file(tmp_path / "moments.safetensors"), load_file(tmp_path / "masters.safetensors"))
    assert train(resumed, again, range(saved_after, 5)) == norms[saved_after:]
    assert same(weights(resumed), weights(model))
    assert same(again.state_dict().values(), optimizer.state_dict().values())
    assert same(again.master_state().values(), optimizer.master_state().values())


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt_neox])
@pytest.mark.parametrize("tied", [True, False])
def test_the_masters_make_a_model_folder_that_loads_as_it_is(make, tied, tmp_path):
    model = make(dtype=torch.bfloat16, tied=tied)
    optimizer = MasterOptimizer(model, Optim())
    backward(model, 0)
    optimizer.step(1e-3)
    model.save_pretrained(tmp_path, state_dict=optimizer.master_state())
    loaded = load_model(str(tmp_path), torch.float32, torch.device("cpu"))
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, optimizer.masters[name]), name


def test_state_of_another_model_is_refused_and_nothing_changes():
    model = tiny_llama()
    optimizer, other = MasterOptimizer(model, Optim()), MasterOptimizer(tiny_llama(hidden=16, seed=1), Optim())
    before = weights(model)
    with pytest.raises(CheckpointError, match="first lm_head"):
        optimizer.load_state_dict(optimizer.state_dict(), other.master_state())
    with pytest.raises(CheckpointError, match="optimizer state"):
        optimizer.load_state_dict({}, optimizer.master_state())
    assert same(weights(model), before)


def test_frozen_parameters_stay_but_are_part_of_the_model_folder():
    model = tiny_llama()
    frozen = model.get_input_embeddings().weight.requires_grad_(False)
    optimizer, before = MasterOptimizer(model, Optim()), frozen.clone()
    backward(model, 0)
    optimizer.step(1e-2)
    assert torch.equal(frozen, before)
    assert optimizer.master_state().keys() == model.state_dict().keys()


def test_a_half_precision_model_is_refused():
    with pytest.raises(ModelError, match="float16"):
        MasterOptimizer(nn.Linear(2, 2, dtype=torch.float16), Optim())
    with pytest.raises(ModelError, match="no trainable parameter"):
        MasterOptimizer(nn.Linear(2, 2).requires_grad_(False), Optim())


def test_warm_up_is_linear_and_then_constant():
    optim = Optim(lr=8.0, warmup=4)
    assert [learning_rate(optim, step, 6) for step in range(6)] == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]


def test_cosine_starts_at_the_peak_and_reaches_zero_at_the_end():
    optim = Optim(lr=8.0, warmup=2, schedule="cosine")
    rates = [learning_rate(optim, step, 6) for step in range(7)]
    # x = 0, 1/4, 1/2, 3/4, 1: 4 * (1 + cos(pi x))
    assert rates == pytest.approx([4.0, 8.0, 8.0, 4 + 8**0.5, 4.0, 4 - 8**0.5, 0.0], abs=1e-12)


def test_a_run_that_is_all_warm_up_does_not_divide_by_zero():
    assert learning_rate(Optim(lr=1.0, warmup=5, schedule="cosine"), 4, 5) == 1.0
