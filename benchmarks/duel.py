"""Two sides do the same work in turns: A B A B ..., the idle one stopped, medians and the ratio at the end.

    report = duel("generate", Side("ours", [...]), Side("theirs", [...]), rounds=5, args={"answers": 64}, out=path)

A side is a command whose process speaks `benchmarks/worker.py`. Each has a session of its own: the processes of the
side that waits are stopped by SIGSTOP, so that it takes no processor time from the other.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from benchmarks import machine

ROOT = Path(__file__).parents[1]
"""The repository: sides run here, so that `-m benchmarks.NAME` finds them."""

RESULTS = ROOT / "benchmarks" / "results"

QUIET = 0.1
"""A machine on which others keep more cores than this busy is not called quiet."""

_TAIL = 30
"""Lines of a dead side's standard error that its error shows."""

_LAST_WAIT = 10.0
"""Seconds in which a process whose end is due has to be gone."""


class SideError(Exception):
    """A side died, did not answer in time, or answered nonsense."""


class OutOfTimeError(SideError):
    """A side did not answer in time."""


@dataclass(frozen=True)
class Side:
    """One of the two."""

    name: str
    command: Sequence[str]
    """A program and its arguments, such as `[".peers/trl/bin/python", "-m", "benchmarks.peers.trl_step"]`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What its `prepare` gets. Plain JSON types."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment."""
    cwd: Path = ROOT


class Worker:
    """A side's process, from start to end. A context manager: leaving it ends the process and all that it started.

    Inside the context SIGTERM ends this process as Ctrl-C does, leaving the context; it must be of the main thread.

    Args:
        side: what to start.
        log: where its standard error goes.
        limit: seconds that one answer may take.

    Raises:
        SideError: from any method.
    """

    def __init__(self, side: Side, log: Path, limit: float = 3600) -> None:
        self.side = side
        self._log = log
        self._limit = limit
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                list(side.command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=side.cwd,
                env={**os.environ, **side.env},
                text=True,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        self._handler = signal.signal(signal.SIGTERM, _leave)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._handler)
        end = time.monotonic() + _LAST_WAIT
        while self._members() and time.monotonic() < end:
            self._signal(signal.SIGKILL)
            time.sleep(0.01)
        self._process.communicate()

    def ready(self) -> dict[str, Any]:
        """Send the settings, wait until the side is prepared; what it says about itself, with its memory."""
        told: dict[str, Any] = self._ask(dict(self.side.settings))["ready"]
        return {**told, "memory": asdict(machine.memory(self._members()))}

    def run(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """One round: what the side answered (`work`, `seconds`, ...), and what was seen from here.

        Added are `rate`, `memory`, `cpu_seconds` (processor time of all its processes), and `other_cores` (how many of
        the cores that we may use were kept busy by anybody else meanwhile).
        """
        members = self._members()
        machine.forget_peaks(members)
        own, busy, start = machine.cpu_seconds(members), machine.busy_seconds(), time.perf_counter()
        result = self._ask(dict(args))
        elapsed, busy = time.perf_counter() - start, machine.busy_seconds() - busy
        members = self._members()
        own = machine.cpu_seconds(members) - own
        if not (result.get("work", 0) > 0 and result["seconds"] > 0):
            raise SideError(f"{self.side.name}: answered {result}\n  need: 'work' above 0, in the duel's unit")
        return {
            **result,
            "rate": result["work"] / result["seconds"],
            "cpu_seconds": own,
            "memory": asdict(machine.memory(members)),
            "other_cores": max(0.0, (busy - own) / elapsed),
        }

    def stop(self) -> None:
        """Let the side's processes sleep until `go`."""
        self._signal(signal.SIGSTOP)

    def go(self) -> None:
        """Let them run again."""
        self._signal(signal.SIGCONT)

    def _members(self) -> list[int]:
        return machine.family(self._process.pid)

    def _signal(self, number: int) -> None:
        for process in self._members():
            try:
                os.kill(process, number)
            except ProcessLookupError:  # it ended meanwhile
                continue

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        timer = threading.Timer(self._limit, self._signal, (signal.SIGKILL,))
        timer.start()
        start = time.perf_counter()
        try:
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            raise self._death(time.perf_counter() - start)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _death(self, waited: float) -> SideError:
        try:
            code = self._process.wait(timeout=_LAST_WAIT)  # its output ends a moment before itself
        except subprocess.TimeoutExpired:
            code = None
        self._signal(signal.SIGKILL)
        late = waited >= self._limit
        why = f"not back within {self._limit:g} s" if late else _ending(code)
        tail = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]
        told = [f"{self.side.name}: {why}", f"  command: {' '.join(self.side.command)}", *tail, f"  log: {self._log}"]
        return (OutOfTimeError if late else SideError)("\n".join(told))


def duel(
    name: str,
    a: Side,
    b: Side,
    *,
    rounds: int,
    args: Mapping[str, Any],
    out: Path,
    unit: str = "tokens",
    goal: float | None = None,
    warmups: int = 1,
    limit: float = 3600,
    search: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Both sides in turns; prints a line a round and writes `out` after every one.

    Args:
        name: of the benchmark, for people.
        a: the side whose rate is divided by the other's.
        b: the other side.
        rounds: counted rounds of each side, at least 1.
        args: what `run` gets on both sides; `round` is added (0, 1, ...; negative in warm-ups), to vary seeds with.
        out: the JSON file; logs of the sides are written beside it.
        unit: of `work`.
        goal: the ratio to reach, for the report.
        warmups: rounds of each side before those that count.
        limit: seconds that a preparation or a round may take.
        search: what `tune.search` tried for the sides; kept in the file. Without it the search of an earlier run stays
            there, and `searched` is the date of that run.

    Returns:
        What the file holds.

    Raises:
        SideError: a side died, did not answer in time, or did no work. The file keeps what there was.
        ValueError: the sides share a name.
    """
    if a.name == b.name:
        raise ValueError(f"both sides are called {a.name}")
    busy = machine.busy_cores(2.0)
    tried, searched = (search, None) if search else kept_search(out)
    report: dict[str, Any] = {
        "name": name,
        "command": list(sys.argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": machine.describe(),
        "busy_cores_before": busy,
        "args": dict(args),
        "unit": unit,
        "goal": goal,
        "search": [dict(one) for one in tried],
        "searched": searched,
        "sides": {side.name: _described(side) for side in (a, b)},
        "summary": None,
    }
    print(f"{name}: {a.name} against {b.name}, {rounds} rounds")
    if busy > QUIET:
        print(f"warning: this machine is not quiet, {busy:.2f} cores are busy with something else")
    with _worker(a, out, limit) as worker_a, _worker(b, out, limit) as worker_b:
        workers = (worker_a, worker_b)
        for worker in workers:
            report["sides"][worker.side.name]["ready"] = told = worker.ready()
            print(f"  {worker.side.name} is ready after {told['seconds']:.1f} s", flush=True)
            worker.stop()
        for number in range(-warmups, rounds):
            for worker in workers:
                worker.go()
                result = worker.run({**args, "round": number})
                worker.stop()
                report["sides"][worker.side.name]["warmups" if number < 0 else "rounds"].append(result)
                label = "warm-up" if number < 0 else f"round {number + 1}"
                print(f"  {label}: {worker.side.name} {_line(result, unit)}", flush=True)
            report["summary"] = summary([report["sides"][side.name]["rounds"] for side in (a, b)])
            _write(out, report)
    print(_result_text(report))
    return report


def kept_search(out: Path) -> tuple[Sequence[Mapping[str, Any]], str | None]:
    """What the last search tried that the file tells of, and when that run began; nothing if there was none."""
    if not out.exists():
        return [], None
    before = json.loads(out.read_text(encoding="utf-8"))
    return before["search"], (before.get("searched") or before["started"]) if before["search"] else None


def summary(rounds_of_sides: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any] | None:
    """Figures of the rounds so far: for each side and for the ratio of the rates within each round.

    Returns:
        None before the first round; otherwise `rates` [spread of a, spread of b], `ratio` (a spread, a over b),
        `peak_mb` [largest of a, largest of b], and `quiet`: whether others kept the machine busy.
    """
    a, b = rounds_of_sides
    if not a or not b:
        return None
    others = statistics.median([round["other_cores"] for round in (*a, *b)])
    return {
        "rates": [spread([round["rate"] for round in side]) for side in (a, b)],
        "ratio": spread([x["rate"] / y["rate"] for x, y in zip(a, b, strict=True)]),
        "peak_mb": [max(round["memory"]["peak_mb"] for round in side) for side in (a, b)],
        "other_cores": others,
        "quiet": others <= QUIET,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest, largest and quartiles (inclusive: the ends are the 0th and 100th percentile) of values."""
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "lower_quartile": lower,
        "upper_quartile": upper,
    }


def number(value: float) -> str:
    """Three digits that count, for people: `0.0123`, `12.3`, `1,235`."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _worker(side: Side, out: Path, limit: float) -> Worker:
    return Worker(side, out.with_name(f"{out.stem}-{side.name}.log"), limit)


def _described(side: Side) -> dict[str, Any]:
    settings = {"command": list(side.command), "settings": dict(side.settings), "env": dict(side.env)}
    return {**settings, "ready": None, "warmups": [], "rounds": []}


def _line(result: Mapping[str, Any], unit: str) -> str:
    memory = result["memory"]["peak_mb"]
    return f"{number(result['rate'])} {unit}/s ({result['seconds']:.2f} s, peak {memory:.0f} MB)"


def _result_text(report: Mapping[str, Any]) -> str:
    found, unit = report["summary"], report["unit"]
    lines = []
    for name, rate, peak in zip(report["sides"], found["rates"], found["peak_mb"], strict=True):
        middle, least, most = (number(rate[key]) for key in ("median", "min", "max"))
        lines.append(f"  {name}: median {middle} {unit}/s ({least} to {most}), peak {peak:.0f} MB")
    ratio = found["ratio"]
    goal = f", goal {report['goal']:g}" if report["goal"] else ""
    lines.append(f"  ratio: median {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}){goal}")
    if not found["quiet"]:
        lines.append(f"  warning: others kept {found['other_cores']:.2f} cores busy; measure again on a quiet machine")
    return "\n".join(lines)


def _leave(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _ending(code: int | None) -> str:
    if code is None:
        return "it closed its output without an answer"
    if code == -signal.SIGKILL:
        return "it was killed; does it need more memory than there is?"
    return f"it ended with code {code}"


def _commit() -> str | None:
    """Commit of this checkout, with `+` if files differ from it; None outside a repository."""
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")


def _write(path: Path, report: Mapping[str, Any]) -> None:
    """The whole file or the one before: it is renamed into place."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
