"""One answer in flight, token by token, and the rollout that it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from anabranch.engines.draw import uniforms
from anabranch.records import UNSAMPLED, Name, Request, Rollout, Segment, StopReason, StreamGraph


@dataclass(eq=False)
class Row:
    """An answer that is being written. What the model did not write has version `UNSAMPLED` and log-prob NaN."""

    group: int
    """Which request of the stream it belongs to, and whose prompt it shares."""
    request: Request
    sample: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    fed: int = 0
    """How many of the tokens the model has read: their keys and values are stored."""
    turn: int = 0
    """Where its present turn begins."""
    uniform_T: NDArray[np.float64] = field(init=False)
    """All the randomness that it will use."""

    def __post_init__(self) -> None:
        request, count = self.request, self.request.sampling.max_new_tokens
        self.uniform_T = uniforms(request.seed, request.step, request.problem_key, self.sample, count)

    @property
    def name(self) -> Name:
        """Which rollout of the run it is."""
        return Name(self.request.problem_key, self.request.step, self.sample)

    def wrote(self, token: int, logprob: float, version: int) -> None:
        """The model drew a token."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.versions.append(version)

    def observe(self, tokens: list[int]) -> None:
        """Its environment said something; the next turn begins behind it."""
        self.tokens += tokens
        self.logprobs += [float("nan")] * len(tokens)
        self.versions += [UNSAMPLED] * len(tokens)
        self.turn = len(self.tokens)

    def stop(self, tokenizer: PreTrainedTokenizerBase) -> StopReason | None:
        """Why its present turn is over, if it is."""
        sampling = self.request.sampling
        if self.tokens[-1] in sampling.stop_tokens:
            return StopReason.EOS
        if sampling.stop_strings:
            longest = max(len(text.encode()) for text in sampling.stop_strings)
            start = max(self.turn, len(self.tokens) - longest - 4)  # every token adds at least one byte
            tail = tokenizer.decode(self.tokens[start:])
            if any(text in tail for text in sampling.stop_strings):
                return StopReason.STOP_STRING
        return StopReason.LENGTH if len(self.tokens) >= sampling.max_new_tokens else None

    def rollout(self, tokenizer: PreTrainedTokenizerBase, stop: StopReason) -> Rollout:
        """What it is so far: a chain of segments, what the model wrote and what was said to it in turn."""
        segments = [Segment(np.array(self.request.prompt_tokens))]
        written = []
        start = 0
        for observed, run in groupby(version == UNSAMPLED for version in self.versions):
            end = start + sum(1 for _ in run)
            tokens = self.tokens[start:end]
            segments.append(
                Segment(
                    tokens=np.array(tokens),
                    parents=(len(segments) - 1,),
                    trained=np.full(len(tokens), not observed),
                    engine_logprob=np.array(self.logprobs[start:end]),
                    policy_version=np.array(self.versions[start:end]),
                )
            )
            if not observed:
                written.append(tokenizer.decode(tokens, skip_special_tokens=True))
            start = end
        return Rollout(
            problem_key=self.request.problem_key,
            sample=self.sample,
            step=self.request.step,
            graph=StreamGraph(tuple(segments)),
            text="".join(written),
            transcript=tokenizer.decode(self.tokens, skip_special_tokens=True) if len(written) > 1 else None,
            turns=len(written),
            stop=stop,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, exact: a Python float survives JSON. The request is kept apart: others share it."""
        stored = {name: getattr(self, name) for name in ("group", "sample", "tokens", "versions", "fed", "turn")}
        return {**stored, "logprobs": [None if np.isnan(value) else value for value in self.logprobs]}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], request: Request) -> Row:
        """The inverse of `to_json`."""
        logprobs = [float("nan") if value is None else value for value in stored["logprobs"]]
        return cls(**{**stored, "request": request, "logprobs": logprobs})
