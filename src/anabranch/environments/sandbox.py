"""Runs Python scripts that nobody has read: each in a new process, without network, in a folder that goes away.

    sandbox = Sandbox(Limits(timeout=30.0))
    ran = await sandbox.run("print(6 * 7)")     # Ran(Outcome.OK, "42\n", "")

What holds a script depends on the system; `find_walls` tries it out, `WALLS` says what each comes to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import IO

from anabranch.environments.inside import BROKEN_WALLS, FAILED, NO_MEMORY
from anabranch.errors import WorldError, explain

PROGRAM = Path(__file__).with_name("inside.py")
CHUNK = 65536
KILL_SECONDS = 2.0
"""How long a process in namespaces may take to end by itself after it was told to."""
PROBE_SECONDS = 20.0
SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/nix/store", "/gnu/store")
"""What shared libraries need of the file tree, where it exists."""
CALM: Mapping[str, str] = MappingProxyType(
    {
        "PYTHONHASHSEED": "0",
        "HOME": "/tmp",
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
)
"""All environment variables of a script."""


class Walls(StrEnum):
    """What holds a script."""

    ROOT = "root"
    """Linux namespaces, made by root."""
    USER = "user"
    """Linux namespaces inside a user namespace, made by anybody."""
    HOOK = "hook"
    """An audit hook in the script's own interpreter."""


WALLS: Mapping[Walls, str] = MappingProxyType(
    {
        Walls.ROOT: "namespaces: no network, no other processes, a read-only file tree of Python and system libraries, "
        "a user id of its own",
        Walls.USER: "namespaces in a user namespace: no network, no other processes, a read-only file tree of Python "
        "and system libraries",
        Walls.HOOK: "an audit hook: sockets, processes and writing outside of the working folder are refused where "
        "Python's own functions ask for them; it can be got around, and all files of the user can be read",
    }
)
"""For a log: one line each."""


class Outcome(StrEnum):
    """How a script ended."""

    OK = "ok"
    ERROR = "error"
    """An exception; the output ends with the traceback."""
    MEMORY = "memory"
    TIMEOUT = "timeout"
    FLOOD = "flood"
    """Too much output."""
    CRASH = "crash"
    """Killed by a signal, or ended with an exit code of its own."""


@dataclass(frozen=True)
class Limits:
    """What a script may use."""

    timeout: float = 30.0
    """Seconds of wall clock, the interpreter's start included."""
    memory_mb: int = 1024
    """Address space of each of its processes, in MiB."""
    output_bytes: int = 2**18
    """Output and errors together; a script that writes more is killed."""


@dataclass(frozen=True)
class Ran:
    """What came of a script."""

    outcome: Outcome
    output: str
    """What it wrote to stdout and stderr, in that order of time, up to `Limits.output_bytes`."""
    detail: str = ""
    """For people and models: why it was stopped, in a few words; empty after OK and ERROR."""


class Sandbox:
    """Runs scripts. Any number at a time; nothing is kept between them.

    Args:
        limits: of every script.
        walls: what holds them; None: the best that this system has.

    Raises:
        WorldError: the system is Windows.
    """

    def __init__(self, limits: Limits = Limits(), walls: Walls | None = None) -> None:
        if sys.platform == "win32":
            need = "scripts of a model are run only where processes can be limited: Linux, or macOS with less"
            raise WorldError(explain("environment.kind", "python on Windows", need, "environment=null"))
        self.limits = limits
        self.walls = find_walls() if walls is None else walls

    async def run(self, script: str) -> Ran:
        """Run a script, and end all that it started.

        Raises:
            WorldError: the walls cannot be put up.
        """
        folder = tempfile.mkdtemp(prefix="anabranch-")
        try:
            with tempfile.TemporaryFile() as source:
                source.write(script.encode("utf-8", "replace"))
                source.seek(0)
                process, output, pipe = await self._start(folder, source)
            try:
                return await self._watch(process, output)
            finally:
                pipe.close()
                await self._end(process)
        finally:
            await _remove(folder, self.walls)

    async def _start(
        self, folder: str, source: IO[bytes]
    ) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader, asyncio.ReadTransport]:
        """The process, and what it writes. The pipe is ours, so that nothing waits for those who hold its other end."""
        read_end, write_end = os.pipe()
        output = asyncio.StreamReader()
        pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), os.fdopen(read_end, "rb")
        )
        try:
            process = await asyncio.create_subprocess_exec(
                *_command(self.walls, folder, self.limits),
                stdin=source,
                stdout=write_end,
                stderr=write_end,
                cwd=folder,
                env=dict(CALM),
                start_new_session=True,
            )
        except BaseException:
            pipe.close()
            raise
        finally:
            os.close(write_end)
        return process, output, pipe

    async def _watch(self, process: asyncio.subprocess.Process, output: asyncio.StreamReader) -> Ran:
        """Read what it writes, and wait for it."""
        chunks: list[bytes] = []
        size, stopped = 0, None
        try:
            async with asyncio.timeout(self.limits.timeout):
                while size <= self.limits.output_bytes and (chunk := await output.read(CHUNK)):
                    chunks.append(chunk)
                    size += len(chunk)
                if size > self.limits.output_bytes:
                    stopped = Outcome.FLOOD, f"more than {self.limits.output_bytes} bytes of output"
                else:
                    await process.wait()
        except TimeoutError:
            stopped = Outcome.TIMEOUT, f"still running after {self.limits.timeout:g} s"
        text = b"".join(chunks)[: self.limits.output_bytes].decode("utf-8", "replace")
        return self._ended(process.returncode, text) if stopped is None else Ran(stopped[0], text, stopped[1])

    def _ended(self, code: int | None, output: str) -> Ran:
        """What an exit code says."""
        assert code is not None
        number = -code if code < 0 else code - 128
        if code == 0:
            return Ran(Outcome.OK, output)
        if code == FAILED:
            return Ran(Outcome.ERROR, output)
        if code == NO_MEMORY:
            return Ran(Outcome.MEMORY, output, f"more than {self.limits.memory_mb} MiB of memory")
        if code == BROKEN_WALLS:
            need = f"the sandbox could not be made ({self.walls})"
            raise WorldError(explain("environment", output.strip(), need, "environment=null"))
        if number == signal.SIGXCPU:
            return Ran(Outcome.TIMEOUT, output, "too much processor time")
        if number in signal.valid_signals():
            return Ran(Outcome.CRASH, output, f"killed by {signal.Signals(number).name}")
        return Ran(Outcome.CRASH, output, f"exit code {code}")

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Kill what is left of it."""
        if process.returncode is not None:
            return
        try:
            if self.walls is not Walls.HOOK:
                process.terminate()  # it ends process 1 of the namespaces, and waits for it
                async with asyncio.timeout(KILL_SECONDS):
                    await process.wait()
        except TimeoutError:
            pass
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def find_walls() -> Walls:
    """The best walls that hold on this system. Takes a tenth of a second where namespaces can be had."""
    if sys.platform != "linux":
        return Walls.HOOK
    best = Walls.ROOT if os.geteuid() == 0 else Walls.USER  # in USER, root would have no limit on processes
    return best if hold(best) else Walls.HOOK


def hold(walls: Walls) -> bool:
    """Whether a script can be run between these walls, found by doing so."""
    folder = tempfile.mkdtemp(prefix="anabranch-")
    try:
        tried = subprocess.run(
            _command(walls, folder, Limits(timeout=PROBE_SECONDS)),
            input=b"import decimal, json, random\nprint(6 * 7)",
            capture_output=True,
            cwd=folder,
            env=dict(CALM),
            start_new_session=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return tried.returncode == 0 and tried.stdout == b"42\n"


def _command(walls: Walls, folder: str, limits: Limits) -> list[str]:
    """What to start: `inside.py` without site packages of its own, the folders that it shows last."""
    packages = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    places = [*SYSTEM, sys.base_prefix, sys.base_exec_prefix, *sorted(packages)]
    found: list[str] = []
    for place in places:
        known = any(Path(place).is_relative_to(other) for other in found)
        if Path(place).exists() and (place.endswith("-packages") or not known):
            found.append(place)
    options = ["-s", "-S", "-P", "-B", "-u", "-X", "utf8"]
    settings = [str(walls), str(os.getpid()), folder, str(limits.memory_mb), str(limits.timeout)]
    return [sys.executable, *options, str(PROGRAM), *settings, *found]


async def _remove(folder: str, walls: Walls) -> None:
    """Remove the folder. In namespaces nothing was ever written to it."""
    if walls is Walls.HOOK:  # however deep it is: shutil would recurse
        await (await asyncio.create_subprocess_exec("rm", "-rf", "--", folder)).wait()
    else:
        with contextlib.suppress(OSError):
            Path(folder).rmdir()
