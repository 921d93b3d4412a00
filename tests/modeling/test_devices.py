"""What device and dtype selection promises."""

import time

import pytest
import torch

from anabranch.errors import RecipeError
from anabranch.modeling import devices
from anabranch.modeling.devices import (
    choose_device,
    choose_dtype,
    choose_threads,
    fastest,
    full_determinism,
    measure_rates,
    set_threads,
)

CPU = torch.device("cpu")


def test_auto_takes_cuda_only_where_there_is_one():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("setting", ["gpu", "cuda:", "cuda:x", "cpu:0", "", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_with_a_fix(setting):
    with pytest.raises(RecipeError, match=r"model\.device: .*\n  fix: model\.device="):
        choose_device(setting)


def test_measuring_takes_about_a_second_and_gives_plausible_rates():
    start = time.perf_counter()
    rates = measure_rates()
    assert time.perf_counter() - start < 4  # 0.8 s by construction, and the first products
    assert set(rates) == {"float32", "bfloat16"}
    assert all(1e-4 < rate < 1e4 for rate in rates.values())


@pytest.mark.parametrize(
    ("bfloat16", "expected"),
    [(1.19, torch.float32), (1.2, torch.bfloat16), (4.0, torch.bfloat16), (0.1, torch.float32)],
)
def test_auto_is_bfloat16_only_where_it_is_measurably_faster(monkeypatch, bfloat16, expected):
    monkeypatch.setattr(devices, "measure_rates", lambda device: {"float32": 1.0, "bfloat16": bfloat16})
    assert choose_dtype("auto", CPU) == expected


def test_a_named_dtype_is_taken_as_it_is():
    assert choose_dtype("float32", CPU) == torch.float32
    assert choose_dtype("bfloat16", CPU) == torch.bfloat16
    with pytest.raises(RecipeError, match=r"model\.dtype"):
        choose_dtype("float16", CPU)


def test_zero_threads_leaves_the_choice_to_torch_and_others_are_set():
    before = torch.get_num_threads()
    try:
        assert set_threads(0) == before
        assert set_threads(1) == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    with pytest.raises(RecipeError, match=r"model\.threads"):
        set_threads(-1)


def test_fewer_threads_must_be_a_tenth_faster():
    assert fastest({4: 1.0, 2: 0.95, 1: 2.0}) == 4
    assert fastest({4: 1.0, 2: 0.85, 1: 0.80}) == 1
    assert fastest({2: 1.0, 1: 0.91}) == 2


def test_threads_are_measured_where_none_are_asked_for():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert choose_threads(0) in (1, 2)
        assert torch.get_num_threads() in (1, 2)
        assert choose_threads(3) == torch.get_num_threads() == 3
        torch.set_num_threads(1)
        assert choose_threads(0) == 1
    finally:
        torch.set_num_threads(before)


def test_full_determinism_does_not_make_fresh_memory_cost_time():
    filling = torch.utils.deterministic.fill_uninitialized_memory
    try:
        full_determinism()
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filling
