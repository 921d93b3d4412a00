"""What counts as an answer that was cut in a loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.records import Rollout, Segment, StopReason, StreamGraph
from anabranch.rewards.repetition import SHARE, TIMES, loop_period, loops

TOKENS = st.lists(st.integers(0, 2), max_size=24)
"""Few different ones: loops come about by chance."""


@pytest.mark.parametrize(
    ("tokens", "period"),
    [
        ([7, 7, 7], 1),
        ([7, 7], None),  # twice is not three times
        ([1, 2, 1, 2, 1, 2], 2),
        ([2, 1, 2, 1, 2, 1, 2], 2),  # cut in the middle of the piece, or begun there
        ([9, 8, 7, 1, 2, 1, 2, 1, 2], 2),  # 6 of 9 tokens
        ([9, 8, 7, 6, 5, 4, 1, 2, 1, 2, 1, 2], 2),  # 6 of 12: just half
        ([9, 8, 7, 6, 5, 4, 3, 1, 2, 1, 2, 1, 2], None),  # 6 of 13
        ([1, 2, 1, 2, 1, 2, 3], None),  # it had come out of the loop
        ([4, 4, 1, 4, 4, 1, 4, 4, 1], 3),
        ([4, 4, 1, 4, 4, 1, 1, 1, 1], None),  # a short run at the end is not half of the answer
        ([1, 1, 1, 1, 1, 1], 1),  # also 2, but 1 is smaller
        ([3], None),
        ([], None),
    ],
)
def test_an_answer_loops_if_its_end_is_one_piece_three_times_over_half_of_it(tokens, period):
    assert loop_period(np.array(tokens, dtype=np.int32)) == period


def by_definition(tokens: list[int]) -> int | None:
    """Every period, every length of the end, straight from the words."""
    T = len(tokens)
    for p in range(1, T + 1):
        for span in range(1, T + 1):
            end = tokens[T - span :]
            if span >= SHARE * T and span >= TIMES * p and all(end[i] == end[i - p] for i in range(p, span)):
                return p
    return None


@settings(deadline=None, max_examples=300)
@given(TOKENS)
def test_the_period_is_the_one_by_definition(tokens):
    assert loop_period(np.array(tokens, dtype=np.int32)) == by_definition(tokens)


@settings(deadline=None, max_examples=100)
@given(TOKENS, st.lists(st.integers(0, 2), min_size=1, max_size=5), st.integers(0, 4))
def test_a_piece_that_goes_on_for_long_enough_is_found_wherever_it_is_cut(prefix, piece, cut):
    times = TIMES + len(prefix) // len(piece) + 1
    tokens = np.array([*prefix, *(piece * (times + 1))[: times * len(piece) + cut]], dtype=np.int32)
    found = loop_period(tokens)
    assert found is not None
    assert found <= len(piece)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 40))
def test_tokens_that_all_differ_never_loop(count):
    assert loop_period(np.arange(count, dtype=np.int32)) is None


@pytest.mark.parametrize(("stop", "expected"), [(StopReason.LENGTH, True), (StopReason.EOS, False)])
def test_only_an_answer_that_was_cut_loops_and_its_prompt_plays_no_part(stop, expected):
    answer = (Segment([5, 1, 2, 1], parents=(0,)), Segment([2, 1, 2], parents=(1,)))
    graph = StreamGraph((Segment(list(range(50))), *answer))
    assert loops(Rollout("k", 0, graph, "", stop)) is expected
