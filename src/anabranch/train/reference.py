"""The reference model of a KL term: the weights at the start of RL or at its last reset, frozen, in a file."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from anabranch.errors import CheckpointError, explain
from anabranch.modeling.files import os_errors
from anabranch.modeling.fused import join_weights
from anabranch.tracking.checkpoints import fingerprint
from anabranch.tracking.files import write_atomic, writing


def file_of(root: Path, step: int) -> Path:
    """Where the reference that was taken after RL step `step` lies in a run folder; 0: at the start of RL."""
    return root / (f"reference-{step:06d}.safetensors" if step else "reference.safetensors")


def remove_others(root: Path, steps: Collection[int]) -> None:
    """Remove the references that were taken after other RL steps than these, and what a kill left of one.

    Raises:
        RunFolderError: one cannot be removed.
    """
    wanted = {path for step in steps for path in (file_of(root, step), _proof(file_of(root, step)))}
    with writing(root):
        for path in sorted({*root.glob("reference.*"), *root.glob("reference-*")} - wanted):
            path.unlink()


def freeze(model: PreTrainedModel, path: Path) -> PreTrainedModel:
    """A frozen copy of the model as it is now, also written to `path` so that a resumed run has the same one.

    A neighbour `<path>.json` holds size and hash of the file.

    Raises:
        RunFolderError: it could not be written.
    """
    partial = path.with_suffix(".part")
    with writing(path):
        try:
            with os_errors():
                save_file({name: weight.detach().contiguous() for name, weight in model.named_parameters()}, partial)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    write_atomic(_proof(path), _hash_of(path))
    return load(model, path)


def load(model: PreTrainedModel, path: Path) -> PreTrainedModel:
    """A frozen model of the same kind with the weights that `freeze` wrote.

    Raises:
        CheckpointError: they are gone, or not as they were written.
    """
    proof = _proof(path)
    if not path.is_file() or not proof.is_file() or proof.read_text() != _hash_of(path):
        raise CheckpointError(
            explain(
                str(path),
                "contents that do not match its hash" if path.is_file() else "no such file",
                "the KL term needs these weights to compare with",
                "restore the file, or start the run again",
            )
        )
    reference = copy.deepcopy(model)
    reference.requires_grad_(False)
    join_weights(reference)
    weights = load_file(path)
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            weight.copy_(weights[name])
    return reference


def _hash_of(path: Path) -> str:
    return json.dumps(fingerprint(path)) + "\n"


def _proof(path: Path) -> Path:
    return path.with_suffix(".json")
