"""What baselines, scales, whitening and return-to-go promise. Numbers: checks L1 to L6 and L14 of the Lite PPO spec."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.algo.advantage import BASELINES, SCALES, divide, return_to_go, whiten
from anabranch.errors import ShapeError

# lite_ppo section 8: three prompts with four answers each.
REWARDS = [1, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0]
GROUPS = [0] * 4 + [1] * 4 + [2] * 4


def advantage(rewards, groups, baseline, scale, *, std="unbiased", lengths=None, dtype=torch.float64):
    reward_B = torch.as_tensor(rewards, dtype=dtype)
    group_B = torch.as_tensor(groups)
    length_B = torch.ones(len(reward_B), dtype=torch.int64) if lengths is None else torch.as_tensor(lengths)
    centred_B = reward_B - BASELINES[baseline](reward_B, group_B)
    return divide(centred_B, SCALES[scale](reward_B, centred_B, group_B, length_B, std))


def close(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("std", "first", "second"),
    [
        ("unbiased", [0.866025, -0.866025, -0.866025, 0.866025], [0.5, 0.5, 0.5, -1.5]),
        ("population", [1.0, -1.0, -1.0, 1.0], [0.577350, 0.577350, 0.577350, -1.732051]),
    ],
)
def test_L1_group_mean_and_group_std_give_grpo(std, first, second):
    close(advantage(REWARDS, GROUPS, "group_mean", "group_std", std=std), first + second + [0.0] * 4)


def test_L2_batch_mean_and_batch_std_give_batch_level_normalisation():
    right, wrong = 1.132843, -0.809174  # (1 - 5/12) / 0.514929 and (0 - 5/12) / 0.514929
    close(advantage(REWARDS, GROUPS, "batch_mean", "batch_std_raw"), [right if reward else wrong for reward in REWARDS])


@pytest.mark.parametrize(
    ("std", "half", "quarter", "fail"),
    [("unbiased", 0.971008, 0.485504, -1.456512), ("population", 1.014185, 0.507093, -1.521278)],
)
def test_L3_group_mean_and_raw_batch_std_give_lite_ppo(std, half, quarter, fail):
    expected = [half, -half, -half, half] + [quarter] * 3 + [fail] + [0.0] * 4
    close(advantage(REWARDS, GROUPS, "group_mean", "batch_std_raw", std=std), expected)


def test_L4_the_std_of_the_centred_rewards_is_another_scale():
    # squares of the centred rewards: 4 * 1/4 + 3 * 1/16 + 9/16 = 1.75
    # sqrt(1.75 / 11) = 0.398862, sqrt(1.75 / 12) = 0.381881
    expected = [1.253566, -1.253566, -1.253566, 1.253566] + [0.626783] * 3 + [-1.880350] + [0.0] * 4
    close(advantage(REWARDS, GROUPS, "group_mean", "batch_std_centred"), expected)
    population = advantage(REWARDS, GROUPS, "group_mean", "batch_std_centred", std="population")
    close(population[:1], [0.5 / 0.381881])


@pytest.mark.parametrize(
    ("baseline", "half", "quarter", "fail"),
    [("group_mean", 0.5, 0.25, -0.75), ("leave_one_out", 0.666667, 0.333333, -1.0)],
)
def test_L4_without_a_scale_the_centred_reward_is_the_advantage(baseline, half, quarter, fail):
    expected = [half, -half, -half, half] + [quarter] * 3 + [fail] + [0.0] * 4
    close(advantage(REWARDS, GROUPS, baseline, "none"), expected)


NORMALISED = [
    ("group_mean", "group_std"),
    ("batch_mean", "batch_std_raw"),
    ("group_mean", "batch_std_raw"),
    ("group_mean", "batch_std_centred"),
    ("leave_one_out", "batch_std_centred"),
    ("group_mean", "token_std"),
]


@pytest.mark.parametrize("std", ["unbiased", "population"])
@pytest.mark.parametrize(("baseline", "scale"), NORMALISED)
def test_L5_rewards_of_minus_one_and_one_change_nothing_once_normalised(baseline, scale, std):
    doubled = [2 * reward - 1 for reward in REWARDS]
    lengths = range(1, 13)
    before = advantage(REWARDS, GROUPS, baseline, scale, std=std, lengths=lengths)
    torch.testing.assert_close(advantage(doubled, GROUPS, baseline, scale, std=std, lengths=lengths), before)


def test_L5_the_centred_reward_doubles_and_the_raw_reward_changes():
    doubled = [2 * reward - 1 for reward in REWARDS]
    before = advantage(REWARDS, GROUPS, "group_mean", "none")
    torch.testing.assert_close(advantage(doubled, GROUPS, "group_mean", "none"), 2 * before)
    assert not torch.equal(advantage(doubled, GROUPS, "none", "none"), advantage(REWARDS, GROUPS, "none", "none"))


@pytest.mark.parametrize(
    ("baseline", "scale", "sibling", "failing"),
    [
        ("group_mean", "group_std", 0.353553, -2.474874),
        ("batch_mean", "batch_std_raw", 0.176777, -5.480078),
        ("group_mean", "batch_std_raw", 0.707107, -4.949747),
        ("group_mean", "none", 0.125, -0.875),
    ],
)
def test_L6_one_failure_in_an_otherwise_perfect_batch(baseline, scale, sibling, failing):
    rewards = [1.0] * 31 + [0.0]
    groups = [problem for problem in range(4) for _ in range(8)]
    close(advantage(rewards, groups, baseline, scale)[24:], [sibling] * 7 + [failing])


# 0.1 and 0.7 are not binary fractions: a plain sum / n misses them by a rounding error, and then nothing is exactly 0.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 0.7])
@pytest.mark.parametrize("scale", list(SCALES))
@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out", "batch_mean"])
def test_L6_a_batch_that_agrees_gets_exactly_zero(baseline, scale, reward, dtype):
    got = advantage([reward] * 7, [0, 0, 0, 1, 1, 1, 1], baseline, scale, dtype=dtype)
    assert torch.equal(got, torch.zeros(7, dtype=dtype))


def test_L6_a_batch_that_agrees_keeps_its_rewards_without_baseline_and_scale():
    close(advantage([0.7] * 4, [0, 0, 1, 1], "none", "none"), [0.7] * 4)


@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
def test_a_group_that_agrees_gets_exactly_zero_in_a_batch_that_does_not(baseline):
    got = advantage([0.7, 0.7, 0.7, 0.0, 1.0], [0, 0, 0, 1, 1], baseline, "batch_std_raw", dtype=torch.float32)
    assert torch.equal(got[:3], torch.zeros(3))
    assert (got[3:] != 0).all()


@pytest.mark.parametrize("scale", ["none", "group_std"])
@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
def test_a_group_of_one_has_nothing_to_compare_with(baseline, scale):
    assert advantage([1.0, 0.0, 1.0], [0, 1, 1], baseline, scale)[0] == 0.0


def test_a_group_of_one_without_a_baseline_still_has_no_group_std():
    close(advantage([1.0, 0.0, 1.0], [0, 1, 1], "none", "group_std"), [0.0, 0.0, math.sqrt(2)])


def test_the_token_scale_weights_every_answer_with_its_length():
    # centred 0.5 once and -0.5 three times: mean -0.25, squares 0.75^2 + 3 * 0.25^2 = 0.75; / 3 = 0.25, / 4 = 0.1875
    close(advantage([1.0, 0.0], [0, 0], "group_mean", "token_std", lengths=[1, 3]), [1.0, -1.0])
    close(
        advantage([1.0, 0.0], [0, 0], "group_mean", "token_std", lengths=[1, 3], std="population"),
        [1.154701, -1.154701],
    )


def test_the_token_scale_is_the_spread_of_the_centred_rewards():
    # the groups differ by 10 and within them by 1: centred 0.5, -0.5, 0.5, -0.5, lengths 1; squares 4 / 4, divisor 3
    got = advantage([11.0, 10.0, 1.0, 0.0], [0, 0, 1, 1], "group_mean", "token_std")
    close(got, [0.866025, -0.866025, 0.866025, -0.866025])


def test_answers_without_tokens_have_no_token_scale():
    close(advantage([1.0, 0.0], [0, 0], "group_mean", "token_std", lengths=[0, 0]), [0.0, 0.0])


def test_the_gate_is_not_added_to_the_divisor():
    centred_B = torch.tensor([1e-4, 1e-4, 1e-4])
    close(divide(centred_B, torch.tensor([1e-4, 1e-6, 0.0])), [1.0, 0.0, 0.0])  # a spread of 1e-4 is scaled in full


# ----------------------------------------------------------------------------------------------------- whitening


@pytest.mark.parametrize(("std", "expected"), [("population", [1.732051, -0.577350]), ("unbiased", [1.5, -0.5])])
def test_L14_whitening_over_tokens_gives_reinforce_pp(std, expected):
    # tokens 1 | 0 0 0: mean 1/4, squares 9/16 + 3/16 = 3/4; / 4 and root: 0.433013; / 3 and root: 0.5
    close(whiten(torch.tensor([1.0, 0.0]), torch.tensor([1, 3]), std), expected)
    close(whiten(torch.tensor([1.0, 0, 0, 0]), torch.ones(4), std), [expected[0]] + [expected[1]] * 3)


def test_L14_whitening_centred_rewards_over_tokens_moves_a_group_that_agrees():
    # REINFORCE++-baseline, prompts [1, 0] and [1, 1], lengths [1, 3] and [2, 2]: token mean -0.125, std 0.330719
    centred_B = advantage([1.0, 0.0, 1.0, 1.0], [0, 0, 1, 1], "group_mean", "none")
    whitened_B = whiten(centred_B, torch.tensor([1, 3, 2, 2]), "population")
    close(whitened_B, [1.889822, -1.133893, 0.377964, 0.377964])


def test_values_that_agree_are_whitened_to_zero():
    assert torch.equal(whiten(torch.full((3,), 0.7), torch.tensor([1, 2, 3]), "unbiased"), torch.zeros(3))
    assert torch.equal(whiten(torch.tensor([0.7]), torch.ones(1), "unbiased"), torch.zeros(1))


def test_whitening_nothing_gives_nothing():
    assert whiten(torch.zeros(0), torch.zeros(0), "unbiased").shape == (0,)


# -------------------------------------------------------------------------------------------------- return-to-go


def test_a_token_is_credited_with_what_follows_it_in_its_own_answer():
    reward_M = torch.tensor([1.0, 10.0, 2.0, 20.0, 4.0])
    sequence_M = torch.tensor([0, 1, 0, 1, 0])
    close(return_to_go(reward_M, sequence_M, torch.arange(5)), [7.0, 30.0, 6.0, 20.0, 4.0])


def test_text_order_is_what_the_order_says_and_not_where_tokens_stand():
    reward_M = torch.tensor([1.0, 2.0, 4.0])
    close(return_to_go(reward_M, torch.zeros(3, dtype=torch.int64), torch.tensor([2, 0, 1])), [1.0, 7.0, 5.0])


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(0, 5), max_size=5), seed=st.integers(0, 10_000))
def test_return_to_go_equals_a_plain_loop_wherever_the_tokens_stand(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    sequence = [index for index, length in enumerate(lengths) for _ in range(length)]
    order = torch.randperm(len(sequence), generator=generator)
    sequence_M = torch.tensor(sequence, dtype=torch.int64)
    reward_M = torch.randn(len(sequence), generator=generator, dtype=torch.float64)
    expected = [
        sum(
            float(reward_M[other])
            for other in range(len(sequence))
            if sequence[other] == sequence[token] and order[other] >= order[token]
        )
        for token in range(len(sequence))
    ]
    torch.testing.assert_close(
        return_to_go(reward_M, sequence_M, order), torch.tensor(expected, dtype=torch.float64).reshape(-1)
    )


def test_small_returns_survive_beside_huge_ones_of_another_answer():
    reward_M = torch.tensor([1e8, 1e-3, 1e-3], dtype=torch.float32)
    close(return_to_go(reward_M, torch.tensor([0, 1, 1]), torch.arange(3))[1:], [2e-3, 1e-3])


# ---------------------------------------------------------------------------------------------------- properties


@st.composite
def batches(draw):
    size = draw(st.integers(1, 12))
    rewards = draw(st.lists(st.integers(-4, 4).map(lambda n: n / 4), min_size=size, max_size=size))
    groups = draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    lengths = draw(st.lists(st.integers(0, 5), min_size=size, max_size=size))
    return rewards, groups, lengths


every_pair = given(
    batch=batches(),
    baseline=st.sampled_from(list(BASELINES)),
    scale=st.sampled_from(list(SCALES)),
    std=st.sampled_from(["unbiased", "population"]),
    seed=st.integers(0, 10_000),
)


@settings(max_examples=150, deadline=None)
@every_pair
def test_advantages_move_with_their_rollouts(batch, baseline, scale, std, seed):
    rewards, groups, lengths = (torch.tensor(part) for part in batch)
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(seed))
    straight = advantage(rewards, groups, baseline, scale, std=std, lengths=lengths)
    shuffled = advantage(rewards[order], groups[order], baseline, scale, std=std, lengths=lengths[order])
    torch.testing.assert_close(shuffled, straight[order])


@settings(max_examples=150, deadline=None)
@every_pair
def test_advantages_are_finite_and_keep_the_dtype(batch, baseline, scale, std, seed):
    rewards, groups, lengths = batch
    for dtype in (torch.float32, torch.float64):
        got = advantage(rewards, groups, baseline, scale, std=std, lengths=lengths, dtype=dtype)
        assert got.dtype == dtype
        assert torch.isfinite(got).all()


@settings(max_examples=100, deadline=None)
@given(
    batch=batches(),
    pair=st.sampled_from(NORMALISED),
    std=st.sampled_from(["unbiased", "population"]),
    factor=st.sampled_from([0.5, 2.0, 7.0]),
    shift=st.sampled_from([-1.0, 0.25, 3.0]),
)
def test_L5_units_and_zero_point_of_the_reward_do_not_matter_once_normalised(batch, pair, std, factor, shift):
    rewards, groups, lengths = batch
    moved = [factor * reward + shift for reward in rewards]
    before = advantage(rewards, groups, *pair, std=std, lengths=lengths)
    torch.testing.assert_close(advantage(moved, groups, *pair, std=std, lengths=lengths), before)


@settings(max_examples=100, deadline=None)
@given(batch=batches(), baseline=st.sampled_from(["group_mean", "leave_one_out"]), scale=st.sampled_from(list(SCALES)))
def test_a_group_baseline_sums_to_zero_in_every_group(batch, baseline, scale):
    rewards, groups, lengths = batch
    got = advantage(rewards, groups, baseline, scale, lengths=lengths)
    total_G = torch.zeros(4, dtype=got.dtype).index_add(0, torch.tensor(groups), got)
    torch.testing.assert_close(total_G, torch.zeros_like(total_G), rtol=0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(batch=batches(), std=st.sampled_from(["unbiased", "population"]))
def test_whitening_by_length_is_whitening_the_tokens_one_by_one(batch, std):
    rewards, _, lengths = batch
    value_B, length_B = torch.tensor(rewards, dtype=torch.float64), torch.tensor(lengths)
    by_length_M = whiten(value_B, length_B, std).repeat_interleave(length_B)
    value_M = value_B.repeat_interleave(length_B)
    torch.testing.assert_close(by_length_M, whiten(value_M, torch.ones_like(value_M), std))


# -------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("baseline", list(BASELINES))
def test_rewards_in_a_table_are_refused_with_the_fix(baseline):
    with pytest.raises(ShapeError, match=r"shape \(2, 2\)[\s\S]*fix: flatten"):
        BASELINES[baseline](torch.zeros(2, 2), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("group_B", "message"),
    [
        (torch.tensor([0, 1, 1]), "3 values"),
        (torch.tensor([0, -1]), "values -1 to 0"),
        (torch.tensor([0.0, 1.0]), "float32"),
    ],
)
def test_unusable_group_ids_are_refused(group_B, message):
    with pytest.raises(ShapeError, match=message):
        BASELINES["group_mean"](torch.zeros(2), group_B)
