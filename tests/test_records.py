"""What the records promise: they refuse what breaks a rule, and nobody can change them."""

import copy
import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from anabranch.errors import GraphError
from anabranch.records import UNSAMPLED, Rollout, Segment, StopReason, StreamGraph

ARRAYS = ("tokens", "trained", "engine_logprob", "policy_version")


def answer() -> Segment:
    return Segment([5, 2], (0,), [True, True], [-0.1, np.nan], [3, UNSAMPLED])


def graph() -> StreamGraph:
    return StreamGraph((Segment([7, 8, 9]), answer()))


def test_what_is_left_out_means_that_nobody_sampled_it():
    segment = Segment([7, 8])
    assert segment.parents == ()
    assert segment.trained.tolist() == [False, False]
    assert np.isnan(segment.engine_logprob).all()
    assert segment.policy_version.tolist() == [UNSAMPLED, UNSAMPLED]


def test_arrays_have_the_documented_compact_types():
    assert [getattr(answer(), name).dtype for name in ARRAYS] == [np.int32, np.bool_, np.float32, np.int32]


@pytest.mark.parametrize("name", ["trained", "engine_logprob", "policy_version"])
def test_an_array_of_another_length_is_refused_by_name(name):
    with pytest.raises(GraphError, match=rf"Segment\.{name}: found 3 values, but the segment has 2 tokens"):
        Segment([1, 2], **{name: [0, 0, 0]})


def test_a_segment_without_tokens_is_refused():
    with pytest.raises(GraphError, match=r"(?s)Segment\.tokens: found no token.*fix: leave the segment out"):
        Segment([])


def test_a_matrix_of_tokens_is_refused():
    with pytest.raises(GraphError, match=r"an array of shape \(1, 2\)"):
        Segment([[1, 2]])


def test_a_graph_without_segments_is_refused():
    with pytest.raises(GraphError, match="found no segment"):
        StreamGraph(())


@pytest.mark.parametrize("parent", [1, 2, -1])
def test_a_parent_that_is_not_an_earlier_segment_is_refused(parent):
    with pytest.raises(GraphError, match=rf"segment 1: found parents \({parent},\)"):
        StreamGraph((Segment([1]), Segment([2], (parent,)), Segment([3])))


def test_a_parent_named_twice_is_refused():
    with pytest.raises(GraphError, match="each counts once"):
        StreamGraph((Segment([1]), Segment([2], (0, 0))))


@pytest.mark.parametrize("parents", [(), (0, 1)])
def test_a_trained_token_that_nothing_predicts_is_refused(parents):
    below = (Segment([1]), Segment([2], (0,)))
    with pytest.raises(GraphError, match=r"(?s)segment 2: found a trained first token.*fix: set trained\[0\] = False"):
        StreamGraph((*below, Segment([3, 4], parents, [True, True])))
    assert StreamGraph((*below, Segment([3, 4], parents, [False, True]))).num_trained == 1


def test_a_graph_counts_its_tokens():
    assert (graph().num_tokens, graph().num_trained) == (5, 2)


def test_the_caller_keeps_no_handle_on_the_tokens():
    tokens = np.array([1, 2], dtype=np.int32)
    segment = Segment(tokens)
    tokens[0] = 99
    assert segment.tokens.tolist() == [1, 2]


@pytest.mark.parametrize("through", ["as made", "pickle", "deepcopy"])
@pytest.mark.parametrize("name", ARRAYS)
def test_no_array_can_be_written_to(name, through):
    segment = {
        "as made": answer,
        "pickle": lambda: pickle.loads(pickle.dumps(answer())),
        "deepcopy": lambda: copy.deepcopy(answer()),
    }[through]()
    with pytest.raises(ValueError, match="read-only"):
        getattr(segment, name)[0] = 1


def test_no_field_can_be_set():
    with pytest.raises(FrozenInstanceError):
        answer().tokens = np.array([1])  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        graph().segments = ()  # type: ignore[misc]


def test_equal_content_is_equal_also_where_no_log_prob_was_recorded():
    assert answer() == answer()
    assert graph() == graph()


@pytest.mark.parametrize(
    "other",
    [
        Segment([5, 3], (0,), [True, True], [-0.1, np.nan], [3, UNSAMPLED]),
        Segment([5, 2], (1,), [True, True], [-0.1, np.nan], [3, UNSAMPLED]),
        Segment([5, 2], (0,), [True, False], [-0.1, np.nan], [3, UNSAMPLED]),
        Segment([5, 2], (0,), [True, True], [-0.1, -0.2], [3, UNSAMPLED]),
        Segment([5, 2], (0,), [True, True], [-0.1, np.nan], [3, 3]),
        Segment([5, 2, 2], (0,), [True, True, True], [-0.1, np.nan, np.nan], [3, UNSAMPLED, UNSAMPLED]),
        "a string",
    ],
)
def test_any_difference_makes_segments_unequal(other):
    assert answer() != other


def test_records_travel_between_processes():
    rollout = Rollout("key", 3, graph(), "text", StopReason.LENGTH)
    back = pickle.loads(pickle.dumps(rollout))
    assert back == rollout
    assert back.truncated
    assert back.num_answer_tokens == 2
    assert back.prompt_tokens.tolist() == [7, 8, 9]
