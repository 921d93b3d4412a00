"""What token weights promise. Numbers: checks L7, L12 and L16 of the Lite PPO spec."""

import pytest
import torch

from anabranch.algo.aggregate import AGGREGATES, Denominators, count, token_weights
from anabranch.errors import ShapeError

# L7: answer a is token 0, answer b is tokens 1 to 3; the clipped objectives under 0.2 / 0.2.
SEQUENCE = torch.tensor([0, 1, 1, 1])
OBJECTIVE = torch.tensor([1.2, -0.8, -1.0, -1.3], dtype=torch.float64)
BOTH = torch.tensor([True, True])


def weights(name, sequence_M=SEQUENCE, keep_B=BOTH, denominators=None, constant=4):
    denominators = count(sequence_M, keep_B, constant) if denominators is None else denominators
    return token_weights(AGGREGATES[name], sequence_M, keep_B, denominators, torch.float64)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("seq_mean_token_mean", -0.083333),  # -(1.2 - 3.1 / 3) / 2
        ("token_mean", 0.475),  # 1.9 / 4
        ("seq_mean_token_sum", 0.95),  # 1.9 / 2
        ("token_sum_constant", 0.2375),  # 1.9 / 4 / 2
    ],
)
def test_L7_one_set_of_objectives_under_the_four_aggregations(name, loss):
    assert -(weights(name) * OBJECTIVE).sum().item() == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("name", ["token_mean", "seq_mean_token_mean"])
def test_L12_a_filtered_answer_leaves_numerator_and_denominator(name):
    weight_M = weights(name, keep_B=torch.tensor([True, False]))
    assert weight_M.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert -(weight_M * OBJECTIVE).sum().item() == pytest.approx(-1.2)


@pytest.mark.parametrize("name", list(AGGREGATES))
def test_L16_weights_of_a_part_are_part_of_the_weights(name):
    whole = weights(name)
    total = Denominators(num_tokens=4, num_sequences=2, constant=4)
    one = torch.tensor([True])
    first = weights(name, torch.tensor([0]), one, total)
    second = weights(name, torch.tensor([0, 0, 0]), one, total)
    torch.testing.assert_close(torch.cat([first, second]), whole)


def test_L16_denominators_of_each_part_alone_give_the_sequence_mean_in_disguise():
    one = torch.tensor([True])
    losses = [
        -(weights("token_mean", torch.zeros(len(part), dtype=torch.int64), one) * part).sum().item()
        for part in (OBJECTIVE[:1], OBJECTIVE[1:])
    ]
    assert sum(losses) / 2 == pytest.approx(-0.083333, abs=1e-5)  # (-1.2 + 1.033333) / 2


def test_an_answer_without_trained_tokens_counts_as_an_answer_only():
    keep_B = torch.tensor([True, True, True])
    assert count(SEQUENCE, keep_B, 4) == Denominators(num_tokens=4, num_sequences=3, constant=4)
    torch.testing.assert_close(weights("token_mean", keep_B=keep_B), weights("token_mean"))
    torch.testing.assert_close(weights("seq_mean_token_mean", keep_B=keep_B), weights("seq_mean_token_mean") * 2 / 3)


@pytest.mark.parametrize("name", list(AGGREGATES))
def test_a_batch_that_is_filtered_out_whole_weighs_nothing(name):
    assert weights(name, keep_B=torch.tensor([False, False])).tolist() == [0.0] * 4


@pytest.mark.parametrize("name", list(AGGREGATES))
def test_no_tokens_have_no_weights(name):
    assert weights(name, torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_denominators_that_count_less_than_is_here_are_refused():
    with pytest.raises(ValueError, match="4 tokens of 2 rollouts are kept here alone"):
        weights("token_mean", denominators=Denominators(num_tokens=3, num_sequences=2, constant=4))


def test_a_token_of_an_unknown_rollout_is_refused():
    with pytest.raises(ShapeError, match=r"values 0 to 2, but ids are 0\.\.1"):
        weights("token_mean", torch.tensor([0, 2]))
