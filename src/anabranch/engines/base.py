"""The engine contract. Every engine passes the same conformance suite (tests/engines/conformance.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from anabranch.records import Request, Rollout


class Engine(Protocol):
    """Turns requests into rollouts.

    * Rollouts come one by one, as they finish, every requested sample exactly once.
    * Every sampled token carries its log-prob at the sampling temperature (over the whole vocabulary, before top-k and
      top-p) and the version of the weights that drew it.
    * A rollout depends on (weights, prompt, sampling settings, seed, step, problem key, sample) and on nothing else, up
      to rounding: not on what else is in the batch.
    """

    def generate(self, requests: Sequence[Request]) -> Iterator[Rollout]:
        """Sample all requested rollouts.

        Raises:
            EngineError: a request that can never be served (longer than the context; no sample, prompt or new token
                asked for), before anything is generated. Later: the model's logits are not finite.
        """
        ...

    def load_weights(self, version: int) -> None:
        """From now on the weights are those of `version`."""
        ...

    def rest(self) -> None:
        """Free what only sampling needs; the next `generate` makes it anew. Called between sampling and training."""
        ...

    @property
    def times(self) -> dict[str, float]:
        """Seconds spent in each phase (prefill, decode, draw) since the last call of `load_weights`."""
        ...
