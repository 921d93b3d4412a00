"""Attention over a row in blocks of queries: each block names the few keys that any of its tokens sees.

A dense mask of a row of T tokens has T * T entries, nearly all of them False where many answers share a prompt. Cut
into blocks, work and memory follow what is seen: an answer's tokens meet their prompt and themselves, not siblings.

Letters: T tokens of a row, Q queries of a block, N its keys, S segments of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anabranch.errors import ShapeError, explain
from anabranch.records import Bool
from anabranch.structure.layout import Layout

Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class QueryBlock:
    """Consecutive tokens of a row and everything that they see.

    Example, the row of `Layout` (a prompt of 3, answers of 2, 1 and 3) in blocks of at most 5: the first holds prompt
    and first answer and sees keys `0 1 2 3 4`; the second holds the other two answers and sees `0 1 2 5 6 7 8`.
    """

    start: int
    stop: int
    key_N: Int64
    """Row indices of the keys, ascending; filled up with 0, which the mask hides, to a multiple of the key bucket."""
    mask_QN: Bool
    """True where the query sees the key. Every query sees at least one."""


def query_blocks(layout: Layout, padded_to: int, *, size: int, key_bucket: int) -> list[QueryBlock]:
    """Cut a row into blocks of at most `size` queries, between segments where that is not too far off.

    Together the blocks' masks are exactly `layout.allowed`. Padding sees only itself and is seen by nothing else.

    Args:
        layout: the row.
        padded_to: length of the padded row, at least T.
        size: most queries of a block.
        key_bucket: numbers of keys are rounded up to a multiple of it, so that few shapes occur.

    Raises:
        ShapeError: `padded_to` is shorter than the row.
    """
    length = len(layout)
    if padded_to < length:
        raise ShapeError(explain("padded_to", padded_to, f"the row has {length} tokens", f"padded_to={length} or more"))
    segment_T = layout.segment_T
    blocks = []
    for start, stop in _cuts(np.flatnonzero(np.diff(segment_T)) + 1, length, size):
        own_S = np.zeros(len(layout.ancestor_SS), dtype=np.bool_)
        own_S[segment_T[start:stop]] = True
        seen_S = own_S | layout.ancestor_SS[own_S].any(0)
        key_N = np.flatnonzero(seen_S[segment_T[:stop]])
        query_Q, seg_Q, seg_N = np.arange(start, stop), segment_T[start:stop], segment_T[key_N]
        causal_QN = (seg_Q[:, None] == seg_N) & (key_N <= query_Q[:, None])
        blocks.append(_block(start, stop, key_N, causal_QN | layout.ancestor_SS[seg_Q[:, None], seg_N], key_bucket))
    for start in range(length, padded_to, size):
        stop = min(start + size, padded_to)
        blocks.append(_block(start, stop, np.arange(start, stop), np.eye(stop - start, dtype=np.bool_), key_bucket))
    return blocks


def batches(blocks: Sequence[QueryBlock], pairs: int) -> list[list[QueryBlock]]:
    """Blocks with equally many keys, put together in batches of at most `pairs` (query, key) pairs, one block at least.

    Within a batch blocks are ordered by their number of queries, so that few are filled up to the largest.
    """
    found: list[list[QueryBlock]] = []
    size = 0
    for block in sorted(blocks, key=lambda block: (len(block.key_N), block.start - block.stop, block.start)):
        if found and len(found[-1][0].key_N) == len(block.key_N) and (len(found[-1]) + 1) * size <= pairs:
            found[-1].append(block)
        else:
            found.append([block])
            size = block.mask_QN.size
    return found


def _cuts(bounds: Int64, length: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most `size`; one ends at a bound between segments if that leaves it more than half full."""
    start = 0
    while start < length:
        stop = min(start + size, length)
        if stop < length:
            last = int(np.searchsorted(bounds, stop, side="right")) - 1
            if last >= 0 and bounds[last] > start + size // 2:
                stop = int(bounds[last])
        yield start, stop
        start = stop


def _block(start: int, stop: int, key_N: Int64, mask_QN: Bool, bucket: int) -> QueryBlock:
    surplus = -len(key_N) % bucket
    return QueryBlock(start, stop, np.pad(key_N, (0, surplus)), np.pad(mask_QN, ((0, 0), (0, surplus))))
