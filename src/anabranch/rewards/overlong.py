"""What happens to the reward of answers that reach the length limit."""

from __future__ import annotations

from dataclasses import replace

from anabranch.recipe.tree import Overlong
from anabranch.records import Rollout, Score

PART = "overlong"
"""Name of the part that holds what was added to the reward because of length."""
DEFAULT_BUFFER = 5
"""`Overlong.buffer` None: the limit divided by this."""


def soft_overlong(length: int, max_length: int, buffer: int) -> float:
    """DAPO's soft punishment (arXiv:2503.14476, equation 13), in [-1, 0].

        0                                  for L <= Lmax - C
        ((Lmax - C) - L) / C               for Lmax - C < L <= Lmax
        -1                                 for L > Lmax

    Args:
        length: L, tokens of the answer.
        max_length: Lmax.
        buffer: C > 0, over how many tokens the punishment grows.
    """
    free = max_length - buffer
    if length <= free:
        return 0.0
    return (free - length) / buffer if length <= max_length else -1.0


def apply_overlong(overlong: Overlong, score: Score, rollout: Rollout, max_new_tokens: int) -> Score:
    """The score after the length rule; `parts["overlong"]` is what the rule added to the reward.

    soft: adds `soft_overlong` of the answer's length. stop_properly: the reward of an answer that was cut is multiplied
    by `coef`, or is `coef` where that is below 0 (ProRLv2). none, filter: nothing changes here; filtering happens in
    the loss.
    """
    if overlong.kind == "soft":
        buffer = overlong.buffer or max(1, max_new_tokens // DEFAULT_BUFFER)
        added = soft_overlong(rollout.num_answer_tokens, max_new_tokens, buffer)
        reward = score.reward + added
    elif overlong.kind == "stop_properly":
        # Not what was there plus what the rule adds: rounding would make equal rewards differ.
        cut = overlong.coef if overlong.coef < 0 else overlong.coef * score.reward
        reward = cut if rollout.truncated else score.reward
        added = reward - score.reward
    else:
        return score
    return replace(score, reward=reward, parts={**score.parts, PART: added})
