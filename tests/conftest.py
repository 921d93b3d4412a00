"""What tests of several folders share. Nothing heavy is imported before a test asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def torch_as_it_was() -> Iterator[None]:
    """Loading as a run does sets torch's threads and asks for deterministic algorithms: put back after the test."""
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder as `save_pretrained` writes it: printable ASCII and 5 more tokens, hidden 16, two layers, 4 heads,
    2 key-value heads."""
    from anabranch.modeling.tiny import character_tokenizer, tiny_llama

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = character_tokenizer("".join(map(chr, range(ord(" "), ord("~") + 1))))
    tiny_llama(vocab_size=len(tokenizer), hidden=16, layers=2, positions=512).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
