"""Drawing tokens: inverse cumulative distribution, one uniform number a token, keyed by what the token is.

Randomness is counter-based: token t of sample s of a problem at a step uses the t-th number of a Philox stream whose
key is a hash of (seed, step, problem key, sample). It depends on nothing else, least of all on a rollout's neighbours.

Letters: R rows, V vocabulary.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anabranch.records import Sampling

_BLOCK = 256
_CANDIDATES = 512
_CACHE_VALUES = 1 << 20
"""On a CPU so many logits are drawn from at a time: what is computed on the way stays in cache."""


def uniforms(seed: int, step: int, problem_key: str, sample: int, count: int) -> NDArray[np.float64]:
    """The first `count` numbers in [0, 1) of one rollout's own random stream, float64 [count]."""
    name = f"{seed}/{step}/{problem_key}/{sample}".encode()
    key = int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def draw(logits_RV: Tensor, uniform_R: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw one token a row.

    The distribution is softmax(logits / temperature), cut to top-k, then to top-p, renormalised. The log-prob returned
    is that under softmax(logits / temperature) over the whole vocabulary, *before* the cuts: what the trainer computes.

    Args:
        logits_RV: [R, V], any float dtype; computed in float32.
        uniform_R: float64 [R] in [0, 1).
        sampling: the settings; temperature 0 takes the most probable token and reports its log-prob at temperature 1.

    Returns:
        token int64 [R], log-prob float32 [R]; where a row's logits hold NaN or +inf, the log-prob is not finite.
    """
    R, V = logits_RV.shape
    size = max(1, _CACHE_VALUES // V) if logits_RV.device.type == "cpu" else max(1, R)
    parts = [
        _draw_some(logits_RV[start : start + size], uniform_R[start : start + size], sampling)
        for start in range(0, R, size)
    ]
    return torch.cat([token_R for token_R, _ in parts]), torch.cat([logprob_R for _, logprob_R in parts])


def _draw_some(logits_RV: Tensor, uniform_R: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    logits_RV = logits_RV.float()
    greedy = sampling.temperature == 0
    if not greedy and sampling.temperature != 1:
        logits_RV = logits_RV / sampling.temperature
    prob_RV = torch.softmax(logits_RV, dim=-1)
    token_R = logits_RV.argmax(dim=-1) if greedy else _invert(_truncate(prob_RV, sampling), uniform_R)
    chosen_R = prob_RV.gather(1, token_R[:, None])[:, 0]
    return token_R, chosen_R.log()


def _truncate(prob_RV: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities with everything outside top-k and top-p set to 0; tokens tied with the last kept one stay."""
    V = prob_RV.shape[1]
    k = sampling.top_k if 0 < sampling.top_k < V else V
    if k == V and sampling.top_p >= 1:
        return prob_RV
    if k < V:
        floor_R1 = prob_RV.topk(k, dim=-1).values[:, -1:]
        prob_RV = torch.where(prob_RV >= floor_R1, prob_RV, 0)
    if sampling.top_p < 1:
        size = min(_CANDIDATES, V)
        mass_R1 = prob_RV.sum(-1, keepdim=True) * sampling.top_p
        while True:  # a whole-vocabulary sort is slow: widen the candidates only if the nucleus does not fit
            top_RC = prob_RV.topk(size, dim=-1).values
            reached_RC = top_RC.cumsum(-1) >= mass_R1
            if size == V or bool(reached_RC[:, -1].all()):
                break
            size = min(4 * size, V)
        last_R = torch.where(reached_RC.any(-1), reached_RC.int().argmax(-1), size - 1)
        floor_R1 = top_RC.gather(1, last_R[:, None])
        prob_RV = torch.where(prob_RV >= floor_R1, prob_RV, 0)
    return prob_RV


def _invert(mass_RV: Tensor, uniform_R: Tensor) -> Tensor:
    """First token whose cumulative mass exceeds uniform * total mass, in two levels: block sums, then one block."""
    R, V = mass_RV.shape
    blocks = -(-V // _BLOCK)
    if blocks * _BLOCK != V:
        mass_RV = torch.nn.functional.pad(mass_RV, (0, blocks * _BLOCK - V))
    mass_RKC = mass_RV.view(R, blocks, _BLOCK)
    block_RK = mass_RKC.sum(-1).double()
    cumulative_RK = block_RK.cumsum(-1)
    goal_R1 = uniform_R[:, None] * cumulative_RK[:, -1:]
    block_R1 = _first_above(cumulative_RK, block_RK, goal_R1)
    before_R1 = torch.nn.functional.pad(cumulative_RK, (1, 0)).gather(1, block_R1)  # never above the goal
    inside_RC = mass_RKC[torch.arange(R, device=mass_RV.device), block_R1[:, 0]].double()
    token_R1 = _first_above(inside_RC.cumsum(-1), inside_RC, goal_R1 - before_R1)
    return (block_R1 * _BLOCK + token_R1)[:, 0]


def _first_above(cumulative_RN: Tensor, mass_RN: Tensor, goal_R1: Tensor) -> Tensor:
    """Index [R, 1] of the first cumulative mass above the goal; the last one with mass where rounding leaves none."""
    N = mass_RN.shape[1]
    first_R1 = (cumulative_RN <= goal_R1).sum(-1, keepdim=True)
    last_R1 = N - 1 - (mass_RN > 0).flip(-1).int().argmax(-1, keepdim=True)
    return torch.minimum(first_R1, last_R1)
