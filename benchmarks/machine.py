"""What a benchmark ran on, and what else ran there. Linux only: everything is read from /proc."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLAGS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512f", "avx2")
"""Processor features that decide how fast matrix products are."""

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")


def describe() -> dict[str, Any]:
    """Processor, its features, cores in use and in all, memory, system, load. Plain JSON types."""
    info = (_PROC / "cpuinfo").read_text(encoding="utf-8", errors="replace")
    values = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    values = {key.strip(): value.strip() for key, value in values.items()}
    present = set(values.get("flags", "").split())
    return {
        "cpu": values.get("model name", platform.machine()),
        "flags": [flag for flag in FLAGS if flag in present],
        "cores": len(os.sched_getaffinity(0)),
        "cores_of_machine": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "system": platform.platform(),
        "load_average": list(os.getloadavg()),
    }


def busy_seconds() -> float:
    """Processor time that the cores we may use have spent on anything, since the machine started."""
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    total = 0
    for line in (_PROC / "stat").read_text().splitlines():
        name, *ticks = line.split()
        if name in cores:
            user, nice, system, _idle, _iowait, irq, softirq, steal = (int(tick) for tick in ticks[:8])
            total += user + nice + system + irq + softirq + steal
    return total / _TICKS


def busy_cores(seconds: float) -> float:
    """How many of the cores that we may use are busy, on average over the next `seconds`."""
    before, start = busy_seconds(), time.perf_counter()
    time.sleep(seconds)
    return (busy_seconds() - before) / (time.perf_counter() - start)


@dataclass(frozen=True)
class Memory:
    """Memory of several processes together, in MB of 10^6 bytes."""

    peak_mb: float
    """Sum of VmHWM: the peaks of resident memory. Pages that processes share count in each: an upper bound."""
    pss_mb: float
    """Sum of Pss, now: shared pages are divided among those who share them."""


def family(leader: int) -> list[int]:
    """Live processes of the session that `leader` leads, and all below them, also in sessions of their own."""
    stats = {int(entry.name): _stat(int(entry.name)) for entry in _PROC.iterdir() if entry.name.isdigit()}
    alive = {process: fields for process, fields in stats.items() if fields is not None and fields[0] != "Z"}
    found = {process for process, fields in alive.items() if int(fields[3]) == leader}
    more = found
    while more:
        more = {process for process, fields in alive.items() if int(fields[1]) in more} - found
        found = found | more
    return sorted(found)


def memory(processes: Iterable[int]) -> Memory:
    """Memory of `processes`; those that are gone count nothing."""
    peak = pss = 0
    for process in processes:
        peak += _kib(process, "status", "VmHWM:")
        pss += _kib(process, "smaps_rollup", "Pss:")
    return Memory(peak * 1024 / 1e6, pss * 1024 / 1e6)


def forget_peaks(processes: Iterable[int]) -> None:
    """Let VmHWM of `processes` start again at what is resident now (see proc_pid_clear_refs(5))."""
    for process in processes:
        try:
            (_PROC / str(process) / "clear_refs").write_text("5")
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue


def cpu_seconds(processes: Iterable[int]) -> float:
    """Processor time of `processes` and of their children that have ended."""
    total = 0
    for process in processes:
        fields = _stat(process)
        total += sum(int(ticks) for ticks in fields[11:15]) if fields is not None else 0
    return total / _TICKS


def _stat(process: int) -> list[str] | None:
    """/proc/PID/stat from the third field on (state, ppid, pgrp, session, ...); None once the process is gone."""
    try:
        text = (_PROC / str(process) / "stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def _kib(process: int, file: str, name: str) -> int:
    try:
        text = (_PROC / str(process) / file).read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(name)), 0)
