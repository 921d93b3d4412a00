"""Every problem once per epoch, whatever the sizes of the draws, across saves."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import CheckpointError
from anabranch.sampling import uniform


def drawn(state, counts):
    parts = []
    for count in counts:
        indices, state = uniform.draw(state, count)
        parts.append(indices)
    return np.concatenate([np.zeros(0, np.int32), *parts]), state


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 12), st.integers(-5, 5), st.lists(st.integers(0, 30), max_size=6))
def test_any_split_of_the_draws_gives_what_one_long_draw_gives(size, seed, counts):
    state = uniform.init(size, seed)
    split, split_state = drawn(state, counts)
    whole, whole_state = uniform.draw(state, sum(counts))
    assert split.tolist() == whole.tolist()
    assert split_state == whole_state


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.integers(0, 2**40), st.integers(1, 4))
def test_every_epoch_has_every_problem_once(size, seed, epochs):
    indices, state = uniform.draw(uniform.init(size, seed), size * epochs)
    assert np.sort(indices.reshape(epochs, size), axis=1).tolist() == [list(range(size))] * epochs
    assert (state.epoch, state.offset) == (epochs, 0)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.integers(0, 40), st.integers(0, 40))
def test_a_saved_state_goes_on_where_it_was(size, before, after):
    _, state = uniform.draw(uniform.init(size, 3), before)
    again = uniform.from_json(json.loads(json.dumps(uniform.to_json(state))), size)
    assert again == state
    assert uniform.draw(again, after)[0].tolist() == uniform.draw(state, after)[0].tolist()


def test_the_order_is_pinned():
    # a change here changes every run
    assert uniform.draw(uniform.init(6, 0), 12)[0].tolist() == [0, 2, 1, 5, 4, 3, 5, 3, 2, 4, 1, 0]


def test_seed_and_epoch_both_change_the_order():
    orders = {tuple(uniform.order(50, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_drawing_changes_no_state():
    state = uniform.init(5, 0)
    uniform.draw(state, 3)
    assert state == uniform.init(5, 0)


def test_nothing_to_draw_from_and_other_data_are_refused():
    with pytest.raises(ValueError, match="something to draw"):
        uniform.init(0, 0)
    with pytest.raises(CheckpointError, match="saved with 5"):
        uniform.from_json(uniform.to_json(uniform.init(5, 0)), 6)
