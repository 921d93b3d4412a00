"""The in-process engine: what every engine promises, and what only this one does."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from anabranch.engines.kv_cache import KvCache, token_bytes
from anabranch.engines.torch_engine import TorchEngine
from anabranch.errors import EngineError
from anabranch.modeling.attention import NAME, CapturingNeighbourhood
from anabranch.modeling.forward import LENGTH_BUCKET, run_row
from anabranch.modeling.tiny import character_tokenizer, tiny_llama
from anabranch.records import Request, Sampling, Segment, StopReason, StreamGraph
from anabranch.structure.layout import lay_out
from tests.tiny_models import MODELS, fused_llama

pytest.register_assert_rewrite("conformance")
sys.path.insert(0, str(Path(__file__).parent))
from conformance import (  # noqa: E402
    EngineConformance,
    Subject,
    answer,
    answers,
    check_agreement,
    generate,
    request,
    trainer_logprobs,
)

sys.path.remove(str(Path(__file__).parent))

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456"  # 59, with 5 others every id of 64


pytestmark = pytest.mark.usefixtures("one_thread")


def subject_of(make) -> Subject:
    model, tokenizer = make(), character_tokenizer(ALPHABET)
    model.set_attn_implementation(NAME)
    start = partial(start_engine, model, tokenizer)
    return Subject(model, tokenizer, start, lambda: subject_of(make))


def start_engine(model, tokenizer, max_rows: int) -> TorchEngine:
    return TorchEngine(model, tokenizer, max_rows=max_rows)


class TestTorchEngine(EngineConformance):
    @pytest.fixture(scope="class", params=MODELS, ids=lambda make: make.__name__)
    def subject(self, request):
        return subject_of(request.param)


@pytest.fixture
def subject():
    return subject_of(tiny_llama)


# ----------------------------------------------------------------------------------------------------- work, once


class Counter:
    """How many tokens went through the embedding, pass by pass."""

    def __init__(self, model) -> None:
        self.passes: list[int] = []
        self.handle = model.get_input_embeddings().register_forward_hook(
            lambda module, args, output: self.passes.append(args[0].numel())
        )


def test_the_prompt_is_computed_once_for_all_its_answers(subject):
    counter = Counter(subject.model)
    generate(subject.start(16), [request(100, 64, max_new_tokens=4, stop_tokens=())])
    assert counter.passes[0] == 128  # 100 rounded up to the length bucket
    # 4 rounds of 16 rows; the first token of an answer is drawn from the prompt's hidden state, 3 are decoded
    assert counter.passes[1:] == [16] * (4 * 3)


def test_short_prompts_are_computed_together(subject):
    counter = Counter(subject.model)
    generate(subject.start(64), [request(length, 2, max_new_tokens=1) for length in range(20, 40)])
    assert counter.passes == [640]  # 20 + 21 + ... + 39 = 590, rounded up to 640; nothing to decode


def test_prompts_that_do_not_fit_together_are_computed_one_after_the_other(subject):
    counter = Counter(subject.model)
    generate(subject.start(64), [request(length, 1, max_new_tokens=1) for length in (500, 450, 400, 300)])
    assert counter.passes == [960, 704]  # 500 + 450, 400 + 300: about 1024 at a time
    assert all(tokens % LENGTH_BUCKET == 0 for tokens in counter.passes)


# ---------------------------------------------------------------------------------------------------------- memory


def gigabytes(model, tokens: int) -> float:
    return tokens * token_bytes(model) / 2**30


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_a_token_takes_as_many_bytes_as_are_stored_for_it(make):
    model = subject_of(make).model
    _, stream = run_row(model, lay_out(StreamGraph((Segment(np.arange(8)),))), CapturingNeighbourhood)
    stored = sum(array[:, :8].nbytes for array in (*stream.keys_HTD, *stream.values_HTD))
    assert token_bytes(model) * 8 == stored


def test_answers_wait_until_their_keys_and_values_are_sure_to_fit(subject):
    """A prompt of 30 tokens takes a bucket of 32, answers of 20 tokens take one each: room for 32 + 2 * 16 * 32."""
    requests = [request(30, 40, max_new_tokens=20, stop_tokens=())]
    counter = Counter(subject.model)
    engine = TorchEngine(subject.model, subject.tokenizer, kv_gb=gigabytes(subject.model, 32 + 2 * 16 * 32))
    assert answers(engine, requests) == answers(subject.start(128), requests)
    assert counter.passes[: 1 + 19 + 19] == [64] + [32] * 19 + [16] * 19  # the prompt, 32 rows, then the other 8
    counter.handle.remove()


def test_an_answer_that_does_not_fit_is_sampled_alone(subject):
    requests = [request(30, 3, max_new_tokens=5, stop_tokens=()), request(9, 1, max_new_tokens=5, stop_tokens=())]
    counter = Counter(subject.model)
    engine = TorchEngine(subject.model, subject.tokenizer, kv_gb=gigabytes(subject.model, 1))
    assert answers(engine, requests) == answers(subject.start(128), requests)
    assert counter.passes[: 2 + 4 * 4].count(16) == 4 * 4  # one bucket of rows, for one answer at a time
    counter.handle.remove()


@pytest.mark.parametrize("seed", range(4))
def test_memory_for_keys_and_values_stays_within_its_limit(subject, seed, monkeypatch):
    """Many prompts and answers of all lengths: what all stores hold never exceeds what was allowed."""
    rng = np.random.default_rng(seed)
    requests = [
        replace(
            request(int(length), int(rng.integers(1, 9)), max_new_tokens=int(rng.integers(1, 40))), problem_key=str(i)
        )
        for i, length in enumerate(rng.integers(1, 90, 12))
    ]
    allowed = 2500
    sizes = []
    decode_step = KvCache.decode_step

    def watched(cache):
        stream = decode_step(cache)
        stores = (cache._own, cache._prompts)
        sizes.append(sum(array.nbytes for store in stores for array in (*store.keys, *store.values)))
        return stream

    monkeypatch.setattr(KvCache, "decode_step", watched)
    engine = TorchEngine(subject.model, subject.tokenizer, kv_gb=gigabytes(subject.model, allowed))
    generate(engine, requests)
    assert allowed // 2 * token_bytes(subject.model) < max(sizes) <= allowed * token_bytes(subject.model)


# --------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("make", [tiny_llama, fused_llama])
def test_changed_weights_count_at_once_and_carry_their_version(make):
    subject = subject_of(make)
    engine = subject.start(8)
    before = answers(engine, [request(9, 3)])
    with torch.no_grad():
        for parameter in subject.model.parameters():
            parameter.mul_(1.3)
    engine.load_weights(1)
    after = generate(engine, [request(9, 3)])
    assert {name: answer(rollout) for name, rollout in after.items()} != before
    check_agreement(subject, list(after.values()))
    assert {int(v) for rollout in after.values() for v in rollout.graph.segments[1].policy_version} == {1}


def test_a_token_carries_the_version_that_drew_it_also_when_weights_change_under_it(subject):
    engine = subject.start(2)
    engine.load_weights(3)
    short, long = request(5, 1, max_new_tokens=2, stop_tokens=()), request(6, 1, max_new_tokens=5, stop_tokens=())
    rollouts = engine.generate([short, long])
    assert next(rollouts).graph.segments[1].policy_version.tolist() == [3, 3]
    engine.load_weights(4)
    assert next(rollouts).graph.segments[1].policy_version.tolist() == [3, 3, 4, 4, 4]


@pytest.mark.parametrize("make", [tiny_llama, fused_llama])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_change_under_an_answer_count_from_its_next_token_on(make, dtype):
    subject = subject_of(lambda: make().to(dtype))
    short, long = request(5, 1, max_new_tokens=2, stop_tokens=()), request(6, 1, max_new_tokens=5, stop_tokens=())

    def logprobs(change: bool):
        rollouts = subject.start(2).generate([short, long])
        next(rollouts)
        if change:
            with torch.no_grad():
                for parameter in subject.model.parameters():
                    parameter.mul_(1.3)
        return next(rollouts).graph.segments[1].engine_logprob

    before, after = logprobs(False), logprobs(True)
    assert (before[:2] == after[:2]).all()
    assert abs(before[2] - after[2]) > 1e-3


def test_an_engine_that_rested_goes_on_as_before():
    subject = subject_of(lambda: fused_llama().to(torch.bfloat16))
    engine = subject.start(4)
    before = answers(engine, [request(9, 3)])
    engine.rest()
    assert answers(engine, [request(9, 3)]) == before
    rollouts = engine.generate([request(9, 3)])
    first = next(rollouts)
    engine.rest()  # in the middle of answers
    assert {(found.problem_key, found.sample): answer(found) for found in (first, *rollouts)} == before


def test_weights_that_are_not_finite_are_one_clear_error(subject):
    with torch.no_grad():
        subject.model.get_output_embeddings().weight[7] = torch.nan
    engine = subject.start(4)
    engine.load_weights(12)
    with pytest.raises(EngineError, match=r"version 12: found values that are not finite(?s:.*)fix: model\.dtype"):
        list(engine.generate([request(9)]))


# ------------------------------------------------------------------------------------------------------- precision


def test_in_bfloat16_engine_and_trainer_agree_to_rounding():
    subject = subject_of(lambda: tiny_llama(dtype=torch.bfloat16))
    gaps = [
        np.abs(rollout.graph.segments[1].engine_logprob - trainer_logprobs(subject.model, rollout, 1.0))
        for rollout in generate(subject.start(7), [request(20, 20), request(9, 5)]).values()
    ]
    assert np.concatenate(gaps).mean() < 0.02  # bfloat16 keeps 8 bits: logits of order 4 are off by up to 0.016
    assert np.concatenate(gaps).max() < 0.1


# ----------------------------------------------------------------------------------- stop strings of many-byte letters


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def parrot(script: list[int], vocabulary: int):
    """A model that always says `script`, whose tokens all differ: after each token the next one is near certain."""
    model = tiny_llama(vocab_size=vocabulary, hidden=vocabulary, heads=2, kv_heads=1)
    model.set_attn_implementation(NAME)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(vocabulary))
        model.lm_head.weight.zero_()
        model.lm_head.weight[script[1:], script[:-1]] = 100.0
    return model


def test_a_stop_string_of_letters_of_many_bytes_is_found():
    tokenizer = byte_tokenizer()
    text = "né€Ж😀x!"  # every byte once; the stop string has 4 letters in 11 bytes
    script = tokenizer(text)["input_ids"]
    assert len(script) == 14 == len(set(script))
    engine = TorchEngine(parrot(script, 256), tokenizer, max_rows=4)
    for string, length in [("é€Ж😀", 11), ("é", 2), ("😀x", 12), ("né", 13)]:  # the answer begins after the n
        sampling = Sampling(max_new_tokens=13, stop_strings=(string,))
        (rollout,) = engine.generate([Request("p", (script[0],), 1, sampling, seed=0, step=0)])
        assert answer(rollout) == script[1 : length + 1]
        assert rollout.stop is (StopReason.LENGTH if length == 13 else StopReason.STOP_STRING)
