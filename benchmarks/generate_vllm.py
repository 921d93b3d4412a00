"""Generation against vLLM's build for CPUs: `.venv/bin/python -m benchmarks.generate_vllm --answers 64 512`.

Both sides give the log-prob of every sampled token, which RL needs; the search also shows vLLM without.
"""

from __future__ import annotations

import os

from benchmarks.duel import ROOT, Side
from benchmarks.generation import Peer, model_folder, options, peer_python, play, prompt_tokens
from benchmarks.tune import Change

GOALS = {64: 2.5, 512: 4.0}

ANSWERS_PER_GIB = 128
"""Of the cache for keys and values, which vLLM takes at once: enough in bfloat16 with any block size tried here."""


def peer(model: str, answers: int, longest: int, threads: int, *, logprobs: bool) -> Peer:
    """vLLM in one process, and the changes that are tried.

    Args:
        model: folder.
        answers: as many may be decoded together.
        longest: tokens of prompt and answer together.
        threads: for its matrix products.
        logprobs: whether it gives those of sampled tokens.
    """
    side = Side(
        "vllm",
        [peer_python("vllm"), "-m", "benchmarks.peers.vllm_generate"],
        {
            "model": model,
            "dtype": "bfloat16",
            "max_answers": answers,
            "max_tokens": longest,
            "block_size": 32,
            "eager": True,
            "logprobs": logprobs,
        },
        {
            "OMP_NUM_THREADS": str(threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": str(-(-answers // ANSWERS_PER_GIB)),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        },
    )
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
    intel = str(ROOT / ".peers" / "vllm" / "lib" / "libiomp5.so")
    processes = [
        Change(env={"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_OMP_THREADS_BIND": "auto"}),  # as it comes
        Change(env={"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_OMP_THREADS_BIND": cores}),
    ]
    openmp = [Change(env={"LD_PRELOAD": intel})]
    blocks = [Change({"block_size": 64}), Change({"block_size": 128})]
    return Peer(
        side,
        [processes, openmp, [Change({"dtype": "float32"})], blocks, [Change({"eager": False})]],
        GOALS,
        beside=[Change({"logprobs": not logprobs})],
    )


def main() -> None:
    """Play, once for each number of answers."""
    parser = options("generation against vLLM", [64, 512])
    parser.add_argument("--no-logprobs", dest="logprobs", action="store_false", help="vLLM leaves them out; we do not")
    asked = parser.parse_args()
    longest = len(prompt_tokens(asked.model)) + asked.tokens
    folder = model_folder(asked.model)
    name = "generate_vllm" if asked.logprobs else "generate_vllm_without_logprobs"
    play(name, lambda answers: peer(folder, answers, longest, asked.threads, logprobs=asked.logprobs), asked)


if __name__ == "__main__":
    main()
