"""Whatever comes and goes, every row attends to its own prompt, its own tokens and itself: compared with a reference
that keeps the full keys and values of every row and computes plain softmax attention."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anabranch.engines.kv_cache import ROW_BUCKET, TOKEN_BUCKET, KvCache, Stored
from anabranch.modeling.forward import round_up

LAYERS, H, G, D = 2, 2, 3, 4
SCALE = 0.7
MAX_ROWS = 40


@dataclass
class Reference:
    """Keys and values of one row, [LAYERS, H, tokens, D] each."""

    prompt: int
    keys: Tensor
    values: Tensor

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """[H * G, D] -> [H * G, D], in float64."""
        keys, values = (array[layer].double().repeat_interleave(G, 0) for array in (self.keys, self.values))
        weight = torch.softmax(torch.einsum("hd,htd->ht", query.double() * SCALE, keys), -1)
        return torch.einsum("ht,htd->hd", weight, values)


class Pair:
    """A cache and its reference, driven together."""

    def __init__(self) -> None:
        self.cache = KvCache(layers=LAYERS, dtype=torch.float32, device=torch.device("cpu"))
        self.rng = torch.Generator().manual_seed(0)
        self.prompts: dict[int, tuple[Tensor, Tensor]] = {}
        self.rows: list[Reference] = []
        self.next_prompt = 0

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.rng) * 2

    def add_prompt(self, length: int) -> int:
        number, self.next_prompt = self.next_prompt, self.next_prompt + 1
        keys, values = self.random(LAYERS, H, length, D), self.random(LAYERS, H, length, D)
        self.cache.add_prompt(number, Stored(list(keys), list(values)))
        self.prompts[number] = (keys, values)
        return number

    def add_row(self, prompt: int) -> None:
        self.cache.add_row(prompt)
        self.rows.append(Reference(prompt, *self.prompts[prompt]))

    def remove_row(self, row: int) -> None:
        self.cache.remove_row(row)
        self.rows[row] = self.rows[-1]
        self.rows.pop()

    def remove_prompt(self, prompt: int) -> None:
        self.cache.remove_prompt(prompt)
        del self.prompts[prompt]

    def decode(self) -> None:
        """One token a row; raises if any layer of any row differs from plain attention."""
        assert self.cache.num_rows == len(self.rows)
        stream = self.cache.decode_step()
        R = round_up(len(self.rows), ROW_BUCKET)
        key, value = self.random(LAYERS, R, H, 1, D), self.random(LAYERS, R, H, 1, D)
        for number, row in enumerate(self.rows):
            row.keys = torch.cat([row.keys, key[:, number]], 2)
            row.values = torch.cat([row.values, value[:, number]], 2)
        for layer in range(LAYERS):
            query = self.random(R, H * G, 1, D)
            found = stream.attend(layer, query, key[layer], value[layer], SCALE)
            assert found.shape == (R, H * G, 1, D)
            expected = torch.stack([row.attend(layer, query[i, :, 0]) for i, row in enumerate(self.rows)])
            torch.testing.assert_close(found[: len(self.rows), :, 0].double(), expected, rtol=0, atol=2e-5)


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_any_sequence_of_events_leaves_plain_attention(data):
    pair = Pair()
    for _ in range(data.draw(st.integers(1, 25), "events")):
        unused = sorted(set(pair.prompts) - {row.prompt for row in pair.rows})
        possible = ["add_prompt", "expect"]
        possible += ["add_row"] * 2 if pair.prompts and len(pair.rows) < MAX_ROWS - 3 else []
        possible += ["remove_row", "decode", "decode"] if pair.rows else []
        possible += ["remove_prompt"] if unused else []
        match data.draw(st.sampled_from(possible)):
            case "add_prompt":
                pair.add_prompt(data.draw(st.integers(1, 2 * TOKEN_BUCKET + 1), "length"))
            case "expect":
                longest = max((keys.shape[2] for keys, _ in pair.prompts.values()), default=1)
                more, longer = data.draw(st.tuples(st.integers(0, 3), st.integers(0, TOKEN_BUCKET)), "expected")
                pair.cache.expect(len(pair.prompts) + more, longest + longer)
            case "add_row":
                prompt = data.draw(st.sampled_from(sorted(pair.prompts)), "prompt")
                for _ in range(data.draw(st.integers(1, 3), "answers")):
                    pair.add_row(prompt)
            case "remove_row":
                pair.remove_row(data.draw(st.integers(0, len(pair.rows) - 1), "row"))
            case "remove_prompt":
                pair.remove_prompt(data.draw(st.sampled_from(unused), "prompt"))
            case "decode":
                pair.decode()


def test_rows_grow_over_several_buckets_of_tokens():
    pair = Pair()
    pair.add_row(pair.add_prompt(5))
    for step in range(2 * TOKEN_BUCKET + 2):
        if step == TOKEN_BUCKET - 1:  # a younger row, shorter than the bucket, beside an older one
            pair.add_row(0)
        pair.decode()


def test_rows_grow_over_several_buckets_of_rows():
    pair = Pair()
    first, second = pair.add_prompt(3), pair.add_prompt(TOKEN_BUCKET + 1)
    for number in range(2 * ROW_BUCKET + 1):
        pair.add_row(first if number % 3 else second)
    pair.decode()
    for _ in range(ROW_BUCKET + 2):
        pair.remove_row(0)
    pair.decode()


def test_a_prompt_may_wait_without_a_row_while_others_decode():
    pair = Pair()
    waiting, busy = pair.add_prompt(3), pair.add_prompt(4)
    pair.add_row(waiting)
    pair.add_row(busy)
    pair.decode()
    pair.remove_row(0)
    pair.decode()
    pair.add_row(waiting)
    pair.decode()


def test_a_prompt_is_stored_once_for_all_its_rows():
    pair = Pair()
    prompt = pair.add_prompt(7)
    stored = [array.data_ptr() for array in pair.cache._prompts.keys]
    for _ in range(30):
        pair.add_row(prompt)
    pair.decode()
    assert [array.data_ptr() for array in pair.cache._prompts.keys] == stored
    assert pair.cache._prompts.keys[0].shape == (1, H, TOKEN_BUCKET, D)


def test_room_for_expected_prompts_is_made_once_and_given_back():
    pair = Pair()
    pair.cache.expect(100, 40)
    shapes = set()
    for _ in range(100):
        pair.add_prompt(3)
        shapes.add(tuple(pair.cache._prompts.keys[0].shape))
    assert shapes == {(100, H, 2 * TOKEN_BUCKET, D)}
    for prompt in range(1, 100):
        pair.remove_prompt(prompt)
    pair.cache.expect(1, 3)
    assert pair.cache._prompts.keys[0].shape == (1, H, TOKEN_BUCKET, D)


def test_a_prompt_that_rows_still_refer_to_cannot_be_removed():
    pair = Pair()
    pair.add_row(pair.add_prompt(3))
    with pytest.raises(AssertionError):
        pair.cache.remove_prompt(0)
