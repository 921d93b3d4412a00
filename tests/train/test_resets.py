"""When the reference is taken anew, and which of its files a run folder keeps."""

from __future__ import annotations

import pytest

from anabranch.recipe.tree import Reset
from anabranch.train.reference import file_of, remove_others
from anabranch.train.resets import ReferenceState, after_evaluation, after_reset, after_step, due


def history(reset: Reset, drifts: list[float | None], accuracies: dict[int, float] | None = None) -> list[tuple]:
    """(RL step, cause) of every reset in a run whose steps measured these `kl_ref`, evaluated after some of them."""
    state, found = ReferenceState(), []
    for step, drift in enumerate(drifts, start=1):
        state = after_step(state, {} if drift is None else {"kl_ref": drift})
        if accuracies and step in accuracies:
            state = after_evaluation(state, accuracies[step])
        cause = due(reset, state, step)
        if cause is not None:
            state = after_reset(state, step, cause)
            found.append((step, cause))
    return found


def test_every_so_many_steps():
    assert history(Reset(every=3), [None] * 10) == [(3, "steps"), (6, "steps"), (9, "steps")]


def test_on_a_spike_above_the_threshold_and_not_at_it():
    assert history(Reset(spike=0.5), [0.1, 0.5, 0.51, 0.1, None, 0.6]) == [(3, "spike"), (6, "spike")]


def test_a_spike_is_that_of_the_last_step():
    state = after_step(ReferenceState(), {"kl_ref": 9.0})
    assert due(Reset(spike=0.5), after_step(state, {}), 2) is None  # a step in which nothing was learned measures none


def test_on_a_stall_of_so_many_evaluations_without_a_new_best():
    accuracies = dict(enumerate([0.3, 0.3, 0.4, 0.4, 0.39, 0.1, 0.2, 0.5, 0.5, 0.49], start=1))
    # 2 stalled once, 3 is a new best, 4 and 5 stall: reset; 6 and 7 stall again; 8 is a new best; 9 and 10 stall
    assert history(Reset(stall=2), [None] * 10, accuracies) == [(5, "stall"), (7, "stall"), (10, "stall")]


def test_steps_without_an_evaluation_stall_nothing():
    assert history(Reset(stall=1), [None] * 9, {2: 0.5, 6: 0.5}) == [(6, "stall")]


def test_a_reset_for_one_cause_starts_the_others_anew():
    both = Reset(every=4, spike=0.5)
    assert history(both, [0.1, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1]) == [(2, "spike"), (6, "steps")]


def test_without_a_schedule_there_is_none():
    assert due(None, ReferenceState(drift=100.0, stalled=100), 1000) is None


@pytest.mark.parametrize(("step", "name"), [(0, "reference.safetensors"), (300, "reference-000300.safetensors")])
def test_a_reference_is_named_by_its_step(tmp_path, step, name):
    assert file_of(tmp_path, step) == tmp_path / name


def test_only_the_references_of_these_steps_stay(tmp_path):
    other = tmp_path / "references.txt"
    for step in (0, 2, 4, 6):
        for ending in (".safetensors", ".json", ".part", ".json.part"):
            (tmp_path / (file_of(tmp_path, step).stem + ending)).write_text("")
    other.write_text("")
    remove_others(tmp_path, {4, 6})
    stays = {f"reference-{step:06d}{ending}" for step in (4, 6) for ending in (".safetensors", ".json")}
    assert {path.name for path in tmp_path.iterdir()} == {*stays, other.name}
    remove_others(tmp_path, {0})
    assert {path.name for path in tmp_path.iterdir()} == {other.name}
