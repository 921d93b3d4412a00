"""The reference model of a KL term: the weights at the start of RL, frozen."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from anabranch.tracking.files import writing


def freeze(model: PreTrainedModel, path: Path) -> PreTrainedModel:
    """A frozen copy of the model as it is now, also written to `path` so that a resumed run has the same one.

    Raises:
        RunFolderError: it could not be written.
    """
    partial = path.with_suffix(".part")
    with writing(path):
        save_file({name: weight.detach().contiguous() for name, weight in model.named_parameters()}, partial)
        partial.replace(path)
    return load(model, path)


def load(model: PreTrainedModel, path: Path) -> PreTrainedModel:
    """A frozen model of the same kind with the weights that `freeze` wrote."""
    reference = copy.deepcopy(model)
    reference.requires_grad_(False)
    weights = load_file(path)
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            weight.copy_(weights[name])
    return reference
