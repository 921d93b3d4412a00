"""Writing to disk so that a kill or a full disk leaves either the old state or the new one."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anabranch.errors import RunFolderError, explain

_FIXES = {
    errno.ENOSPC: "free some space, then go on with `anabranch resume`",
    errno.EDQUOT: "free some of your quota, then go on with `anabranch resume`",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder on a file system that is not read-only",
    errno.ENOTDIR: "choose a path whose parents are folders",
    errno.EEXIST: "choose a path that is not a file",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating-system error inside the block into one clear error about `path`.

    Raises:
        RunFolderError: disk full, no permission, ...
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        fix = _FIXES.get(error.errno or 0, "check the disk, then go on with `anabranch resume`")
        raise RunFolderError(explain(str(path), reason, "it has to be written", fix)) from error


def write_atomic(path: Path, text: str) -> None:
    """Write a whole file: to a neighbour first, then renamed into place; safe on disk when this returns.

    Raises:
        RunFolderError: it could not be written; the old file, if any, is as it was.
    """
    part = path.with_name(path.name + ".part")
    with writing(path):
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder (new files, renames) safe on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
