"""Packing loses nothing, repeats nothing, and shows every target the context that its own graph gives it."""

import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.batching.pack import Row, best_fit, engine_logprobs, flat_offsets, pack, packed_tokens
from anabranch.errors import GraphError, ShapeError
from anabranch.records import Segment, StreamGraph
from anabranch.structure.layout import Layout, allowed, lay_out, targets


def plain(prompt: list[int], size: int, first: int = 100) -> StreamGraph:
    return StreamGraph((Segment(prompt), Segment(range(first, first + size), (0,), [True] * size)))


def answers_of(rows: list[Row]) -> list[list[int]]:
    return [sorted(set(row.rollout_M.tolist())) for row in rows]


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[StreamGraph], list[str], list[bool]]:
    """Answers of any shape to a few prompts, in any order; token ids are unique within the batch."""
    groups = draw(st.lists(st.sampled_from("pqrs"), max_size=12))
    prompt_of = {group: list(range(50 * i, 50 * i + draw(st.integers(1, 6)))) for i, group in enumerate("pqrs")}
    graphs = []
    first = 1000
    for group in groups:
        segments = [Segment(prompt_of[group])]
        for index in range(1, draw(st.integers(1, 5))):
            parents = draw(st.lists(st.integers(0, index - 1), min_size=1, max_size=3, unique=True))
            size = draw(st.integers(1, 5))
            trained = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
            trained[0] &= len(parents) == 1
            segments.append(Segment(range(first, first + size), tuple(parents), trained))
            first += size
        graphs.append(StreamGraph(tuple(segments)))
    return graphs, groups, draw(st.lists(st.booleans(), min_size=len(groups), max_size=len(groups)))


def context(layout: Layout, mask: np.ndarray, index: int) -> set[tuple[int, int]]:
    """(position, token) of everything that a token sees."""
    seen = np.flatnonzero(mask[index])
    pairs = list(zip(layout.positions_T[seen].tolist(), layout.tokens_T[seen].tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    return set(pairs)


@settings(deadline=None, max_examples=150)
@given(batches(), st.integers(1, 40))
def test_every_kept_target_stands_in_exactly_one_row_with_the_context_of_its_own_graph(batch, row_tokens):
    graphs, groups, keep = batch
    offsets = flat_offsets(graphs)
    rows = pack(graphs, groups, keep, row_tokens=row_tokens)
    slots: list[int] = []
    for row in rows:
        mask = allowed(row.layout)
        slots += row.slot_M.tolist()
        assert row.target_M.tolist() == targets(row.layout).tolist()
        assert {array.dtype for array in (row.target_M, row.source_M, row.rollout_M, row.slot_M)} == {
            np.dtype(np.int64)
        }
        for target, source, answer, slot in zip(row.target_M, row.source_M, row.rollout_M, row.slot_M, strict=True):
            own = lay_out(graphs[answer])
            own_target = targets(own)[slot - offsets[answer]]
            own_source = own.source_T[own_target]
            assert offsets[answer] <= slot < offsets[answer + 1]
            assert row.layout.tokens_T[target] == own.tokens_T[own_target]
            assert row.layout.tokens_T[source] == own.tokens_T[own_source]
            assert row.layout.positions_T[source] == own.positions_T[own_source]
            assert context(row.layout, mask, source) == context(own, allowed(own), own_source)
    kept = [slot for answer, flag in enumerate(keep) if flag for slot in range(offsets[answer], offsets[answer + 1])]
    assert sorted(slots) == kept


@settings(deadline=None, max_examples=150)
@given(batches(), st.integers(1, 40))
def test_rows_hold_each_prompt_once_and_stay_within_their_room(batch, row_tokens):
    graphs, groups, keep = batch
    rows = pack(graphs, groups, keep, row_tokens=row_tokens)
    packed = [answer for answers in answers_of(rows) for answer in answers]
    assert sorted(packed) == [i for i, graph in enumerate(graphs) if keep[i] and graph.num_trained]  # no answer in two
    for row, answers in zip(rows, answers_of(rows), strict=True):
        prompts = {groups[answer]: len(graphs[answer].segments[0]) for answer in answers}
        own = sum(graphs[answer].num_tokens - len(graphs[answer].segments[0]) for answer in answers)
        assert len(row.layout) == sum(prompts.values()) + own
        assert len(row.layout) <= row_tokens or len(answers) == 1
    assert packed_tokens(rows) == sum(len(row.layout) for row in rows)


@settings(deadline=None, max_examples=60)
@given(batches(), st.integers(1, 40))
def test_a_group_that_fits_into_a_row_is_not_split(batch, row_tokens):
    graphs, groups, _ = batch
    rows = answers_of(pack(graphs, groups, row_tokens=row_tokens))
    for group in set(groups):
        members = {i for i, label in enumerate(groups) if label == group and graphs[i].num_trained}
        prompt = len(graphs[groups.index(group)].segments[0])
        if prompt + sum(graphs[i].num_tokens - prompt for i in members) <= row_tokens:
            assert sum(bool(members & set(row)) for row in rows) <= 1


def test_the_example_of_the_row():
    (row,) = pack([plain([1, 2], 3), plain([1, 2], 1)], ["g", "g"], row_tokens=6)
    assert row.layout.tokens_T.tolist() == [1, 2, 100, 101, 102, 100]
    assert row.target_M.tolist() == [2, 3, 4, 5]
    assert row.source_M.tolist() == [1, 2, 3, 1]
    assert row.rollout_M.tolist() == [0, 0, 0, 1]
    assert row.slot_M.tolist() == [0, 1, 2, 3]


def test_a_group_too_long_for_a_row_repeats_its_prompt_once_a_row():
    # prompt 4, five answers of 3: two answers a row of 10, so rows of 10, 10 and 7
    rows = pack([plain([1, 2, 3, 4], 3)] * 5, [0] * 5, row_tokens=10)
    assert answers_of(rows) == [[0, 1], [2, 3], [4]]
    assert [len(row.layout) for row in rows] == [10, 10, 7]
    assert packed_tokens(rows) == 3 * 4 + 5 * 3


def test_small_groups_share_a_row_without_seeing_each_other():
    (row,) = pack([plain([1], 2), plain([5], 2, 200)], ["a", "b"], row_tokens=6)
    assert row.layout.graph_T.tolist() == [0, 0, 0, 1, 1, 1]
    assert not allowed(row.layout)[3:, :3].any()


def test_members_of_a_group_meet_wherever_they_stand_in_the_batch():
    graphs = [plain([1], 2), plain([5], 2), plain([1], 2), plain([5], 2)]
    rows = pack(graphs, ["a", "b", "a", "b"], row_tokens=5)
    assert answers_of(rows) == [[0, 2], [1, 3]]
    assert [row.slot_M.tolist() for row in rows] == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_an_answer_longer_than_a_row_gets_a_row_of_its_own():
    rows = pack([plain([1, 2], 2), plain([1, 2], 30), plain([1, 2], 2)], [0, 0, 0], row_tokens=8)
    assert answers_of(rows) == [[0, 2], [1]]
    assert [len(row.layout) for row in rows] == [6, 32]


def test_an_answer_left_out_keeps_its_slots():
    graphs = [plain([1], 2), plain([1], 3), plain([1], 1)]
    assert flat_offsets(graphs).tolist() == [0, 2, 5, 6]
    (row,) = pack(graphs, [0, 0, 0], [True, False, True], row_tokens=10)
    assert row.slot_M.tolist() == [0, 1, 5]
    assert row.rollout_M.tolist() == [0, 0, 2]
    assert len(row.layout) == 4


def test_an_answer_without_trained_tokens_costs_nothing():
    silent = StreamGraph((Segment([1]), Segment([2, 3], (0,))))
    assert pack([silent], [0], row_tokens=10) == []
    assert flat_offsets([silent, plain([1], 2)]).tolist() == [0, 0, 2]
    assert flat_offsets([]).tolist() == [0]
    assert pack([], [], row_tokens=10) == []


def test_a_supervised_text_may_train_its_own_root():
    text = StreamGraph((Segment([1, 2, 3], (), [False, True, True]),))
    (row,) = pack([text], [0], row_tokens=10)
    assert (row.target_M.tolist(), row.source_M.tolist()) == ([1, 2], [0, 1])


@pytest.mark.parametrize(("groups", "keep", "name"), [([0], None, "groups"), ([0, 0], [True], "keep")])
def test_one_label_and_one_flag_an_answer(groups, keep, name):
    with pytest.raises(ShapeError, match=rf"{name}: found 1 values, but there are 2 answers"):
        pack([plain([1], 2)] * 2, groups, keep, row_tokens=10)


def test_a_group_of_two_prompts_is_refused():
    with pytest.raises(GraphError, match="only answers to one prompt share it"):
        pack([plain([1], 2), plain([2], 2)], [0, 0], row_tokens=10)


def test_the_fullest_bin_that_still_has_room_takes_the_next_item():
    # 6 and 5 open bins of 10 (room 4 and 5); 4 fills the fuller one, 3 goes to the other, 2 finishes it
    assert best_fit([2, 6, 5, 4, 3], 10) == [[0, 2, 4], [1, 3]]


def test_an_item_larger_than_a_bin_stands_alone():
    assert best_fit([1, 12, 1], 10) == [[0, 2], [1]]
    assert best_fit([3, 3], -1) == [[0], [1]]
    assert best_fit([], 10) == []


SCRIPT = """
from anabranch.batching.pack import pack
from anabranch.records import Segment, StreamGraph
sizes = [1 + i * 7 % 5 for i in range(40)]
graphs = [StreamGraph((Segment([1, 2]), Segment([3] * size, (0,), [True] * size))) for size in sizes]
rows = pack(graphs, [f"problem {i * 11 % 6}" for i in range(40)], row_tokens=16)
print([row.slot_M.tolist() for row in rows])
"""


def test_rows_do_not_depend_on_the_hash_seed():
    def printed(seed: str) -> str:
        command = [sys.executable, "-c", SCRIPT]
        return subprocess.run(command, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout

    assert printed("1") == printed("2") != ""


def test_thousands_of_answers_are_packed_in_a_moment():
    length = np.random.default_rng(0).integers(100, 300, 4096)
    graphs = [plain([i] * 60, int(size)) for i, size in enumerate(length)]
    start = time.process_time()
    rows = pack(graphs, range(4096), row_tokens=1024)
    assert time.process_time() - start < 2.0  # 0.3 s on a quiet machine
    assert packed_tokens(rows) / (1024 * len(rows)) > 0.9  # rows are well filled


def test_what_the_engine_recorded_is_found_in_text_order_however_segments_are_numbered():
    prompt = Segment([1, 2])
    recorded = {1: [-0.1, -0.2], 2: [-0.3], 3: [-0.4]}  # 3 goes on from 1, so it stands before 2 in the text
    parents = {1: 0, 2: 0, 3: 1}
    forked = StreamGraph(
        (prompt, *(Segment([7] * len(part), (parents[i],), [True] * len(part), part) for i, part in recorded.items()))
    )
    left_out, straight = plain([1, 2], 2), StreamGraph((prompt, Segment([8], (0,), [True], [-0.5])))
    rows = pack([forked, left_out, straight], [0, 0, 0], [True, False, True], row_tokens=64)
    found = engine_logprobs(rows, 7)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.float32([-0.1, -0.2, -0.4, -0.3, np.nan, np.nan, -0.5]))
