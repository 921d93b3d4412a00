"""A world that only takes time, to measure what waiting costs: see `anabranch.recipe.environment.Latency`.

    turn that ends with `stop`  ->  sleep  ->  `reply`

A turn without `stop` is the last one; nothing is called, and nothing waited for. Where `stop` is empty there is one
turn, and one call at its end.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

from anabranch.environments.base import Observation
from anabranch.recipe.environment import Latency
from anabranch.records import Problem

REACH = 9.0
"""No draw is further than so many standard deviations from its mean: it comes from 53 bits, and so from 8.3."""
GRACE = 30.0
"""Seconds beyond the longest sleep in which a machine that is busy gets round to waking up."""


def duration(settings: Latency, key: tuple[int, ...], call: int) -> float:
    """How long a call takes, in seconds, from these arguments alone.

        scale * max(floor, X),   X ~ (1 - slow_share) N(mean, std^2) + slow_share N(slow_mean, slow_std^2)

    Args:
        settings: the mixture.
        key: of the rollout, whole numbers >= 0.
        call: counted from 0.
    """
    which, where = _uniforms((*key, call))
    slow = which < settings.slow_share
    mean, std = (settings.slow_mean, settings.slow_std) if slow else (settings.mean, settings.std)
    drawn = NormalDist(mean, std).inv_cdf(where) if std > 0 else mean
    return settings.scale * max(settings.floor, drawn)


def _uniforms(key: tuple[int, ...]) -> tuple[float, float]:
    """Two independent draws from (0, 1), by a hash."""
    digest = hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=16, person=b"latency").digest()
    first, second = (int.from_bytes(half, "big") >> 11 for half in (digest[:8], digest[8:]))
    return (first + 0.5) / 2**53, (second + 0.5) / 2**53


class LatencyWorld:
    """Environments that sleep, each by its own key."""

    instruction = ""
    note = ""

    def __init__(self, settings: Latency) -> None:
        fast, slow = settings.mean + REACH * settings.std, settings.slow_mean + REACH * settings.slow_std
        self.settings = settings
        self.stop_strings = (settings.stop,) if settings.stop else ()
        self.turns = settings.turns
        self.seconds = settings.scale * max(settings.floor, fast, slow) + GRACE

    def environment(self) -> LatencyEnvironment:
        """A new one."""
        return LatencyEnvironment(self.settings)

    async def close(self) -> None:
        """Nothing to do."""


class LatencyEnvironment:
    """Counts its calls: each takes a time of its own."""

    def __init__(self, settings: Latency) -> None:
        self._settings = settings
        self._key: tuple[int, ...] = ()
        self._calls = 0

    async def reset(self, problem: Problem, key: tuple[int, ...]) -> None:
        """Begin with the first call."""
        self._key = key

    async def restore(self, problem: Problem, key: tuple[int, ...], state: Mapping[str, Any]) -> None:
        """Go on with the call that is next."""
        self._key, self._calls = key, state["calls"]

    def state(self) -> Mapping[str, Any]:
        """How many calls there were."""
        return {"calls": self._calls}

    async def step(self, text: str) -> Observation:
        """Sleep, and let the model go on."""
        if self._settings.stop not in text:
            return Observation("", done=True)
        call, self._calls = self._calls, self._calls + 1
        await asyncio.sleep(duration(self._settings, self._key, call))
        return Observation(self._settings.reply, done=not self._settings.stop)

    async def close(self) -> None:
        """Nothing to do."""
