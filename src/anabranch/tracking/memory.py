"""Peak memory of a run."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

_PROC = Path("/proc")


def peak_rss_mb() -> float:
    """Peak resident memory in MB of 10^6 bytes: of this process, plus that of its living descendants.

    Where /proc gives it (Linux) the peaks are `VmHWM`; elsewhere only this process is counted, by `getrusage`. On Linux
    `getrusage` is not used: it hands the peak of whoever started the process on to it. Pages shared between processes
    count in each, so with forked workers this is an upper bound.
    """
    own = _peak_kib(os.getpid())
    if own is None:
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    return (own + sum(_peak_kib(pid) or 0 for pid in _descendants(os.getpid()))) * 1024 / 1e6


def _peak_kib(pid: int) -> int | None:
    """VmHWM of a process in KiB; None where it is not told, or the process is gone."""
    try:
        status = (_PROC / str(pid) / "status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return None


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            children.setdefault(_parent(entry), []).append(int(entry.name))
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _parent(entry: Path) -> int:
    """Parent's id from /proc/PID/stat, `pid (name) state ppid ...`; -1 once the process is gone."""
    try:
        stat = (entry / "stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return -1
    return int(stat.rpartition(")")[2].split()[1])
