"""Runs inside: the program that a sandbox starts to run one script. Standard library only, started by its path.

    python -s -S -P -B -u -X utf8 inside.py WALLS PARENT FOLDER MEMORY_MIB SECONDS SHOWN...  < script

It reads the script, puts up the walls, runs the script as `__main__`, and ends as the script ended: with its exit code,
with `FAILED` after an exception, `NO_MEMORY` after a MemoryError, with 128 + n if signal n killed it.

With WALLS `root` or `user` there are three processes: this one outside, process 1 of the namespaces, which ends when
the script does (and then the kernel kills all else in there), and the script's own. With `hook` there is only one.
"""

from __future__ import annotations

import ast
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

FAILED, NO_MEMORY, BROKEN_WALLS = 86, 87, 85
"""Exit codes."""
GRACE = 10
"""Seconds beyond the limit after which a script that nobody killed ends itself."""
PROCESSES = 16
"""Most processes and threads of a script in namespaces. Each may use as much memory as the script."""
FILE_BYTES = 16 * 2**20
"""Largest file."""
FOLDER_BYTES = 64 * 2**20
"""Size of the working folder in namespaces, which is memory."""
OPEN_FILES = 64
FIRST_USER = 10**9
"""Root's scripts run as user 10^9 + process id, so that no two of them, and nothing else, count as one user."""

HOME = "/tmp/script"
"""Where a script begins in namespaces: a folder of its own, since places that it is shown may lie below /tmp, too."""
NAME = "script.py"
"""What a traceback calls the script."""

NEW_MOUNTS, NEW_IPC, NEW_USER, NEW_PROCESSES, NEW_NETWORK = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
BIND, RECURSIVE, PRIVATE, NO_SUID, NO_DEVICES = 0x1000, 0x4000, 0x40000, 2, 4
DETACH = 2
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, ATTR_SAFE = 442, -100, 0x8000, 0x1 | 0x2 | 0x4
"""The system call has this number on every architecture; the attributes: read-only, no set-uid, no devices."""
PARENT_DEATH_SIGNAL, DROP_BOUND, NO_NEW_PRIVILEGES = 1, 24, 38
CAPABILITY_VERSION = 0x20080522

_REFUSED = (
    "socket.",
    "subprocess.",
    "os.exec",
    "os.fork",
    "os.kill",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pty.",
)
_CHANGING = ("os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink",
             "os.truncate", "os.utime", "os.setxattr", "os.removexattr")  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> int:
    """Returns the exit code, in the script's process; the others do not return."""
    walls, parent, folder, memory, seconds, *shown = sys.argv[1:]
    limits = int(memory), float(seconds), PROCESSES if walls != "hook" else 1
    script = sys.stdin.buffer.read()
    try:
        signal.setitimer(signal.ITIMER_REAL, float(seconds) + GRACE)
        if sys.platform == "linux":
            _die_with_parent(int(parent))
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        if walls == "hook":
            _limit(*limits)
        else:
            _separate(walls, folder, shown, limits)
    except OSError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return BROKEN_WALLS
    sys.path.extend(place for place in shown if place.endswith("-packages"))
    sys.argv = [NAME]
    if walls == "hook":
        sys.addaudithook(_hook(Path.cwd()))
    return _run(script.decode("utf-8", "replace"))


# ----------------------------------------------------------------------------------------------------------- script


def printed(source: str) -> ast.Module:
    """The script; where its last statement is an expression, its value is printed, unless it is a call of `print`.

    Raises:
        SyntaxError: as always.
    """
    tree = ast.parse(source, NAME)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr):
        return tree
    value = last.value
    if not (isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "print"):
        last.value = ast.copy_location(ast.Call(ast.Name("print", ast.Load()), [value], []), value)
        ast.fix_missing_locations(last)
    return tree


def _run(source: str) -> int:
    """Run it; the exit code."""
    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    try:
        try:
            code = compile(printed(source), NAME, "exec")
            _seed(source)
            exec(code, module.__dict__)  # this is what the program is for; the walls are up
        finally:
            sys.stdout.flush()
    except SystemExit:
        raise
    except MemoryError as error:
        _explain(error, source)
        return NO_MEMORY
    except BaseException as error:  # noqa: BLE001 - the boundary: a script may raise anything
        _explain(error, source)
        return FAILED
    return 0


def _seed(source: str) -> None:
    """The same script draws the same numbers, as far as they come from the generators that modules share."""
    if "random" in source:
        import random

        random.seed(0)
        if "numpy" in source:
            try:
                import numpy as np
            except ImportError:
                return  # the script will see it
            np.random.seed(0)


def _explain(error: BaseException, source: str) -> None:
    """The traceback as Python shows it, without the frames of this file."""
    import linecache
    import traceback

    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != NAME:
        trace = trace.tb_next
    try:
        linecache.cache[NAME] = (len(source), None, source.splitlines(keepends=True), NAME)
        traceback.print_exception(type(error), error, trace)
    except BaseException:  # noqa: BLE001 - its text is the script's code, too, and there may be no memory left
        os.write(2, type(error).__name__.encode("ascii", "replace") + b"\n")


# ------------------------------------------------------------------------------------------------------------ walls


def _limit(memory: int, seconds: float, processes: int) -> None:
    """Limits of this process and all that it starts, each at most what it is already."""
    wanted = {
        resource.RLIMIT_CPU: int(seconds) + 2,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: processes,
    }
    if sys.platform == "linux":  # elsewhere it is not kept, or refused
        wanted[resource.RLIMIT_AS] = memory * 2**20
    for which, value in wanted.items():
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def _hook(folder: Path) -> Any:
    """An audit hook: no sockets, no processes, no signals, no changes outside of `folder`.

    It stops what goes through Python's own functions, by mistake or by habit. Code that means to can get around it.
    """
    home = folder.resolve()

    def outside(path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        return not Path(os.fsdecode(path)).resolve().is_relative_to(home)

    def refuse(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            writes = any(letter in str(mode) for letter in "wax+") if mode else bool(int(flags or 0) & _WRITING)
            if writes and outside(path) and os.fsdecode(path) != os.devnull:
                raise PermissionError(f"not allowed here: writing to {path!r}")
        elif event.startswith(_REFUSED):
            raise PermissionError(f"not allowed here: {event}")
        elif event in _CHANGING and any(outside(argument) for argument in args):
            raise PermissionError(f"not allowed here: {event} of {args[0]!r}")

    return refuse


def _die_with_parent(parent: int) -> None:
    """End with the process that started this one, however that ends.

    Raises:
        OSError: it has ended already.
    """
    _call(_libc().prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != parent:
        raise OSError("the process that started this is gone")


def _separate(walls: str, folder: str, shown: list[str], limits: tuple[int, float, int]) -> None:
    """Go on as the script's process in namespaces of its own; see the head of this file.

    Args:
        walls: `root`: this process may make namespaces. `user`: it can in a user namespace.
        folder: an empty one, where the new file tree is put together.
        shown: what of the old one is in it, read-only.
        limits: see `_limit`.

    Raises:
        OSError: the kernel refuses.
    """
    user, group = (FIRST_USER + os.getpid(),) * 2 if walls == "root" else (os.getuid(), os.getgid())
    spaces = NEW_MOUNTS | NEW_IPC | NEW_PROCESSES | NEW_NETWORK | (NEW_USER if walls == "user" else 0)
    _call(_libc().unshare(spaces), "unshare")
    if walls == "user":
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    first = os.fork()
    if first:
        _wait_outside(first)
    signal.signal(signal.SIGALRM, lambda number, frame: os._exit(128 + number))  # process 1 has no default actions
    signal.setitimer(signal.ITIMER_REAL, limits[1] + GRACE)
    _build_root(folder, shown, user, group)
    _drop_rights(walls, user, group)
    _call(_libc().prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0), "prctl")
    _limit(*limits)
    script = os.fork()
    if script:
        _, status = os.waitpid(script, 0)
        code = os.waitstatus_to_exitcode(status)
        os._exit(128 - code if code < 0 else 1 if code == BROKEN_WALLS else code)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _wait_outside(first: int) -> None:
    """Wait for process 1, and end with its exit code: 128 + n if signal n killed the script. SIGTERM ends both."""

    def end(number: int, frame: FrameType | None) -> None:
        os.kill(first, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    _, status = os.waitpid(first, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(128 - code if code < 0 else code)


def _build_root(folder: str, shown: list[str], user: int, group: int) -> None:
    """Make `folder` the root of the file tree: parts of the old one, read-only, and an empty /tmp; go there.

    Raises:
        OSError: the kernel refuses.
    """
    _mount(None, "/", None, RECURSIVE | PRIVATE)
    _mount("tmpfs", folder, "tmpfs", NO_SUID | NO_DEVICES, "size=1m,mode=755")
    Path(f"{folder}/tmp").mkdir()
    _mount("tmpfs", f"{folder}/tmp", "tmpfs", NO_SUID | NO_DEVICES,
           f"size={FOLDER_BYTES},mode=700,uid={user},gid={group}")  # fmt: skip
    for place in shown:  # after /tmp: what is shown may lie below it
        inside = Path(folder + place)
        inside.parent.mkdir(parents=True, exist_ok=True)
        if Path(place).is_symlink():
            inside.symlink_to(Path(place).readlink())
        else:
            _show(Path(place), inside, ATTR_SAFE)
    for device in ("null", "zero", "urandom"):
        Path(f"{folder}/dev").mkdir(exist_ok=True)
        _show(Path("/dev", device), Path(f"{folder}/dev", device), ATTR_SAFE & ~NO_DEVICES)
    Path(folder + HOME).mkdir(mode=0o700)
    os.chown(folder + HOME, user, group)
    os.chdir(folder)
    _call(_libc().pivot_root(b".", b"."), "pivot_root")
    _call(_libc().umount2(b".", DETACH), "umount2")
    _set_attributes(b"/", 0, ATTR_SAFE)
    os.chdir(HOME)


def _show(place: Path, inside: Path, attributes: int) -> None:
    """Bind a folder or file into the new tree."""
    if place.is_dir():
        inside.mkdir(exist_ok=True)
    else:
        inside.touch()
    _mount(str(place), str(inside), None, BIND | RECURSIVE)
    _set_attributes(os.fsencode(inside), AT_RECURSIVE, attributes)


def _drop_rights(walls: str, user: int, group: int) -> None:
    """Give up every capability, also those that a set-uid program could bring back.

    Raises:
        OSError: the kernel refuses.
    """
    libc = _libc()
    _call(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")
    capability = 0
    while libc.prctl(DROP_BOUND, capability, 0, 0, 0) == 0:  # ends at the first that the kernel does not know
        capability += 1
    if walls == "root":
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    _call(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(result: int, name: str) -> None:
    """Raises the error of a failed call of the C library."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _call(_libc().mount(*texts[:3], ctypes.c_ulong(flags), texts[3]), f"mount {target}")


def _set_attributes(target: bytes, how: int, attributes: int) -> None:
    """mount_setattr: set attributes of a mount, with AT_RECURSIVE also of all below it."""
    wanted = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    arguments = ctypes.c_long(MOUNT_SETATTR), ctypes.c_int(AT_FDCWD), target, ctypes.c_uint(how)
    _call(_libc().syscall(*arguments, wanted, ctypes.c_size_t(ctypes.sizeof(wanted))), "mount_setattr")


if __name__ == "__main__":
    sys.exit(main())
