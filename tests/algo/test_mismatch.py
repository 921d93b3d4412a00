"""What the corrections for another engine promise. Numbers: check 14 of the BroRL spec."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.algo.mismatch import CORRECTIONS, Bounds
from anabranch.errors import ShapeError

PRORL_V2 = Bounds(0.5, 5.0)


def weights(kind, gaps, bounds=PRORL_V2, sequence=None):
    """The weights of tokens whose old log-prob is so much above the engine's."""
    engine_M = torch.linspace(-3, -1, len(gaps), dtype=torch.float64)
    sequence_M = torch.zeros(len(gaps), dtype=torch.int64) if sequence is None else torch.tensor(sequence)
    return CORRECTIONS[kind](engine_M + torch.tensor(gaps, dtype=torch.float64), engine_M, sequence_M, bounds)


@pytest.mark.parametrize(
    ("gap", "tis", "icepop"),
    [(math.log(8), 5.0, 0.0), (math.log(0.4), 0.5, 0.0), (0.0, 1.0, 1.0), (0.3, 1.349859, 1.349859)],
)
def test_B14_weights_within_a_half_and_five(gap, tis, icepop):
    assert weights("tis", [gap]).item() == pytest.approx(tis, abs=1e-6)
    assert weights("icepop", [gap]).item() == pytest.approx(icepop, abs=1e-6)


def test_B14_the_sequence_mask_keeps_or_drops_whole_answers_by_their_geometric_mean():
    bounds = Bounds(0.999, 1.002)
    gaps = [0.101, -0.099, 0.003, 0.103, -0.097]  # means 0.001 (1.0010005), 0.003 of one token, 0.003 of two
    found = weights("sequence_mask", gaps, bounds, [0, 0, 1, 2, 2])
    # what is kept has its own weight, far outside the bounds of the mean
    assert found.tolist() == pytest.approx([math.exp(0.101), math.exp(-0.099), 0.0, 0.0, 0.0], abs=1e-9)
    kept = weights("sequence_mask", [0.001], bounds)
    assert kept.item() == pytest.approx(1.0010005, abs=1e-7)


def test_the_sequence_mask_finds_the_tokens_of_an_answer_wherever_they_stand():
    bounds = Bounds(0.999, 1.002)
    found = weights("sequence_mask", [0.101, 0.103, -0.099, -0.097], bounds, [0, 1, 0, 1])
    assert (found > 0).tolist() == [True, False, True, False]


def test_an_answer_too_unlikely_for_the_trainer_is_dropped_too():
    assert weights("sequence_mask", [-0.01], Bounds(0.999, 1.002)).item() == 0.0


@pytest.mark.parametrize(("bounds", "expected"), [(Bounds(None, 2.0), [0.01, 2.0]), (Bounds(0.5, None), [0.5, 8.0])])
def test_a_missing_bound_is_no_bound(bounds, expected):
    assert weights("tis", [math.log(0.01), math.log(8)], bounds).tolist() == pytest.approx(expected)
    kept = [value if value in (0.01, 8.0) else 0.0 for value in expected]
    assert weights("icepop", [math.log(0.01), math.log(8)], bounds).tolist() == pytest.approx(kept)


@pytest.mark.parametrize("kind", list(CORRECTIONS))
def test_the_bounds_themselves_are_allowed(kind):
    assert weights(kind, [0.0], Bounds(1.0, 1.0)).item() == 1.0


@pytest.mark.parametrize("kind", list(CORRECTIONS))
def test_weights_are_constants(kind):
    old_M = torch.tensor([-1.0, -2.0], requires_grad=True)
    assert not CORRECTIONS[kind](old_M, torch.tensor([-1.1, -2.0]), torch.tensor([0, 0]), PRORL_V2).requires_grad


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(st.floats(-30, 30), min_size=1, max_size=8),
    low=st.none() | st.floats(0.01, 1),
    high=st.none() | st.floats(1, 100),
)
@pytest.mark.parametrize("kind", list(CORRECTIONS))
def test_a_weight_is_the_ratio_or_a_bound_or_nothing(kind, gaps, low, high):
    found = weights(kind, gaps, Bounds(low, high), list(range(len(gaps))))  # answers of one token each
    assert torch.isfinite(found).all()
    for weight, gap in zip(found.tolist(), gaps, strict=True):
        raw = math.exp(min(max(gap, -20.0), 20.0))
        near = [bound for bound in (low, high) if bound is not None] if kind == "tis" else [0.0]
        assert any(weight == pytest.approx(value, rel=1e-6) for value in (raw, *near))
        if weight > 0:
            assert (low or 0.0) * (1 - 1e-6) <= weight
            assert weight <= (high or math.inf) * (1 + 1e-6)


@pytest.mark.parametrize("kind", list(CORRECTIONS))
def test_log_probs_of_other_tokens_are_refused(kind):
    with pytest.raises(ShapeError):
        CORRECTIONS[kind](torch.zeros(2), torch.zeros(3), torch.zeros(2, dtype=torch.int64), PRORL_V2)
