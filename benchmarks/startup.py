"""Start-up: `.venv/bin/python -m benchmarks.startup`.

From the start of a fresh process to its first sampled token, the model being converted, cached and in the system's file
cache (the warm-up reads it). For comparison the shortest such program with `transformers`. Then `anabranch --help`
against an interpreter that does nothing.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.duel import RESULTS, Side, SideError, duel
from benchmarks.generation import model_folder, peer_python, prompt_tokens

GOAL_SECONDS = 8.0


def launch(name: str, command: Sequence[str], threads: int) -> Side:
    """A side that starts `command` every round."""
    env = {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "1000", "HF_HUB_OFFLINE": "1"}
    return Side(name, [".venv/bin/python", "-m", "benchmarks.launcher"], {"command": list(command)}, env)


def main() -> None:
    """Both duels."""
    parser = argparse.ArgumentParser(description="start-up to the first token; --help")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count, after one warm-up of each side")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="of both sides; default: cores"
    )
    parser.add_argument("--model", default="smollm2-135m-instruct", help="built-in name or folder")
    parser.add_argument("--dtype", default="bfloat16", help="of the transformers side; ours measures and chooses")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    asked = parser.parse_args()
    prompt = [str(token) for token in prompt_tokens(asked.model)]
    ours = [".venv/bin/python", "-m", "benchmarks.ours_first_token", asked.model, *prompt]
    module = "benchmarks.peers.transformers_first_token"
    theirs = [peer_python("trl"), "-m", module, model_folder(asked.model), asked.dtype, *prompt]
    pairs = {
        "startup": (("anabranch", ours), ("transformers", theirs)),
        "startup_help": (
            ("anabranch", [".venv/bin/anabranch", "--help"]),
            ("python", [".venv/bin/python", "-c", "print()"]),
        ),
    }
    for name, commands in pairs.items():
        a, b = (launch(side, command, asked.threads) for side, command in commands)
        try:
            report = duel(name, a, b, rounds=asked.rounds, args={}, out=asked.out / f"{name}.json", unit="starts")
        except SideError as error:
            raise SystemExit(str(error)) from None
        seconds = 1 / report["summary"]["rates"][0]["median"]
        print(f"  {name}: {seconds:.2f} s" + (f", goal {GOAL_SECONDS:g} s" if name == "startup" else ""))


if __name__ == "__main__":
    main()
