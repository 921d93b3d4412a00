"""Everything a run remembers between steps, beside weights and moments: small, explicit, saved in every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from anabranch.errors import CheckpointError, explain
from anabranch.sampling import prioritised, uniform
from anabranch.sampling.prioritised import PriorityState
from anabranch.sampling.uniform import UniformState
from anabranch.train.resets import ReferenceState
from anabranch.train.values import Values

SamplerState = UniformState | PriorityState


@dataclass(frozen=True)
class RunState:
    """Where a run stands. `step` counts the finished steps of stage number `stage`."""

    stage: int
    step: int
    total: int
    """Finished steps over all stages; numbers the checkpoints."""
    version: int
    """Optimizer steps taken since the start of the run: the policy version."""
    sampler: SamplerState
    """Which examples or problems of the current stage come next."""
    barren: int
    """RL steps in a row, from the first one on, in which nothing could be learned; -1 once one could (see `probes`)."""
    seconds: float
    """Wall-clock time spent in the current stage."""
    data: str
    """Hash of the identities of all problems and of all worked examples: a resumed run must have the very same ones."""
    reference: ReferenceState = ReferenceState()
    """Which weights a KL term compares with, and what may bring its next reset."""
    values: Values | None = field(default=None, compare=False)
    """What is known of every problem; None: it is not tracked. Too large for JSON: see `values.save`."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, exact; all but `values`."""
        stored = asdict(replace(self, values=None))
        del stored["values"]
        return stored

    @classmethod
    def from_json(
        cls, stored: Mapping[str, Any], pools: Sequence[int], data: str, values: Values | None = None
    ) -> RunState:
        """The inverse of `to_json`.

        Args:
            stored: what `to_json` gave.
            pools: how many problems or examples each stage draws from now.
            data: hash of the problems now.
            values: which is not in `stored`.

        Raises:
            CheckpointError: the state is of another number of stages, or of other problems.
        """
        check_same_data(stored, data)
        if not 0 <= stored["stage"] < len(pools):
            raise CheckpointError(
                explain(
                    "state.json",
                    f"stage number {stored['stage']}",
                    f"the recipe has {len(pools)} stages",
                    "resume with the recipe that the run was started with",
                )
            )
        read = prioritised.from_json if "draws" in stored["sampler"] else uniform.from_json
        sampler = read(stored["sampler"], pools[stored["stage"]])
        reference = ReferenceState(**stored.get("reference", {}))  # a checkpoint may be older than the schedule
        return cls(**{**stored, "sampler": sampler, "reference": reference, "values": values})


def reference_step(stored: Mapping[str, Any]) -> int:
    """`RunState.reference.step` of what `RunState.to_json` gave."""
    return int(stored.get("reference", {}).get("step", 0))


def check_same_data(stored: Mapping[str, Any], data: str) -> None:
    """Refuse to go on with other problems.

    Args:
        stored: what `RunState.to_json` gave.
        data: hash of the problems now.

    Raises:
        CheckpointError: they differ.
    """
    if stored["data"] != data:
        raise CheckpointError(
            explain(
                "data",
                "other problems than at the start of the run",
                "a run goes on with the very same ones",
                "restore the data files; a few reasoning-gym data sets need the same PYTHONHASHSEED",
            )
        )
