"""A tiny random model in a folder, and torch's global settings put back after each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from anabranch.modeling.tiny import character_tokenizer, tiny_llama

ALPHABET = "".join(map(chr, range(ord(" "), ord("~") + 1)))
"""Printable ASCII."""


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    """Loading as a run does sets torch's threads and asks for deterministic algorithms."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder as `save_pretrained` writes it: 100 tokens, hidden 16, two layers, 4 heads, 2 key-value heads."""
    folder: Path = tmp_path_factory.mktemp("bench_models") / "tiny"
    tokenizer = character_tokenizer(ALPHABET)
    tiny_llama(vocab_size=len(tokenizer), hidden=16, layers=2, positions=512).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
