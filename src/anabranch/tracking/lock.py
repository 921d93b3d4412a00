"""One process a run folder: an exclusive lock that the operating system releases when its holder dies."""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path

from anabranch.errors import RunFolderError, explain
from anabranch.tracking.files import writing


class FolderLock:
    """Holds `flock` on a file until `release` or the end of the process, however it ends.

    The file stays: removing it would let two processes hold locks on two files of one name. It names the holder.

    Raises:
        RunFolderError: another process holds it, named by its number; or the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(self._handle, 64, 0).decode("ascii", errors="replace").strip()
                os.close(self._handle)
                raise RunFolderError(_in_use(path.parent, holder)) from None
            except OSError:
                os.close(self._handle)
                raise
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, f"{os.getpid()}\n".encode("ascii"), 0)
        self._held = True
        # A forked child would share the lock and keep it beyond our death (a judge worker after SIGKILL).
        os.register_at_fork(after_in_child=_Closer(weakref.ref(self)))

    def release(self) -> None:
        """Let others have it; releasing again does nothing."""
        if self._held:
            self._held = False
            os.close(self._handle)


class _Closer:
    """Closes a forked child's copy of the lock's file, which leaves the parent's lock alone."""

    def __init__(self, lock: weakref.ref[FolderLock]) -> None:
        self._lock = lock

    def __call__(self) -> None:
        lock = self._lock()
        if lock is not None:
            lock.release()


def _in_use(folder: Path, holder: str) -> str:
    name = f"in use by process {holder}" if holder else "in use by another process"
    return explain(str(folder), name, "one process writes to a run", "wait until it ends, or stop it")
