"""Checkpoints as folders: which ones are whole, and whether their files are as they were written. For any reader.

checkpoints/step-000023/
    model/         what `transformers` loads
    manifest.json  size and BLAKE2b hash of every file
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from anabranch.errors import CheckpointError, explain

MANIFEST = "manifest.json"


def complete(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first: the name is given only when everything is in place."""
    named = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(named, key=lambda path: int(path.name.removeprefix("step-")))


def fingerprint(path: Path) -> dict[str, Any]:
    """Size and hash of a file, as a manifest has them."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
    return {"bytes": path.stat().st_size, "blake2b": digest.hexdigest()}


def verify(path: Path, below: str = "") -> None:
    """Compare the files of a checkpoint with its manifest.

    Args:
        path: the checkpoint.
        below: only files whose names begin so, for instance `model/`.

    Raises:
        CheckpointError: a file is missing or does not match.
    """
    for name, expected in _manifest(path).items():
        file = path / name
        if name.startswith(below) and (not file.is_file() or fingerprint(file) != expected):
            found = "contents that do not match manifest.json" if file.is_file() else "no such file"
            raise CheckpointError(_damage(path, file, found))


def _manifest(path: Path) -> dict[str, dict[str, Any]]:
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(_damage(path, file, "no such file")) from None
    except ValueError as error:
        raise CheckpointError(_damage(path, file, f"no JSON ({error})")) from error
    if not isinstance(manifest, dict):
        raise CheckpointError(_damage(path, file, f"a JSON {type(manifest).__name__}"))
    return manifest


def _damage(path: Path, file: Path, found: str) -> str:
    others = len(complete(path.parent)) > 1
    fix = "resumes from the one before" if others else "starts again from the beginning"
    return explain(str(file), found, "a checkpoint is used whole or not at all", f"remove {path}: then the run {fix}")


def newest(folder: Path) -> Path:
    """The newest whole checkpoint.

    Args:
        folder: `checkpoints` of a run.

    Raises:
        CheckpointError: there is no checkpoint yet.
    """
    found = complete(folder)
    if not found:
        run = folder.parent
        raise CheckpointError(
            explain(str(run), "no checkpoint", "a run has a model once it has saved one", f"anabranch resume {run}")
        )
    return found[-1]


def model_of(checkpoint: Path) -> Path:
    """The model folder of a whole checkpoint, verified.

    Raises:
        CheckpointError: its model is damaged.
    """
    verify(checkpoint, "model/")
    return checkpoint / "model"
