"""What a worker that judges hostile text may not do. Called once in every worker; there is no way back.

A second line of defence: checkers never evaluate model text. Limits that Windows or macOS lack are left out.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

ADDRESS_SPACE = 2 * 2**30
"""Bytes of address space a worker may add to what it has mapped when it starts (Linux)."""
NICENESS = 5

_REFUSED = (
    "socket.",
    "subprocess.",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.kill",
    "os.killpg",
    "os.link",
    "os.mkdir",
    "os.posix_spawn",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.spawn",
    "os.symlink",
    "os.system",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "pty.spawn",
    "shutil.",
    "ftplib.",
    "smtplib.",
    "urllib.",
    "webbrowser.",
    "ctypes.",
)
"""Prefixes of audit events that no checker has a reason to raise."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class RefusedError(PermissionError):
    """Code in a worker tried to reach outside it."""


def confine() -> None:
    """Take rights away from this process, for good.

    Limits on memory and file size, no core files, low priority, no output, default action for SIGTERM and SIGALRM (so
    that they also end a process stuck in C code), and an audit hook that refuses sockets, processes and writing.
    """
    sys.dont_write_bytecode = True
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - scorers may print, as long as the worker lives
    if sys.platform != "win32":
        os.nice(NICENESS)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        _limit_resources()
    sys.addaudithook(_refuse)


def start_alarm(seconds: float) -> None:
    """End this process in `seconds`, whatever it is doing then; 0 calls the alarm off. Nothing on Windows.

    For a worker whose parent was killed and can no longer end it.
    """
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _limit_resources() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _refuse(event: str, args: tuple[object, ...]) -> None:
    """The audit hook."""
    if event == "open":
        path, mode, flags = args
        writes = any(letter in str(mode) for letter in "wax+") if mode else bool(int(str(flags or 0)) & _WRITING)
        if writes and not isinstance(path, int):
            raise RefusedError(f"a checker tried to write to {path!r}")
    elif event.startswith(_REFUSED):
        raise RefusedError(f"a checker tried {event}")
