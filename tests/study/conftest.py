"""Studies of a tiny random model on a file of sums."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from anabranch.study.command import Asked

AskedFor = Callable[..., Asked]


@pytest.fixture(autouse=True)
def _torch_as_it_was(torch_as_it_was: None) -> Iterator[None]:
    """Every test here, without asking."""
    yield


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
def asked_for(tiny_model: str, sums: Path) -> AskedFor:
    """`asked_for("algorithm.scale=none,group_std", seeds="2")`: a small study of the quickstart recipe."""
    small = (
        f"model={{source: {tiny_model}, dtype: float32, device: cpu, threads: 1}}",
        "steps=2",
        f"data={{kind: jsonl, path: {sums / 'train.jsonl'}}}",
        "prompt.instruction=",
        "answer.extract=[last_number]",
        "reward=[{term: accuracy}, {term: format, weight: 0.5}]",
        "rollout={prompts: 4, per_problem: 4, max_new_tokens: 6}",
        "optim={lr: 0.01}",
        "cold_start={steps: 2, batch: 4, lr: 0.01}",
        f"evaluation={{problems: 4, samples: 2, data: {{kind: jsonl, path: {sums / 'held_out.jsonl'}}}}}",
    )

    def ask(*varied: str, seeds: str = "2", overrides: tuple[str, ...] = (), bundles: tuple[str, ...] = ()) -> Asked:
        return Asked("quickstart", (*small, *overrides), varied, bundles, seeds)

    return ask
