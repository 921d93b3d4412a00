"""What tests of several folders share. Nothing heavy is imported before a test asks for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def torch_as_it_was() -> Iterator[None]:
    """Loading as a run does sets torch's threads and asks for deterministic algorithms: put back after the test."""
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for all tests of a module, so that the order of sums is always the same."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder as `save_pretrained` writes it: printable ASCII and 5 more tokens, hidden 16, two layers, 4 heads,
    2 key-value heads, a context of 256."""
    from anabranch.modeling.tiny import character_tokenizer, tiny_llama

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = character_tokenizer("".join(map(chr, range(ord(" "), ord("~") + 1))))
    tiny_llama(vocab_size=len(tokenizer), hidden=16, layers=2, positions=256).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


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
def small_run(tiny_model: str, sums: Path) -> tuple[str, ...]:
    """Overrides that make the run of any preset small: the tiny model on sums, two steps. How many answers: up to you.

    The random model never writes `Answer: 7`, but it writes digits: with the lenient extraction some answers hold a
    number and some do not, so that `format` gives a group different rewards from the first step on.
    """
    return (
        f"model={{source: {tiny_model}, dtype: float32, device: cpu, threads: 1}}",
        "steps=2",
        f"data={{kind: jsonl, path: {sums / 'train.jsonl'}}}",
        "prompt.instruction=",
        "answer.extract=[last_number]",
        "reward=[{term: accuracy}, {term: format, weight: 0.5}]",
        "optim={lr: 0.01}",
    )


@pytest.fixture(scope="session")
def small_stages(sums: Path) -> tuple[str, ...]:
    """Overrides for what only some presets have: a short cold start and evaluations on a few other sums."""
    return (
        "cold_start={steps: 2, batch: 4, lr: 0.01}",
        f"evaluation={{problems: 4, samples: 2, data: {{kind: jsonl, path: {sums / 'held_out.jsonl'}}}}}",
    )
