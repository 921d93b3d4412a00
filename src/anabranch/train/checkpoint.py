"""Checkpoints: everything a run needs to go on to the same bits, in one folder that is there whole or not at all.

    checkpoints/step-000023/
        model/                 float32 master weights, config, tokenizer: `from_pretrained` loads it as it is
        optimizer.safetensors  AdamW's moments
        values.safetensors     what is known of every problem, where that is tracked
        in_flight.safetensors  rollouts that were begun and not learned from, where steps do not wait for them
        state.json             the run's explicit state, and the size of every log at this moment
        manifest.json          size and BLAKE2b hash of every file above

Written to a temporary folder, flushed to disk, renamed: a kill at any instant leaves the last whole checkpoint.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from anabranch.engines.base import InFlight
from anabranch.errors import CheckpointError, explain
from anabranch.modeling.files import os_errors
from anabranch.tracking.checkpoints import MANIFEST, complete, fingerprint, verify
from anabranch.train.optimizer import MasterOptimizer
from anabranch.train.values import Values

_PARTIAL = ".partial-"
VALUES = "values.safetensors"
IN_FLIGHT = "in_flight.safetensors"
_STATE = "state"
"""The one entry of that file's header: safetensors writes several in no fixed order."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read back and verified."""

    path: Path
    state: dict[str, Any]
    log_sizes: dict[str, int]

    @property
    def model_folder(self) -> Path:
        """What `transformers` loads."""
        return self.path / "model"

    @property
    def values(self) -> Values | None:
        """What was known of every problem; None: nothing was tracked."""
        return Values.load(self.path / VALUES) if (self.path / VALUES).is_file() else None

    @property
    def in_flight(self) -> InFlight | None:
        """The rollouts in flight; None: none were."""
        path = self.path / IN_FLIGHT
        if not path.is_file():
            return None
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()[_STATE])
        return InFlight(state, load_file(path))

    def restore(self, optimizer: MasterOptimizer) -> None:
        """Load masters and moments, exactly as they were; the compute weights follow."""
        optimizer.load_state_dict(
            load_file(self.path / "optimizer.safetensors"), load_file(self.model_folder / "model.safetensors")
        )


def save(
    folder: Path,
    *,
    number: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: MasterOptimizer,
    state: Mapping[str, Any],
    log_sizes: Mapping[str, int],
    keep: int,
    values: Values | None = None,
    in_flight: InFlight | None = None,
) -> Path:
    """Write checkpoint `number` and remove all but the `keep` newest.

    Raises:
        CheckpointError: it could not be written (disk full); older checkpoints are untouched.
    """
    final = folder / f"step-{number:06d}"
    partial = folder / f"{_PARTIAL}{final.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_partial(folder)
        with os_errors():
            save_model(partial / "model", model, tokenizer, optimizer.master_state())
            save_file(optimizer.state_dict(), partial / "optimizer.safetensors")
            if values is not None:
                values.save(partial / VALUES)
            if in_flight is not None:
                save_file(in_flight.tensors, partial / IN_FLIGHT, {_STATE: json.dumps(in_flight.state)})
        _write_json(partial / "state.json", {"number": number, "state": dict(state), "log_sizes": dict(log_sizes)})
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        for path in files:  # safetensors makes files that only their owner may read
            path.chmod((partial / "state.json").stat().st_mode)
        _write_json(partial / MANIFEST, {str(path.relative_to(partial)): fingerprint(path) for path in files})
        for path in [*files, partial / MANIFEST, partial / "model", partial]:
            _sync(path)
        partial.rename(final)
        _sync(folder)
        for path in complete(folder)[:-keep]:  # renamed first: a kill half-way leaves no half checkpoint under its name
            path.rename(folder / f"{_PARTIAL}{path.name}")
        _remove_partial(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        kept = [f"{path.name} is untouched" for path in complete(folder)] or ["there was none before"]
        raise CheckpointError(
            explain(
                str(final),
                f"{error.strerror or error}",
                f"a checkpoint must be written whole ({kept[-1]})",
                "free some space, then `anabranch resume` the run",
            )
        ) from error
    return final


def _remove_partial(folder: Path) -> None:
    """Remove what a kill left behind."""
    for path in folder.glob(f"{_PARTIAL}*"):
        shutil.rmtree(path)


def save_model(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, weights: Mapping[str, Tensor]
) -> None:
    """A model folder as `transformers` writes it, with these weights (tied ones once)."""
    folder.mkdir(parents=True)
    config = copy.deepcopy(model.config)
    config.dtype = next(iter(weights.values())).dtype
    config.save_pretrained(folder)
    if model.generation_config is not None:
        # Not its `save_pretrained`: that refuses flags which contradict each other, and published models have such.
        model.generation_config.to_json_file(folder / "generation_config.json", keys_to_pop=["compile_config"])
    tokenizer.save_pretrained(folder)
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def latest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, verified against its manifest; None if there is none.

    Raises:
        CheckpointError: the newest checkpoint is damaged.
    """
    found = complete(folder)
    return read(found[-1]) if found else None


def states(folder: Path) -> list[dict[str, Any]]:
    """The state in every whole checkpoint, oldest first."""
    return [json.loads((path / "state.json").read_text())["state"] for path in complete(folder)]


def read(path: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        CheckpointError: a file is missing or does not match the manifest.
    """
    verify(path)
    stored = json.loads((path / "state.json").read_text())
    return Checkpoint(path=path, state=stored["state"], log_sizes=stored["log_sizes"])


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
