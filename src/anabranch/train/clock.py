"""Phase times of one step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Adds up wall-clock seconds by phase, from its creation on."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens inside as `time/<name>`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Count time that was measured elsewhere as `time/<name>`."""
        self._phases[name] = self._phases.get(name, 0.0) + seconds

    @property
    def elapsed(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._start

    def times(self) -> dict[str, float]:
        """`time/<phase>` for every phase so far."""
        return {f"time/{name}": seconds for name, seconds in self._phases.items()}
