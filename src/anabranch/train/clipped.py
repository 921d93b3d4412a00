"""Which tokens the clip stops: counted after a step's updates, from their log-probs alone.

"Tricks or Traps" (arXiv:2508.08221) finds that a tight upper clip mostly stops connectives at the start of sentences,
a looser one mostly function words. `clipped_tokens.jsonl` shows what it is in a run of one's own.

Letters: N trained tokens of the step, M of a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from anabranch.recipe.tree import Algorithm
from anabranch.train.lesson import Lesson, old_logprobs
from anabranch.train.objective import FORMS, clip_bounds
from anabranch.train.session import Session
from anabranch.train.state import RunState
from anabranch.train.trainer import Update

SIDES = ("low", "high", "dual")
"""The bounds, in the order of `algo.surrogate.Touched`."""
MOST = 20
"""How many different tokens are listed for a bound."""
SENTENCE_ENDS = (".", "!", "?", ":", "\n")
"""What stands before the first token of a sentence or line."""


class ClippedToken(TypedDict):
    """One entry of a record."""

    token: int
    text: str
    count: int
    """How often the bound acted on it, over all updates of the step."""
    starts: int
    """How often of those it was the first token of an answer, a sentence or a line."""


Places = Counter[tuple[int, int]]
"""How often a bound acted, by token and the token before it; `PROMPT` where that was not trained."""
PROMPT = -1


def log_clipped(session: Session, state: RunState, lesson: Lesson, updates: Sequence[Update]) -> None:
    """Write a record to `clipped_tokens.jsonl` if a bound acted on a token in this step."""
    record = clipped_record(session.recipe.algorithm, session.tokenizer, lesson, updates)
    if record:
        session.folder.clipped_tokens.write({"step": state.step + 1, "policy_version": state.version, **record})


def clipped_record(
    algorithm: Algorithm, tokenizer: PreTrainedTokenizerBase, lesson: Lesson, updates: Sequence[Update]
) -> dict[str, object]:
    """What the bounds acted on over all updates; empty if on nothing.

    Returns:
        `low`, `high`, `dual`, those that acted: how often (`count`), on how many different tokens (`kinds`), and the
        `MOST` frequent ones (`tokens`, see `ClippedToken`; ties by id).
    """
    record: dict[str, object] = {}
    for side, places in zip(SIDES, _places(algorithm, lesson, updates), strict=True):
        if places:
            counts, starts = Counter[int](), Counter[int]()
            opens = {before: _ends_sentence(tokenizer, before) for _, before in places}
            for (token, before), count in places.items():
                counts[token] += count
                starts[token] += count * opens[before]
            frequent = sorted(counts, key=lambda token: (-counts[token], token))[:MOST]
            tokens = [
                ClippedToken(token=token, text=tokenizer.decode([token]), count=counts[token], starts=starts[token])
                for token in frequent
            ]
            record[side] = {"count": counts.total(), "kinds": len(counts), "tokens": tokens}
    return record


def _ends_sentence(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Whether the token after this one is the first of an answer, a sentence or a line."""
    if token == PROMPT:
        return True
    text = tokenizer.decode([token])
    return "\n" in text or text.rstrip().endswith(SENTENCE_ENDS)


def _places(algorithm: Algorithm, lesson: Lesson, updates: Sequence[Update]) -> list[Places]:
    """Where the bounds acted in any of the updates, one `Places` for each of `SIDES`."""
    found = [Places() for _ in SIDES]
    form, bounds = FORMS[algorithm.ratio], clip_bounds(algorithm)
    token_N, before_N, sequence_N = _tokens(lesson)
    advantage_N, in_loss_N = lesson.credit.advantage_M.float(), lesson.credit.weight_M.float() != 0
    for number, update in enumerate(updates):
        old_N = old_logprobs(lesson, updates[:number])
        if old_N is None:
            continue  # every ratio is 1
        slot_M = torch.nonzero(~update.logprob_N.isnan()).flatten()
        rho_M = form.ratio(update.logprob_N[slot_M], old_N[slot_M], sequence_N[slot_M])
        touched = form.touched(rho_M, advantage_N[slot_M], bounds)
        for places, touched_M in zip(found, touched, strict=True):
            hit = slot_M[touched_M & in_loss_N[slot_M]]
            places.update(zip(token_N[hit].tolist(), before_N[hit].tolist(), strict=True))
    return found


def _tokens(lesson: Lesson) -> tuple[Tensor, Tensor, Tensor]:
    """Of every slot that is in a row: its token, the one before it or `PROMPT`, and its answer; int64 [N] each."""
    size = len(lesson.credit.advantage_M)
    token_N, before_N, sequence_N = (torch.full((size,), PROMPT) for _ in range(3))
    for row in (row for part in lesson.rows for row in part):
        slot_M = torch.from_numpy(row.slot_M)
        token_T, trained_T = (torch.from_numpy(array.copy()) for array in (row.layout.tokens_T, row.layout.trained_T))
        source_M = torch.from_numpy(row.source_M)
        token_N[slot_M] = token_T[torch.from_numpy(row.target_M)].long()
        before_N[slot_M] = torch.where(trained_T[source_M], token_T[source_M].long(), PROMPT)
        sequence_N[slot_M] = torch.from_numpy(row.rollout_M)
    return token_N, before_N, sequence_N
