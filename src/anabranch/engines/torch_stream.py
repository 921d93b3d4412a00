"""Answers in flight in the in-process engine: admitted, decoded together, held, resumed, given up.

Letters: R rows (answers that are being decoded), D hidden size, H key-value heads, T tokens.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anabranch.engines.base import InFlight
from anabranch.engines.draw import draw
from anabranch.engines.kv_cache import ROW_BUCKET, KvCache, Stored, stored_tokens
from anabranch.engines.rows import Row
from anabranch.engines.runtime import Runtime
from anabranch.engines.stored import request_from_json, request_to_json
from anabranch.errors import EngineError, explain
from anabranch.modeling.attention import CapturingNeighbourhood, hidden_states
from anabranch.modeling.decoding import DecodeWeights
from anabranch.modeling.forward import run_row
from anabranch.modeling.load import context_length
from anabranch.records import Name, Request, Rollout, Sampling, Segment, StopReason, StreamGraph
from anabranch.structure.layout import concatenate, lay_out

_PREFILL_TOKENS = 1024
"""Prompts are prefilled in packed rows of about this many tokens."""

_ADMIT_SHARE = 0.25
"""Answers are admitted when they make up this share of all then in flight: prompts are cheaper computed together."""

_HEAD_ROWS = 128
"""Rows whose logits exist at the same time: more of them leave the cache of a CPU, and gain nothing elsewhere."""


class TorchStream:
    """See `engines.base.Stream`.

    Args:
        runtime: model and weights.
        max_rows: most answers in flight, held ones among them.
        max_tokens: room for keys and values, in tokens.
        recompute: see `Engine.open`.
    """

    def __init__(self, runtime: Runtime, *, max_rows: int, max_tokens: int, recompute: bool) -> None:
        self._runtime = runtime
        self._max_rows, self._max_tokens = max_rows, max_tokens
        self._recompute = recompute
        self._loads = runtime.loads
        self._requests: dict[int, Request] = {}
        self._unfinished: dict[int, int] = {}
        """Answers of each request that wait, are decoded or are held."""
        self._next = 0
        self._waiting: deque[Row] = deque()
        self._rows: list[Row] = []
        """In the order of the cache's rows."""
        self._held: dict[Name, tuple[Row, Stored | None]] = {}
        """With what is stored of them: nothing, if the model read none of their tokens yet."""
        self._names: set[Name] = set()
        self._hidden: dict[int, Tensor] = {}
        """Hidden state [D] at the end of every prompt in the cache."""
        self._cache = self._new_cache()

    def _new_cache(self) -> KvCache:
        model = self._runtime.model
        return KvCache(layers=model.config.num_hidden_layers, dtype=model.dtype, device=model.device)

    # ------------------------------------------------------------------------------------------------ coming and going

    def submit(self, request: Request) -> None:
        """See `Stream.submit`."""
        self._check(request)
        number, self._next = self._next, self._next + 1
        rows = [Row(number, request, request.first_sample + sample) for sample in range(request.num_samples)]
        twice = {row.name for row in rows} & self._names
        if twice:
            raise ValueError(f"{min(twice, key=str)} is in flight already")
        self._requests[number], self._unfinished[number] = request, len(rows)
        self._names |= {row.name for row in rows}
        self._waiting.extend(rows)

    def _check(self, request: Request) -> None:
        where = f"request for problem {request.problem_key}"
        prompt, new = len(request.prompt_tokens), request.sampling.max_new_tokens
        if min(request.num_samples, prompt, new) < 1:
            found = f"{request.num_samples} samples of {new} new tokens to a prompt of {prompt}"
            raise EngineError(explain(where, found, "at least one of each is needed", "drop the request"))
        limit = context_length(self._runtime.model)
        if prompt + new > limit:
            found = f"a prompt of {prompt} tokens + {new} new ones"
            raise EngineError(
                explain(
                    where, found, f"the model's context is {limit}", "lower rollout.max_new_tokens or drop the problem"
                )
            )

    @property
    def ready(self) -> bool:
        """See `Stream.ready`."""
        return bool(self._rows) or (bool(self._waiting) and (not self._held or self._admissible() > 0))

    def go_on(self, name: Name, tokens: Sequence[int]) -> None:
        """See `Stream.go_on`."""
        row, own = self._held.pop(name)
        assert 0 < len(tokens) < row.request.sampling.max_new_tokens - len(row.tokens)
        row.observe(list(tokens))
        self._cache.add_row(row.group, own)
        self._rows.append(row)

    def drop(self, names: Collection[Name]) -> None:
        """See `Stream.drop`."""
        for name in names:
            if name in self._held:
                self._leave(self._held.pop(name)[0])
        for row in [row for row in self._waiting if row.name in names]:
            self._waiting.remove(row)
            self._leave(row)
        for position in reversed(range(len(self._rows))):
            if self._rows[position].name in names:
                self._leave(self._take(position))

    def _take(self, position: int) -> Row:
        """Take a row out of the batch; the last one takes its place."""
        row = self._rows[position]
        self._cache.remove_row(position)
        self._rows[position] = self._rows[-1]
        self._rows.pop()
        return row

    def _leave(self, row: Row) -> None:
        """An answer is over: with the last one of its request, the prompt goes."""
        self._names.remove(row.name)
        self._unfinished[row.group] -= 1
        if self._unfinished[row.group] == 0:
            del self._unfinished[row.group], self._requests[row.group]
            if self._hidden.pop(row.group, None) is not None:
                self._cache.remove_prompt(row.group)

    # ------------------------------------------------------------------------------------------------------- advancing

    def advance(self) -> list[Rollout]:
        """See `Stream.advance`."""
        decoder = self._runtime.decoder()  # weights may have changed since the last token
        if self._loads != self._runtime.loads:
            self._loads = self._runtime.loads
            if self._recompute:
                self._compute_anew()
        count = self._admissible() if self._waiting else 0
        if self._waiting and (
            not self._rows or count >= min(len(self._waiting), _ADMIT_SHARE * (len(self._rows) + count))
        ):
            drawn, hidden_RD = self._admit(max(1, count))
        else:
            drawn, hidden_RD = self._decode(decoder)
        self._draw([self._rows[position] for position in drawn], hidden_RD, decoder)
        return [found for position in reversed(drawn) if (found := self._stopped(position)) is not None]

    def _stopped(self, position: int) -> Rollout | None:
        """The rollout of a row that stopped, which leaves the batch."""
        row = self._rows[position]
        stop = row.stop(self._runtime.tokenizer)
        if stop is None:
            return None
        hold = row.request.hold and stop is not StopReason.LENGTH
        own = self._cache.copy_row(position) if hold and row.fed else None
        self._take(position)
        if hold:
            self._held[row.name] = row, own
        else:
            self._leave(row)
        return row.rollout(self._runtime.tokenizer, stop)

    def _admissible(self) -> int:
        """How many of those that wait may join those in flight."""
        there = [*self._rows, *(row for row, _ in self._held.values())]
        groups = {row.group for row in there}
        longest_prompt = max((len(self._requests[group].prompt_tokens) for group in groups), default=0)
        longest_answer = max((self._requests[group].sampling.max_new_tokens for group in groups), default=0)
        count = 0
        for row in self._waiting:
            groups.add(row.group)
            longest_prompt = max(longest_prompt, len(row.request.prompt_tokens))
            longest_answer = max(longest_answer, row.request.sampling.max_new_tokens)
            total = len(there) + count + 1
            if (
                total > self._max_rows
                or stored_tokens(len(groups), longest_prompt, total, longest_answer) > self._max_tokens
            ):
                break
            count += 1
        return count

    def _admit(self, count: int) -> tuple[list[int], Tensor]:
        """Take in the next `count`; returns the rows to draw for, and the hidden states [R, D] to draw from."""
        admitted = [self._waiting.popleft() for _ in range(count)]
        self._prefill(list(dict.fromkeys(row.group for row in admitted if row.group not in self._hidden)))
        first = len(self._rows)
        for row in admitted:
            self._cache.add_row(row.group)
        self._rows += admitted
        return list(range(first, first + count)), torch.stack([self._hidden[row.group] for row in admitted])

    def _prefill(self, groups: Sequence[int]) -> None:
        """Compute prompts that are not in the cache yet, several in a packed row, each once for all its answers."""
        together = {*self._cache.prompts, *groups}
        self._cache.expect(len(together), max(len(self._requests[group].prompt_tokens) for group in together))
        with self._runtime.timed("prefill"):
            for chunk in _chunks([(group, len(self._requests[group].prompt_tokens)) for group in groups]):
                graphs = [StreamGraph((Segment(np.array(self._requests[group].prompt_tokens)),)) for group in chunk]
                for group, (prompt, hidden_TD) in zip(chunk, self._read(graphs), strict=True):
                    self._cache.add_prompt(group, prompt)
                    self._hidden[group] = hidden_TD[-1].clone()

    @torch.no_grad()
    def _read(self, graphs: Sequence[StreamGraph]) -> list[tuple[Stored, Tensor]]:
        """Keys and values of each graph's tokens in text order, and their hidden states [T, D], of one packed row."""
        hidden_TD, stream = run_row(
            self._runtime.model, concatenate(list(map(lay_out, graphs))), CapturingNeighbourhood
        )
        assert isinstance(stream, CapturingNeighbourhood)
        found = []
        start = 0
        for graph in graphs:
            part = slice(start, start + graph.num_tokens)
            keys, values = ([array[:, part] for array in arrays] for arrays in (stream.keys_HTD, stream.values_HTD))
            found.append((Stored(keys, values), hidden_TD[part]))
            start = part.stop
        return found

    @torch.no_grad()
    def _decode(self, decoder: DecodeWeights | None) -> tuple[list[int], Tensor]:
        """Feed every row its next token.

        Returns:
            The rows that have read all of theirs, and their hidden states [R, D].
        """
        with self._runtime.timed("decode"):
            device = self._runtime.model.device
            surplus = [0] * (-len(self._rows) % ROW_BUCKET)
            tokens = [row.tokens[row.fed] for row in self._rows]
            positions = [len(row.request.prompt_tokens) + row.fed for row in self._rows]
            token_R = torch.tensor(tokens + surplus, device=device)
            position_R = torch.tensor(positions + surplus, device=device)
            stream = self._cache.decode_step()
            if decoder is not None:
                hidden_RD = decoder.step(token_R, position_R, stream)
            else:
                hidden_RD = hidden_states(self._runtime.model, token_R[:, None], position_R[:, None], stream)[:, 0]
        for row in self._rows:
            row.fed += 1
        drawn = [position for position, row in enumerate(self._rows) if row.fed == len(row.tokens)]
        return drawn, hidden_RD[: len(drawn)] if len(drawn) == len(self._rows) else hidden_RD[drawn]

    @torch.no_grad()
    def _draw(self, rows: Sequence[Row], hidden_RD: Tensor, decoder: DecodeWeights | None) -> None:
        """Append one token to each of `rows`; rows with equal settings are drawn together, `_HEAD_ROWS` at a time."""
        with self._runtime.timed("draw"):
            by_settings: dict[Sampling, list[int]] = {}
            for position, row in enumerate(rows):
                by_settings.setdefault(row.request.sampling, []).append(position)
            for sampling, positions in by_settings.items():
                for start in range(0, len(positions), _HEAD_ROWS):
                    some = positions[start : start + _HEAD_ROWS]
                    chosen = [rows[position] for position in some]
                    uniform_R = torch.tensor([row.uniform_T[len(row.tokens)] for row in chosen], dtype=torch.float64)
                    logits_RV = self._runtime.logits(hidden_RD[some], decoder)
                    token_R, logprob_R = draw(logits_RV, uniform_R.to(logits_RV.device), sampling)
                    for row, token, logprob in zip(chosen, token_R.tolist(), logprob_R.tolist(), strict=True):
                        if not math.isfinite(logprob):
                            raise _not_finite(row.request, self._runtime.version)
                        row.wrote(token, logprob, self._runtime.version)

    def _compute_anew(self) -> None:
        """All keys and values under the weights of now: prompts, rows and held answers, in their order."""
        prompts = self._cache.prompts
        lines = [*self._rows, *(row for row, _ in self._held.values())]
        own: dict[Name, Stored] = {}
        self._cache, self._hidden = self._new_cache(), {}
        if not prompts:
            return
        self._prefill(prompts)
        with self._runtime.timed("prefill"):
            sized = [(place, len(row.request.prompt_tokens) + row.fed) for place, row in enumerate(lines) if row.fed]
            for chunk in _chunks(sized):
                graphs = []
                for place in chunk:
                    row = lines[place]
                    read = Segment(np.array(row.tokens[: row.fed]), parents=(0,))
                    graphs.append(StreamGraph((Segment(np.array(row.request.prompt_tokens)), read)))
                for place, (both, _) in zip(chunk, self._read(graphs), strict=True):
                    length = len(lines[place].request.prompt_tokens)
                    parts = ([array[:, length:].clone() for array in arrays] for arrays in (both.keys, both.values))
                    own[lines[place].name] = Stored(*parts)
        for row in self._rows:
            self._cache.add_row(row.group, own.get(row.name))
        self._held = {name: (row, own.get(name)) for name, (row, _) in self._held.items()}

    # ---------------------------------------------------------------------------------------------------- stored, again

    def export(self) -> InFlight:
        """See `Stream.export`. Keys and values are left out if they are computed anew after new weights anyway."""
        stale = self._recompute and self._loads != self._runtime.loads
        state: dict[str, Any] = {
            "next": self._next,
            "requests": {str(number): request_to_json(request) for number, request in self._requests.items()},
            "unfinished": {str(number): count for number, count in self._unfinished.items()},
            "prompts": list(self._cache.prompts),
            "stale": stale,
            **{name: [row.to_json() for row in rows] for name, rows in self._lines().items()},
        }
        tensors: dict[str, Tensor] = {}
        if not stale:
            for group in self._cache.prompts:
                tensors[f"hidden.{group}"] = self._hidden[group]
                _add(tensors, f"prompt.{group}", self._cache.copy_prompt(group))
            for position, row in enumerate(self._rows):
                if row.fed:
                    _add(tensors, f"rows.{position}", self._cache.copy_row(position))
            for place, (_, own) in enumerate(self._held.values()):
                if own is not None:
                    _add(tensors, f"held.{place}", own)
        return InFlight(state, tensors)

    def _lines(self) -> dict[str, list[Row]]:
        return {"waiting": list(self._waiting), "rows": self._rows, "held": [row for row, _ in self._held.values()]}

    def restore(self, found: InFlight) -> None:
        """See `Stream.restore`."""
        assert not self._names
        state = found.state
        tensors = {name: tensor.to(self._runtime.model.device) for name, tensor in found.tensors.items()}
        self._next = state["next"]
        self._requests = {int(number): request_from_json(stored) for number, stored in state["requests"].items()}
        self._unfinished = {int(number): count for number, count in state["unfinished"].items()}
        lines = {name: self._rows_of(state[name]) for name in ("waiting", "rows", "held")}
        self._waiting, self._rows = deque(lines["waiting"]), lines["rows"]
        self._names = {row.name for rows in lines.values() for row in rows}
        if state["stale"]:
            self._held = {row.name: (row, None) for row in lines["held"]}
            if state["prompts"]:
                self._prefill(state["prompts"])  # a place in the cache; all is computed anew before the next token
                for row in self._rows:
                    self._cache.add_row(row.group)
            self._loads = self._runtime.loads - 1
            return
        for place, row in enumerate(lines["held"]):
            self._held[row.name] = row, _found(tensors, f"held.{place}") if row.fed else None
        if state["prompts"]:
            longest = max(len(self._requests[group].prompt_tokens) for group in state["prompts"])
            self._cache.expect(len(state["prompts"]), longest)
        for group in state["prompts"]:
            self._cache.add_prompt(group, _found(tensors, f"prompt.{group}"))
            self._hidden[group] = tensors[f"hidden.{group}"]
        for position, row in enumerate(self._rows):
            self._cache.add_row(row.group, _found(tensors, f"rows.{position}") if row.fed else None)
        self._loads = self._runtime.loads

    def _rows_of(self, stored: Sequence[Mapping[str, Any]]) -> list[Row]:
        return [Row.from_json(one, self._requests[one["group"]]) for one in stored]


def _chunks(sized: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Names in order, as many together as have `_PREFILL_TOKENS` tokens, and at least one: (name, tokens) each."""
    chunks: list[list[int]] = []
    room = 0
    for name, tokens in sized:
        if tokens > room:
            chunks.append([])
            room = _PREFILL_TOKENS
        chunks[-1].append(name)
        room -= tokens
    return chunks


def _add(tensors: dict[str, Tensor], name: str, stored: Stored) -> None:
    """Keys and values of all layers in one tensor, [2, layers, H, T, D]."""
    tensors[name] = torch.stack([torch.stack(list(stored.keys)), torch.stack(list(stored.values))])


def _found(tensors: Mapping[str, Tensor], name: str) -> Stored:
    """The inverse of `_add`."""
    keys, values = tensors[name]
    return Stored(list(keys), list(values))


def _not_finite(request: Request, version: int) -> EngineError:
    return EngineError(
        explain(
            f"logits of an answer to problem {request.problem_key}, weights of version {version}",
            "values that are not finite",
            "a token can only be drawn from finite ones",
            "model.dtype=float32; if that does not help, the weights are broken: go back to an earlier checkpoint",
        )
    )
