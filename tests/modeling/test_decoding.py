"""A decode step computes what the model's own layers compute, for every known family, with and without reordering."""

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from anabranch.engines.kv_cache import KvCache, Stored
from anabranch.modeling.attention import NAME, hidden_states
from anabranch.modeling.decoding import DecodeWeights
from anabranch.modeling.fused import fuse
from anabranch.modeling.tiny import tiny_llama, tiny_qwen3

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def random_biases(model):
    """transformers starts biases at 0, which would hide that one is forgotten."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.3)
    return model


def qwen2():
    return random_biases(Qwen2ForCausalLM(Qwen2Config(**SIZES)).eval())


def llama_with_biases():
    return random_biases(LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)).eval())


@pytest.fixture(params=[tiny_llama, tiny_qwen3, qwen2, llama_with_biases], ids=lambda make: make.__name__)
def model(request):
    made = request.param()
    made.set_attn_implementation(NAME)
    assert fuse(made)
    return made


def filled(model, rows: int, dtype: torch.dtype) -> KvCache:
    """Two prompts of 3 and 5 tokens; the rows answer them in turn."""
    rng = torch.Generator().manual_seed(0)
    cache = KvCache(layers=2, dtype=dtype, device=torch.device("cpu"))
    for prompt, length in ((0, 3), (1, 5)):
        keys, values = ([torch.randn(2, length, 8, generator=rng).to(dtype) for _ in range(2)] for _ in range(2))
        cache.add_prompt(prompt, Stored(keys, values))
    for row in range(rows):
        cache.add_row(row % 2)
    return cache


def two_steps(model, rows: int, take) -> Tensor:
    cache = filled(model, rows, model.dtype)
    token_R, position_R = torch.arange(rows) + 7, torch.arange(rows) % 2 * 2 + 3
    with torch.no_grad():
        first = take(token_R, position_R, cache.decode_step())
        return torch.stack([first, take(token_R + 5, position_R + 1, cache.decode_step())])


def through_layers(model):
    def take(token_R, position_R, stream):
        return hidden_states(model, token_R[:, None], position_R[:, None], stream)[:, 0]

    return take


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_two_steps_give_the_hidden_states_of_the_layers(model, dtype, tolerance):
    model = model.to(dtype)
    ours = two_steps(model, 16, DecodeWeights(model).step)
    theirs = two_steps(model, 16, through_layers(model))
    assert ours.dtype == dtype
    assert theirs.float().std() > 0.3
    assert (ours - theirs).float().norm() < tolerance * theirs.float().norm()


def test_logits_are_the_head_s(model):
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = model.get_output_embeddings()(hidden)
    torch.testing.assert_close(DecodeWeights(model).logits(hidden), expected)


def test_reordered_weights_are_a_copy_of_their_time():
    model = tiny_llama(dtype=torch.bfloat16)
    model.set_attn_implementation(NAME)
    fuse(model)
    before = DecodeWeights(model)
    with torch.no_grad():
        model.base_model.layers[0].mlp.up_proj.weight.mul_(3)
    old, new = (two_steps(model, 16, weights.step) for weights in (before, DecodeWeights(model)))
    assert (old - new).float().abs().max() > 0.1
    assert torch.equal(new, two_steps(model, 16, DecodeWeights(model).step))
