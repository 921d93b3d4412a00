"""The engine contract. Every engine passes the same conformance suite (tests/engines/conformance.py)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from anabranch.records import Name, Request, Rollout


@dataclass(frozen=True)
class InFlight:
    """Everything that a stream holds, to be written to a checkpoint."""

    state: dict[str, Any]
    """Plain JSON types."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Keys and values that cannot be computed again: those under weights that are gone."""


class Stream(Protocol):
    """Answers in flight. Requests come and rollouts leave at any time; weights may change in between.

    * Rollouts come one by one, as they stop, every requested sample exactly once, in an order that depends on nothing
      but the calls that were made.
    * Every sampled token carries its log-prob at the sampling temperature (over the whole vocabulary, before top-k and
      top-p) and the version of the weights that drew it.
    * A rollout depends on (weights, prompt, sampling settings, seed, step, problem key, sample), on what was said to
      it, and on nothing else, up to rounding: not on what else is in the batch.
    * After new weights the keys and values of what is in flight stay as they are, or are computed anew before the next
      token (`Engine.open`).
    """

    def submit(self, request: Request) -> None:
        """Ask for answers.

        Raises:
            EngineError: they can never be served (longer than the context; no sample, prompt or new token asked for).
            ValueError: one of the same name is in flight.
        """
        ...

    @property
    def ready(self) -> bool:
        """Whether `advance` can do something: not if nothing is in flight, or all that is waits to go on."""
        ...

    def advance(self) -> list[Rollout]:
        """Do a little, at most one token for every answer; returns those that stopped.

        Of a request with `hold`, an answer that stopped before the limit of its tokens is held until `go_on` or `drop`.

        Raises:
            EngineError: the model's logits are not finite.
        """
        ...

    def go_on(self, name: Name, tokens: Sequence[int]) -> None:
        """A held answer goes on behind some tokens that the model did not write.

        Args:
            name: of the answer.
            tokens: one or more; the limit of new tokens counts them, and at least one more fits.
        """
        ...

    def drop(self, names: Collection[Name]) -> None:
        """Give up answers, or forget held ones."""
        ...

    def export(self) -> InFlight:
        """Everything in flight; the stream goes on as if it had not been asked."""
        ...

    def restore(self, found: InFlight) -> None:
        """Be the stream that `export` was asked of, to the bit. The stream is empty, and the weights are the same."""
        ...


class Engine(Protocol):
    """Turns requests into rollouts."""

    def open(self, *, recompute: bool = False) -> Stream:
        """A new stream.

        Args:
            recompute: after new weights, compute the keys and values of what is in flight anew.
        """
        ...

    def generate(self, requests: Sequence[Request]) -> Iterator[Rollout]:
        """Sample all requested rollouts, in a stream of their own.

        Raises:
            EngineError: as `Stream.submit`, before anything is generated. Later: as `Stream.advance`.
        """
        ...

    def load_weights(self, version: int) -> None:
        """From now on the weights are those of `version`."""
        ...

    def rest(self) -> None:
        """Free what only sampling needs; what is in flight stays, and the next sampling makes the rest anew.

        Called between sampling and training.
        """
        ...

    @property
    def times(self) -> dict[str, float]:
        """Seconds spent in each phase (prefill, decode, draw) since the last call of `load_weights`."""
        ...
