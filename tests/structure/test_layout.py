"""Text order, positions, mask and (source, target) pairs: the paper's numbers, and the rules read word by word.

The reference below is slow on purpose: it goes token by token and uses nothing of the code under test but text order,
which has its own tests.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import GraphError, ShapeError
from anabranch.records import UNSAMPLED, Segment, StreamGraph
from anabranch.structure.layout import NOTHING, Layout, allowed, concatenate, lay_out, targets, text_order


def graph_of(*parts: tuple[int, tuple[int, ...]]) -> StreamGraph:
    """A graph from (length, parents) pairs; every token has an id of its own, every token that may be is trained."""
    segments, first = [], 100
    for size, parents in parts:
        trained = np.ones(size, dtype=bool)
        trained[0] = len(parents) == 1
        tokens = np.arange(first, first + size)
        segments.append(Segment(tokens, parents, trained, -tokens / 1000, np.full(size, len(segments))))
        first += size
    return StreamGraph(tuple(segments))


def rows(*spans: tuple[int, int]) -> set[int]:
    return {index for start, end in spans for index in range(start, end + 1)}


def seen_by(layout: Layout, row: int) -> set[int]:
    return set(np.flatnonzero(allowed(layout)[row]).tolist())


@st.composite
def dags(draw: st.DrawFn, max_segments: int = 9) -> StreamGraph:
    """Any graph: several roots, forks, joins, joins of ancestors with descendants."""
    parts: list[tuple[int, tuple[int, ...]]] = []
    for index in range(draw(st.integers(1, max_segments))):
        parents = draw(st.lists(st.integers(0, index - 1), max_size=3, unique=True)) if index else []
        parts.append((draw(st.integers(1, 3)), tuple(parents)))
    return graph_of(*parts)


# --------------------------------------------------------------------------------------- the specifications' numbers


def test_A1_two_paths():
    # q0 q1 m0 <Parallel> | <Path> a0 </Path> | <Path> b0 b1 </Path> | </Parallel> \n <Summary> s0 </Summary> m1
    layout = lay_out(graph_of((4, ()), (3, (0,)), (4, (0,)), (6, (1, 2))))
    assert layout.positions_T.tolist() == [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    assert allowed(layout).sum() == 141  # 17 * 18 / 2 = 153 causal pairs, less the 4 x 3 of path 2 on path 1
    assert seen_by(layout, 8) == {0, 1, 2, 3, 7, 8}
    assert seen_by(layout, 5) == rows((0, 5))
    assert seen_by(layout, 11) == rows((0, 11))
    assert seen_by(layout, 16) == rows((0, 16))


def test_A1_a_prompt_segment_of_its_own_changes_nothing():
    whole = lay_out(graph_of((4, ()), (3, (0,)), (4, (0,)), (6, (1, 2))))
    split = lay_out(graph_of((2, ()), (2, (0,)), (3, (1,)), (4, (1,)), (6, (2, 3))))
    assert split.positions_T.tolist() == whole.positions_T.tolist()
    assert np.array_equal(allowed(split), allowed(whole))


def test_A2_three_paths():
    layout = lay_out(graph_of((11, ()), (3, (0,)), (5, (0,)), (4, (0,)), (2, (1, 2, 3))))
    starts, ends = [11, 14, 19], [13, 18, 22]
    assert layout.positions_T[10] == 10
    assert layout.positions_T[starts].tolist() == [11, 11, 11]
    assert layout.positions_T[ends].tolist() == [13, 15, 14]
    assert layout.positions_T[23:].tolist() == [16, 17]
    assert allowed(layout).sum() == 278  # 25 * 26 / 2 = 325, less 3*5 + 3*4 + 5*4 = 47


def test_A3_two_consecutive_blocks():
    # u <Parallel> | <Path> a </Path> | <Path> b b b </Path> | </Parallel> \n <Summary> s </Summary> v <Parallel>
    # | <Path> c c </Path> | <Path> d </Path> | </Parallel> \n <Summary> t </Summary> e
    layout = lay_out(graph_of((2, ()), (3, (0,)), (5, (0,)), (7, (1, 2)), (4, (3,)), (3, (3,)), (6, (4, 5))))
    expected = [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, *range(7, 14), 14, 15, 16, 17, 14, 15, 16, *range(18, 24)]
    assert layout.positions_T.tolist() == expected
    assert allowed(layout).sum() == 438  # 30 * 31 / 2 = 465, less 3*5 and 4*3
    assert seen_by(layout, 18) == rows((0, 18))  # the first c sees the whole of block 1
    assert seen_by(layout, 22) == rows((0, 16), (21, 22))  # d sees block 1 and its own path


def test_one_prompt_with_answers_of_two_one_and_three_tokens():
    layout = lay_out(graph_of((3, ()), (2, (0,)), (1, (0,)), (3, (0,))))
    assert layout.positions_T.tolist() == [0, 1, 2, 3, 4, 3, 3, 4, 5]
    assert layout.segment_T.tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 3]
    assert layout.source_T.tolist() == [NOTHING, 0, 1, 2, 3, 2, 2, 6, 7]  # index 2 predicts three first tokens
    assert allowed(layout).sum() == 34  # 9 * 10 / 2 = 45, less 1*2 + 3*2 + 3*1 = 11
    assert targets(layout).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_paths_in_a_chain_are_plain_causal_text():
    # Seen: path k continues path k - 1, the join the last path
    layout = lay_out(graph_of((4, ()), (3, (0,)), (4, (1,)), (6, (2,))))
    assert np.array_equal(allowed(layout), np.tri(17, dtype=bool))
    assert layout.positions_T.tolist() == list(range(17))
    assert layout.source_T.tolist() == list(range(-1, 16))


def test_turns_with_a_tool_between_are_plain_causal_text_too():
    turns = (Segment([1, 2]), Segment([3], (0,), [True]), Segment([4, 5], (1,)), Segment([6, 7], (2,), [True, True]))
    layout = lay_out(StreamGraph(turns))
    assert np.array_equal(allowed(layout), np.tri(7, dtype=bool))
    assert targets(layout).tolist() == [2, 5, 6]
    assert layout.source_T[targets(layout)].tolist() == [1, 4, 5]  # the tool's last token predicts the next turn


def test_a_nested_block_follows_the_same_rules():
    # main 0; path 1 forks into 2 and 3, which 4 joins and so ends path 1; path 5; 6 joins 4 and 5
    graph = graph_of((2, ()), (1, (0,)), (2, (1,)), (3, (1,)), (1, (2, 3)), (4, (0,)), (1, (4, 5)))
    layout = lay_out(graph)
    assert layout.positions_T.tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6, 2, 3, 4, 5, 7]
    assert seen_by(layout, 9) == {0, 1, 9}  # the second outer path sees nothing of the first
    assert seen_by(layout, 8) == rows((0, 8))
    assert seen_by(layout, 13) == rows((0, 13))


def test_nothing_predicts_the_first_token_of_a_root_or_a_join():
    layout = lay_out(graph_of((1, ()), (2, (0,)), (2, (0,)), (2, (1, 2)), (1, ())))
    assert layout.source_T.tolist() == [NOTHING, 0, 1, 0, 3, NOTHING, 5, NOTHING]


# -------------------------------------------------------------------------------------------------------- text order


def test_a_join_stands_behind_all_that_is_below_its_parents():
    # 1 and 2 below 0; 3 joins them; 4 continues 1 and 5 continues 2 without taking part in the join
    assert text_order(graph_of((1, ()), (1, (0,)), (1, (0,)), (1, (1, 2)), (1, (1,)), (1, (2,)))) == [0, 1, 4, 2, 5, 3]


def test_a_sibling_stands_before_the_next_with_all_that_is_below_it():
    assert text_order(graph_of((1, ()), (1, (0,)), (1, (0,)), (1, (1,)), (1, (2,)))) == [0, 1, 3, 2, 4]


def hung_below(graph: StreamGraph, order: list[int]) -> dict[int | None, list[int]]:
    """Children of the tree in which every segment hangs below the parent that comes last in the text."""
    tree: dict[int | None, list[int]] = {}
    for index, segment in enumerate(graph.segments):
        last = max(segment.parents, key=order.index) if segment.parents else None
        tree.setdefault(last, []).append(index)
    return tree


@settings(deadline=None, max_examples=150)
@given(dags())
def test_text_order_is_a_tree_read_depth_first(graph):
    order = text_order(graph)
    tree = hung_below(graph, order)

    def read(index: int | None) -> list[int]:
        """A segment, then its siblings by index with all that is below each; joins behind siblings with one parent."""
        siblings = sorted(tree.get(index, []), key=lambda child: (len(graph.segments[child].parents) > 1, child))
        return ([] if index is None else [index]) + [below for child in siblings for below in read(child)]

    assert order == read(None)
    assert sorted(order) == list(range(len(graph.segments)))
    for index, segment in enumerate(graph.segments):
        assert all(order.index(parent) < order.index(index) for parent in segment.parents)


# -------------------------------------------------------------------------------------- the rules, token by token


def ancestors_of(graph: StreamGraph, index: int) -> set[int]:
    found: set[int] = set()
    for parent in graph.segments[index].parents:
        found |= {parent} | ancestors_of(graph, parent)
    return found


def position_of(graph: StreamGraph, index: int, offset: int) -> int:
    last = [position_of(graph, parent, len(graph.segments[parent]) - 1) for parent in graph.segments[index].parents]
    return (1 + max(last) if last else 0) + offset


def places(graph: StreamGraph) -> list[tuple[int, int]]:
    """(segment, offset) of every token in text order."""
    return [(index, offset) for index in text_order(graph) for offset in range(len(graph.segments[index]))]


@settings(deadline=None, max_examples=150)
@given(dags())
def test_any_graph_follows_the_rules_token_by_token(graph):
    layout, mask, place = lay_out(graph), allowed(lay_out(graph)), places(graph)
    assert len(layout) == len(place) == graph.num_tokens
    for row, (index, offset) in enumerate(place):
        segment = graph.segments[index]
        assert layout.tokens_T[row] == segment.tokens[offset]
        assert layout.trained_T[row] == segment.trained[offset]
        assert layout.engine_logprob_T[row] == segment.engine_logprob[offset]
        assert layout.policy_version_T[row] == segment.policy_version[offset]
        assert layout.origin_T[row] == index
        assert layout.positions_T[row] == position_of(graph, index, offset)
        for other, (seen, at) in enumerate(place):
            assert mask[row, other] == ((seen == index and at <= offset) or seen in ancestors_of(graph, index))
        if offset > 0:
            source = place.index((index, offset - 1))
        elif len(segment.parents) == 1:
            source = place.index((segment.parents[0], len(graph.segments[segment.parents[0]]) - 1))
        else:
            source = NOTHING
        assert layout.source_T[row] == source
    assert targets(layout).tolist() == [row for row in range(len(place)) if layout.trained_T[row]]


@settings(deadline=None, max_examples=100)
@given(dags())
def test_a_token_sees_only_what_stands_before_it_at_smaller_positions(graph):
    layout = lay_out(graph)
    query, key = np.nonzero(allowed(layout))
    assert (key <= query).all()
    other = key < query
    assert (layout.positions_T[key[other]] < layout.positions_T[query[other]]).all()


def facts(layout: Layout) -> dict[int, tuple[int, int, frozenset[int]]]:
    """By token id: position, id of the token that predicts it, ids of the tokens it sees."""
    mask, ids = allowed(layout), layout.tokens_T.tolist()
    return {
        ids[row]: (
            int(layout.positions_T[row]),
            NOTHING if layout.source_T[row] == NOTHING else ids[layout.source_T[row]],
            frozenset(layout.tokens_T[mask[row]].tolist()),
        )
        for row in range(len(layout))
    }


@settings(deadline=None, max_examples=100)
@given(dags(), st.randoms(use_true_random=False))
def test_permuting_siblings_only_permutes(graph, random):
    order: list[int] = []  # a random order of the segments in which parents come first
    while len(order) < len(graph.segments):
        ready = [i for i, s in enumerate(graph.segments) if i not in order and set(s.parents) <= set(order)]
        order.append(random.choice(ready))
    shuffled = StreamGraph(
        tuple(
            Segment(old.tokens, tuple(order.index(parent) for parent in old.parents), old.trained)
            for old in (graph.segments[index] for index in order)
        )
    )
    assert facts(lay_out(shuffled)) == facts(lay_out(graph))


# ----------------------------------------------------------------------------------------------- rows and padding


@settings(deadline=None, max_examples=60)
@given(st.lists(dags(max_segments=4), min_size=1, max_size=4))
def test_graphs_in_one_row_never_see_each_other(graphs):
    layouts = [lay_out(graph) for graph in graphs]
    row = concatenate(layouts)
    mask, start, segment = allowed(row), 0, 0
    for index, layout in enumerate(layouts):
        end = start + len(layout)
        assert np.array_equal(mask[start:end, start:end], allowed(layout))
        assert not mask[start:end, :start].any()
        assert not mask[start:end, end:].any()
        source = np.where(layout.source_T == NOTHING, NOTHING, layout.source_T + start)
        assert np.array_equal(row.source_T[start:end], source)
        assert np.array_equal(row.segment_T[start:end], layout.segment_T + segment)
        assert (row.graph_T[start:end] == index).all()
        for same in ("tokens_T", "positions_T", "trained_T", "engine_logprob_T", "policy_version_T", "origin_T"):
            assert np.array_equal(getattr(row, same)[start:end], getattr(layout, same))
        start, segment = end, segment + len(layout.ancestor_SS)
    assert len(row) == start


def test_rows_of_rows_keep_counting_their_graphs():
    one = lay_out(graph_of((2, ())))
    row = concatenate([concatenate([one, one]), one])
    assert row.graph_T.tolist() == [0, 0, 1, 1, 2, 2]
    assert row.source_T.tolist() == [NOTHING, 0, NOTHING, 2, NOTHING, 4]


def test_a_row_of_nothing_is_refused():
    with pytest.raises(GraphError, match="no layout"):
        concatenate([])


def test_padding_sees_only_itself_and_is_seen_by_nothing():
    layout = lay_out(graph_of((2, ()), (1, (0,)), (1, (0,))))
    mask = allowed(layout, padded_to=7)
    assert np.array_equal(mask[:4, :4], allowed(layout))
    assert np.array_equal(mask[4:], np.eye(7, dtype=bool)[4:])
    assert not mask[:4, 4:].any()
    assert np.array_equal(allowed(layout, padded_to=4), allowed(layout))


def test_padding_to_less_than_the_row_is_refused():
    with pytest.raises(ShapeError, match=r"padded_to: found 3, but the row has 4 tokens\n  fix: padded_to=4 or more"):
        allowed(lay_out(graph_of((4, ()))), padded_to=3)


def test_compact_types_survive_layout_and_rows():
    one = lay_out(graph_of((2, ()), (1, (0,))))
    for layout in (one, concatenate([one, one])):
        for name in ("tokens_T", "positions_T", "segment_T", "source_T", "policy_version_T", "origin_T", "graph_T"):
            assert getattr(layout, name).dtype == np.int32, name
        assert (layout.trained_T.dtype, layout.engine_logprob_T.dtype) == (np.bool_, np.float32)
    assert lay_out(StreamGraph((Segment([1]),))).policy_version_T.tolist() == [UNSAMPLED]
