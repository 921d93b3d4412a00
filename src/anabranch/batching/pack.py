"""From the graphs of many answers to rows of tokens: prompts shared, rows filled, nothing trained twice.

Letters: B answers of a batch, T tokens of a row, M trained tokens (targets) of a row.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anabranch.errors import ShapeError, explain
from anabranch.records import Float32, StreamGraph
from anabranch.structure.layout import Layout, concatenate, lay_out, targets
from anabranch.structure.sharing import share_prompt

Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Row:
    """One row for one forward pass, and where each of its targets belongs.

    Example, prompts of 2 tokens, input answers 0 and 1 to one prompt with 3 and 1 trained tokens: the row `p p a a a b`
    has targets `2 3 4 5`, sources `1 2 3 1`, rollouts `0 0 0 1` and slots `0 1 2 3`.
    """

    layout: Layout
    target_M: Int64
    """Index in the row of every trained token, in text order."""
    source_M: Int64
    """Index in the row of the token that predicts it."""
    rollout_M: Int64
    """Which answer of the batch it belongs to, 0 to B - 1 in input order."""
    slot_M: Int64
    """Its place in the batch's flat token order (see `flat_offsets`)."""


def flat_offsets(graphs: Sequence[StreamGraph]) -> Int64:
    """Where each answer's trained tokens start in the batch's flat token order, int64 [B + 1].

    Flat token order: answer after answer in input order; within an answer, its trained tokens in the text order of its
    own graph. Answer b owns the slots from `offsets[b]` up to, not including, `offsets[b + 1]`; the last entry is their
    number. Answers that are left out of the rows keep their slots.
    """
    return np.cumsum([0, *(graph.num_trained for graph in graphs)], dtype=np.int64)


def pack(
    graphs: Sequence[StreamGraph],
    groups: Sequence[Hashable],
    keep: Sequence[bool] | None = None,
    *,
    row_tokens: int,
) -> list[Row]:
    """Pack answers into rows of at most `row_tokens` tokens; the answers of one group share their prompt.

    A group that fits into a row stays together; one that does not is split, its prompt repeated once a row. What is
    left of a row is filled with other groups. An answer longer than a row gets a row of its own. The result depends on
    nothing but the arguments' order and sizes.

    Args:
        graphs: B answers; segment 0 is the prompt.
        groups: B labels; answers with the same label have the same prompt.
        keep: B flags; an answer with False is left out of the rows. None keeps all. An answer without a trained token
            is always left out.
        row_tokens: room of a row.

    Raises:
        ShapeError: `groups` or `keep` is not as long as `graphs`.
        GraphError: answers of one group in one row do not have the same prompt (see `share_prompt`).
    """
    kept = [True] * len(graphs) if keep is None else keep
    for name, given in (("groups", groups), ("keep", kept)):
        if len(given) != len(graphs):
            raise ShapeError(explain(name, f"{len(given)} values", f"there are {len(graphs)} answers", "one an answer"))
    offsets = flat_offsets(graphs)
    members: dict[Hashable, list[int]] = {}
    for answer, group in enumerate(groups):
        if kept[answer] and offsets[answer + 1] > offsets[answer]:
            members.setdefault(group, []).append(answer)
    units: list[list[int]] = []  # answers that stand behind one copy of their prompt
    sizes: list[int] = []
    for answers in members.values():
        prompt = len(graphs[answers[0]].segments[0])
        lengths = [graphs[answer].num_tokens - prompt for answer in answers]
        for chosen in best_fit(lengths, row_tokens - prompt):
            units.append([answers[index] for index in chosen])
            sizes.append(prompt + sum(lengths[index] for index in chosen))
    return [_row(graphs, offsets, [units[index] for index in chosen]) for chosen in best_fit(sizes, row_tokens)]


def best_fit(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Distribute items over bins: largest first, each into the fullest bin that still has room for it.

    An item larger than `room` gets a bin of its own. Ties go to the earlier item and the earlier bin.

    Returns:
        Item indices per bin, ascending within a bin; bins ascend by their first item.
    """
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, bin), ascending
    for item in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        found = bisect_left(free, (sizes[item], -1))
        if found == len(free):
            bins.append([item])
            insort(free, (room - sizes[item], len(bins) - 1))
        else:
            left, chosen = free.pop(found)
            bins[chosen].append(item)
            insort(free, (left - sizes[item], chosen))
    return sorted(sorted(items) for items in bins)


def packed_tokens(rows: Sequence[Row]) -> int:
    """How many tokens the rows hold, shared prompts counted once a row: what a forward pass costs."""
    return sum(len(row.layout) for row in rows)


def engine_logprobs(rows: Sequence[Row], num_slots: int) -> Float32:
    """What the engine recorded for the trained tokens of the rows, in flat token order.

    Args:
        rows: of one batch.
        num_slots: N, how many trained tokens the batch has.

    Returns:
        float32 [N], nats; NaN in slots that are in no row, and for tokens that the engine did not sample.
    """
    logprob_N = np.full(num_slots, np.nan, dtype=np.float32)
    for row in rows:
        logprob_N[row.slot_M] = row.layout.engine_logprob_T[row.target_M]
    return logprob_N


def _row(graphs: Sequence[StreamGraph], offsets: Int64, units: Sequence[Sequence[int]]) -> Row:
    layouts = []
    for unit in units:
        alone = len(unit) == 1
        layouts.append(lay_out(graphs[unit[0]] if alone else share_prompt([graphs[answer] for answer in unit])[0]))
    layout = layouts[0] if len(layouts) == 1 else concatenate(layouts)
    target_M = targets(layout)
    # Text order keeps an answer whole and in its own order, so that slots can be counted off answer by answer.
    answers = np.array([answer for unit in units for answer in unit], dtype=np.int64)
    counts = offsets[answers + 1] - offsets[answers]
    before = np.cumsum(counts) - counts
    return Row(
        layout=layout,
        target_M=target_M,
        source_M=layout.source_T[target_M].astype(np.int64),
        rollout_M=np.repeat(answers, counts),
        slot_M=np.arange(len(target_M), dtype=np.int64) + np.repeat(offsets[answers] - before, counts),
    )
