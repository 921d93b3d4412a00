"""What stream attention promises: who sees whom is what the graph says, in every branch, and nothing else is computed.

Numbers: checks A4 and A5 of the Parallel-R1 specification.
"""

import pytest
import torch
from torch import Tensor
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

from anabranch.errors import ModelError
from anabranch.modeling import attention as module
from anabranch.modeling.attention import (
    NAME,
    CapturingNeighbourhood,
    RowNeighbourhood,
    hidden_states,
)
from anabranch.modeling.forward import run_row
from anabranch.modeling.tiny import tiny_llama
from anabranch.records import Segment, StreamGraph
from anabranch.structure.layout import Layout, allowed, concatenate, lay_out
from tests.tiny_models import MODELS, streaming

CPU = torch.device("cpu")

# A1: q0 q1 m0 <Parallel> | <Path> a0 </Path> | <Path> b0 b1 </Path> | </Parallel> \n <Summary> s0 </Summary> m1
PREFIX, PATH_1, PATH_2, TAIL = [11, 12, 13, 50], [51, 14, 52], [51, 15, 16, 52], [53, 4, 54, 17, 55, 18]
SECOND, AFTER = slice(7, 11), slice(11, 17)  # rows of path 2, and of all that follows the paths


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=MODELS, ids=lambda make: make.__name__)
def model(request):
    return streaming(request.param())


def structured(path_1: list[int] = PATH_1) -> Layout:
    """Paths are siblings (Unseen)."""
    segments = Segment(PREFIX), Segment(path_1, (0,)), Segment(PATH_2, (0,)), Segment(TAIL, (1, 2))
    return lay_out(StreamGraph(segments))


def chain(path_1: list[int] = PATH_1) -> Layout:
    """Each path continues the one before it (Seen)."""
    segments = Segment(PREFIX), Segment(path_1, (0,)), Segment(PATH_2, (1,)), Segment(TAIL, (2,))
    return lay_out(StreamGraph(segments))


def logits(model, layout: Layout) -> Tensor:
    with torch.no_grad():
        return model.get_output_embeddings()(run_row(model, layout)[0][: len(layout)])


def plain_logits(model, tokens: list[int], positions: list[int] | None = None, cache: DynamicCache | None = None):
    """transformers' own forward pass; fills the cache."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        position_ids = None if positions is None else torch.tensor([positions])
        output = model(torch.tensor([tokens]), position_ids=position_ids, past_key_values=cache, use_cache=True)
    model.set_attn_implementation(NAME)
    return output.logits[0], output.past_key_values


def changed_path_1() -> list[list[int]]:
    return [[token + 1 if at == index else token for at, token in enumerate(PATH_1)] for index in range(len(PATH_1))]


# ----------------------------------------------------------------------------------------- A4 and A5


def test_A4_a_path_is_computed_as_if_the_other_were_not_there(model):
    alone, _ = plain_logits(model, PREFIX + PATH_2, list(range(8)))
    assert (logits(model, structured())[SECOND] - alone[4:]).abs().max() < 1e-5


def test_A4_a_change_in_a_path_shows_after_the_join_and_not_in_its_sibling(model):
    before = logits(model, structured())
    for path in changed_path_1():
        gap_T = (logits(model, structured(path)) - before).abs().amax(-1)
        assert gap_T[SECOND].max() < 1e-5
        assert gap_T[AFTER].min() > 1e-3


def test_A4_in_a_causal_chain_the_second_path_sees_the_first(model):
    before = logits(model, chain())
    for path in changed_path_1():
        assert (logits(model, chain(path)) - before).abs().amax(-1)[SECOND].min() > 1e-3


def test_A5_after_the_join_everything_is_as_with_the_keys_of_both_paths_side_by_side(model):
    _, first = plain_logits(model, PREFIX + PATH_1)
    _, second = plain_logits(model, PREFIX + PATH_2)
    joined = DynamicCache()
    for index, (one, other) in enumerate(zip(first.layers, second.layers, strict=True)):
        joined.update(
            torch.cat([one.keys, other.keys[:, :, 4:]], 2), torch.cat([one.values, other.values[:, :, 4:]], 2), index
        )
    after, _ = plain_logits(model, TAIL, list(range(8, 14)), joined)
    assert (logits(model, structured())[AFTER] - after).abs().max() < 1e-5


class Continuing:
    """Tokens behind keys and values that were computed separately."""

    def __init__(self, blocks: list[tuple[list[Tensor], list[Tensor]]]) -> None:
        self.blocks = blocks

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        G = query.shape[1] // key.shape[1]
        T = query.shape[2]
        own = torch.zeros(T, T).masked_fill_(~torch.ones(T, T).tril().bool(), float("-inf"))
        keys = torch.cat([*(keys[layer] for keys, _ in self.blocks), key[0]], 1).repeat_interleave(G, 0)
        values = torch.cat([*(values[layer] for _, values in self.blocks), value[0]], 1).repeat_interleave(G, 0)
        bias = torch.cat([torch.zeros(T, keys.shape[1] - T), own], 1)
        return (torch.softmax(query[0] @ keys.transpose(1, 2) * scale + bias, -1) @ values)[None]


def test_A5_keys_of_prefix_and_paths_computed_apart_give_the_same(model):
    def captured(tokens: list[int]) -> CapturingNeighbourhood:
        with torch.no_grad():
            return run_row(model, lay_out(StreamGraph((Segment(tokens),))), CapturingNeighbourhood)[1]

    first, second = captured(PREFIX + PATH_1), captured(PREFIX + PATH_2)
    blocks = [
        ([key[:, span] for key in stream.keys_HTD], [value[:, span] for value in stream.values_HTD])
        for stream, span in [(first, slice(4)), (first, slice(4, 7)), (second, slice(4, 8))]
    ]
    with torch.no_grad():
        hidden = hidden_states(model, torch.tensor([TAIL]), torch.tensor([range(8, 14)]), Continuing(blocks))[0]
        after = model.get_output_embeddings()(hidden)
    assert (logits(model, structured())[AFTER] - after).abs().max() < 1e-5


# ------------------------------------------------------------------------------------------- one row, every branch


def packed() -> Layout:
    """Two graphs: one with a join, one with three answers to a prompt. 17 + 9 tokens."""
    answers = (Segment([1, 2, 3]), Segment([4, 5], (0,)), Segment([6], (0,)), Segment([7, 8, 9], (0,)))
    return concatenate([structured(), lay_out(StreamGraph(answers))])


def inputs(dtype: torch.dtype, H: int, G: int, T: int, D: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return tuple(  # type: ignore[return-value]
        torch.randn(1, heads, T, D, generator=rng).to(dtype).requires_grad_() for heads in (H * G, H, H)
    )


def reference(query: Tensor, key: Tensor, value: Tensor, mask_TT: Tensor, scale: float) -> Tensor:
    """Masked attention in float64, word by word."""
    G = query.shape[1] // key.shape[1]
    query, key, value = query.double(), key.double().repeat_interleave(G, 1), value.double().repeat_interleave(G, 1)
    score = (query @ key.transpose(-1, -2) * scale).masked_fill(~mask_TT, float("-inf"))
    return torch.softmax(score, -1) @ value


class Dense(RowNeighbourhood):
    """What a device other than a CPU uses."""

    def __init__(self, layout: Layout, *, padded_to: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layout, padded_to=padded_to, dtype=dtype, device=device, in_blocks=False)


@pytest.fixture
def small_blocks(monkeypatch):
    """The rows of these tests in several blocks, cut in the middle of segments too."""
    monkeypatch.setattr(module, "QUERY_BLOCK", 5)
    monkeypatch.setattr(module, "KEY_BUCKET", 3)


@pytest.mark.parametrize("G", [1, 3])
@pytest.mark.parametrize("branch", ["blocks", "one block", "dense"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_every_branch_is_plain_masked_attention_in_value_and_gradient(G, branch, dtype, tolerance, request):
    if branch == "blocks":
        request.getfixturevalue("small_blocks")
    layout, T, scale = packed(), 32, 0.4
    stream = RowNeighbourhood(layout, padded_to=T, dtype=dtype, device=CPU, in_blocks=branch != "dense")
    mask_TT = torch.from_numpy(allowed(layout, T))
    given_ = inputs(dtype, 2, G, T)
    pull = torch.randn(1, 2 * G, T, 8, generator=torch.Generator().manual_seed(1))
    ours, theirs = stream.attend(0, *given_, scale), reference(*given_, mask_TT, scale)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)
    gradients = torch.autograd.grad((ours.float() * pull).sum(), given_)
    expected = torch.autograd.grad((theirs.float() * pull).sum(), given_)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=2 * tolerance, atol=3 * tolerance)


def test_a_cpu_takes_blocks_and_every_other_device_the_dense_mask():
    def largest(device: str) -> int:
        stream = RowNeighbourhood(lay_out(many), padded_to=640, dtype=torch.float32, device=torch.device(device))
        tensors = [value for value in vars(stream).values() if isinstance(value, Tensor)]
        return max([tensor.numel() for tensor in tensors + [batch.bias_BQN[0] for batch in stream._batches or []]])

    many = StreamGraph((Segment([1] * 100), *[Segment([2] * 10, (0,))] * 50))
    assert largest("cpu") == 60 * 160  # 6 answers over the prompt and themselves
    assert largest("meta") == 640 * 640


def test_both_branches_agree_on_a_whole_model(model, small_blocks):
    with torch.no_grad():
        blocks, dense = (run_row(model, packed(), kind)[0][:26] for kind in (RowNeighbourhood, Dense))
    torch.testing.assert_close(blocks, dense, rtol=0, atol=1e-5)


def test_both_branches_agree_on_a_whole_model_in_bfloat16(small_blocks):
    model = tiny_llama(dtype=torch.bfloat16)
    model.set_attn_implementation(NAME)
    with torch.no_grad():
        head = model.get_output_embeddings()
        blocks, dense = (
            head(run_row(model, packed(), kind)[0][:26]).float().log_softmax(-1) for kind in (RowNeighbourhood, Dense)
        )
    gap = (blocks - dense).abs()
    assert gap.mean() < 0.02  # bfloat16 keeps 8 bits
    assert gap.max() < 0.2


@pytest.mark.parametrize("in_blocks", [True, False])
def test_padding_changes_nothing(model, in_blocks, small_blocks):
    layout = packed()
    rows = []
    for padded_to in (26, 27, 64):
        stream = RowNeighbourhood(layout, padded_to=padded_to, dtype=torch.float32, device=CPU, in_blocks=in_blocks)
        tokens, positions = torch.zeros(2, 1, padded_to, dtype=torch.int64)
        tokens[0, :26], positions[0, :26] = torch.from_numpy(layout.tokens_T), torch.from_numpy(layout.positions_T)
        with torch.no_grad():
            rows.append(hidden_states(model, tokens, positions, stream)[0])
        assert torch.isfinite(rows[-1]).all()  # padding too: it sees itself
    for row in rows[1:]:
        torch.testing.assert_close(row[:26], rows[0], rtol=0, atol=1e-5)


def test_captured_keys_and_values_are_those_of_every_layer(model):
    layout = lay_out(StreamGraph((Segment(PREFIX + PATH_1),)))
    with torch.no_grad():
        _, stream = run_row(model, layout, CapturingNeighbourhood)
    _, cache = plain_logits(model, PREFIX + PATH_1)
    assert len(stream.keys_HTD) == len(stream.values_HTD) == len(cache.layers)
    for layer, key, value in zip(cache.layers, stream.keys_HTD, stream.values_HTD, strict=True):
        torch.testing.assert_close(key[:, :7], layer.keys[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(value[:, :7], layer.values[0], rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------ what a stream cannot honour

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def sliding_window():
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4))


def softcap():
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, layer_types=["full_attention"] * 2))


def attention_dropout():
    return LlamaForCausalLM(LlamaConfig(**SIZES, attention_dropout=0.1)).train()


def latent_attention():
    sizes = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
    return DeepseekV3ForCausalLM(DeepseekV3Config(**SIZES, **sizes, n_group=1, topk_group=1, first_k_dense_replace=2))


def stream_not_handed_on():
    return StableLmForCausalLM(StableLmConfig(**SIZES))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (sliding_window, "MistralAttention: found sliding_window=4"),
        (softcap, "Gemma2Attention: found `softcap`"),
        (attention_dropout, "attention dropout: found 0.1"),
        (latent_attention, r"keys of shape \(1, 2, 64, 8\) and values of shape \(1, 2, 64, 4\)"),
        (stream_not_handed_on, "StableLmAttention: found no stream"),
    ],
)
def test_a_model_that_wants_something_else_of_attention_is_refused(make, message):
    model = make()
    model.set_attn_implementation(NAME)
    with pytest.raises(ModelError, match=f"{message}(?s:.*)fix: "):
        run_row(model, structured())


def test_a_direct_call_of_a_model_is_refused_with_the_fix():
    model = tiny_llama()
    model.set_attn_implementation(NAME)
    with pytest.raises(ModelError, match=r"no stream(?s:.*)set_attn_implementation\('eager'\)"):
        model(torch.tensor([[1, 2]]))
