"""The few frozen records that cross the borders between stages. No torch here: records travel between processes.

    tasks --Problem--> sampling --Request--> engines --Rollout--> rewards --Score--> algo --credit--> batching

Token arrays are compact numpy arrays (int32, float32, bool), so that many thousand rollouts fit in memory. Arrays
inside a record are made read-only. Letters in names: T tokens, P tokens of a prompt, S segments.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.errors import GraphError, explain

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

UNSAMPLED = -1
"""`policy_version` of a token that no policy sampled (prompt, tool output, text written by the runtime)."""


class StopReason(StrEnum):
    """Why a rollout ended."""

    EOS = "eos"
    STOP_STRING = "stop_string"
    LENGTH = "length"
    DONE = "done"
    """Its environment ended it."""
    TURNS = "turns"
    """It had as many turns as it may have."""
    ENVIRONMENT_TIMEOUT = "environment_timeout"
    ENVIRONMENT_CRASH = "environment_crash"

    @property
    def failed(self) -> bool:
        """Whether it was not the model's doing: its environment hung or broke."""
        return self in (StopReason.ENVIRONMENT_TIMEOUT, StopReason.ENVIRONMENT_CRASH)


class Reason(StrEnum):
    """Reason code of a verdict. Only CORRECT means that the answer was accepted in full."""

    CORRECT = "correct"
    PARTIAL = "partial"
    """The task's own scorer gave a score strictly between 0 and 1."""
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    MALFORMED = "malformed"
    TIMEOUT = "timeout"
    CRASH = "crash"
    ENVIRONMENT = "environment"
    """The environment that the rollout acted in hung or broke: the answer was not judged."""


@dataclass(frozen=True)
class Message:
    """One chat message."""

    role: str
    content: str


@dataclass(frozen=True)
class Problem:
    """One question with its gold answer.

    Example: `Problem(key="9f86d081884c7d65", question="4 + 3 = ?", answer="7", source="chain_sum")`.
    """

    key: str
    """Stable identity: a hash of the content (see `tasks.base.problem_key`), the same in every process and run."""
    question: str
    answer: str
    """The gold answer, as the task's checker wants it."""
    source: str
    """Where it came from, for reports: file stem, hub id or reasoning-gym name."""
    level: str | None = None
    meta: dict[str, Any] = field(default_factory=dict, compare=False)
    """What the task's own scorer needs beside the answer. Plain JSON types only."""


@dataclass(frozen=True)
class Verdict:
    """What a checker said about one answer."""

    value: float
    """In [0, 1]."""
    reason: Reason
    extracted: str | None = None
    """The final answer that was found in the text, None if there was none."""
    detail: str = ""
    """For people: why, in a few words."""


@dataclass(frozen=True)
class Score:
    """The reward of one rollout with its parts kept apart."""

    reward: float
    """Weighted sum of `parts`: what credit is computed from."""
    parts: dict[str, float]
    """Raw value of every reward term, before weighting."""
    verdict: Verdict


def _freeze(array: Any, dtype: type) -> NDArray[Any]:
    frozen: NDArray[Any] = np.array(array, dtype=dtype)  # a copy: nobody else can write to it
    if frozen.ndim != 1:
        raise GraphError(
            explain("Segment", f"an array of shape {frozen.shape}", "need one value a token", "flatten it")
        )
    frozen.flags.writeable = False
    return frozen


@dataclass(frozen=True, eq=False)
class Segment:
    """A run of tokens with one attention neighbourhood: a node of the stream graph.

    Example, an answer of two sampled tokens below segment 0:
    `Segment(tokens=[5, 2], parents=(0,), trained=[True, True], engine_logprob=[-0.1, -1.2], policy_version=[3, 3])`.
    Left-out arrays mean text that nobody sampled: untrained, no log-prob, policy version `UNSAMPLED`.
    """

    tokens: Int32
    """int32 [T], T >= 1."""
    parents: tuple[int, ...] = ()
    """Indices of earlier segments of the same graph; empty for a root."""
    trained: Bool = None  # type: ignore[assignment]
    """bool [T]: True where the loss applies."""
    engine_logprob: Float32 = None  # type: ignore[assignment]
    """float32 [T]: log-prob at the sampling temperature over the whole vocabulary, before top-k and top-p; NaN where
    nothing was drawn."""
    policy_version: Int32 = None  # type: ignore[assignment]
    """int32 [T]: version of the weights that drew the token, `UNSAMPLED` where nothing was drawn."""

    def __post_init__(self) -> None:
        tokens = _freeze(self.tokens, np.int32)
        size = len(tokens)
        if size == 0:
            raise GraphError(
                explain("Segment.tokens", "no token", "a segment has one or more", "leave the segment out")
            )
        defaults = {
            "trained": (np.bool_, False),
            "engine_logprob": (np.float32, np.nan),
            "policy_version": (np.int32, UNSAMPLED),
        }
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "parents", tuple(int(p) for p in self.parents))
        for name, (dtype, default) in defaults.items():
            given = getattr(self, name)
            array = _freeze(np.full(size, default) if given is None else given, dtype)
            if len(array) != size:
                raise GraphError(
                    explain(f"Segment.{name}", f"{len(array)} values", f"the segment has {size} tokens", "one a token")
                )
            object.__setattr__(self, name, array)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for array in (self.tokens, self.trained, self.engine_logprob, self.policy_version):
            array.flags.writeable = False  # pickling forgets it

    def __len__(self) -> int:
        return len(self.tokens)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Segment):
            return NotImplemented
        return self.parents == other.parents and all(
            np.array_equal(getattr(self, f.name), getattr(other, f.name), equal_nan=f.name == "engine_logprob")
            for f in fields(self)
            if f.name != "parents"
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class StreamGraph:
    """Everything read or written for one problem, as a directed acyclic graph of segments.

    Segments stand in an order where parents come before children; `anabranch.structure` turns the graph into text
    order, positions, the attention mask and (source, target) pairs. Example, a prompt of three tokens with two answers:
    `StreamGraph((Segment([7, 8, 9]), Segment([1, 2], parents=(0,)), Segment([3], parents=(0,))))`.

    Raises:
        GraphError: no segment; a parent that is not an earlier segment, or is named twice; a trained token that
            nothing predicts (the first token of a root, or of a segment with several parents).
    """

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        if not self.segments:
            raise GraphError(explain("StreamGraph", "no segment", "a graph has one or more", "add the prompt"))
        for index, segment in enumerate(self.segments):
            where = f"segment {index}"
            if any(not 0 <= parent < index for parent in segment.parents):
                raise GraphError(
                    explain(where, f"parents {segment.parents}", "parents are earlier segments", "reorder the segments")
                )
            if len(set(segment.parents)) != len(segment.parents):
                raise GraphError(explain(where, f"parents {segment.parents}", "each counts once", "drop the repeats"))
            if len(segment.parents) != 1 and segment.trained[0]:
                raise GraphError(
                    explain(
                        where,
                        f"a trained first token and {len(segment.parents)} parents",
                        "only the first token of a segment with exactly one parent is predicted by anything",
                        "set trained[0] = False",
                    )
                )

    @property
    def num_tokens(self) -> int:
        """Tokens of all segments, each counted once."""
        return sum(len(segment) for segment in self.segments)

    @property
    def num_trained(self) -> int:
        """Tokens where the loss applies."""
        return int(sum(segment.trained.sum() for segment in self.segments))


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn and when a rollout stops. The distribution: logits / temperature, then top-k, then top-p."""

    temperature: float = 1.0
    """0 means greedy; log-probs are then those at temperature 1."""
    top_p: float = 1.0
    top_k: int = 0
    """0: no limit."""
    max_new_tokens: int = 64
    stop_tokens: tuple[int, ...] = ()
    """Any of these ends the rollout and is kept as its last token."""
    stop_strings: tuple[str, ...] = ()
    """The rollout ends with the token that completes one of these in the decoded text, special tokens written out;
    that token is kept."""


@dataclass(frozen=True)
class Request:
    """Ask an engine for `num_samples` rollouts of one prompt.

    Randomness of sample i is keyed by (seed, step, problem key, first_sample + i): it depends on nothing else.
    """

    problem_key: str
    prompt_tokens: tuple[int, ...]
    num_samples: int
    sampling: Sampling
    seed: int
    step: int
    first_sample: int = 0
    hold: bool = False
    """An answer that stops before the limit of its tokens is kept ready to go on, see `engines.base.Stream`."""


@dataclass(frozen=True)
class Name:
    """Which rollout of a run: no two have the same."""

    problem_key: str
    step: int
    """In which it was begun: `Request.step`."""
    sample: int

    def __str__(self) -> str:
        return f"{self.problem_key} (sample {self.sample} of step {self.step})"


@dataclass(frozen=True)
class Rollout:
    """One answer to one problem. Segment 0 of `graph` is the prompt; all others belong to the answer."""

    problem_key: str
    sample: int
    graph: StreamGraph
    text: str
    """What the model wrote, decoded without special tokens: what is judged. Observations are left out."""
    stop: StopReason
    step: int = 0
    """In which it was begun: `Request.step`."""
    transcript: str | None = None
    """The whole answer with observations, decoded. None: there are none, and it is `text`."""
    turns: int = 1
    """How often the model had the word."""
    reward: float | None = None
    """Of its environment, in [0, 1]. None: the task's checker judges `text`."""
    outcomes: tuple[str, ...] = ()
    """How its environment says that the calls of tools went, where it counts them."""
    failure: str = ""
    """For people: what was wrong with its environment, if `stop.failed`."""

    @property
    def name(self) -> Name:
        """Which rollout of the run it is."""
        return Name(self.problem_key, self.step, self.sample)

    @property
    def prompt_tokens(self) -> Int32:
        """int32 [P]."""
        return self.graph.segments[0].tokens

    @property
    def num_answer_tokens(self) -> int:
        """Tokens of all segments but the prompt, also those that the runtime or a tool wrote."""
        return self.graph.num_tokens - len(self.graph.segments[0])

    @property
    def truncated(self) -> bool:
        """Whether the answer was cut at the length limit."""
        return self.stop is StopReason.LENGTH
