"""What the generation duels share: the prompt, our side, the command line. Same weights, prompt and lengths on both
sides, temperature 1, nothing ends an answer early.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    parser.add_argument(
        "--peer-settings",
        type=Change.parse,
        help="the other side's settings as JSON, with `env` for its environment; --tune then searches ours alone",
    )
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
        {"model": model, "dtype": "bfloat16", "max_rows": answers},
        {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "1000"},  # as the command line sets it
    )
    rows = [Change({"max_rows": rows}) for rows in (64, 128, 256) if rows < answers]
    return Peer(side, [[Change({"dtype": "float32"})], rows], {})


def play(name: str, peer_for: Callable[[int], Peer], asked: argparse.Namespace) -> None:
    """A duel for each number of answers, settings searched first if that is asked for; results go to
    `NAME_ANSWERS.json`.

    The peer's settings are searched with the first number of answers; its other duels begin with what that found. Ours
    are searched each time: only how many rows are decoded together may change.

    Args:
        name: of the benchmark, as in its files.
        peer_for: the other side, for a number of answers.
        asked: of `options`.

    Raises:
        SystemExit: a side cannot play.
    """
    prompt = prompt_tokens(asked.model)
    winner: Change | None = asked.peer_settings
    searched_with: int | None = None
    for answers in asked.answers:
        out = asked.out / f"{name}_{answers}.json"
        ours_now, peer = ours(asked.model, answers, asked.threads), peer_for(answers)
        theirs = peer.side if winner is None else winner.of(peer.side)
        args = {"prompt": prompt, "answers": answers, "tokens": min(SEARCH_TOKENS, asked.tokens)}
        how: dict[str, Any] = {"args": args, "log": out.with_name(f"{out.stem}-search.log")}
        tried: list[dict[str, Any]] = []
        try:
            our_side = ours_now.side
            if asked.tune:
                our_side, tried = search(our_side, ours_now.axes, **how)
            if asked.tune and winner is None:
                theirs, more = search(theirs, peer.axes, beside=peer.beside, **how)
                winner, searched_with = Change.between(peer.side, theirs), answers
                tried += more
            elif searched_with is not None:
                print(f"settings of {theirs.name}: those that the search with {searched_with} answers found")
                settings, env = dict(theirs.settings), dict(theirs.env)
                tried.append({"side": theirs.name, "settings": settings, "env": env, "searched_with": searched_with})
            duel(
                f"generation, {answers} answers of {asked.tokens} tokens to a prompt of {len(prompt)}",
                our_side,
                theirs,
                rounds=asked.rounds,
                args={"prompt": prompt, "answers": answers, "tokens": asked.tokens},
                out=out,
                goal=peer.goals.get(answers),
                search=tried,
            )
        except SideError as error:
            raise SystemExit(str(error)) from None
