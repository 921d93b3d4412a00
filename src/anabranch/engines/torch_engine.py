"""The in-process engine: continuous batching over one model that the trainer shares.

    waiting samples --admit--> rows: prompts prefilled once, first tokens drawn
    rows --decode--> one token each --draw--> finished rows leave as rollouts, waiting samples take their place

The weights are the trainer's own tensors: nothing is copied or reloaded, `load_weights` only notes the version.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from anabranch.engines.draw import draw, uniforms
from anabranch.engines.kv_cache import ROW_BUCKET, KvCache, stored_tokens, token_bytes
from anabranch.errors import EngineError, explain
from anabranch.modeling.attention import CapturingNeighbourhood, hidden_states
from anabranch.modeling.decoding import DecodeWeights
from anabranch.modeling.forward import run_row
from anabranch.modeling.fused import is_fused
from anabranch.modeling.load import context_length
from anabranch.records import Request, Rollout, Sampling, Segment, StopReason, StreamGraph
from anabranch.structure.layout import concatenate, lay_out

_PREFILL_TOKENS = 1024
"""Prompts are prefilled in packed rows of about this many tokens."""

_ADMIT_SHARE = 0.25
"""Answers are admitted when they make up this share of all then in flight: prompts are cheaper computed together."""

_HEAD_ROWS = 128
"""Rows whose logits exist at the same time: more of them leave the cache of a CPU, and gain nothing elsewhere."""


@dataclass
class _Row:
    """One answer in flight."""

    request: int
    sample: int
    uniform_T: NDArray[np.float64]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)


class TorchEngine:
    """See `engines.base.Engine`.

    Args:
        model: loaded with `attn_implementation=modeling.attention.NAME`; shared with the trainer.
        tokenizer: decodes answers.
        max_rows: most answers decoded at the same time.
        kv_gb: GB for keys and values of what is in flight. An answer is admitted if it is sure to fit with all of its
            new tokens, or if nothing else is in flight.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_rows: int = 512, kv_gb: float = 2.0
    ) -> None:
        self._model = model
        self._head = model.get_output_embeddings()
        self._tokenizer = tokenizer
        self._max_rows = max_rows
        self._max_tokens = int(kv_gb * 2**30) // token_bytes(model)
        self._decoder: DecodeWeights | None = None
        self._decoder_stamp = -1
        self.load_weights(0)

    @property
    def times(self) -> dict[str, float]:
        """See `Engine.times`."""
        return dict(self._times)

    def load_weights(self, version: int) -> None:
        """Note the version of the weights, which are shared with the trainer; restarts `times`.

        Answers in flight go on with the new weights and keep the keys and values that they have.
        """
        self._version = version
        self._times = {"prefill": 0.0, "decode": 0.0, "draw": 0.0}

    def rest(self) -> None:
        """See `Engine.rest`: the weights that are laid out for decoding."""
        self._decoder = None

    def _decode_weights(self) -> DecodeWeights | None:
        """Weights laid out for decoding, made again if a parameter was written to; None if the model has none."""
        if not is_fused(self._model):
            return None
        stamp = sum(parameter._version for parameter in self._model.parameters())
        if self._decoder is None or stamp != self._decoder_stamp:
            self._decoder = None  # never two copies
            with self._timed("decode"):
                self._decoder, self._decoder_stamp = DecodeWeights(self._model), stamp
        return self._decoder

    def generate(self, requests: Sequence[Request]) -> Iterator[Rollout]:
        """See `Engine.generate`."""
        for request in requests:
            self._check(request)
        return self._run(requests)

    def _check(self, request: Request) -> None:
        where = f"request for problem {request.problem_key}"
        prompt, new = len(request.prompt_tokens), request.sampling.max_new_tokens
        if min(request.num_samples, prompt, new) < 1:
            found = f"{request.num_samples} samples of {new} new tokens to a prompt of {prompt}"
            raise EngineError(explain(where, found, "at least one of each is needed", "drop the request"))
        limit = context_length(self._model)
        if prompt + new > limit:
            found = f"a prompt of {prompt} tokens + {new} new ones"
            raise EngineError(
                explain(
                    where, found, f"the model's context is {limit}", "lower rollout.max_new_tokens or drop the problem"
                )
            )

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._times[phase] += time.perf_counter() - start

    def _run(self, requests: Sequence[Request]) -> Iterator[Rollout]:
        waiting = [(index, sample) for index, request in enumerate(requests) for sample in range(request.num_samples)]
        waiting.reverse()  # the next one is at the end
        unfinished = [request.num_samples for request in requests]
        cache = KvCache(
            layers=self._model.config.num_hidden_layers,
            dtype=self._model.dtype,
            device=self._model.device,
        )
        prompt_hidden: dict[int, Tensor] = {}
        rows: list[_Row] = []
        while waiting or rows:
            decoder = self._decode_weights()  # weights may have changed since the last token
            count = self._admissible(requests, waiting, [row.request for row in rows])
            if waiting and (not rows or count >= min(len(waiting), _ADMIT_SHARE * (len(rows) + count))):
                admitted = [waiting.pop() for _ in range(max(1, count))]
                self._prefill(requests, admitted, prompt_hidden, cache)
                hidden = torch.stack([prompt_hidden[index] for index, _ in admitted])
                drawn = [_start(requests[index], index, sample) for index, sample in admitted]
                for row in drawn:
                    cache.add_row(row.request)
                rows.extend(drawn)
            else:
                hidden = self._decode(requests, rows, cache, decoder)[: len(rows)]
                drawn = rows
            self._draw(requests, drawn, hidden, decoder)
            for position in range(len(rows) - 1, len(rows) - len(drawn) - 1, -1):  # the drawn rows are the last ones
                row = rows[position]
                stop = self._stop(requests[row.request], row)
                if stop is None:
                    continue
                cache.remove_row(position)
                rows[position] = rows[-1]
                rows.pop()
                unfinished[row.request] -= 1
                if unfinished[row.request] == 0:
                    cache.remove_prompt(row.request)
                    del prompt_hidden[row.request]
                yield self._finish(requests[row.request], row, stop)

    def _admissible(self, requests: Sequence[Request], waiting: Sequence[tuple[int, int]], rows: Sequence[int]) -> int:
        """How many of those that wait, the next one last, may join `rows` (their requests' indices)."""
        prompts = set(rows)
        longest_prompt = max((len(requests[index].prompt_tokens) for index in prompts), default=0)
        longest_answer = max((requests[index].sampling.max_new_tokens for index in prompts), default=0)
        count = 0
        for index, _ in reversed(waiting):
            prompts.add(index)
            longest_prompt = max(longest_prompt, len(requests[index].prompt_tokens))
            longest_answer = max(longest_answer, requests[index].sampling.max_new_tokens)
            total = len(rows) + count + 1
            if (
                total > self._max_rows
                or stored_tokens(len(prompts), longest_prompt, total, longest_answer) > self._max_tokens
            ):
                break
            count += 1
        return count

    @torch.no_grad()
    def _prefill(
        self,
        requests: Sequence[Request],
        admitted: Sequence[tuple[int, int]],
        prompt_hidden: dict[int, Tensor],
        cache: KvCache,
    ) -> None:
        """Compute the prompts that are not in the cache yet, several in a packed row, each once for all its answers."""
        new = list(dict.fromkeys(index for index, _ in admitted if index not in prompt_hidden))
        together = {*cache.prompts, *new}
        cache.expect(len(together), max(len(requests[index].prompt_tokens) for index in together))
        with self._timed("prefill"):
            while new:
                chunk = [new.pop(0)]
                total = len(requests[chunk[0]].prompt_tokens)
                while new and total + len(requests[new[0]].prompt_tokens) <= _PREFILL_TOKENS:
                    total += len(requests[new[0]].prompt_tokens)
                    chunk.append(new.pop(0))
                layout = concatenate(
                    [lay_out(StreamGraph((Segment(np.array(requests[i].prompt_tokens)),))) for i in chunk]
                )
                hidden_TD, stream = run_row(self._model, layout, CapturingNeighbourhood)
                assert isinstance(stream, CapturingNeighbourhood)
                start = 0
                for index in chunk:
                    stop = start + len(requests[index].prompt_tokens)
                    cache.add_prompt(
                        index,
                        [key[:, start:stop] for key in stream.keys_HTD],
                        [value[:, start:stop] for value in stream.values_HTD],
                    )
                    prompt_hidden[index] = hidden_TD[stop - 1].clone()
                    start = stop

    @torch.no_grad()
    def _decode(
        self, requests: Sequence[Request], rows: Sequence[_Row], cache: KvCache, decoder: DecodeWeights | None
    ) -> Tensor:
        """Feed every row its last token; returns hidden states [R, D] (R rounded up, the surplus is meaningless)."""
        with self._timed("decode"):
            surplus = [0] * (-len(rows) % ROW_BUCKET)
            tokens = [row.tokens[-1] for row in rows]
            positions = [len(requests[row.request].prompt_tokens) + len(row.tokens) - 1 for row in rows]
            token_R = torch.tensor(tokens + surplus, device=self._model.device)
            position_R = torch.tensor(positions + surplus, device=self._model.device)
            stream = cache.decode_step()
            if decoder is not None:
                return decoder.step(token_R, position_R, stream)
            return hidden_states(self._model, token_R[:, None], position_R[:, None], stream)[:, 0]

    @torch.no_grad()
    def _draw(
        self, requests: Sequence[Request], rows: Sequence[_Row], hidden_RD: Tensor, decoder: DecodeWeights | None
    ) -> None:
        """Append one token to each of `rows`; rows with equal settings are drawn together, `_HEAD_ROWS` at a time."""
        head = self._head if decoder is None else decoder.logits
        with self._timed("draw"):
            by_settings: dict[Sampling, list[int]] = {}
            for position, row in enumerate(rows):
                by_settings.setdefault(requests[row.request].sampling, []).append(position)
            for sampling, positions in by_settings.items():
                for start in range(0, len(positions), _HEAD_ROWS):
                    some = positions[start : start + _HEAD_ROWS]
                    chosen = [rows[position] for position in some]
                    uniform_R = torch.tensor([row.uniform_T[len(row.tokens)] for row in chosen], dtype=torch.float64)
                    token_R, logprob_R = draw(head(hidden_RD[some]), uniform_R.to(self._model.device), sampling)
                    for row, token, logprob in zip(chosen, token_R.tolist(), logprob_R.tolist(), strict=True):
                        if not math.isfinite(logprob):
                            raise _not_finite(requests[row.request], self._version)
                        row.tokens.append(token)
                        row.logprobs.append(logprob)
                        row.versions.append(self._version)

    def _stop(self, request: Request, row: _Row) -> StopReason | None:
        sampling = request.sampling
        if row.tokens[-1] in sampling.stop_tokens:
            return StopReason.EOS
        if sampling.stop_strings:
            longest = max(len(text.encode()) for text in sampling.stop_strings)
            tail = self._tokenizer.decode(row.tokens[-(longest + 4) :])  # every token adds at least one byte
            if any(text in tail for text in sampling.stop_strings):
                return StopReason.STOP_STRING
        return StopReason.LENGTH if len(row.tokens) >= sampling.max_new_tokens else None

    def _finish(self, request: Request, row: _Row, stop: StopReason) -> Rollout:
        answer = Segment(
            tokens=np.array(row.tokens),
            parents=(0,),
            trained=np.ones(len(row.tokens), dtype=np.bool_),
            engine_logprob=np.array(row.logprobs),
            policy_version=np.array(row.versions),
        )
        return Rollout(
            problem_key=request.problem_key,
            sample=row.sample,
            graph=StreamGraph((Segment(np.array(request.prompt_tokens)), answer)),
            text=self._tokenizer.decode(row.tokens, skip_special_tokens=True),
            stop=stop,
        )


def _start(request: Request, index: int, sample: int) -> _Row:
    """An answer without tokens yet, and all the randomness that it will use."""
    number = request.first_sample + sample
    count = request.sampling.max_new_tokens
    return _Row(index, number, uniforms(request.seed, request.step, request.problem_key, number, count))


def _not_finite(request: Request, version: int) -> EngineError:
    return EngineError(
        explain(
            f"logits of an answer to problem {request.problem_key}, weights of version {version}",
            "values that are not finite",
            "a token can only be drawn from finite ones",
            "model.dtype=float32; if that does not help, the weights are broken: go back to an earlier checkpoint",
        )
    )
