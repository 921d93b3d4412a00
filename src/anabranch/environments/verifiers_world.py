"""Environments of the `verifiers` package (extra `verifiers`) as a world. See docs/environments.md."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from anabranch.environments.base import Environment, Observation
from anabranch.environments.tool_calls import describe
from anabranch.environments.verifiers_process import HostProcess
from anabranch.errors import WorldError, explain
from anabranch.recipe.environment import Verifiers
from anabranch.records import Message, Problem

Render = Callable[[tuple[Message, ...]], str]
"""What is appended behind the token that ends the model's turn: messages in its chat template, up to and with the
opening of its next turn. `<|im_end|>` is there already; for one user message ChatML goes on with
`\\n<|im_start|>user\\nTEXT<|im_end|>\\n<|im_start|>assistant\\n`. Roles: `user`, `tool`, `system`."""

OPEN_SECONDS = 600.0
"""For loading an environment; some load a data set."""


class VerifiersWorld:
    """Every turn of the model ends with its end-of-turn token; then the environment speaks.

    Args:
        settings: which environment.
        render: turns what it says into text.

    Raises:
        WorldError: the extra or the environment is not installed, it does not know a setting, or its first task cannot
            be begun.
    """

    note = ""

    def __init__(self, settings: Verifiers, render: Render) -> None:
        if importlib.util.find_spec("verifiers") is None:
            fix = "pip install 'anabranch[verifiers]'"
            raise WorldError(explain("environment.kind=verifiers", "no package 'verifiers'", "it is needed", fix))
        self._settings, self._render = settings, render
        self._rollouts = itertools.count()
        self._lock = threading.Lock()
        self._process = HostProcess({"settings": settings.model_dump(mode="json"), "tools": None})
        try:
            self._tools: list[str] = self._process.opened.result(OPEN_SECONDS)
        except TimeoutError:
            self._process.kill("it was given up")
            found = f"nothing after {OPEN_SECONDS:g} s"
            raise WorldError(explain("environment", found, "it must open", "see what its code does")) from None
        except BaseException:
            self._process.close()
            raise

    @property
    def instruction(self) -> str:
        """Which tools there are, and how they are called; empty without any."""
        return describe([json.loads(tool) for tool in self._tools])

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """None: a turn ends where an answer would end."""
        return ()

    @property
    def turns(self) -> int:
        """Most turns of the model; behind the last the environment ends by itself, and gives its reward."""
        return self._settings.turns

    @property
    def seconds(self) -> float:
        """Deadline of a call."""
        return self._settings.seconds

    def environment(self) -> Environment:
        """A new one."""
        return VerifiersEnvironment(self, next(self._rollouts))

    async def close(self) -> None:
        """End the process."""
        await asyncio.to_thread(self._process.close)

    def process(self) -> HostProcess:
        """Where rollouts begin: a new process if the last one is gone."""
        with self._lock:
            if not self._process.alive:
                self._process.close()
                opening = {"settings": self._settings.model_dump(mode="json"), "tools": self._tools}
                self._process = HostProcess(opening)
            return self._process

    def observation(self, found: Mapping[str, Any]) -> Observation:
        """What the process answered to a step."""
        if "reward" in found:
            return Observation("", done=True, reward=found["reward"])
        return Observation(self._render(tuple(Message(role, text) for role, text in found["said"])), marks=True)


class VerifiersEnvironment:
    """One rollout. Its state is what was said so far: it is said again to restore it.

    The key is not used: the package has no seed for a rollout.
    """

    def __init__(self, world: VerifiersWorld, rollout: int) -> None:
        self._world, self._rollout = world, rollout
        self._process: HostProcess | None = None
        self._said: list[tuple[str, Any]] = []
        """Every turn of the model, and what was answered."""

    async def reset(self, problem: Problem, key: tuple[int, ...]) -> None:
        """Begin. Raises `WorldError` if the problem is not of this environment, or that fails."""
        if problem.meta.keys() < {"taskset", "task"}:
            need = "an environment of the package asks its own problems"
            fix = "data={kind: verifiers, taskset: NAME}, as in environment.taskset"
            raise WorldError(explain("data", f"a problem of '{problem.source}'", need, fix))
        self._process = await asyncio.to_thread(self._world.process)
        await asyncio.wrap_future(
            self._process.ask(
                "begin",
                rollout=self._rollout,
                taskset=problem.meta["taskset"],
                task=problem.meta["task"],
                question=problem.question,
            )
        )

    async def step(self, text: str) -> Observation:
        """Answer a turn. Raises `WorldError` if the environment fails."""
        return self._world.observation(await self._step(text))

    async def _step(self, text: str) -> Mapping[str, Any]:
        assert self._process is not None, "reset first"
        found: Mapping[str, Any] = await asyncio.wrap_future(
            self._process.ask("step", rollout=self._rollout, text=text)
        )
        self._said.append((text, found))
        return found

    def state(self) -> Mapping[str, Any]:
        """All turns, and what was answered to them."""
        return {"said": [list(pair) for pair in self._said]}

    async def restore(self, problem: Problem, key: tuple[int, ...], state: Mapping[str, Any]) -> None:
        """Begin anew, and take all turns again.

        Raises:
            WorldError: as `reset` and `step`; or the environment says something else than it did.
        """
        await self.reset(problem, key)
        for text, answered in state["said"]:
            found = await self._step(text)
            if found != answered:
                need = f"it was {str(answered)[:200]} before: the rollout can go on only from there"
                fix = "nothing: this rollout is lost, and the run goes on"
                raise WorldError(explain("environment", f"the answer {str(found)[:200]}", need, fix))

    async def close(self) -> None:
        """Let the environment go; see `HostProcess.end`."""
        if self._process is not None:
            self._process.end(self._rollout)
