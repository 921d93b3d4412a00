"""The cache of models: folders that are made once and appear complete, or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError

from anabranch.errors import ModelError, explain


class Progress(Protocol):
    """Where a person reads how far it is; `anabranch.tracking.display.Display` is one."""

    def phase(self, text: str) -> None:
        """What is being done now."""

    def note(self, text: str) -> None:
        """A line that stays."""


class Silent:
    """Nobody reads."""

    def phase(self, text: str) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""


def cache_folder() -> Path:
    """`$ANABRANCH_CACHE`, or `anabranch` under `$XDG_CACHE_HOME` or `~/.cache`."""
    own = os.environ.get("ANABRANCH_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "anabranch"


def models_folder() -> Path:
    """Where models are kept."""
    return cache_folder() / "models"


def made_once(folder: Path, make: Callable[[Path], None], *, megabytes: int) -> Path:
    """`folder`, which `make(folder)` makes if it is not there; see `complete_folder` for how it should.

    A lock makes a second process wait for the first instead of doing the work twice. It ends with its process, so a
    temporary folder found under the lock was left by one that was killed.

    Args:
        folder: in the cache.
        make: makes it.
        megabytes: what it needs, for the error.

    Raises:
        ModelError: it cannot be written.
    """
    if folder.is_dir():  # renamed into place when it was complete
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f".{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                for left in folder.parent.glob(f".{folder.name}.part-*"):
                    shutil.rmtree(left)
                make(folder)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            explain(
                f"model cache {folder.parent}",
                str(error),
                f"the model needs {megabytes} MB there",
                "free some space, or set ANABRANCH_CACHE to another folder",
            )
        ) from error
    return folder


def complete_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make `folder` by filling a temporary one beside it and renaming that: it appears complete or not at all.

    Raises:
        OSError: it cannot be written; nothing is left.
    """
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.part-", dir=folder.parent))
    try:
        fill(part)
        for file in part.rglob("*"):  # on disk before the rename is
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        part.chmod(0o755)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
