"""Keys and values of rollouts in flight, in two levels: prompts, shared by all their answers, and each answer's own.

A prompt's keys and values are stored once, however many answers it has, and all its answers meet them in one matrix
product; each answer meets its own tokens in another, and one softmax runs over both. Rows in use are always the first
ones, and so are prompts: one that ends is replaced by the last, so that a decode step works on dense arrays.

Letters: R rows (answers in flight), K prompts in flight, N rows of one prompt, P tokens of a prompt, T own tokens,
H key-value heads, G query heads a key-value head, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from anabranch.modeling.forward import round_up

ROW_BUCKET = 16
TOKEN_BUCKET = 32
"""Sizes are rounded up to these: CPU kernels are compiled for every shape, so few shapes must occur."""


def token_bytes(model: PreTrainedModel) -> int:
    """Memory that the keys and values of one token take in all layers."""
    config = model.config.get_text_config(decoder=True).to_dict()
    heads: int = config["num_attention_heads"]
    size: int = config.get("head_dim") or config["hidden_size"] // heads
    layers: int = config["num_hidden_layers"]
    return 2 * layers * (config.get("num_key_value_heads") or heads) * size * int(model.dtype.itemsize)


def stored_tokens(prompts: int, longest_prompt: int, rows: int, longest_answer: int) -> int:
    """Tokens of room in a cache of so many prompts and rows: each has the room of the longest of its kind."""
    return prompts * round_up(longest_prompt, TOKEN_BUCKET) + round_up(rows, ROW_BUCKET) * round_up(
        longest_answer, TOKEN_BUCKET
    )


@dataclass(frozen=True, eq=False)
class Stored:
    """Keys and values of one prompt, or of one answer's own tokens, outside the cache: [H, T, D] for every layer."""

    keys: Sequence[Tensor]
    values: Sequence[Tensor]

    def __len__(self) -> int:
        """T."""
        return self.keys[0].shape[1]


class _Store:
    """Keys and values of every layer, [items, H, tokens, D]."""

    def __init__(self, layers: int, dtype: torch.dtype, device: torch.device) -> None:
        self._layers = layers
        self._dtype, self._device = dtype, device
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def reserve(self, items: int, tokens: int, heads: int, size: int) -> None:
        """Make room where there is too little; what is stored stays where it is."""
        if not self.keys:
            shape = (items, heads, tokens, size)
            for arrays in (self.keys, self.values):
                arrays.extend(torch.zeros(shape, dtype=self._dtype, device=self._device) for _ in range(self._layers))
        have = self.keys[0].shape
        self._resize(max(items, have[0]), max(tokens, have[2]))

    def fit(self, items: int, tokens: int) -> None:
        """Give back the room beyond so many items and tokens."""
        if self.keys:
            have = self.keys[0].shape
            self._resize(min(items, have[0]), min(tokens, have[2]))

    def _resize(self, items: int, tokens: int) -> None:
        have = self.keys[0].shape
        more = (0, 0, 0, tokens - have[2], 0, 0, 0, items - have[0])
        if any(more):
            for arrays in (self.keys, self.values):
                for layer in range(self._layers):  # one layer at a time: never two copies of the whole store
                    arrays[layer] = torch.nn.functional.pad(arrays[layer], more)

    def copy(self, item: int, tokens: int) -> Stored:
        """The first so many tokens of an item."""
        parts = [[array[item, :, :tokens].clone() for array in arrays] for arrays in (self.keys, self.values)]
        return Stored(*parts)

    def put(self, item: int, stored: Stored) -> None:
        """The inverse of `copy`; there is room."""
        for arrays, parts in ((self.keys, stored.keys), (self.values, stored.values)):
            for array, part in zip(arrays, parts, strict=True):
                array[item, :, : part.shape[1]] = part

    def move(self, source: int, target: int) -> None:
        """Overwrite item `target` with item `source`."""
        for array in (*self.keys, *self.values):
            array[target] = array[source]


class KvCache:
    """What a decode step needs to know about the past of every row."""

    def __init__(self, *, layers: int, dtype: torch.dtype, device: torch.device) -> None:
        self._device = device
        self._own = _Store(layers, dtype, device)
        self._prompts = _Store(layers, dtype, device)
        self._prompt_ids: list[int] = []  # slot -> id
        self._prompt_lengths: list[int] = []
        self._row_prompts: list[int] = []  # row -> prompt id
        self._row_lengths: list[int] = []  # row -> own tokens
        self._expected = 0, 0
        self._stale = True

    @property
    def num_rows(self) -> int:
        """Rows in use."""
        return len(self._row_prompts)

    @property
    def prompts(self) -> Sequence[int]:
        """Ids of the stored prompts."""
        return tuple(self._prompt_ids)

    def expect(self, prompts: int, longest: int) -> None:
        """Say how many prompts will be stored together, and the tokens of the longest.

        Room for them is made at once, and given back is what neither they nor the rows in use need.
        """
        self._expected = prompts, round_up(longest, TOKEN_BUCKET)
        self._prompts.fit(*self._expected)
        self._own.fit(round_up(self.num_rows, ROW_BUCKET), round_up(max(self._row_lengths, default=1), TOKEN_BUCKET))

    def add_prompt(self, prompt: int, stored: Stored) -> None:
        """Store a prompt under an id."""
        slot = len(self._prompt_ids)
        heads, length, size = stored.keys[0].shape
        count, tokens = self._expected
        self._prompts.reserve(max(slot + 1, count), max(round_up(length, TOKEN_BUCKET), tokens), heads, size)
        self._prompts.put(slot, stored)
        self._prompt_ids.append(prompt)
        self._prompt_lengths.append(length)
        self._stale = True

    def copy_prompt(self, prompt: int) -> Stored:
        """What is stored of a prompt."""
        slot = self._prompt_ids.index(prompt)
        return self._prompts.copy(slot, self._prompt_lengths[slot])

    def remove_prompt(self, prompt: int) -> None:
        """Forget a prompt that no row refers to any more."""
        assert prompt not in self._row_prompts
        slot, last = self._prompt_ids.index(prompt), len(self._prompt_ids) - 1
        if slot != last:
            self._prompts.move(last, slot)
        for values in (self._prompt_ids, self._prompt_lengths):
            values[slot] = values[last]
            values.pop()
        self._stale = True

    def add_row(self, prompt: int, own: Stored | None = None) -> None:
        """Start an answer to a stored prompt, or go on with one that was copied; it becomes the last row."""
        assert prompt in self._prompt_ids
        if own is not None:
            heads, length, size = own.keys[0].shape
            rows = round_up(self.num_rows + 1, ROW_BUCKET)
            self._own.reserve(rows, round_up(length + 1, TOKEN_BUCKET), heads, size)
            self._own.put(self.num_rows, own)
        self._row_prompts.append(prompt)
        self._row_lengths.append(0 if own is None else len(own))
        self._stale = True

    def copy_row(self, row: int) -> Stored:
        """What is stored of an answer's own tokens: at least one."""
        return self._own.copy(row, self._row_lengths[row])

    def remove_row(self, row: int) -> None:
        """End a row; the last row takes its place."""
        last = self.num_rows - 1
        if row != last and self._row_lengths[last]:  # a row without tokens may have no room yet
            self._own.move(last, row)
        for values in (self._row_prompts, self._row_lengths):
            values[row] = values[last]
            values.pop()
        self._stale = True

    def decode_step(self) -> DecodeNeighbourhood:
        """The neighbourhood for one more token of every row; it stores that token's keys and values as it goes.

        Its R is `num_rows` rounded up to `ROW_BUCKET`; what the rows beyond compute means nothing.
        """
        rows = round_up(self.num_rows, ROW_BUCKET)
        tokens = round_up(max(self._row_lengths) + 1, TOKEN_BUCKET)
        _, heads, _, size = self._prompts.keys[0].shape
        self._own.reserve(rows, tokens, heads, size)
        if self._stale:
            self._arrange(rows)
            self._stale = False
        own_length_R = torch.tensor([*self._row_lengths, *[0] * (rows - self.num_rows)], device=self._device)
        beyond_RT = torch.arange(tokens, device=self._device) > own_length_R[:, None]  # the new token sees itself
        self._row_lengths = [length + 1 for length in self._row_lengths]
        dtype = self._own.keys[0].dtype
        hidden_RN = torch.cat([self._beyond_prompt_RP, beyond_RT], 1)
        bias_RN = torch.zeros(hidden_RN.shape, dtype=dtype, device=self._device).masked_fill_(hidden_RN, float("-inf"))
        return DecodeNeighbourhood(
            own_keys=[key[:rows, :, :tokens] for key in self._own.keys],
            own_values=[value[:rows, :, :tokens] for value in self._own.values],
            own_length_R=own_length_R,
            prompt_keys=[key[: len(self._prompt_ids), :, : self._longest] for key in self._prompts.keys],
            prompt_values=[value[: len(self._prompt_ids), :, : self._longest] for value in self._prompts.values],
            bias_RN=bias_RN,
            gather_KN=self._gather_KN,
            scatter_R=self._scatter_R,
        )

    def _arrange(self, rows: int) -> None:
        """Group the rows by prompt: `gather_KN` names the rows of each prompt, `scatter_R` where each row went."""
        slots = {prompt: slot for slot, prompt in enumerate(self._prompt_ids)}
        members: list[list[int]] = [[] for _ in slots]
        slot_R = torch.zeros(rows, dtype=torch.int64)  # rows beyond the last read anything; nobody reads them
        for row, prompt in enumerate(self._row_prompts):
            members[slots[prompt]].append(row)
            slot_R[row] = slots[prompt]
        widest = max(len(group) for group in members)
        gather_KN = torch.zeros(len(members), widest, dtype=torch.int64)
        scatter_R = torch.zeros(rows, dtype=torch.int64)
        for slot, group in enumerate(members):
            gather_KN[slot, : len(group)] = torch.tensor(group, dtype=torch.int64)
            scatter_R[group] = torch.arange(len(group)) + slot * widest
        self._gather_KN = gather_KN.to(self._device)
        self._scatter_R = scatter_R.to(self._device)
        length_K = torch.tensor(self._prompt_lengths)
        self._longest = round_up(int(length_K.max()), TOKEN_BUCKET)
        self._beyond_prompt_RP = (torch.arange(self._longest) >= length_K[slot_R, None]).to(self._device)


class DecodeNeighbourhood:
    """One new token a row: it sees its prompt, the row's earlier tokens and itself."""

    def __init__(
        self,
        *,
        own_keys: list[Tensor],
        own_values: list[Tensor],
        own_length_R: Tensor,
        prompt_keys: list[Tensor],
        prompt_values: list[Tensor],
        bias_RN: Tensor,
        gather_KN: Tensor,
        scatter_R: Tensor,
    ) -> None:
        self._own_keys, self._own_values, self._own_length_R = own_keys, own_values, own_length_R
        self._prompt_keys, self._prompt_values = prompt_keys, prompt_values
        self._bias = bias_RN[:, None, None]
        self._gather_KN, self._scatter_R = gather_KN, scatter_R
        R = len(own_length_R)
        # Rows that stand prompt by prompt already, as when all answers start together, need not be moved.
        self._in_order = gather_KN.numel() == R and torch.equal(scatter_R, torch.arange(R, device=scatter_R.device))
        self._row_R = torch.arange(len(own_length_R), device=own_length_R.device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `Neighbourhood.attend`: B is R rows, T is 1."""
        R, H, _, D = key.shape
        G = query.shape[1] // H
        own_keys, own_values = self._own_keys[layer], self._own_values[layer]
        own_keys[self._row_R, :, self._own_length_R] = key[:, :, 0]
        own_values[self._row_R, :, self._own_length_R] = value[:, :, 0]
        query_RHGD = query.view(R, H, G, D)
        prompt_keys, prompt_values = self._prompt_keys[layer], self._prompt_values[layer]
        prompt_length = prompt_keys.shape[2]
        score = query.new_empty(R, H, G, self._bias.shape[-1])
        score[..., :prompt_length] = self._to_rows(
            torch.matmul(self._to_prompts(query_RHGD), prompt_keys.transpose(-1, -2)), G
        )
        score[..., prompt_length:] = torch.matmul(query_RHGD, own_keys.transpose(-1, -2))
        weight = torch.softmax(torch.add(self._bias, score, alpha=scale), dim=-1)
        attended = torch.matmul(weight[..., prompt_length:], own_values)
        attended += self._to_rows(torch.matmul(self._to_prompts(weight[..., :prompt_length]), prompt_values), G)
        return attended.view(R, H * G, 1, D)

    def _to_prompts(self, value_RHGX: Tensor) -> Tensor:
        """What belongs to the rows of a prompt below each other: [K, H, N * G, X]."""
        _, H, G, X = value_RHGX.shape
        K, N = self._gather_KN.shape
        value_KNHGX = value_RHGX.view(K, N, H, G, X) if self._in_order else value_RHGX[self._gather_KN]
        return value_KNHGX.transpose(1, 2).reshape(K, H, N * G, X)

    def _to_rows(self, value_KHMX: Tensor, G: int) -> Tensor:
        """The way back: [R, H, G, X]."""
        K, H, M, X = value_KHMX.shape
        value_RHGX = value_KHMX.view(K, H, M // G, G, X).transpose(1, 2).reshape(-1, H, G, X)
        return value_RHGX if self._in_order else value_RHGX[self._scatter_R]
