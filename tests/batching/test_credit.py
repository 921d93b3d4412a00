"""What credit assignment promises: axes composed in a fixed order, nothing counted twice or forgotten."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.batching.credit import assign_credit
from anabranch.errors import ShapeError
from anabranch.recipe.tree import Algorithm, Kl, Overlong

# lite_ppo section 8: three prompts with four answers each.
REWARDS = [1, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0]
GROUPS = [0] * 4 + [1] * 4 + [2] * 4

LITE_PPO = Algorithm(baseline="group_mean", scale="batch_std_raw", aggregate="token_mean")
GRPO = Algorithm(baseline="group_mean", scale="group_std", aggregate="seq_mean_token_mean")
REINFORCE_PP = Algorithm(
    baseline="none", scale="none", std="population", whiten="tokens", kl=Kl(kind="reward_k1", coef=0.01)
)


def credit(algorithm, rewards, groups, lengths, *, truncated=None, order=None, dtype=torch.float64, **more):
    """`assign_credit` on answers of these lengths; `order` moves the tokens about."""
    sequence = [index for index, length in enumerate(lengths) for _ in range(length)]
    sequence_M = torch.tensor(sequence, dtype=torch.int64)
    return assign_credit(
        algorithm,
        reward_B=torch.tensor(rewards, dtype=dtype),
        group_B=torch.tensor(groups, dtype=torch.int64),
        sequence_M=sequence_M if order is None else sequence_M[order],
        truncated_B=torch.tensor([False] * len(rewards) if truncated is None else truncated, dtype=torch.bool),
        max_new_tokens=8,
        **more,
    )


def close(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), rtol=1e-5, atol=1e-5)


def test_L3_lite_ppo_gives_every_token_its_answers_advantage_and_the_same_weight():
    got = credit(LITE_PPO, REWARDS, GROUPS, [2] * 12)
    expected = [0.971008, -0.971008, -0.971008, 0.971008] + [0.485504] * 3 + [-1.456512] + [0.0] * 4
    close(got.advantage_B, expected)
    close(got.advantage_M, [value for value in expected for _ in range(2)])
    close(got.weight_M, [1 / 24] * 24)
    assert got.keep_B.all()


def test_L12_filter_takes_truncated_answers_out_of_the_loss_and_not_out_of_the_statistics():
    filtered = LITE_PPO.model_copy(update={"overlong": Overlong(kind="filter")})
    truncated = [index == 1 for index in range(12)]
    lengths = [1, 3] + [2] * 10
    plain, got = (
        credit(algorithm, REWARDS, GROUPS, lengths, truncated=truncated) for algorithm in (LITE_PPO, filtered)
    )
    close(got.advantage_B, plain.advantage_B.tolist())  # the failure that was cut is still in the mean and the std
    assert got.keep_B.tolist() == [not cut for cut in truncated]
    close(got.weight_M, [1 / 21] + [0.0] * 3 + [1 / 21] * 20)  # 24 tokens less 3
    assert plain.keep_B.all()
    close(plain.weight_M, [1 / 24] * 24)


@pytest.mark.parametrize("kind", ["none", "soft", "stop_properly"])
def test_L12_only_the_filter_takes_truncated_answers_out(kind):
    algorithm = LITE_PPO.model_copy(update={"overlong": Overlong(kind=kind)})
    got = credit(algorithm, [1.0, 0.0], [0, 0], [1, 3], truncated=[False, True])
    assert got.keep_B.tolist() == [True, True]
    close(got.weight_M, [1 / 4] * 4)


def test_L12_filter_leaves_answer_means_over_the_kept_answers():
    algorithm = GRPO.model_copy(update={"overlong": Overlong(kind="filter")})
    got = credit(algorithm, [1.0, 0.0], [0, 0], [1, 3], truncated=[False, True])
    close(got.weight_M, [1.0, 0.0, 0.0, 0.0])
    assert got.stats["filtered_share"] == 0.5


def test_L13_lite_ppo_keeps_groups_that_agree():
    got = credit(LITE_PPO, REWARDS, GROUPS, [10] * 12)
    close(got.weight_M, [1 / 120] * 120)
    assert got.stats["sigma_batch"] == pytest.approx(0.514929, abs=1e-6)
    assert got.stats["dead_groups_share"] == pytest.approx(1 / 3)
    without = credit(LITE_PPO, REWARDS[:8], GROUPS[:8], [10] * 8)
    close(without.weight_M, [1 / 80] * 80)
    assert without.stats["sigma_batch"] == pytest.approx(0.517549, abs=1e-6)


@pytest.mark.parametrize(("std", "expected"), [("population", [1.732051, -0.577350]), ("unbiased", [1.5, -0.5])])
def test_L14_reinforce_pp_whitens_over_tokens(std, expected):
    algorithm = Algorithm(baseline="none", scale="none", std=std, whiten="tokens")
    got = credit(algorithm, [1.0, 0.0], [0, 0], [1, 3])
    close(got.advantage_M, [expected[0]] + [expected[1]] * 3)
    close(got.advantage_B, [1.0, 0.0])  # before whitening


def test_L14_reinforce_pp_baseline_whitens_centred_rewards_over_tokens():
    algorithm = Algorithm(baseline="group_mean", scale="none", std="population", whiten="tokens")
    got = credit(algorithm, [1.0, 0.0, 1.0, 1.0], [0, 0, 1, 1], [1, 3, 2, 2])
    close(got.advantage_M, [1.889822] + [-1.133893] * 3 + [0.377964] * 4)


@pytest.mark.parametrize(
    ("std", "first", "second"),
    [
        ("population", [1.069045, 1.069045, -1.069045, -1.069045], [1.603567] + [-0.534522] * 3),  # sigma 0.467707
        ("unbiased", [1.0, 1.0, -1.0, -1.0], [1.5] + [-0.5] * 3),  # sigma 0.5
    ],
)
@pytest.mark.parametrize(
    "rewards_of",
    [lambda r: r, lambda r: r + 3.0, lambda r: 2 * r - 1],
    ids=["0 and 1", "a constant added", "-1 and 1"],
)
def test_B10_reinforce_pp_baseline_over_trajectories(rewards_of, std, first, second):
    algorithm = Algorithm(baseline="group_mean", scale="none", std=std, whiten="trajectories")
    rewards = [rewards_of(r) for r in (1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)]
    got = credit(algorithm, rewards, [0] * 4 + [1] * 4, list(range(1, 9)))  # lengths do not matter
    of_answers = [got.advantage_M[sum(range(answer + 1))].item() for answer in range(8)]
    assert of_answers == pytest.approx(first + second, abs=1e-6)


def test_B10_over_tokens_of_equal_lengths_the_population_result_stays_and_the_unbiased_one_shrinks_to_it():
    rewards, groups, length = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0], [0] * 4 + [1] * 4, 3
    sigma = {"population": math.sqrt(0.21875), "unbiased": math.sqrt(0.21875 * 8 * length / (8 * length - 1))}
    for std, expected in sigma.items():
        algorithm = Algorithm(baseline="group_mean", scale="none", std=std, whiten="tokens")
        got = credit(algorithm, rewards, groups, [length] * 8)
        close(got.advantage_M[::length], [c / expected for c in (0.5, 0.5, -0.5, -0.5, 0.75, -0.25, -0.25, -0.25)])


def test_whitening_over_trajectories_counts_every_answer_once():
    algorithm = Algorithm(baseline="none", scale="none", std="population", whiten="trajectories")
    close(credit(algorithm, [1.0, 0.0], [0, 0], [1, 3]).advantage_M, [1.0] + [-1.0] * 3)  # mean 0.5, std 0.5


def test_whitening_over_trajectories_with_kl_takes_the_mean_of_each_answer():
    # what the penalty adds: answer 0: -2; answer 1: -1 to both tokens, for what its last one costs; answer 2: nothing
    # values of the answers: 1 - 2 = -1, 0 - 1 = -1, 2; mean 0, population std sqrt((1 + 1 + 4) / 3) = sqrt(2)
    algorithm = Algorithm(
        baseline="none", scale="none", std="population", whiten="trajectories", kl=Kl(kind="reward_k1", coef=1.0)
    )
    penalty_M = torch.tensor([2.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    got = credit(algorithm, [1.0, 0.0, 2.0], [0, 0, 0], [1, 2, 1], kl_penalty_M=penalty_M)
    close(got.advantage_M, [-1 / math.sqrt(2), -1 / math.sqrt(2), -1 / math.sqrt(2), math.sqrt(2)])


def test_kl_in_the_reward_costs_a_token_what_it_and_its_successors_stray():
    algorithm = Algorithm(baseline="none", scale="none", kl=Kl(kind="reward_k1", coef=0.1))
    penalty_M = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    got = credit(algorithm, [1.0, 0.0], [0, 0], [3, 1], kl_penalty_M=penalty_M)
    close(got.advantage_M, [1 - 0.7, 1 - 0.6, 1 - 0.4, -0.8])
    close(got.advantage_B, [1.0, 0.0])


def test_kl_in_the_reward_follows_text_order_when_answers_are_interleaved():
    algorithm = Algorithm(baseline="none", scale="none", kl=Kl(kind="reward_k1", coef=1.0))
    penalty_M = torch.tensor([1.0, 8.0, 2.0, 4.0], dtype=torch.float64)
    got = credit(
        algorithm, [0.0, 0.0], [0, 0], [3, 1], order=torch.tensor([0, 3, 1, 2]), kl_penalty_M=penalty_M
    )  # answers 0 1 0 0
    close(got.advantage_M, [-7.0, -8.0, -6.0, -4.0])


def test_reinforce_pp_by_hand():
    # rewards 1, 0; penalties 0.01 * (10, 20 | 5): returns 1 - 0.3, 1 - 0.2, 0 - 0.05 = 0.7, 0.8, -0.05
    # mean 0.483333, squares 0.046944 + 0.100278 + 0.284444 = 0.431667, population std 0.379327
    got = credit(REINFORCE_PP, [1.0, 0.0], [0, 1], [2, 1], kl_penalty_M=torch.tensor([10.0, 20.0, 5.0]))
    close(got.advantage_M, [0.571187, 0.834812, -1.405999])


def test_the_advantage_is_clipped_last_and_the_clipped_tokens_are_counted():
    # rewards 1, 0 with lengths 1, 3 whitened over tokens: 1.5, then three times -0.5
    whitened = Algorithm(baseline="none", scale="none", whiten="tokens", advantage_clip=0.75)
    got = credit(whitened, [1.0, 0.0], [0, 0], [1, 3])
    close(got.advantage_M, [0.75, -0.5, -0.5, -0.5])
    assert got.stats["advantage_clipped_share"] == 0.25
    assert got.stats["advantage_abs_max"] == 0.75
    close(got.advantage_B, [1.0, 0.0])
    low = credit(whitened.but(advantage_clip=0.25), [1.0, 0.0], [0, 0], [1, 3])
    close(low.advantage_M, [0.25, -0.25, -0.25, -0.25])
    assert low.stats["advantage_clipped_share"] == 1.0


def test_the_advantage_is_clipped_behind_the_kl_in_the_reward():
    algorithm = Algorithm(baseline="none", scale="none", kl=Kl(kind="reward_k1", coef=1.0), advantage_clip=1.0)
    penalty_M = torch.tensor([-0.5, 4.0], dtype=torch.float64)
    close(credit(algorithm, [1.0, 1.0], [0, 0], [1, 1], kl_penalty_M=penalty_M).advantage_M, [1.0, -1.0])


def test_each_aggregation_gets_the_denominator_of_the_whole_batch():
    lengths = [1, 3]
    for name, expected in [
        ("token_mean", [1 / 4] * 4),
        ("seq_mean_token_mean", [1 / 2] + [1 / 6] * 3),
        ("seq_mean_token_sum", [1 / 2] * 4),
        ("token_sum_constant", [1 / 16] * 4),  # 2 answers, 8 tokens at most
    ]:
        close(credit(Algorithm(aggregate=name), [1.0, 0.0], [0, 0], lengths).weight_M, expected)
    close(
        credit(Algorithm(aggregate="token_sum_constant", constant=4), [1.0, 0.0], [0, 0], lengths).weight_M, [1 / 8] * 4
    )


def test_optimizer_steps_have_denominators_of_their_own_and_share_the_statistics():
    whole = credit(LITE_PPO, REWARDS, GROUPS, [2] * 12)
    minibatch_B = torch.tensor([0] * 8 + [1] * 4)
    split = credit(LITE_PPO, REWARDS, GROUPS, [2] * 12, minibatch_B=minibatch_B)
    assert torch.equal(split.advantage_M, whole.advantage_M)
    close(split.weight_M, [1 / 16] * 16 + [1 / 8] * 8)


@pytest.mark.parametrize("aggregate", ["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "token_sum_constant"])
@pytest.mark.parametrize("whiten", ["none", "trajectories", "tokens"])
@pytest.mark.parametrize("scale", ["none", "group_std", "batch_std_raw", "batch_std_centred", "token_std"])
def test_an_answer_without_trained_tokens_breaks_nothing(scale, whiten, aggregate):
    algorithm = Algorithm(scale=scale, whiten=whiten, aggregate=aggregate)
    got = credit(algorithm, [1.0, 0.0, 0.0, 0.0], [0, 0, 1, 1], [2, 0, 0, 1])
    assert torch.isfinite(got.advantage_M).all()
    assert torch.isfinite(got.weight_M).all()
    assert all(math.isfinite(value) for value in got.stats.values())


def test_a_batch_that_is_cut_whole_has_no_weight():
    algorithm = LITE_PPO.model_copy(update={"overlong": Overlong(kind="filter")})
    got = credit(algorithm, [1.0, 0.0], [0, 0], [2, 1], truncated=[True, True])
    assert got.weight_M.tolist() == [0.0, 0.0, 0.0]


def test_stats_by_hand():
    got = credit(LITE_PPO, REWARDS, GROUPS, [1] * 12)
    assert got.stats == pytest.approx(
        {
            "reward_mean": 5 / 12,
            "sigma_batch": 0.514929,
            "sigma_group": (0.577350 + 0.5 + 0.0) / 3,
            "advantage_mean": 0.0,
            "advantage_abs_max": 1.456512,
            "zero_advantage_share": 4 / 12,
            "dead_groups_share": 1 / 3,
            "filtered_share": 0.0,
            "centred_small_share": 4 / 12,
            "centred_variance": (4 * 0.5**2 + 3 * 0.25**2 + 0.75**2) / 7,  # without the third group, which agrees
        },
        abs=1e-5,
    )


@st.composite
def rollouts(draw):
    size = draw(st.integers(1, 8))

    def many(values):
        return draw(st.lists(values, min_size=size, max_size=size))

    return (
        many(st.sampled_from([0.0, 0.5, 1.0])),
        many(st.integers(0, 2)),
        many(st.integers(0, 4)),
        many(st.booleans()),
        draw(st.integers(0, 10_000)),
    )


@settings(max_examples=60, deadline=None)
@given(
    batch=rollouts(),
    baseline=st.sampled_from(["none", "group_mean", "leave_one_out", "batch_mean"]),
    whiten=st.sampled_from(["none", "trajectories", "tokens"]),
    aggregate=st.sampled_from(["token_mean", "seq_mean_token_mean", "token_sum_constant"]),
)
def test_credit_follows_a_token_wherever_it_stands(batch, baseline, whiten, aggregate):
    rewards, groups, lengths, truncated, seed = batch
    algorithm = Algorithm(baseline=baseline, whiten=whiten, aggregate=aggregate, overlong=Overlong(kind="filter"))
    order = torch.randperm(sum(lengths), generator=torch.Generator().manual_seed(seed))
    straight = credit(algorithm, rewards, groups, lengths, truncated=truncated)
    moved = credit(algorithm, rewards, groups, lengths, truncated=truncated, order=order)
    torch.testing.assert_close(moved.advantage_M, straight.advantage_M[order])
    torch.testing.assert_close(moved.weight_M, straight.weight_M[order])


def test_results_have_the_dtype_of_the_rewards():
    for dtype in (torch.float32, torch.float64):
        got = credit(REINFORCE_PP, [1.0, 0.0], [0, 0], [2, 1], dtype=dtype, kl_penalty_M=torch.zeros(3))
        assert {got.advantage_M.dtype, got.advantage_B.dtype, got.weight_M.dtype} == {dtype}


def test_a_kl_penalty_is_needed_where_the_algorithm_says_so_and_only_there():
    with pytest.raises(ValueError, match="kl_penalty_M: found nothing"):
        credit(REINFORCE_PP, [1.0, 0.0], [0, 0], [1, 1])
    for kl in (Kl(), Kl(kind="loss_k3", coef=0.1)):
        with pytest.raises(ValueError, match="kl_penalty_M: found a tensor"):
            credit(Algorithm(kl=kl), [1.0, 0.0], [0, 0], [1, 1], kl_penalty_M=torch.zeros(2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_refused_by_its_place(bad):
    with pytest.raises(ValueError, match=r"reward_B\[1\]: found (nan|inf)"):
        credit(LITE_PPO, [1.0, bad], [0, 0], [1, 1])


def test_a_token_of_an_unknown_rollout_is_refused():
    with pytest.raises(ShapeError, match="sequence_M: found values 0 to 1"):
        credit(LITE_PPO, [1.0], [0], [1, 1])
