"""Packed rows: the log-probs that plain transformers gives each answer alone, and refusal of models that differ."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

from anabranch.errors import ModelError
from anabranch.modeling.attention import NAME
from anabranch.modeling.forward import LENGTH_BUCKET, check_stream, round_up, row_logprobs, run_row
from anabranch.modeling.tiny import tiny_llama
from anabranch.records import Segment, StreamGraph
from anabranch.structure.layout import NOTHING, Layout, concatenate, lay_out, targets
from tests.tiny_models import MODELS, streaming

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=MODELS, ids=lambda make: make.__name__)
def model(request):
    return streaming(request.param())


def tokens(size: int, seed: int = 0) -> list[int]:
    return np.random.default_rng((size, seed)).integers(4, 64, size).tolist()


def trained(ids: list[int], parent: int) -> Segment:
    return Segment(ids, (parent,), np.ones(len(ids), dtype=bool))


def plain(model, ids: list[int], first: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs of the tokens from `first` on and the entropies they were drawn at, by transformers alone."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        logits_TV = model(torch.tensor([ids]), use_cache=False).logits[0, first - 1 : -1].double() / temperature
    model.set_attn_implementation(NAME)
    logprob_TV = torch.log_softmax(logits_TV, -1)
    entropy_T = -(logprob_TV.exp() * logprob_TV).sum(-1)
    return logprob_TV.gather(1, torch.tensor(ids[first:])[:, None])[:, 0], entropy_T


def check(model, layout: Layout, alone: list[tuple[list[int], int]], temperature: float = 1.0) -> None:
    """`alone`: in text order, the flat sequence of every answer and where its trained tokens begin."""
    with torch.no_grad():
        found = row_logprobs(model, layout, targets(layout), temperature=temperature)
    expected = zip(*(plain(model, ids, first, temperature) for ids, first in alone), strict=True)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), torch.cat(theirs), rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------- the same as one by one


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_answers_that_share_a_prompt_have_the_log_probs_and_entropies_of_each_alone(model, temperature):
    prompt, answers = tokens(9), [tokens(size) for size in (3, 1, 12, 7)]
    graph = StreamGraph((Segment(prompt), *(trained(answer, 0) for answer in answers)))
    check(model, lay_out(graph), [(prompt + answer, 9) for answer in answers], temperature)


def test_graphs_of_one_row_do_not_see_each_other(model):
    parts = [(tokens(4, seed), tokens(6, seed)) for seed in range(3)]
    layouts = [lay_out(StreamGraph((Segment(prompt), trained(answer, 0)))) for prompt, answer in parts]
    check(model, concatenate(layouts), [(prompt + answer, 4) for prompt, answer in parts])


@pytest.mark.parametrize("size", [LENGTH_BUCKET - 1, LENGTH_BUCKET, LENGTH_BUCKET + 1])
def test_the_length_of_a_row_does_not_matter(model, size):
    prompt, answer = tokens(5), tokens(size - 5)
    check(model, lay_out(StreamGraph((Segment(prompt), trained(answer, 0)))), [(prompt + answer, 5)])


def test_a_turn_after_a_tool_is_predicted_by_the_tool_s_last_token(model):
    prompt, first, tool, second = tokens(5), tokens(3, 1), tokens(4), tokens(3, 2)
    layout = lay_out(StreamGraph((Segment(prompt), trained(first, 0), Segment(tool, (1,)), trained(second, 2))))
    whole = prompt + first + tool + second
    logprob_T, entropy_T = plain(model, whole, 1, 1.0)
    kept = [4, 5, 6, 11, 12, 13]  # predictions of tokens 5-7 and 12-14, counted from token 1
    with torch.no_grad():
        found = row_logprobs(model, layout, targets(layout), temperature=1.0)
    torch.testing.assert_close(found[0].double(), logprob_T[kept], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1].double(), entropy_T[kept], rtol=0, atol=1e-5)


def test_log_probs_come_in_the_order_of_the_targets(model):
    layout = lay_out(StreamGraph((Segment(tokens(4)), trained(tokens(5), 0), trained(tokens(6), 0))))
    target_M = np.flatnonzero(layout.source_T != NOTHING)
    with torch.no_grad():
        whole, _ = row_logprobs(model, layout, target_M, temperature=1.0)
        part, _ = row_logprobs(model, layout, target_M[[5, 9, 2]], temperature=1.0)
    torch.testing.assert_close(part, whole[[5, 9, 2]], rtol=0, atol=1e-6)


def test_a_uniform_model_gives_minus_log_of_the_vocabulary():
    model = streaming(tiny_llama())
    with torch.no_grad():
        model.lm_head.weight.zero_()
        layout = lay_out(StreamGraph((Segment([5]), trained([6, 7], 0))))
        logprob_M, entropy_M = row_logprobs(model, layout, targets(layout), temperature=0.5)
    assert logprob_M.tolist() == pytest.approx([-math.log(64)] * 2)
    assert entropy_M.tolist() == pytest.approx([math.log(64)] * 2)


def test_rows_are_padded_to_few_lengths():
    assert [round_up(size, 64) for size in (1, 64, 65)] == [64, 64, 128]
    model = streaming(tiny_llama())
    hidden_TD, _ = run_row(model, lay_out(StreamGraph((Segment(tokens(65)),))))
    assert hidden_TD.shape == (128, 32)


# --------------------------------------------------------------------------------------------- which models it takes

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2)
    )


def mixtral():
    return MixtralForCausalLM(MixtralConfig(**SIZES, sliding_window=None, num_local_experts=4))


def mistral(window: int | None):
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=window))


@pytest.mark.parametrize(
    "make",
    [*MODELS, gpt2, mixtral, lambda: mistral(None)],
    ids=lambda make: make.__name__,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_attention_passes_and_leaves_the_model_as_it_was(make, dtype):
    model = streaming(make().to(dtype))
    layout = lay_out(StreamGraph((Segment(tokens(5)), trained(tokens(4), 0))))
    with torch.no_grad():
        before, _ = row_logprobs(model, layout, targets(layout), temperature=1.0)
    check_stream(model)
    with torch.no_grad():
        after, _ = row_logprobs(model, layout, targets(layout), temperature=1.0)
    assert torch.equal(before, after)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def jamba():
    return JambaForCausalLM(JambaConfig(**SIZES, attn_layer_period=2, attn_layer_offset=1, num_experts=2))


def gemma2():
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8))


def llama4():
    return Llama4ForCausalLM(
        Llama4TextConfig(**SIZES, head_dim=8, attention_chunk_size=4, num_local_experts=2, intermediate_size_mlp=16)
    )


def bloom():
    return BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=16, n_layer=2, n_head=2))


def granite():
    return GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8.0))


def stablelm():
    return StableLmForCausalLM(StableLmConfig(**SIZES))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mistral(4), "sliding_window=4"),
        (gemma2, "layers of type sliding_attention"),
        (llama4, "layers of type chunked_attention"),
        (jamba, "1 of 2 layers in use"),  # the other one is recurrent
        (bloom, "found 'eager', but rows need 'anabranch_stream'"),  # its attention asks no interface
        (granite, "logits_scaling=8"),
        (stablelm, "no stream"),
    ],
    ids=["mistral", "gemma2", "llama4", "jamba", "bloom", "granite", "stablelm"],
)
def test_a_model_that_a_row_would_compute_wrongly_is_refused(make, message):
    with pytest.raises(ModelError, match=f"{message}(?s:.*)fix: "):
        check_stream(streaming(make()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_that_mixes_tokens_beside_attention_is_found_by_what_it_computes(dtype):
    """A running sum over the text order, as a recurrent layer has: in a row, an answer would see the one before it."""
    model = streaming(tiny_llama(dtype=dtype))
    model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: output + output.cumsum(1))
    with pytest.raises(ModelError, match=r"off the model's own(?s:.*)does not honour the row's mask or positions"):
        check_stream(model)


def test_positions_that_are_not_honoured_are_found():
    model = streaming(tiny_llama())
    model.model.rotary_emb.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "position_ids": torch.arange(args[0].shape[1])[None]}),
        with_kwargs=True,
    )
    with pytest.raises(ModelError, match="off the model's own"):
        check_stream(model)


def test_weights_that_are_not_finite_are_refused():
    model = streaming(tiny_llama())
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(ModelError, match="probabilities nan off"):
        check_stream(model)


def test_a_model_loaded_with_another_attention_is_refused():
    with pytest.raises(ModelError, match=r"found 'eager'(?s:.*)attention='anabranch_stream'"):
        model = tiny_llama()
        model.set_attn_implementation("eager")
        check_stream(model)
