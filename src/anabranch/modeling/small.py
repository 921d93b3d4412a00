"""Small models with characters for tokens, trained from scratch on exercises: once, in minutes, then cached.

They are ordinary `transformers` folders. A family is one training with several checkpoints: `base`, whose text was of
mixed quality, knows the form of an answer, can add and subtract, and is seldom right; `aligned` went on with clean
text, is right more often and surer of itself. What they are for: runs that take a minute or two, where SmolLM2 takes
hours. Measured pass rates: docs/small-models.md.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from anabranch.modeling.cache import Progress, complete_folder, made_once, models_folder
from anabranch.modeling.files import os_errors
from anabranch.modeling.tiny import BOS, EOS, character_tokenizer
from anabranch.tasks.answers import answer_line
from anabranch.tasks.base import derived_seed, problem_key
from anabranch.tasks.exercises import Exercise, Kind, Manner, exercises

VERSION = 2
"""Counted up when the code below, or that of the exercises, makes other weights from the same numbers."""

ALPHABET = "".join(map(chr, range(ord(" "), ord("~") + 1)))
"""Printable ASCII: any prompt in English can be read, though most characters never occur in training."""
VOCABULARY = len(ALPHABET) + 5
"""With newline and four special tokens."""
POSITIONS = 1024
"""Context length."""
THETA = 1000.0
"""Base of the rotary positions: a tenth of the usual, texts are short."""
THREADS = 2
"""Of every training, whatever the settings of the process: rounding depends on it."""
SORTED_BATCHES = 16
"""So many batches are sorted by length together, so that little is padded."""
UNTRAINED = -100
"""Label of a token that is not learned."""
HELD_OUT = 64
"""Exercises of each kind that a finished model is asked."""
NEW_TOKENS = 160
"""Longest answer to them."""
RECORD = "training.json"
"""What a training came to, beside its models."""
LAST = 50
"""The loss that is reported is the mean of so many last steps of a stage."""


@dataclass(frozen=True)
class Stage:
    """A part of the training, and the checkpoint at its end."""

    name: str
    steps: int
    kinds: tuple[Kind, ...]
    """Sums that it learns, and how often each."""
    manner: Manner
    kept: bool = True
    """Whether the weights at its end are a model; otherwise it only prepares the next stage."""


@dataclass(frozen=True)
class Family:
    """All that decides the weights, beside the machine. Sizes first."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    stages: tuple[Stage, ...]
    batch: int = 32
    """Exercises a step."""
    lr: float = 3e-3
    """At its highest; warm-up over the first 5 % of all steps, then along a cosine to a tenth."""
    seed: int = 0

    @property
    def parameters(self) -> int:
        """Numbers in the model; the embedding is also the head."""
        layer = 4 * self.hidden**2 + 3 * self.hidden * self.ffn + 2 * self.hidden
        return self.layers * layer + (VOCABULARY + 1) * self.hidden

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def key(self) -> str:
        """16 hex digits that change with anything that decides the weights."""
        return problem_key(json.dumps(asdict(self), sort_keys=True), f"version {VERSION}")


SHORT = Kind(2, 4, 1)
"""Learned first: all that longer sums need but their length."""
LONG = Kind(5, 8, 1)
"""More steps of the same kind."""

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "small": Family(
            hidden=128,
            ffn=320,
            layers=3,
            heads=4,
            stages=(
                Stage("first steps", 420, (SHORT,), Manner(), kept=False),
                Stage("primer", 230, (SHORT, LONG), Manner(), kept=False),
                Stage("base", 130, (SHORT, LONG), Manner(slip=0.15, direct=0.1, check=0.1, loop=0.1)),
                Stage("aligned", 120, (SHORT, LONG), Manner(slip=0.03, check=0.05)),
            ),
        )
    }
)
"""By the first half of their names."""

NAMES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        f"{name}-{stage.name}": (name, stage.name)
        for name, family in FAMILIES.items()
        for stage in family.stages
        if stage.kept
    }
)
"""Model name -> (family, stage): `small-base`, `small-aligned`."""


# --------------------------------------------------------------------------------------------------- where it is


def family_folder(name: str, family: Family) -> Path:
    """Where the models of a family are, or will be."""
    return models_folder() / f"{name}-{family.key}"


def is_built(model: str) -> bool:
    """Whether the model is in the cache."""
    name, _ = NAMES[model]
    return family_folder(name, FAMILIES[name]).is_dir()


def folder_of(model: str, progress: Progress) -> Path:
    """The folder of a small model; its family is trained if it is not in the cache.

    Raises:
        ModelError: the cache cannot be written.
    """
    name, stage = NAMES[model]
    return family(name, FAMILIES[name], progress) / stage


def family(name: str, what: Family, progress: Progress) -> Path:
    """The folder of a family: one model folder for each stage, and `training.json`. Trained if it is not there.

    A process that is killed leaves nothing that is ever used; the next one starts again from the beginning.

    Raises:
        ModelError: the cache cannot be written.
    """
    folder = family_folder(name, what)
    fill = partial(_train, name, what, progress)
    return made_once(folder, lambda place: complete_folder(place, fill), megabytes=50)


def new_model(what: Family) -> LlamaForCausalLM:
    """A model with fresh weights, which the seed alone decides; the global random state is left as it was."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=what.hidden,
        intermediate_size=what.ffn,
        num_hidden_layers=what.layers,
        num_attention_heads=what.heads,
        num_key_value_heads=what.heads,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        initializer_range=what.hidden**-0.5,  # learns in half the steps that the usual 0.02 needs at these sizes
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(what.seed)
        return LlamaForCausalLM(config)


# ------------------------------------------------------------------------------------------------------ training


def _train(name: str, what: Family, progress: Progress, folder: Path) -> None:
    """Train all stages and write `folder`."""
    tokenizer = character_tokenizer(ALPHABET)
    model = new_model(what)
    size = sum(parameter.numel() for parameter in model.parameters())
    progress.note(f"building {name}-* once: {size / 1e6:.1f}M parameters, {what.steps} steps, about 3 minutes")
    optimizers = new_optimizers(model)
    start, step = time.perf_counter(), 0
    records = []
    with _own_threads():
        for number, stage in enumerate(what.stages):
            source = exercises(stage.kinds, stage.manner, derived_seed(f"{name} {number}", what.seed))
            model.train()
            losses = []
            for tokens_BT, labels_BT in islice(batches(source, tokenizer, what.batch), stage.steps):
                losses.append(_step(model, optimizers, tokens_BT, labels_BT, _rate(what, step)))
                step += 1
                if step % 20 == 0:
                    left = (time.perf_counter() - start) * (what.steps - step) / step
                    progress.phase(
                        f"building {name}: step {step}/{what.steps}, loss {losses[-1]:.2f}, {left:.0f} s left"
                    )
            if not stage.kept:
                continue
            record = {
                "name": f"{name}-{stage.name}",
                "steps": step,
                "loss": sum(losses[-LAST:]) / len(losses[-LAST:]),
                "accuracy": {kind.label: sampled_accuracy(model, tokenizer, kind, what.seed) for kind in stage.kinds},
                "seconds": time.perf_counter() - start,
            }
            records.append(record)
            progress.note(_line(record))
            _save(model, tokenizer, folder / stage.name)
    settings = {"family": asdict(what), "version": VERSION, "torch": torch.__version__, "threads": THREADS}
    (folder / RECORD).write_text(json.dumps({**settings, "parameters": size, "stages": records}, indent=1))


def _line(record: Mapping[str, Any]) -> str:
    """A stage as a person reads it."""
    accuracy = ", ".join(f"{label} {value:.0%}" for label, value in record["accuracy"].items())
    return (
        f"{record['name']}: {record['steps']} steps, {record['seconds']:.0f} s, loss {record['loss']:.3f}; "
        f"right of {HELD_OUT} sampled answers each: {accuracy}"
    )


def _rate(what: Family, step: int) -> float:
    warmup = max(1, what.steps // 20)
    if step < warmup:
        return what.lr * (step + 1) / warmup
    x = (step - warmup) / max(1, what.steps - warmup)
    return what.lr * (0.1 + 0.9 * (1 + math.cos(math.pi * x)) / 2)


def new_optimizers(model: LlamaForCausalLM) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms.

    With AdamW alone the loss was 0.09 instead of 0.01 after 600 steps on the short sums.
    """
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    known = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in known]
    return (
        torch.optim.Muon(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
    )


def _step(
    model: LlamaForCausalLM,
    optimizers: tuple[torch.optim.Optimizer, ...],
    tokens_BT: Tensor,
    labels_BT: Tensor,
    lr: float,
) -> float:
    """One step on the mean negative log-prob of the learned tokens; returns it."""
    logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=UNTRAINED
    )
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def prompt_text(exercise: Exercise) -> str:
    """What stands before the answer: what the tokenizer's chat template makes of the prompt."""
    return f"{BOS}{exercise.prompt}\n"


def batches(
    source: Iterator[Exercise], tokenizer: PreTrainedTokenizerFast, size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end: tokens int64 [B, T], padded with 0, and labels that are the tokens of answers.

    Exercises are sorted by length within `SORTED_BATCHES` batches, which then come shortest, longest, second shortest
    and so on, so that the mean length changes little from one to the next.
    """
    while True:
        chunk = list(islice(source, size * SORTED_BATCHES))
        prompts = tokenizer([prompt_text(exercise) for exercise in chunk])["input_ids"]
        ends = [EOS if exercise.ends else "" for exercise in chunk]
        answers = tokenizer([f"{e.answer}{end}" for e, end in zip(chunk, ends, strict=True)])["input_ids"]
        order = sorted(range(len(chunk)), key=lambda index: len(prompts[index]) + len(answers[index]))
        groups = [order[start : start + size] for start in range(0, len(order), size)]
        while groups:
            for place in (0, -1):
                if groups:
                    chosen = groups.pop(place)
                    yield _padded([prompts[index] for index in chosen], [answers[index] for index in chosen])


def _padded(prompts: list[list[int]], answers: list[list[int]]) -> tuple[Tensor, Tensor]:
    length = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    tokens_BT = torch.zeros(len(prompts), length, dtype=torch.int64)
    labels_BT = torch.full_like(tokens_BT, UNTRAINED)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        whole = torch.tensor([*prompt, *answer])
        tokens_BT[row, : len(whole)] = whole
        labels_BT[row, len(prompt) : len(whole)] = whole[len(prompt) :]
    return tokens_BT, labels_BT


@torch.no_grad()
def sampled_accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, kind: Kind, seed: int) -> float:
    """Share of right answers, sampled at temperature 1, to exercises of one kind that training does not draw."""
    model.eval()
    source = exercises((kind,), Manner(), derived_seed("small held out", seed))
    asked = list(islice(source, HELD_OUT))
    tokenizer.padding_side = "left"
    prompts = tokenizer([prompt_text(e) for e in asked], return_tensors="pt", padding=True)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        tokens_BT = model.generate(
            input_ids=prompts["input_ids"],
            attention_mask=prompts["attention_mask"],
            max_new_tokens=NEW_TOKENS,
            do_sample=True,
            top_k=0,
        )
    tokenizer.padding_side = "right"
    texts = tokenizer.batch_decode(tokens_BT[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [answer_line(text) == str(exercise.gold) for text, exercise in zip(texts, asked, strict=True)]
    return sum(right) / len(right)


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    with os_errors():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def _own_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def training_lines(model: str) -> list[str]:
    """What the training of a model in the cache came to, a line a stage; nothing for any other model."""
    if model not in NAMES or not is_built(model):
        return []
    name, _ = NAMES[model]
    record = json.loads((family_folder(name, FAMILIES[name]) / RECORD).read_text())
    return [_line(stage) for stage in record["stages"]]
