"""Blocks of queries and the keys they see: together they are the dense mask, without what no one sees."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import ShapeError
from anabranch.records import Segment, StreamGraph
from anabranch.structure.blocks import QueryBlock, batches, query_blocks
from anabranch.structure.layout import Layout, allowed, concatenate, lay_out


def row_of(*parts: tuple[int, tuple[int, ...]]) -> Layout:
    """A row of one graph from (length, parents) pairs."""
    return lay_out(StreamGraph(tuple(Segment([7] * size, parents) for size, parents in parts)))


@st.composite
def rows(draw: st.DrawFn) -> Layout:
    """One to three graphs of any shape: several roots, forks, joins, segments shorter and longer than a block."""
    layouts = []
    for _ in range(draw(st.integers(1, 3))):
        parts: list[tuple[int, tuple[int, ...]]] = []
        for index in range(draw(st.integers(1, 6))):
            parents = draw(st.lists(st.integers(0, index - 1), max_size=3, unique=True)) if index else []
            parts.append((draw(st.integers(1, 12)), tuple(parents)))
        layouts.append(row_of(*parts))
    return concatenate(layouts)


def spans(blocks: list[QueryBlock]) -> list[tuple[int, int]]:
    return [(block.start, block.stop) for block in blocks]


def entries(blocks: list[QueryBlock]) -> int:
    return sum(block.mask_QN.size for block in blocks)


# ------------------------------------------------------------------------------------------------------- any row


@settings(deadline=None, max_examples=150)
@given(rows(), st.integers(0, 20), st.integers(1, 20), st.integers(1, 9))
def test_blocks_put_together_are_the_dense_mask(layout, padding, size, key_bucket):
    T = len(layout) + padding
    found_TT = np.zeros((T, T), dtype=np.int64)
    for block in query_blocks(layout, T, size=size, key_bucket=key_bucket):
        query, key = np.nonzero(block.mask_QN)
        np.add.at(found_TT, (block.start + query, block.key_N[key]), 1)
    assert np.array_equal(found_TT, allowed(layout, T))  # and no pair twice


@settings(deadline=None, max_examples=150)
@given(rows(), st.integers(0, 20), st.integers(1, 20), st.integers(1, 9))
def test_blocks_follow_each_other_and_hold_only_what_is_seen(layout, padding, size, key_bucket):
    blocks = query_blocks(layout, len(layout) + padding, size=size, key_bucket=key_bucket)
    cuts = spans(blocks)
    assert [start for start, _ in cuts] == [0, *(stop for _, stop in cuts[:-1])]
    assert cuts[-1][1] == len(layout) + padding
    for block in blocks:
        assert 1 <= block.stop - block.start <= size
        assert block.key_N.dtype == np.int64
        assert block.mask_QN.dtype == np.bool_
        assert block.mask_QN.shape == (block.stop - block.start, len(block.key_N))
        assert block.mask_QN.any(1).all()  # a query that sees nothing would divide by zero
        seen_N = block.mask_QN.any(0)
        count = int(seen_N.sum())
        assert seen_N[:count].all()  # what fills up stands behind, is index 0 and no more than needed
        assert (np.diff(block.key_N[:count]) > 0).all()
        assert (block.key_N[count:] == 0).all()
        assert len(block.key_N) == -(-count // key_bucket) * key_bucket


# --------------------------------------------------------------------------------------------------------- by hand


def test_the_row_of_the_docstring():
    first, second = query_blocks(row_of((3, ()), (2, (0,)), (1, (0,)), (3, (0,))), 9, size=5, key_bucket=1)
    assert (first.start, first.stop) == (0, 5)
    assert first.key_N.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(first.mask_QN, np.tri(5, dtype=bool))
    assert (second.start, second.stop) == (5, 9)
    assert second.key_N.tolist() == [0, 1, 2, 5, 6, 7, 8]
    expected = """
        111 1 000
        111 0 100
        111 0 110
        111 0 111"""
    lines = [line.replace(" ", "") for line in expected.split("\n")[1:]]
    assert second.mask_QN.tolist() == [[mark == "1" for mark in line] for line in lines]


def test_keys_are_filled_up_with_hidden_zeros_and_padding_sees_itself():
    # 2 tokens and 3 of padding, in blocks of 2 with keys in fours
    blocks = query_blocks(row_of((2, ())), 5, size=2, key_bucket=4)
    assert spans(blocks) == [(0, 2), (2, 4), (4, 5)]
    assert [block.key_N.tolist() for block in blocks] == [[0, 1, 0, 0], [2, 3, 0, 0], [4, 0, 0, 0]]
    masks = [block.mask_QN.astype(int).tolist() for block in blocks]
    assert masks == [[[1, 0, 0, 0], [1, 1, 0, 0]], [[1, 0, 0, 0], [0, 1, 0, 0]], [[1, 0, 0, 0]]]


@pytest.mark.parametrize(
    ("sizes", "size", "expected"),
    [
        ((3, 2, 1, 3), 5, [(0, 5), (5, 9)]),
        ((3, 2, 1, 3), 4, [(0, 3), (3, 6), (6, 9)]),  # at 4 the first answer would be cut, at 3 it is not
        ((10,), 4, [(0, 4), (4, 8), (8, 10)]),  # no bound to cut at
        ((1, 9), 4, [(0, 4), (4, 8), (8, 10)]),  # a cut at 1 leaves three quarters of a block empty
        ((2, 8), 4, [(0, 4), (4, 8), (8, 10)]),  # half full is not more than half full
        ((3, 3, 3), 9, [(0, 9)]),
        ((3, 3, 3), 100, [(0, 9)]),
        ((1, 1, 1), 1, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_cuts_are_between_segments_where_that_leaves_a_block_more_than_half_full(sizes, size, expected):
    layout = row_of(*((length, (0,) if index else ()) for index, length in enumerate(sizes)))
    assert spans(query_blocks(layout, len(layout), size=size, key_bucket=1)) == expected


def test_a_block_holds_no_keys_of_answers_that_stand_before_it():
    # a prompt of 100 with 50 answers of 10: each answer meets 100 + 10 keys
    layout = row_of((100, ()), *[(10, (0,))] * 50)
    blocks = query_blocks(layout, 600, size=10, key_bucket=1)
    assert len(blocks) == 60
    for block in blocks[10:]:
        assert block.key_N.tolist() == [*range(100), *range(block.start, block.stop)]
    assert entries(blocks[:10]) == 10 * (10 + 20 + 30 + 40 + 50 + 60 + 70 + 80 + 90 + 100)
    assert entries(blocks[10:]) == 50 * 10 * 110


def test_many_answers_cost_a_third_of_the_dense_mask_in_blocks_of_128():
    # 100 + 2 answers, then 12 answers at a time (120 tokens, the most that fit): 5 blocks of 120 queries
    layout = row_of((100, ()), *[(10, (0,))] * 50)
    blocks = query_blocks(layout, 600, size=128, key_bucket=1)
    assert spans(blocks) == [(0, 120), (120, 240), (240, 360), (360, 480), (480, 600)]
    assert [len(block.key_N) for block in blocks] == [120, 220, 220, 220, 220]  # the prompt and the block's own
    assert entries(blocks) == 120 * 120 + 4 * 120 * 220  # 120000 of 360000
    assert [len(block.key_N) for block in query_blocks(layout, 600, size=128, key_bucket=32)] == [128] + [224] * 4


def test_a_join_sees_the_keys_of_all_its_paths_and_of_nothing_that_branched_off():
    # prompt 0-1, paths 2-3 and 4-5, their join 6-7, an answer of its own 8-9 below the prompt
    layout = row_of((2, ()), (2, (0,)), (2, (0,)), (2, (1, 2)), (2, (0,)))
    by_start = {int(layout.origin_T[block.start]): block for block in query_blocks(layout, 10, size=2, key_bucket=1)}
    assert len(by_start[3].key_N) == 8
    assert len(by_start[4].key_N) == 4
    assert set(layout.origin_T[by_start[4].key_N].tolist()) == {0, 4}


def test_padding_to_less_than_the_row_is_refused():
    with pytest.raises(ShapeError, match=r"padded_to: found 3, but the row has 4 tokens\n  fix: padded_to=4 or more"):
        query_blocks(row_of((4, ())), 3, size=2, key_bucket=1)


def test_batches_hold_blocks_of_equally_many_keys_and_no_more_pairs_than_asked_for():
    layout = lay_out(StreamGraph((Segment([1] * 100), *[Segment([2] * 10, (0,))] * 50)))
    blocks = query_blocks(layout, 600, size=64, key_bucket=32)
    made = batches(blocks, 3 * 64 * 160)
    assert sorted(block.start for some in made for block in some) == [block.start for block in blocks]
    for some in made:
        assert len({len(block.key_N) for block in some}) == 1
        assert len(some) * some[0].mask_QN.size <= 3 * 64 * 160
        assert [len(block.mask_QN) for block in some] == sorted((len(block.mask_QN) for block in some), reverse=True)
    # the prompt's blocks have 64 and 128 keys; those of 6 answers each see the prompt and themselves: 160
    assert max(len(some) for some in made) == 3
    assert [len(some) for some in batches(blocks, 1)] == [1] * len(blocks)  # one at least
