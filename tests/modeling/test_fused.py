"""A fused model is the model it was made from: in what it computes, in what it learns, and in what is written of it."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from anabranch.errors import ModelError
from anabranch.modeling import attention
from anabranch.modeling.attention import NAME
from anabranch.modeling.forward import check_stream, load_streaming, row_logprobs, run_row
from anabranch.modeling.fused import fuse, join_weights
from anabranch.modeling.ops import joined
from anabranch.modeling.tiny import tiny_gpt_neox, tiny_llama
from anabranch.recipe.tree import Optim
from anabranch.records import Segment, StreamGraph
from anabranch.structure.layout import Layout, concatenate, lay_out, targets
from anabranch.train.optimizer import MasterOptimizer

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.18,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


pytestmark = pytest.mark.usefixtures("one_thread")


def llama(**sizes):
    return LlamaForCausalLM(LlamaConfig(**SIZES, **sizes))


def llama_with_biases(**sizes):
    return llama(attention_bias=True, mlp_bias=True, **sizes)


def qwen2(**sizes):
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, **sizes))


def qwen3(**sizes):  # a head of 6 is not hidden / heads
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=6, **sizes))


def mistral(**sizes):
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None, **sizes))


FAMILIES = [llama, llama_with_biases, qwen2, qwen3, mistral]


def seeded(make, dtype: torch.dtype = torch.float32, **sizes) -> PreTrainedModel:
    """A random model for streams whose biases and norms are random too: as made, they are zeros and ones."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = make(**sizes)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.3 * torch.randn(parameter.shape))
    model.set_attn_implementation(NAME)
    return model.to(dtype).eval()


def pair(make, dtype: torch.dtype = torch.float32, **sizes) -> tuple[PreTrainedModel, PreTrainedModel]:
    plain, fused = seeded(make, dtype, **sizes), seeded(make, dtype, **sizes)
    assert fuse(fused)
    return plain, fused


def trained(ids: list[int], *parents: int) -> Segment:
    return Segment(ids, parents, [len(parents) == 1] + [True] * (len(ids) - 1))


def branching() -> Layout:
    """A prompt with three answers, one of which forks and joins; beside it another prompt with its answer. 26 tokens.

    Token 0, the padding token, occurs in the text too.
    """
    prompt = Segment([11, 12, 13, 0, 15])
    forked = trained([5, 6], 0), trained([7, 8, 9], 1), trained([10], 1), trained([16, 17], 2, 3)
    graph = StreamGraph((prompt, *forked, trained([0, 19, 20], 0), trained([21], 0)))
    other = StreamGraph((Segment([31, 32, 33]), trained([34, 35, 36, 37, 31, 2], 0)))
    return concatenate([lay_out(graph), lay_out(other)])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """The row in several blocks, as long rows are."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", 10)
    monkeypatch.setattr(attention, "KEY_BUCKET", 4)


def hidden(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return run_row(model, branching())[0][: len(branching())]


def learn(model: PreTrainedModel) -> dict[str, Tensor]:
    """Gradients of a loss on log-probs and entropies; they stay on the model too."""
    layout = branching()
    target_M = targets(layout)
    target_M = target_M[layout.source_T[target_M] >= 0]
    logprob_M, entropy_M = row_logprobs(model, layout, target_M, temperature=0.9)
    uneven_M = torch.linspace(-1, 2, len(target_M))
    (logprob_M * uneven_M + 0.1 * entropy_M).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest distance of a gradient, as a part of its own length."""
    return max(float((found[name] - grad).norm() / grad.norm()) for name, grad in expected.items())


# ------------------------------------------------------------------------------------------------ what it computes


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("make", FAMILIES)
def test_hidden_states_and_all_gradients_are_those_of_the_model_itself(make, tied):
    plain, fused = pair(make, tie_word_embeddings=tied)
    torch.testing.assert_close(hidden(fused), hidden(plain), rtol=1e-5, atol=1e-5)
    found, expected = learn(fused), learn(plain)
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert grad.norm() > 0
        torch.testing.assert_close(found[name], grad, rtol=1e-5, atol=1e-5 * max(1.0, float(grad.norm())), msg=name)


@pytest.mark.parametrize("make", FAMILIES)
def test_in_bfloat16_it_is_as_close_to_float32_as_the_model_itself(make):
    plain, fused = pair(make, torch.bfloat16)
    exact = seeded(make, torch.bfloat16).float()  # the same rounded weights
    expected = hidden(exact)
    assert (hidden(fused) - expected).norm() < max(1.5 * float((hidden(plain) - expected).norm()), 0.01)
    gradients = [{name: grad.float() for name, grad in learn(model).items()} for model in (plain, fused, exact)]
    assert gap(gradients[1], gradients[2]) < max(1.5 * gap(gradients[0], gradients[2]), 0.03)


@pytest.mark.parametrize("make", FAMILIES)
def test_gradients_gathered_in_float32_are_those_through_autograd(make):
    usual, gathered = (seeded(make, torch.bfloat16, tie_word_embeddings=False) for _ in range(2))
    for model in (usual, gathered):
        fuse(model)
        optimizer = MasterOptimizer(model, Optim())  # lets weights take float32
    optimizer.zero_gradients()
    places = {name: parameter.grad for name, parameter in gathered.named_parameters()}
    expected, found = learn(usual), learn(gathered)
    assert usual.get_input_embeddings().weight.grad.dtype == torch.float32
    for name, grad in expected.items():
        assert found[name] is places[name]
        if name == "model.embed_tokens.weight":  # tokens that occur twice are not rounded in between
            torch.testing.assert_close(found[name], grad, rtol=0.01, atol=0.01)
        else:
            assert torch.equal(found[name], grad), name


def test_a_row_goes_through_every_fused_layer():
    """`check_stream` counts the layers that ask for attention and compares with the model's own eager attention."""
    for make in FAMILIES:
        model = seeded(make)
        fuse(model)
        check_stream(model)


def saved_bytes(model: PreTrainedModel) -> int:
    """What a row's hidden states keep for the backward pass, weights not counted."""
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)  # so that no memory is used twice
        return tensor

    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run_row(model, branching())
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_keeps_what_its_parts_read_and_nothing_else(dtype):
    # a token, in each of 2 layers: input 32, queries, keys and values 64, the first two turned 48, attended 32, what
    # the gated layer reads 32, gate and up 96; once: what the last norm reads 32, cosines and sines 16; its int64 id
    plain, fused = pair(llama, dtype)
    values = 2 * (32 + 64 + 48 + 32 + 32 + 96) + 32 + 16
    assert saved_bytes(fused) == 64 * (values * dtype.itemsize + 8)  # the row is padded to 64 tokens
    assert saved_bytes(plain) > 1.5 * saved_bytes(fused)


# -------------------------------------------------------------------------------------------- it stays the same model


@pytest.mark.parametrize("make", FAMILIES)
def test_without_a_stream_it_is_the_model_itself(make):
    plain, fused = pair(make)
    tokens = torch.tensor([[1, 9, 8, 7], [1, 5, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    results = []
    for model in (plain, fused):
        model.set_attn_implementation("eager")
        with torch.no_grad():
            results.append(model(tokens, attention_mask=mask, output_hidden_states=True))
    assert len(results[1].hidden_states) == len(results[0].hidden_states) == 3
    for ours, theirs in zip(results[1].hidden_states, results[0].hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(results[1].logits, results[0].logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", FAMILIES)
def test_it_generates_what_the_model_itself_does(make):
    texts = []
    for model in pair(make):
        model.set_attn_implementation("sdpa")
        with torch.no_grad():
            texts.append(model.generate(torch.tensor([[1, 9, 8]]), max_new_tokens=6, min_new_tokens=6, do_sample=False))
    assert texts[1].shape == (1, 9)
    assert torch.equal(texts[0], texts[1])


def test_a_direct_call_with_stream_attention_is_still_refused():
    _, fused = pair(llama)
    with pytest.raises(ModelError, match="no stream"):
        fused(torch.tensor([[1, 2]]))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("make", FAMILIES)
def test_names_and_files_are_unchanged(make, tied, tmp_path):
    plain, fused = pair(make, tie_word_embeddings=tied)
    for ours, theirs in [
        (fused.state_dict(), plain.state_dict()),
        (dict(fused.named_parameters()), dict(plain.named_parameters())),
    ]:
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert [name for name, _ in fused.named_modules()] == [name for name, _ in plain.named_modules()]

    fused.save_pretrained(tmp_path / "fused")
    plain.save_pretrained(tmp_path / "plain")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "fused" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "fused", attn_implementation=NAME)
    assert type(loaded) is type(plain)
    assert torch.equal(hidden(loaded), hidden(plain))


def test_a_fused_model_takes_the_weights_of_another():
    _, fused = pair(qwen2)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        other = qwen2()
    other.set_attn_implementation(NAME)
    fused.load_state_dict(other.state_dict())
    torch.testing.assert_close(hidden(fused), hidden(other.eval()), rtol=1e-5, atol=1e-5)


def test_what_an_optimizer_writes_is_what_the_next_row_sees():
    plain, fused = pair(llama)
    for model in (plain, fused):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            learn(model)
            optimizer.step()
    torch.testing.assert_close(hidden(fused), hidden(plain), rtol=1e-4, atol=1e-4)


def lies_together(model: PreTrainedModel) -> bool:
    layer = model.model.layers[-1]
    triple = [layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight, layer.self_attn.v_proj.weight]
    couple = [layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]
    return all(joined(weights).data_ptr() == weights[0].data_ptr() for weights in (triple, couple))


def test_weights_that_read_the_same_input_lie_together():
    plain, fused = pair(llama)
    assert lies_together(fused)
    assert not lies_together(plain)


@pytest.mark.parametrize("make", [llama, qwen3])
def test_a_copy_is_a_model_of_its_own_and_can_be_laid_together_again(make):
    _, fused = pair(make)
    twin = copy.deepcopy(fused)
    before = hidden(fused)
    torch.testing.assert_close(hidden(twin), before, rtol=1e-6, atol=1e-6)
    assert not lies_together(twin)
    join_weights(twin)
    assert lies_together(twin)
    assert torch.equal(hidden(twin), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(hidden(fused), before)


def test_joining_the_weights_of_a_plain_model_leaves_them_where_they_are():
    model = seeded(llama)
    before = [parameter.data_ptr() for parameter in model.parameters()]
    join_weights(model)
    assert [parameter.data_ptr() for parameter in model.parameters()] == before


def test_fusing_twice_is_fusing_once():
    _, fused = pair(qwen3)
    kinds, before = [type(module) for module in fused.modules()], hidden(fused)
    assert fuse(fused)
    assert [type(module) for module in fused.modules()] == kinds
    assert torch.equal(hidden(fused), before)


# --------------------------------------------------------------------------------------------------- which it changes


@pytest.mark.parametrize(
    "make",
    [
        tiny_gpt_neox,
        lambda: llama(hidden_act="gelu"),
        lambda: llama(attention_dropout=0.1),
        lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4)),
        lambda: qwen2(use_sliding_window=True, sliding_window=4, max_window_layers=1),
        lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, layer_types=["full_attention", "sliding_attention"])),
    ],
    ids=["gpt_neox", "gelu", "dropout", "mistral window", "qwen2 window", "qwen3 window"],
)
def test_other_models_are_left_alone(make):
    model = make()
    kinds = [type(module) for module in model.modules()]
    places = [parameter.data_ptr() for parameter in model.parameters()]
    assert not fuse(model)
    assert [type(module) for module in model.modules()] == kinds
    assert [parameter.data_ptr() for parameter in model.parameters()] == places


def test_other_models_of_the_same_class_are_left_alone():
    plain, fused = pair(llama)
    assert type(plain.model.layers[0]).__name__ == "LlamaDecoderLayer"
    assert isinstance(fused.model.layers[0], type(plain.model.layers[0]))
    assert type(fused) is type(plain)
    assert type(fused.lm_head) is nn.Linear  # as `check_head` asks


def test_a_model_is_fused_when_it_is_loaded(tmp_path):
    plain = tiny_llama()
    plain.save_pretrained(tmp_path)
    model = load_streaming(str(tmp_path), torch.float32, torch.device("cpu"))
    assert lies_together(model)
    plain.set_attn_implementation(NAME)
    torch.testing.assert_close(hidden(model), hidden(plain), rtol=1e-5, atol=1e-5)
