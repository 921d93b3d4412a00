"""The settings search: each side of a duel plays with the fastest of its stated candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.duel import Side, SideError, Worker


def fastest(
    candidates: Sequence[Side], *, args: Mapping[str, Any], log: Path, unit: str = "tokens", limit: float = 3600
) -> tuple[Side, list[dict[str, Any]]]:
    """Run every candidate once after one warm-up, each in a process of its own, and choose the one with most work/s.

    Args:
        candidates: one side with different settings or environments, at least one. With one nothing is run.
        args: what `run` gets; `round` is added.
        log: where standard error of the candidate that runs goes.
        unit: of `work`, for people.
        limit: seconds that a preparation or a round may take.

    Returns:
        The fastest, and what was tried: side, settings, env, and `rate` or the `error` of one that cannot run.

    Raises:
        SideError: no candidate can run.
    """
    if len(candidates) == 1:
        return candidates[0], []
    tried = [_try(candidate, args, log, unit, limit) for candidate in candidates]
    rates = [record.get("rate", 0.0) for record in tried]
    if not any(rates):
        raise SideError(f"no candidate of {candidates[0].name} can run\n{tried[-1]['error']}")
    return candidates[rates.index(max(rates))], tried


def _try(candidate: Side, args: Mapping[str, Any], log: Path, unit: str, limit: float) -> dict[str, Any]:
    record: dict[str, Any] = {"side": candidate.name, "settings": dict(candidate.settings), "env": dict(candidate.env)}
    what = f"  {candidate.name} with {record['settings']} {record['env'] or ''}".rstrip()
    try:
        with Worker(candidate, log, limit) as worker:
            worker.ready()
            worker.run({**args, "round": -1})
            result = worker.run({**args, "round": 0})
    except SideError as error:
        print(f"{what}: cannot run", flush=True)
        return {**record, "error": str(error)}
    print(f"{what}: {result['rate']:.1f} {unit}/s", flush=True)
    kept = {key: result[key] for key in ("rate", "cpu_seconds", "other_cores")}
    return {**record, **kept, "peak_mb": result["memory"]["peak_mb"]}
