"""What a recipe makes observable: problems, one RL step of a tiny model, or a whole run. Small, and mostly real.

Judging happens in this process instead of in workers, answers of the first weights are remembered, and the engine and
the reference have other weights than the trainer, so that corrections and KL terms have something to act on.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from anabranch.engines.torch_engine import TorchEngine
from anabranch.engines.torch_stream import TorchStream
from anabranch.environments import latency
from anabranch.environments.base import Observation, World
from anabranch.environments.catalog import open_world
from anabranch.environments.python_tool import PythonWorld
from anabranch.environments.sandbox import Ran
from anabranch.errors import AnabranchError
from anabranch.modeling.forward import load_streaming
from anabranch.modeling.fused import join_weights
from anabranch.modeling.load import load_tokenizer
from anabranch.recipe.tree import Recipe, Verifiers, VerifiersTasks
from anabranch.records import Message, Problem, Request, Rollout, Verdict
from anabranch.tasks.base import Checker, Task, open_task
from anabranch.tracking.display import PlainDisplay
from anabranch.tracking.jsonl import read_jsonl
from anabranch.tracking.metrics import find
from anabranch.tracking.run_folder import RunFolder
from anabranch.train import loop, run
from anabranch.train.clock import Clock
from anabranch.train.optimizer import MasterOptimizer, learning_rate
from anabranch.train.rl import rl_step
from anabranch.train.session import Session

Seen = dict[str, Any]
"""Everything that was observed: plain data."""


class JudgeHere:
    """`tasks.judge.Judge` without processes."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker

    def __enter__(self) -> JudgeHere:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, problem: Problem, text: str) -> Future[Verdict]:
        future: Future[Verdict] = Future()
        future.set_result(self._checker(problem, text))
        return future

    def judge_all(self, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        return [self._checker(problem, text) for problem, text in pairs]


class CountingEngine(TorchEngine):
    """Counts the decoding steps that it makes."""

    count = 0

    def open(self, *, recompute: bool = False) -> TorchStream:
        stream = super().open(recompute=recompute)
        decode = stream._decode

        def counted(*arguments: Any) -> Any:
            self.count += 1
            return decode(*arguments)

        stream._decode = counted  # type: ignore[method-assign]  # of this stream alone
        return stream


@dataclass(kw_only=True)
class RememberingSession(Session):
    """Does not sample the same requests twice. Only for engines whose weights never change."""

    memory: dict[Any, tuple[list[Rollout], list[Verdict]]] = field(default_factory=dict)

    def answers(
        self, problems: Sequence[Problem], requests: Sequence[Request], judge: Any, clock: Clock
    ) -> tuple[list[Rollout], list[Verdict]]:
        key = (tuple(requests), self.recipe.answer)
        if key not in self.memory:
            self.memory[key] = super().answers(problems, requests, judge, clock)
        return self.memory[key]


class Lab:
    """Where steps and runs are observed.

    Args:
        model: folder of a tiny model.
        home: for run folders.
    """

    def __init__(self, model: str, home: Path) -> None:
        torch.set_num_threads(1)
        cpu = torch.device("cpu")
        self._home = home
        self._tokenizer = load_tokenizer(model)
        self._model = load_streaming(model, torch.float32, cpu)
        self._weights = {name: weight.detach().clone() for name, weight in self._model.named_parameters()}
        self._sampler = _another(self._model, seed=1)
        self._reference = _another(self._model, seed=2)
        self._memory: dict[Any, tuple[list[Rollout], list[Verdict]]] = {}
        self._tasks: dict[str, Task] = {}
        self._runs = 0
        self._folder = RunFolder.create(home / "steps", "name: steps\n", "steps")

    def close(self) -> None:
        """Give the run folder's lock back."""
        self._folder.__exit__(None, None, None)

    def step(self, recipe: Recipe, step: int = 1, *, fresh: bool = False) -> Seen:
        """One RL step on the first weights, as step number `step`; an error is something to see, too.

        Args:
            recipe: its model is not read.
            step: counted from 0.
            fresh: sample again, and count the engine's decoding steps.
        """
        with torch.no_grad():
            for name, weight in self._model.named_parameters():
                weight.copy_(self._weights[name])
        task = self._task(recipe)
        judge: Any = JudgeHere(task.checker)
        limits = recipe.engine
        engine = CountingEngine(self._sampler, self._tokenizer, max_rows=limits.max_rows, kv_gb=limits.kv_gb)
        session = RememberingSession(
            recipe=recipe,
            display=PlainDisplay(StringIO()),
            tokenizer=self._tokenizer,
            model=self._model,
            optimizer=MasterOptimizer(self._model, recipe.optim),
            engine=engine,
            reference=self._reference if recipe.algorithm.kl.kind != "none" else None,
            folder=self._folder,
            task=task,
            data_hash="",
            held_out=(),
            judge=judge,
            held_judge=judge,
            probed=True,  # engine and trainer differ on purpose
            memory={} if fresh else self._memory,
        )
        stages = loop.plan(session, [], [])
        state = replace(loop.start_of(session, stages, len(stages) - 1, None), step=step)
        try:
            _, record, answers = rl_step(session, state, learning_rate(recipe.optim, step, recipe.steps))
        except AnabranchError as error:
            return {"error": str(error)}
        weights = {n: [float(w.double().sum()), float(w.norm())] for n, w in self._model.state_dict().items()}
        decoded = {"decoding steps": engine.count} if fresh else {}
        return {"record": _observed(record), "answers": list(answers), "weights": weights, **decoded}

    def run(self, recipe: Recipe) -> Seen:
        """A whole run: what it leaves behind but for the recipe itself, or the error that ended it."""
        self._runs += 1
        folder = self._home / f"run-{self._runs}"
        limits: list[tuple[int, float]] = []

        def open_judge(checker: Checker, workers: int, timeout: float) -> JudgeHere:
            limits.append((workers, timeout))
            return JudgeHere(checker)

        seen: Seen = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "Judge", open_judge)
            try:
                run.start(recipe, folder)
            except AnabranchError as error:
                seen["error"] = str(error).replace(str(folder), "RUN")
        seen["threads"] = torch.get_num_threads()
        seen["judges"] = limits
        torch.set_num_threads(1)
        if folder.is_dir():
            seen["files"] = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
            seen["called"] = json.loads((folder / "environment.json").read_text())["recipe"]
            for log in ("metrics", "rollouts", "evaluations"):
                path = folder / f"{log}.jsonl"
                records = list(read_jsonl(path)) if path.is_file() else []
                seen[log] = [_observed(r) for r in records] if log == "metrics" else records
            seen["moments"] = _moments(folder)
            seen["values"] = _values(folder)
        return seen

    def _task(self, recipe: Recipe) -> Task:
        key = f"{recipe.data!r} {recipe.answer!r}"
        if key not in self._tasks:
            self._tasks[key] = open_task(recipe.data, recipe.answer)
        return self._tasks[key]


def problems(recipe: Recipe) -> Seen:
    """The problems of a recipe, or why there are none; data sets of the hub are made up from what was asked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "datasets", _made_up_hub())
        _install_tasksets(recipe, patch)
        try:
            task = open_task(recipe.data, recipe.answer)
        except AnabranchError as error:
            return {"error": str(error)}
    return {"problems": [(problem.key, problem.question, problem.answer) for problem in task.problems]}


TASKSETS = Path(__file__).parents[1] / "environments" / "verifiers_tasksets"
TURNS = (
    "<code>import resource as r; print(r.getrlimit(r.RLIMIT_AS), r.getrlimit(r.RLIMIT_CPU))</code>",
    "<code>print('x' * 1000)</code>",
    "<calc>2^60</calc>",
    "calc: <calc>1 + 1 = </calc>",
    "1 + 1 =",
    "over",
)


def world(recipe: Recipe) -> Seen:
    """What the environment says of itself, what it answers to `TURNS`, how long it sleeps, and what it does at once."""
    if recipe.environment is None:
        return {}
    if isinstance(recipe.environment, Verifiers):
        return _game(recipe)
    found = open_world(recipe.environment)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def play() -> tuple[list[Observation], int]:
        environment = found.environment()
        await environment.reset(Problem("k", "q", "a", "s"), (1, 2))
        answers = [await environment.step(text) for _ in range(4) for text in TURNS]
        return answers, await _at_once(found) if isinstance(found, PythonWorld) else 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency.asyncio, "sleep", sleep)
        answers, at_once = asyncio.run(play())
    said = [(answer.text, answer.done, answer.outcome) for answer in answers]
    about = (found.instruction, found.stop_strings, found.turns, found.seconds)
    return {"about": about, "said": said, "slept": slept, "at once": at_once}


def _install_tasksets(recipe: Recipe, patch: pytest.MonkeyPatch) -> None:
    """Tasksets of the `verifiers` package can be imported, here and in processes that are started."""
    if isinstance(recipe.data, VerifiersTasks):
        pytest.importorskip("verifiers.v1", reason="the extra 'verifiers' is not installed")
        patch.syspath_prepend(str(TASKSETS))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TASKSETS), *filter(None, [os.environ.get("PYTHONPATH")])]))


def _game(recipe: Recipe) -> Seen:
    """What an environment of the `verifiers` package says to a few guesses, or why it does not."""
    assert recipe.environment is not None

    async def play(found: World) -> list[Observation]:
        environment, said = found.environment(), list[Observation]()
        await environment.reset(open_task(recipe.data, recipe.answer).problems[0], (1, 2))
        while not said or not said[-1].done:
            said.append(await environment.step("999"))
        return said

    def render(messages: tuple[Message, ...]) -> str:
        return "".join(message.content for message in messages)

    with pytest.MonkeyPatch.context() as patch:
        _install_tasksets(recipe, patch)
        try:
            found = open_world(recipe.environment, render)
        except AnabranchError as error:
            return {"error": str(error)}
        try:
            said: Any = [(answer.text, answer.reward) for answer in asyncio.run(play(found))]
        except AnabranchError as error:
            said = str(error)
        finally:
            asyncio.run(found.close())
    return {"about": (found.turns, found.seconds), "said": said}


async def _at_once(found: PythonWorld) -> int:
    """Most scripts that run at the same time when three are asked for."""
    running: list[int] = []
    run_, now = found.sandbox.run, set[object]()

    async def counted(script: str) -> Ran:
        mark = object()
        now.add(mark)
        running.append(len(now))
        try:
            return await run_(script)
        finally:
            now.remove(mark)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(found.sandbox, "run", counted)
        await asyncio.gather(*(found.environment().step("<code>1</code>") for _ in range(3)))
    return max(running)


def differs(one: Any, other: Any) -> bool:
    """Whether two observations differ by more than rounding."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() != other.keys() or any(differs(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) != len(other) or any(differs(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, float):
        return one != pytest.approx(other, rel=1e-5, abs=1e-8)
    return bool(one != other)


def _another(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """The model with weights a little off."""
    other = copy.deepcopy(model)
    other.requires_grad_(False)
    join_weights(other)
    generator = torch.Generator().manual_seed(seed)
    for weight in other.parameters():
        weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return other


ECHOES = ("lr", "reward_weight/")
"""Metrics that repeat a setting: that they change shows nothing."""


def _observed(record: dict[str, Any]) -> dict[str, Any]:
    """A record of metrics without clock, memory and echoes."""
    return {
        name: value for name, value in record.items() if find(name).group != "machine" and not name.startswith(ECHOES)
    }


def _moments(folder: Path) -> list[float]:
    """The norms of AdamW's memory in the last checkpoint."""
    from safetensors.torch import load_file

    files = sorted(folder.glob("checkpoints/*/optimizer.safetensors"))
    return [float(value.double().norm()) for _, value in sorted(load_file(files[-1]).items())] if files else []


def _values(folder: Path) -> dict[str, list[float]]:
    """The numbers that the last checkpoint keeps of every problem, where it does."""
    from safetensors.numpy import load_file

    files = sorted(folder.glob("checkpoints/*/values.safetensors"))
    return {name: array.astype(float).tolist() for name, array in load_file(files[-1]).items()} if files else {}


def _made_up_hub() -> ModuleType:
    """A package `datasets` whose rows say what they were asked for."""

    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> list[dict[str, str]]:
        asked = f"{name} {config} {split} {revision}"
        return [
            {"question": f"{asked} {n}+1=", "answer": f"{n + 1}", "solution": f"{asked} {n}+1={n + 1}"}
            for n in range(9)
        ]

    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    return module
