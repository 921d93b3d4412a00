"""Whole runs of a tiny random model: recipes that train it in a second, and processes that can be killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from anabranch.presets import load
from anabranch.recipe.overrides import apply
from anabranch.recipe.tree import Recipe
from anabranch.tracking.checkpoints import complete
from anabranch.tracking.jsonl import read_jsonl
from anabranch.tracking.metrics import find

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def _torch_as_it_was(torch_as_it_was: None) -> Iterator[None]:
    """Every test here, without asking."""
    yield


@pytest.fixture(scope="session")
def make_recipe(small_run: tuple[str, ...], small_stages: tuple[str, ...]) -> MakeRecipe:
    """`make_recipe("steps=3", ..., preset="grpo")`: a preset made small, then changed."""

    sizes = "rollout.prompts=4", "rollout.per_problem=4", "rollout.max_new_tokens=6"  # the rest of rollout stays

    def make(*overrides: str, preset: str = "quickstart") -> Recipe:
        stages = small_stages if preset == "quickstart" else ()
        return apply(load(preset), [*small_run, *sizes, *stages, *overrides])

    return make


class Lives:
    """Runs in processes of their own, one after the other, see killable.py: `live(path=..., log=..., ...)`."""

    def __init__(self, model: str) -> None:
        server = Path(__file__).with_name("killable.py")
        self._process = subprocess.Popen(
            [sys.executable, str(server), model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __call__(self, **life: Any) -> int:
        """Exit code of one life; -9: it was killed; 2: an error that a user can mend; 0: it came to its end."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(life, default=str) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def left_behind(self) -> list[str]:
        """Command lines of processes that runs started and that are still there."""
        session, found = self._process.pid, []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                command = (folder / "cmdline").read_text()
            except (FileNotFoundError, ProcessLookupError):  # it just ended
                continue
            if int(stat[3]) == session and int(folder.name) != session:
                found.append(command)
        return found

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def live(tiny_model: str) -> Iterator[Lives]:
    """See `Lives`."""
    lives = Lives(tiny_model)
    yield lives
    lives.close()


def without_machine_numbers(record: dict[str, Any]) -> dict[str, Any]:
    """A record of metrics.jsonl without the numbers that depend on the clock and on memory."""
    return {name: value for name, value in record.items() if find(name).group != "machine"}


def assert_same(one: Path, other: Path, logs: tuple[str, ...] = ("rollouts", "evaluations")) -> None:
    """Two run folders hold the same metrics (but for the machine's), answers, evaluations and last checkpoint."""
    metrics = [[without_machine_numbers(r) for r in read_jsonl(run / "metrics.jsonl")] for run in (one, other)]
    assert metrics[0] == metrics[1]
    for name in logs:
        assert (one / f"{name}.jsonl").read_bytes() == (other / f"{name}.jsonl").read_bytes(), name
    checkpoints = [complete(run / "checkpoints")[-1] for run in (one, other)]
    assert checkpoints[0].name == checkpoints[1].name
    files = [sorted(str(f.relative_to(c)) for f in c.rglob("*") if f.is_file()) for c in checkpoints]
    assert files[0] == files[1]
    for name in {*files[0]} - {"state.json", "manifest.json"}:
        assert (checkpoints[0] / name).read_bytes() == (checkpoints[1] / name).read_bytes(), name
    states = [json.loads((c / "state.json").read_text()) for c in checkpoints]
    for state in states:
        del state["state"]["seconds"], state["log_sizes"]["metrics"]  # they hold times
        if "rollouts" not in logs:
            del state["log_sizes"]["rollouts"]
        if "evaluations" not in logs:
            del state["log_sizes"]["evaluations"]
    assert states[0] == states[1]


@pytest.fixture(scope="session")
def same_run() -> Callable[..., None]:
    """See `assert_same`."""
    return assert_same
