"""What the generation duels share: the prompt, our side, the command line. Same weights, prompt and lengths on both
sides, temperature 1, nothing ends an answer early.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.duel import RESULTS, ROOT, Side, SideError, duel
from benchmarks.tune import Change, search

PROBLEM = (
    "A school orders 14 boxes of pencils with 24 pencils in each box. The 9 teachers take 12 pencils each, and all the "
    "rest is shared equally among 57 children. How many pencils does each child get?"
)
"""A word problem like those of GSM8K. With SmolLM2's chat template it has 80 tokens: 16 behind the last whole block of
32, which is an average remainder for an engine that shares prompts by such blocks."""

SEARCH_TOKENS = 16
"""Length of the answers while settings are searched."""


@dataclass(frozen=True)
class Peer:
    """The other side, and what may be changed about it."""

    side: Side
    axes: Sequence[Sequence[Change]]
    goals: dict[int, float]
    """By number of answers, the ratio to reach."""
    beside: Sequence[Change] = ()
    """Tried by the search for comparison only."""


def options(description: str, answers: Sequence[int]) -> argparse.ArgumentParser:
    """The options of a generation duel."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--answers", type=int, nargs="+", default=list(answers), help="answers to the prompt, a duel each"
    )
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each answer")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count, after one warm-up of each side")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="of both sides; default: cores"
    )
    parser.add_argument("--tune", action="store_true", help="search for the best settings of both sides first")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="built-in name or folder")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return parser


def model_folder(source: str) -> str:
    """Where the weights are; the built-in model is converted if this is the first time."""
    from anabranch.modeling.load import resolve

    return str(resolve(source))


def prompt_tokens(source: str) -> list[int]:
    """The problem through the model's chat template: the same token ids for both sides."""
    from anabranch.modeling.load import encode_chat, load_tokenizer
    from anabranch.records import Message

    return list(encode_chat(load_tokenizer(source), [Message("user", PROBLEM)]))


def peer_python(name: str) -> str:
    """The interpreter of a peer's environment, relative to the repository.

    Raises:
        SystemExit: it is not installed.
    """
    python = Path(".peers") / name / "bin" / "python"
    if not (ROOT / python).exists():
        raise SystemExit(f"{python} is missing\n  fix: make bench-peers")
    return str(python)


def ours(model: str, answers: int, threads: int) -> Peer:
    """This library, with its engine on the very prompt; only what a recipe can say may be changed."""
    side = Side(
        "anabranch",
        [".venv/bin/python", "-m", "benchmarks.ours_generate"],
        {"model": model, "dtype": "bfloat16", "max_rows": min(answers, 128)},
        {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "1000"},  # as the command line sets it
    )
    rows = [Change({"max_rows": rows}) for rows in (64, 256, 512) if rows <= answers and rows != min(answers, 128)]
    return Peer(side, [[Change({"dtype": "float32"})], rows], {})


def play(name: str, peer: Peer, answers: int, asked: argparse.Namespace) -> None:
    """Search both sides' settings, then play; results go to `NAME_ANSWERS.json`.

    Raises:
        SystemExit: a side cannot play.
    """
    prompt = prompt_tokens(asked.model)
    sides, tried = [], []
    out = asked.out / f"{name}_{answers}.json"
    try:
        for one in (ours(asked.model, answers, asked.threads), peer):
            side = one.side
            if asked.tune:
                args = {"prompt": prompt, "answers": answers, "tokens": min(SEARCH_TOKENS, asked.tokens)}
                log = out.with_name(f"{out.stem}-search.log")
                side, more = search(side, one.axes, args=args, log=log, beside=one.beside)
                tried += more
            sides.append(side)
        duel(
            f"generation, {answers} answers of {asked.tokens} tokens to a prompt of {len(prompt)}",
            *sides,
            rounds=asked.rounds,
            args={"prompt": prompt, "answers": answers, "tokens": asked.tokens},
            out=out,
            goal=peer.goals.get(answers),
            search=tried,
        )
    except SideError as error:
        raise SystemExit(str(error)) from None
