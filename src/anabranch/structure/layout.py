"""From a stream graph to text order, positions, attention mask and (source, target) pairs.

This module is the only owner of masks and positions; engine and trainer both ask it. The rules (docs/design.md,
section 2):

* Text order: parents first, one sibling with all that is below it before the next, a join after all. A join counts as
  below the parent that comes last, behind whatever else is below that parent.
* A token sees its own segment up to itself and every token of every ancestor segment, nothing else.
* A segment starts at 1 + the largest last position among its parents, at 0 without parents.
* Inside a segment a token is predicted by the one before it; the first token of a segment by the last token of its
  only parent, or by nothing if it has no parent or several.

Letters: T tokens of a row, S segments of a row, M trained tokens (targets) of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anabranch.errors import GraphError, ShapeError, explain
from anabranch.records import Bool, Float32, Int32, StreamGraph

Int64 = NDArray[np.int64]

NOTHING = -1
"""`source` of a token that nothing predicts."""


@dataclass(frozen=True, eq=False)
class Layout:
    """A row of tokens: one or more graphs in text order, with all that attention and the loss need to know.

    Example, a prompt of 3 tokens with answers of 2, 1 and 3: positions `0 1 2 | 3 4 | 3 | 3 4 5`, segment ids
    `0 0 0 1 1 2 3 3 3`, sources `-1 0 1 2 3 2 2 6 7`; 34 of 45 causal pairs are allowed.
    """

    tokens_T: Int32
    positions_T: Int32
    segment_T: Int32
    """Which segment a token belongs to, counted in text order over the whole row."""
    source_T: Int32
    """Index in the row of the token that predicts this one, or `NOTHING`."""
    trained_T: Bool
    engine_logprob_T: Float32
    policy_version_T: Int32
    origin_T: Int32
    """Index of the token's segment within its own graph (`StreamGraph.segments`)."""
    graph_T: Int32
    """Which graph of the row a token belongs to."""
    ancestor_SS: Bool
    """`ancestor_SS[s, a]`: every token of s sees every token of a. The diagonal is False: own tokens are causal."""

    def __len__(self) -> int:
        return len(self.tokens_T)


def text_order(graph: StreamGraph) -> list[int]:
    """Segment indices in text order.

    Hang every join below the parent that comes last: the order is that tree read from the top, depth first, siblings by
    index, joins behind the siblings that have one parent. So nothing ever stands between a segment and what hangs below
    it, and the answers to one prompt follow each other whole.
    """
    children: list[list[int]] = [[] for _ in graph.segments]
    waiting = [len(segment.parents) for segment in graph.segments]
    for index, segment in enumerate(graph.segments):
        for parent in segment.parents:
            children[parent].append(index)
    stack = [index for index, segment in enumerate(graph.segments) if not segment.parents][::-1]
    order: list[int] = []
    while stack:
        index = stack.pop()
        order.append(index)
        ready = []
        for child in children[index]:
            waiting[child] -= 1
            if waiting[child] == 0:
                ready.append(child)
        ready.sort(key=lambda child: (len(graph.segments[child].parents) > 1, child))
        stack.extend(reversed(ready))
    return order


def ancestors(graph: StreamGraph) -> Bool:
    """bool [S, S]: `[s, a]` is True where a is a parent of s, a parent of a parent, and so on."""
    size = len(graph.segments)
    ancestor_SS = np.zeros((size, size), dtype=np.bool_)
    for index, segment in enumerate(graph.segments):  # parents stand before children, so one pass is enough
        for parent in segment.parents:
            ancestor_SS[index] |= ancestor_SS[parent]
            ancestor_SS[index, parent] = True
    return ancestor_SS


def first_positions(graph: StreamGraph) -> list[int]:
    """Position of the first token of every segment."""
    first: list[int] = []
    for segment in graph.segments:
        ends = [first[parent] + len(graph.segments[parent]) for parent in segment.parents]
        first.append(max(ends, default=0))
    return first


def lay_out(graph: StreamGraph) -> Layout:
    """One graph as a row in text order."""
    order = text_order(graph)
    first = first_positions(graph)
    segments = [graph.segments[index] for index in order]
    sizes = np.array([len(segment) for segment in segments])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    last_of = {index: int(start + size - 1) for index, start, size in zip(order, starts, sizes, strict=True)}
    total = int(sizes.sum())
    source_T = np.arange(total, dtype=np.int32) - 1
    for segment, start in zip(segments, starts, strict=True):
        source_T[start] = last_of[segment.parents[0]] if len(segment.parents) == 1 else NOTHING
    return Layout(
        tokens_T=np.concatenate([segment.tokens for segment in segments]),
        positions_T=np.concatenate(
            [np.arange(first[index], first[index] + len(graph.segments[index]), dtype=np.int32) for index in order]
        ),
        segment_T=np.repeat(np.arange(len(order), dtype=np.int32), sizes),
        source_T=source_T,
        trained_T=np.concatenate([segment.trained for segment in segments]),
        engine_logprob_T=np.concatenate([segment.engine_logprob for segment in segments]),
        policy_version_T=np.concatenate([segment.policy_version for segment in segments]),
        origin_T=np.repeat(np.array(order, dtype=np.int32), sizes),
        graph_T=np.zeros(total, dtype=np.int32),
        ancestor_SS=ancestors(graph)[np.ix_(order, order)],
    )


def concatenate(layouts: Sequence[Layout]) -> Layout:
    """Several graphs in one row; they do not see each other.

    Raises:
        GraphError: no layout given.
    """
    if not layouts:
        raise GraphError(explain("concatenate", "no layout", "a row holds one or more graphs", "leave the row out"))
    segment_counts = [len(layout.ancestor_SS) for layout in layouts]
    graph_counts = [int(layout.graph_T[-1]) + 1 for layout in layouts]
    ancestor_SS = np.zeros((sum(segment_counts), sum(segment_counts)), dtype=np.bool_)
    start = 0
    for layout, count in zip(layouts, segment_counts, strict=True):
        ancestor_SS[start : start + count, start : start + count] = layout.ancestor_SS
        start += count
    return Layout(
        tokens_T=np.concatenate([layout.tokens_T for layout in layouts]),
        positions_T=np.concatenate([layout.positions_T for layout in layouts]),
        segment_T=_renumber([layout.segment_T for layout in layouts], segment_counts),
        source_T=_renumber([layout.source_T for layout in layouts], [len(layout) for layout in layouts]),
        trained_T=np.concatenate([layout.trained_T for layout in layouts]),
        engine_logprob_T=np.concatenate([layout.engine_logprob_T for layout in layouts]),
        policy_version_T=np.concatenate([layout.policy_version_T for layout in layouts]),
        origin_T=np.concatenate([layout.origin_T for layout in layouts]),
        graph_T=_renumber([layout.graph_T for layout in layouts], graph_counts),
        ancestor_SS=ancestor_SS,
    )


def _renumber(parts: Sequence[Int32], counts: Sequence[int]) -> Int32:
    """Indices into parts of a row become indices into the row: each part is shifted by the counts before it."""
    shift_T = np.repeat(np.cumsum([0, *counts[:-1]]), [len(part) for part in parts])
    index_T = np.concatenate(parts)
    return np.where(index_T == NOTHING, NOTHING, index_T + shift_T).astype(np.int32)


def allowed(layout: Layout, padded_to: int | None = None) -> Bool:
    """The attention mask as a dense matrix, bool [T, T]: row t is True at every token that t may attend to.

    Args:
        layout: the row.
        padded_to: length of the padded row, at least T. Padding sees only itself and is seen by nothing else.

    Raises:
        ShapeError: `padded_to` is shorter than the row.
    """
    size = len(layout)
    if padded_to is not None and padded_to < size:
        raise ShapeError(explain("padded_to", padded_to, f"the row has {size} tokens", f"padded_to={size} or more"))
    seg = layout.segment_T
    causal = np.tri(size, dtype=np.bool_) & (seg[:, None] == seg[None, :])
    mask: Bool = causal | layout.ancestor_SS[seg[:, None], seg[None, :]]
    if padded_to is None or padded_to == size:
        return mask
    padded = np.eye(padded_to, dtype=np.bool_)
    padded[:size, :size] = mask
    return padded


def targets(layout: Layout) -> Int64:
    """Row indices of the trained tokens, int64 [M], in text order; `layout.source_T` names what predicts each."""
    return np.flatnonzero(layout.trained_T)
