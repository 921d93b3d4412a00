"""What the comparison of two gradients promises, on gradients made by hand."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.gradients import compare, compare_files
from benchmarks.replay import best_of_search, table
from benchmarks.tune import Change

THEIRS = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[0.0, 4.0]])}  # norm 5


def test_equal_gradients_have_no_error_and_point_the_same_way():
    found = compare(THEIRS, THEIRS)
    assert found["relative_error"] == 0
    assert found["cosine"] == pytest.approx(1, abs=1e-15)
    assert found["norm_ratio"] == 1
    assert found["parameters"] == 2
    assert found["worst"]["relative_error"] == 0


def test_the_error_is_that_of_everything_relative_to_the_reference():
    ours = {"a": torch.tensor([3.0, 0.3]), "b": torch.tensor([[0.4, 4.0]])}  # differs by (0.3, 0.4): norm 0.5
    found = compare(ours, THEIRS)
    assert found["relative_error"] == pytest.approx(0.1)  # 0.5 / 5
    assert found["norm_ratio"] == pytest.approx(math.sqrt(25.25) / 5)
    assert found["cosine"] == pytest.approx(25 / (math.sqrt(25.25) * 5))  # 3*3 + 4*4 = 25


def test_the_worst_parameter_is_the_one_with_the_largest_error_for_its_own_size():
    ours = {"a": torch.tensor([3.0, 0.3]), "b": torch.tensor([[0.39, 4.0]])}  # 0.3 / 3 = 0.1 and 0.39 / 4 = 0.0975
    assert compare(ours, THEIRS)["worst"] == {"name": "a", "relative_error": pytest.approx(0.1)}


def test_a_gradient_of_another_length_has_the_same_direction():
    found = compare({name: 1.5 * value for name, value in THEIRS.items()}, THEIRS)
    assert found["cosine"] == pytest.approx(1)
    assert found["relative_error"] == pytest.approx(0.5)
    assert found["norm_ratio"] == pytest.approx(1.5)


def test_small_differences_survive_low_precision():
    theirs = {"a": torch.ones(1000, dtype=torch.bfloat16)}
    ours = {"a": torch.full((1000,), 1 + 2**-7, dtype=torch.bfloat16)}  # the next number above 1
    assert compare(ours, theirs)["relative_error"] == pytest.approx(2**-7)


def test_a_parameter_without_gradient_on_both_sides_is_not_the_worst():
    zero = torch.zeros(2)
    found = compare({"a": torch.tensor([1.1]), "z": zero}, {"a": torch.tensor([1.0]), "z": zero})
    assert found["worst"]["name"] == "a"


def test_a_parameter_that_only_one_side_moves_is_infinitely_wrong():
    found = compare({"a": torch.ones(1), "z": torch.ones(1)}, {"a": torch.ones(1), "z": torch.zeros(1)})
    assert found["worst"] == {"name": "z", "relative_error": math.inf}


def test_a_head_that_is_tied_on_one_side_only_is_refused_by_name():
    with pytest.raises(ValueError, match=r"1 parameters have a gradient on one side only, first lm_head\.weight"):
        compare({**THEIRS, "lm_head.weight": torch.ones(1)}, THEIRS)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"b: shapes \(2, 1\) and \(1, 2\)"):
        compare({**THEIRS, "b": torch.tensor([[0.0], [4.0]])}, THEIRS)


def test_a_reference_of_nothing_is_refused():
    with pytest.raises(ValueError, match="0 everywhere"):
        compare({"a": torch.ones(1)}, {"a": torch.zeros(1)})


def test_files_are_compared_like_what_they_hold(tmp_path):
    ours = {"a": torch.tensor([3.0, 0.3]), "b": torch.tensor([[0.4, 4.0]])}
    save_file(ours, tmp_path / "ours")
    save_file(THEIRS, tmp_path / "theirs")
    assert compare_files(tmp_path / "ours", tmp_path / "theirs") == compare(ours, THEIRS)


def test_the_table_names_the_pair_its_error_and_its_worst_parameter():
    ours = {"a": torch.tensor([3.0, 0.3]), "b": torch.tensor([[0.4, 4.0]])}
    text = table({"float32": compare(ours, THEIRS)})
    assert text == "  float32: relative error 0.1, cosine 0.99503719, worst 0.1 (a)"


def test_the_replay_takes_over_what_the_search_found_but_not_sizes_and_threads(tmp_path):
    settings = {"model": "m", "prompts": 8, "threads": 2, "dtype": "bfloat16", "micro_batch": 32}
    side = {"settings": settings, "env": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "1000"}}
    (tmp_path / "step.json").write_text(json.dumps({"sides": {"trl": side}}))
    found = best_of_search(tmp_path / "step.json")
    assert found == Change({"dtype": "bfloat16", "micro_batch": 32}, {"GOMP_SPINCOUNT": "1000"})


def test_without_a_search_the_replay_has_no_settings_of_its_own(tmp_path):
    assert best_of_search(tmp_path / "step.json") is None
