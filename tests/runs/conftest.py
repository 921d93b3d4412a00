"""Whole runs on a tiny random model: a character-level Llama in a folder, and recipes that train it in a second."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from anabranch.modeling.tiny import character_tokenizer, tiny_llama
from anabranch.presets import load
from anabranch.recipe.overrides import apply
from anabranch.recipe.tree import Recipe
from anabranch.tracking.checkpoints import complete
from anabranch.tracking.jsonl import read_jsonl
from anabranch.tracking.metrics import find

ALPHABET = "".join(map(chr, range(ord(" "), ord("~") + 1)))
"""Printable ASCII."""

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    """A run sets torch's threads and asks for deterministic algorithms; other tests get back what they had."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = character_tokenizer(ALPHABET)
    tiny_llama(vocab_size=len(tokenizer), hidden=16, layers=2, positions=256).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train.jsonl` and `held_out.jsonl`: sums of two digits with worked solutions."""
    folder = tmp_path_factory.mktemp("data")
    pairs = [(a, b) for a in range(10) for b in range(10)]
    for name, part in (("train", pairs[::3]), ("held_out", pairs[1::9])):
        rows = [{"question": f"{a}+{b}=", "answer": str(a + b), "solution": f"{a}+{b}={a + b}"} for a, b in part]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def make_recipe(tiny_model: Path, sums: Path) -> MakeRecipe:
    """`make_recipe("steps=3", ..., preset="grpo")`: a preset made small, then changed.

    The random model never writes `Answer: 7`, but it writes digits: with the lenient extraction some answers hold a
    number and some do not, so that `format` gives a group different rewards from the first step on.
    """
    small = (
        f"model={{source: {tiny_model}, dtype: float32, device: cpu, threads: 1}}",
        "steps=2",
        f"data={{kind: jsonl, path: {sums / 'train.jsonl'}}}",
        "prompt.instruction=",
        "answer.extract=[last_number]",
        "reward=[{term: accuracy}, {term: format, weight: 0.5}]",
        "rollout.prompts=4",
        "rollout.per_problem=4",
        "rollout.max_new_tokens=6",
        "optim={lr: 0.01}",
    )
    quick = (
        "cold_start={steps: 2, batch: 4, lr: 0.01}",
        f"evaluation={{problems: 4, samples: 2, data: {{kind: jsonl, path: {sums / 'held_out.jsonl'}}}}}",
    )

    def make(*overrides: str, preset: str = "quickstart") -> Recipe:
        return apply(load(preset), [*small, *(quick if preset == "quickstart" else ()), *overrides])

    return make


class Lives:
    """Runs in processes of their own, one after the other, see killable.py: `live(path=..., log=..., ...)`."""

    def __init__(self, model: Path) -> None:
        server = Path(__file__).with_name("killable.py")
        self._process = subprocess.Popen(
            [sys.executable, str(server), str(model)],
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
def live(tiny_model: Path) -> Iterator[Lives]:
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
