"""What a run knows of every problem: its tracked value, and its last answer. A file of its own in each checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from anabranch.algo.value_tracker import TrackerState, from_arrays, to_arrays
from anabranch.records import Bool, Float32, Int32

_STATE = "state"
"""The one entry of the file's header: safetensors writes several in no fixed order."""


@dataclass(frozen=True, eq=False)
class LastAnswer:
    """The last answer to a problem, and how likely it was then."""

    tokens: Int32
    """int32 [T]: of the answer, without the prompt."""
    trained: Bool
    """bool [T]: drawn by the model."""
    logprob: Float32
    """float32 [M]: of the trained ones, as the trainer computes it, at the sampling temperature."""


@dataclass(frozen=True, eq=False)
class Values:
    """The value of every problem that has one, and last answers by problem key."""

    tracker: TrackerState
    last: Mapping[str, LastAnswer]
    """Of problems that were visited; empty where no divergence is measured. 9 bytes a token."""

    def save(self, path: Path) -> None:
        """Write everything to a safetensors file; the same values give the same bytes.

        Raises:
            OSError: it could not be written.
        """
        answers = list(self.last.values())
        arrays = {
            **to_arrays(self.tracker),
            "last_problem": np.array([self.tracker.places[key] for key in self.last], dtype=np.int64),
            "last_tokens": _joined([answer.tokens for answer in answers], np.int32),
            "last_trained": _joined([answer.trained for answer in answers], np.bool_),
            "last_logprob": _joined([answer.logprob for answer in answers], np.float32),
            "last_length": np.array([len(answer.tokens) for answer in answers], dtype=np.int64),
        }
        save_file(arrays, path, {_STATE: json.dumps({"form": self.tracker.form, "keys": self.tracker.keys})})

    @classmethod
    def load(cls, path: Path) -> Values:
        """The inverse of `save`, to the bit. The file is known to be as it was written."""
        arrays = load_file(path)
        with safe_open(path, "numpy") as file:
            state = json.loads(file.metadata()[_STATE])
        tracker = from_arrays(state["form"], state["keys"], arrays)
        ends = np.cumsum(arrays["last_length"])[:-1]
        tokens, trained = (_parts(arrays[f"last_{name}"], ends) for name in ("tokens", "trained"))
        logprobs = _parts(arrays["last_logprob"], np.cumsum([int(mask.sum()) for mask in trained])[:-1])
        return cls(
            tracker,
            {
                tracker.keys[place]: LastAnswer(*parts)
                for place, *parts in zip(arrays["last_problem"].tolist(), tokens, trained, logprobs, strict=False)
            },
        )


def _parts(array: NDArray[Any], ends: NDArray[np.int64]) -> list[NDArray[Any]]:
    """Copies, so that a part does not keep the whole."""
    return [part.copy() for part in np.split(array, ends)]


def _joined(parts: list[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *parts])
