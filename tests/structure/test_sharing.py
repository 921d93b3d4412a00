"""Answers to one prompt as one graph: the prompt costs once, and nothing else changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import GraphError
from anabranch.records import Segment, StreamGraph
from anabranch.structure.layout import allowed, lay_out
from anabranch.structure.sharing import share_prompt

PROMPT = [7, 8, 9]


def answer(*tokens: int) -> StreamGraph:
    return StreamGraph((Segment(PROMPT), Segment(tokens, (0,), [True] * len(tokens))))


def forked(first: int) -> StreamGraph:
    """Main, two paths and their join, below the prompt; token ids from `first` on."""
    main = Segment([first, first + 1], (0,), [True, True])
    paths = (Segment([first + 2], (1,)), Segment([first + 3, first + 4], (1,), [False, True]))
    return StreamGraph((Segment(PROMPT), main, *paths, Segment([first + 5, first + 6], (2, 3), [False, True])))


def test_the_prompt_costs_once():
    merged, owners = share_prompt([answer(1, 2), answer(3), answer(4, 5, 6)])
    assert merged.num_tokens == 3 + 2 + 1 + 3
    assert owners == [-1, 0, 1, 2]
    layout = lay_out(merged)
    assert layout.positions_T.tolist() == [0, 1, 2, 3, 4, 3, 3, 4, 5]
    assert allowed(layout).sum() == 34  # of 45, see test_layout


def test_parents_follow_their_segments():
    merged, owners = share_prompt([forked(10), answer(30), forked(40)])
    parents = [segment.parents for segment in merged.segments]
    assert parents == [(), (0,), (1,), (1,), (2, 3), (0,), (0,), (6,), (6,), (7, 8)]
    assert owners == [-1, 0, 0, 0, 0, 1, 2, 2, 2, 2]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.booleans(), min_size=1, max_size=5))
def test_an_answer_keeps_its_text_positions_and_neighbourhood(shapes):
    graphs = [
        forked(100 * (i + 1)) if fork else answer(100 * (i + 1), 100 * (i + 1) + 1) for i, fork in enumerate(shapes)
    ]
    merged, owners = share_prompt(graphs)
    row = lay_out(merged)
    owner_T = np.array(owners)[row.origin_T]
    assert (np.diff(owner_T) >= 0).all()  # one answer after the other, each whole
    for index, graph in enumerate(graphs):
        own, mine = lay_out(graph), np.flatnonzero((owner_T == index) | (owner_T == -1))
        assert np.array_equal(row.tokens_T[mine], own.tokens_T)
        assert np.array_equal(row.positions_T[mine], own.positions_T)
        assert np.array_equal(allowed(row)[np.ix_(mine, mine)], allowed(own))
        assert allowed(row)[mine].sum() == allowed(own).sum()  # it sees nothing besides


def test_another_prompt_is_refused():
    other = StreamGraph((Segment([7, 8]), Segment([1], (0,))))
    with pytest.raises(GraphError, match="graph 1: found another prompt"):
        share_prompt([answer(1), other])


def test_a_second_root_is_refused():
    with pytest.raises(GraphError, match="graph 0: found a second root"):
        share_prompt([StreamGraph((Segment(PROMPT), Segment([1])))])


def test_a_prompt_that_would_be_learned_twice_is_refused():
    learned = StreamGraph((Segment([7, 8], (), [False, True]), Segment([1], (0,), [True])))
    with pytest.raises(GraphError, match="a shared prompt is read, not learned"):
        share_prompt([learned, learned])
    assert share_prompt([learned])[0] == learned


def test_no_answers_are_refused():
    with pytest.raises(GraphError, match="no graph"):
        share_prompt([])
