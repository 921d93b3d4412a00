"""Generation against `transformers`: `.venv/bin/python -m benchmarks.generate_transformers`.

`generate` gives no log-probs here, we do: asking for them would only slow it down.
"""

from __future__ import annotations

from benchmarks.duel import Side
from benchmarks.generation import Peer, model_folder, options, peer_python, play
from benchmarks.tune import Change

GOALS = {64: 8.0}


def peer(model: str, threads: int) -> Peer:
    """`generate` in the environment of TRL, and the changes that are tried."""
    side = Side(
        "transformers",
        [peer_python("trl"), "-m", "benchmarks.peers.transformers_generate"],
        {"model": model, "dtype": "bfloat16", "attention": "sdpa"},
        {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
    )
    both = [
        Change({"dtype": dtype, "attention": attention})
        for dtype, attention in (("bfloat16", "eager"), ("float32", "sdpa"), ("float32", "eager"))
    ]
    return Peer(side, [both], GOALS)


def main() -> None:
    """Play, once for each number of answers."""
    asked = options("generation against transformers", [64]).parse_args()
    other = peer(model_folder(asked.model), asked.threads)
    play("generate_transformers", lambda _: other, asked)


if __name__ == "__main__":
    main()
