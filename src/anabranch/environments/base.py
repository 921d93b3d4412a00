"""The contract between a rollout and the world that it acts in.

    world.reset -> model writes -> step(text) -> observation, done, reward -> model writes on -> ...

One `Environment` belongs to one rollout; a `World` makes them and holds what they share (worker processes, limits).
Nothing here knows of tokens: what an environment says is encoded by the engine and never trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from anabranch.records import Problem


@dataclass(frozen=True)
class Observation:
    """What the world says to a turn of the model."""

    text: str
    """Appended to what the model wrote, as it is; empty only if `done`."""
    done: bool = False
    """The rollout ends with this turn, and `text` is not shown to the model any more."""
    reward: float | None = None
    """In [0, 1], of the whole rollout; read if `done`. None: the task's checker judges what the model wrote."""
    marks: bool = False
    """`text` is in the model's chat template, and its marks are special tokens. Otherwise what looks like one is read
    as plain text, so that nothing which a tool says can end a turn or begin another."""
    outcome: str = ""
    """For counting, e.g. `timeout`: how the call of a tool went. Empty: nothing to count."""


class Environment(Protocol):
    """The world of one rollout. Its methods are never called at the same time.

    A method may raise or hang: the rollout then ends with a reason code, and no other one notices
    (see `anabranch.environments.runner`). The same calls give the same observations, whatever the other rollouts do;
    how long they take may differ.
    """

    async def reset(self, problem: Problem, key: tuple[int, ...]) -> None:
        """Begin.

        Args:
            problem: what the model was asked.
            key: whole numbers >= 0 that no other rollout of the run has; all randomness comes from them.
        """
        ...

    async def step(self, text: str) -> Observation:
        """Answer a turn.

        Args:
            text: what the model wrote since the last observation, special tokens left out. Hostile.
        """
        ...

    def state(self) -> Mapping[str, Any]:
        """What `restore` needs to go on from here, in plain JSON types. Not called while `step` is under way."""
        ...

    async def restore(self, problem: Problem, key: tuple[int, ...], state: Mapping[str, Any]) -> None:
        """In place of `reset`, in another process: be as the environment was that gave `state`."""
        ...

    async def close(self) -> None:
        """The rollout is over, or was given up."""
        ...


class World(Protocol):
    """Makes the environments of a run."""

    @property
    def instruction(self) -> str:
        """What the prompt says about it, after the question and before `prompt.instruction`; may be empty."""
        ...

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """A turn ends with the token that completes one of these; it is kept."""
        ...

    @property
    def note(self) -> str:
        """What a run says of it when it starts; may be empty."""
        ...

    @property
    def turns(self) -> int:
        """Most calls of `step` a rollout."""
        ...

    @property
    def seconds(self) -> float:
        """Deadline of every call of a method of an environment, in seconds of wall clock."""
        ...

    def environment(self) -> Environment:
        """A new one."""
        ...

    async def close(self) -> None:
        """The run is over."""
        ...
