"""Models and tokenizers by name: a built-in one, a local folder, or a Hugging Face id.

Built-in models are made once and loaded from the cache, without a network, ever after: SmolLM2 is converted, see
`anabranch.modeling.smollm`; the small models are trained, see `anabranch.modeling.small`.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import constants
from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from anabranch.errors import ModelError, explain
from anabranch.modeling import small
from anabranch.modeling.cache import Progress, Silent
from anabranch.modeling.quiet import quiet
from anabranch.modeling.smollm import BUILTIN, builtin_folder, converted_folder
from anabranch.records import Message

LOADING_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    ImportError,
    RuntimeError,
    AttributeError,
    ArithmeticError,
    IndexError,
    SafetensorError,
    StrictDataclassError,
)
"""What transformers raises about a model that it cannot read. Caught only around its own loading functions."""

PLAIN_ATTENTION = ("eager", "sdpa")
"""Implementations that every model knows; all others need a model that asks the attention interface."""


# ------------------------------------------------------------------------------------------------- where it is


def resolve(source: str) -> Path | str:
    """Where a model is: a folder (built-in and local models), or the Hugging Face id as it came.

    A built-in model is made at the first call, which takes a while: `prepare` does it where somebody reads along.

    Raises:
        ModelError: the folder is missing or holds no config.json, the name is nearly a built-in one, or the package of
            the built-in model is not installed.
    """
    if source == BUILTIN:
        return builtin_folder()
    if source in small.NAMES:
        return small.folder_of(source, Silent())
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                explain(
                    str(path),
                    "no config.json",
                    "a model folder holds one",
                    "name the folder that save_pretrained wrote",
                )
            )
        return path
    if path.exists() or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) is None or source.startswith("."):
        found = "a file" if path.exists() else "no such folder"
        raise ModelError(
            explain(
                f"model {source!r}",
                found,
                "a model is a folder, a Hugging Face id or a built-in name",
                f"model.source={BUILTIN}",
            )
        )
    close = get_close_matches(source, (BUILTIN, *small.NAMES), n=1, cutoff=0.8)
    if close and "/" not in source:
        raise ModelError(
            explain(
                f"model {source!r}", "no folder of that name", "it is nearly a built-in one", f"model.source={close[0]}"
            )
        )
    return source


def needs_conversion(source: str) -> bool:
    """Whether `resolve` will convert SmolLM2 now, which takes about 20 seconds and 1.5 GB of memory."""
    return source == BUILTIN and not converted_folder().is_dir()


def check_builtin(name: str) -> None:
    """Refuse a name that is not a built-in model's.

    Raises:
        ModelError: names the closest one.
    """
    names = (BUILTIN, *small.NAMES)
    if name not in names:
        close = get_close_matches(name, names, n=1) or names
        raise ModelError(
            explain(f"model {name!r}", "no built-in model", f"they are {', '.join(names)}", f"name {close[0]}")
        )


def prepare(source: str, progress: Progress) -> None:
    """Make a built-in model if it is not in the cache, and say so; for any other source do nothing.

    Raises:
        ModelError: it cannot be made.
    """
    if source in small.NAMES:
        small.folder_of(source, progress)
    elif needs_conversion(source):
        progress.note(f"converting {source} once, about 20 seconds")
        resolve(source)


# -------------------------------------------------------------------------------------------------- loading


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. Folders are read without a network.

    Raises:
        ModelError: it cannot be found or read.
    """
    place = resolve(source)
    local = isinstance(place, Path) or not _hub_answers()
    with quiet(progress=not local), _loading(source, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, local_files_only=local)
    return tokenizer


def load_model(source: str, dtype: torch.dtype, device: torch.device, *, attention: str = "eager") -> PreTrainedModel:
    """A causal language model in eval mode (no dropout, in training neither), with every weight taken from the files.

    Args:
        source: built-in name, local folder or Hugging Face id. Folders are read without a network.
        dtype: dtype of the weights and of all that is computed.
        device: where it goes.
        attention: name of an implementation in transformers' attention interface.

    Raises:
        ModelError: it cannot be found or read; it is not a causal language model, is quantised, or cannot use
            `attention`; weights are missing, unknown or of another shape.
    """
    place = resolve(source)
    local = isinstance(place, Path) or not _hub_answers()
    with quiet(progress=not local):
        with _loading(source, "config"):
            config = AutoConfig.from_pretrained(place, local_files_only=local)
        _check_config(source, config, attention)
        with _loading(source, "weights"):
            model, report = AutoModelForCausalLM.from_pretrained(
                place,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                local_files_only=local,
                output_loading_info=True,
            )
    _check_weights(source, report)
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def _check_config(source: str, config: PretrainedConfig, attention: str) -> None:
    """Refuse what is not a decoder-only causal language model that can be trained, before any weight is read."""
    where = f"model {source!r}"
    need = "a decoder-only causal language model is needed"
    fix = f"model.source={BUILTIN}, or another causal language model"
    if config.is_encoder_decoder:
        raise ModelError(explain(where, f"an encoder-decoder model ({config.model_type})", need, fix))
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        raise ModelError(explain(where, f"a model of type {config.model_type}", need, fix))
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if config.architectures and kind.__name__ not in config.architectures:
        raise ModelError(
            explain(where, f"weights of {', '.join(config.architectures)}", f"{kind.__name__} is needed", fix)
        )
    if "quantization_config" in config.to_dict():
        raise ModelError(
            explain(where, "quantised weights", "training needs float weights", "use the unquantised model")
        )
    if attention not in PLAIN_ATTENTION and not kind._supports_attention_backend:
        need = f"attention {attention!r} needs a model that uses transformers' attention interface"
        raise ModelError(explain(where, f"{kind.__name__}, which does not", need, fix))


def _check_weights(source: str, report: dict[str, object]) -> None:
    """Weights that transformers would have made up, dropped or reshaped are an error."""
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        names = sorted(map(str, report.get(what) or ()))  # type: ignore[call-overload]
        if names:
            found = f"{len(names)} {what.replace('_', ' ')}, first {names[0]}"
            need = "every weight must come from the files, and every weight in the files must have a place"
            raise ModelError(
                explain(f"weights of model {source!r}", found, need, "use a complete causal LM checkpoint")
            )


def _hub_answers() -> bool:
    """Whether the Hugging Face hub can be connected to. If not, its local cache is used at once: its own client would
    try again for half a minute, for every file. Behind a proxy the question is left to that client.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies():
        return True
    hub = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((hub.hostname or "", hub.port or 443), timeout=5.0).close()
    except OSError:
        return False
    return True


@contextmanager
def _loading(source: str, what: str) -> Iterator[None]:
    """Boundary to transformers: what it raises while loading becomes one short error."""
    try:
        yield
    except LOADING_ERRORS as error:
        lines = str(error).split("\n") if str(error) else [type(error).__name__]
        found = " ".join(line.strip() for line in (lines[:2] if lines[0].endswith(":") else lines[:1]))
        raise ModelError(
            explain(
                f"{what} of model {source!r}",
                found[:300].rstrip("."),
                "it must be readable: a folder written by save_pretrained, or an id that is in the local cache or "
                "can be downloaded",
                f"check the name and the network; offline, model.source={BUILTIN} or a model folder",
            )
        ) from error


# -------------------------------------------------------------------------------------------- what is asked of them


def context_length(model: PreTrainedModel) -> int:
    """The most tokens the model can place, from its config.

    Raises:
        ModelError: the config names no limit.
    """
    settings = model.config.get_text_config(decoder=True).to_dict()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(settings.get(name), int):
            return int(settings[name])
    raise ModelError(
        explain(
            f"config of {model.config.model_type}",
            "no max_position_embeddings",
            "the context length must be known",
            "add max_position_embeddings to the model's config.json",
        )
    )


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Tokens of a conversation up to where the assistant's answer begins.

    With a chat template: what the template says, with its generation prompt. Without one (a base model) the rule is
    plain text: the contents, joined by an empty line and ended by a newline, "content\\n\\ncontent\\n", encoded with
    the special tokens that the tokenizer adds by itself; roles are not written.

    Raises:
        ModelError: the template refuses the messages (some allow no system message).
    """
    if not tokenizer.chat_template:
        text = "\n\n".join(message.content for message in messages) + "\n"
        return list(tokenizer(text)["input_ids"])
    conversation = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return list(tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False))
    except TemplateError as error:
        roles = ", ".join(message.role for message in messages)
        raise ModelError(
            explain(
                "chat template",
                f"messages of roles {roles}",
                f"it refused them: {error}",
                "leave out prompt.system if the template has no system message",
            )
        ) from error


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> tuple[int, ...]:
    """Ids that end an answer: eos of the tokenizer and of the generation config, sorted; empty if there are none."""
    ids = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    if configured is not None:
        ids.update([configured] if isinstance(configured, int) else configured)
    return tuple(sorted(ids))
