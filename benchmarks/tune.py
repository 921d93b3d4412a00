"""The settings search: each side of a duel plays with the fastest of its stated candidates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from benchmarks.duel import OutOfTimeError, Side, SideError, Worker, number

LIMIT = 420.0
"""Seconds that a candidate's preparation or round may take. The longest piece of work here, a step of TRL, takes about
a tenth of it, so that what is not back by then is not the fastest. Compilers have been seen not to come back at all."""


@dataclass(frozen=True)
class Change:
    """What a candidate has other than the side it is made from."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)

    def of(self, side: Side) -> Side:
        """The side with this change."""
        return replace(side, settings={**side.settings, **self.settings}, env={**side.env, **self.env})

    @classmethod
    def between(cls, start: Side, end: Side) -> Self:
        """What makes `end` of `start`."""
        return cls(_other(start.settings, end.settings), _other(start.env, end.env))

    @classmethod
    def parse(cls, text: str) -> Self:
        """From an option: a JSON object of settings, in which `env` holds environment variables.

        Raises:
            ValueError: it is none.
        """
        given = json.loads(text)
        if not isinstance(given, dict) or not isinstance(given.get("env", {}), dict):
            raise ValueError(f"{text}: not a JSON object of settings")
        env = given.pop("env", {})
        return cls(given, {name: str(value) for name, value in env.items()})

    def as_json(self) -> str:
        """What `parse` reads."""
        return json.dumps({**self.settings, "env": dict(self.env)})


def search(
    side: Side,
    axes: Sequence[Sequence[Change]],
    *,
    args: Mapping[str, Any],
    log: Path,
    unit: str = "tokens",
    limit: float = LIMIT,
    beside: Sequence[Change] = (),
    warmup: Mapping[str, Any] | None = None,
) -> tuple[Side, list[dict[str, Any]]]:
    """Take one axis after the other: each of its changes is tried on the best side so far, and the fastest stays.

    Args:
        side: where to begin.
        axes: the changes that exclude each other, axis by axis; leaving the side as it is needs no change.
        args: what `run` gets; `round` is added.
        log: where standard error of the candidate that runs goes.
        unit: of `work`, for people.
        limit: seconds that a preparation or a round may take; a candidate that is not back by then cannot run.
        beside: changes of the best side that are tried at the end for comparison only: they are never chosen.
        warmup: arguments that a warm-up has in place of those of `args`, to make it shorter.

    Returns:
        The best, and what was tried: side, settings, env, and `rate` or the `error` of one that cannot run.

    Raises:
        SideError: no candidate can run.
    """
    print(f"settings of {side.name}: {_text(side.settings)} {_text(side.env)}", flush=True)

    def attempt(candidate: Side, change: Mapping[str, Any]) -> dict[str, Any]:
        return _try(candidate, change, args, log, unit, limit, warmup)

    best, tried = side, [attempt(side, {})]
    rate = tried[0].get("rate", 0.0)
    for axis in axes:
        start = best
        for change in axis:
            candidate = change.of(start)
            tried.append(attempt(candidate, {**change.settings, **change.env}))
            if tried[-1].get("rate", 0.0) > rate:
                best, rate = candidate, tried[-1]["rate"]
    if rate == 0.0:
        raise SideError(f"no candidate of {side.name} can run\n{tried[-1]['error']}")
    for change in beside:
        shown = {**change.settings, **change.env}
        tried.append({**attempt(change.of(best), shown), "for_comparison": True})
    return best, tried


def _try(
    side: Side,
    change: Mapping[str, Any],
    args: Mapping[str, Any],
    log: Path,
    unit: str,
    limit: float,
    warmup: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """One counted run after one warm-up, in a process of its own."""
    record: dict[str, Any] = {"side": side.name, "settings": dict(side.settings), "env": dict(side.env)}
    what = f"  {side.name}, {_text(change) or 'as above'}"
    try:
        with Worker(side, log, limit) as worker:
            worker.ready()
            worker.run({**args, **(warmup or {}), "round": -1})
            result = worker.run({**args, "round": 0})
    except OutOfTimeError:
        why = f"not back within {limit:g} s"
        print(f"{what}: {why}", flush=True)
        return {**record, "error": why}
    except SideError as error:
        print(f"{what}: cannot run", flush=True)
        return {**record, "error": str(error)}
    print(f"{what}: {number(result['rate'])} {unit}/s", flush=True)
    kept = {key: result[key] for key in ("rate", "cpu_seconds", "other_cores")}
    return {**record, **kept, "peak_mb": result["memory"]["peak_mb"]}


def _other(start: Mapping[str, Any], end: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in end.items() if name not in start or start[name] != value}


def _text(values: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items())
