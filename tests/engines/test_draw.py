"""What drawing promises: the right distribution, the right log-prob, and randomness that depends on names only."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.engines.draw import draw, uniforms
from anabranch.records import Sampling

ALL = Sampling()


def even_uniforms(count: int) -> torch.Tensor:
    """The middles of `count` equal parts of [0, 1): inverse CDF then gives every token its share to within one draw."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def drawn(prob_V: torch.Tensor, sampling: Sampling = ALL, count: int = 1000) -> torch.Tensor:
    """How often each token comes, from even uniforms, as a share."""
    token_R, _ = draw(prob_V.log().expand(count, -1), even_uniforms(count), sampling)
    return torch.bincount(token_R, minlength=len(prob_V)) / count


def one(logits_V: list[float], uniform: float, sampling: Sampling = ALL) -> tuple[int, float]:
    token_R, logprob_R = draw(torch.tensor([logits_V]), torch.tensor([uniform], dtype=torch.float64), sampling)
    return int(token_R[0]), float(logprob_R[0])


# -------------------------------------------------------------------------------------------- which token is drawn


def test_a_token_is_drawn_where_the_cumulative_probability_passes_the_uniform():
    logits = [math.log(p) for p in (0.5, 0.25, 0.25)]
    for uniform, expected in [(0.0, 0), (0.49, 0), (0.51, 1), (0.74, 1), (0.76, 2), (1 - 2**-53, 2)]:
        assert one(logits, uniform)[0] == expected


@pytest.mark.parametrize("size", [3, 255, 256, 257, 1000])  # blocks are 256 wide
def test_every_token_comes_as_often_as_its_probability_says(size):
    prob_V = torch.softmax(torch.randn(size, generator=torch.Generator().manual_seed(size)), -1)
    share_V = drawn(prob_V, count=20_000)
    torch.testing.assert_close(share_V, prob_V, rtol=0, atol=1.01 / 20_000)  # one draw more or less at each border


def test_a_chi_square_test_finds_nothing_with_the_engine_s_own_uniforms():
    prob_V = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
    count = 20_000
    uniform_R = torch.from_numpy(np.concatenate([uniforms(0, 0, "p", sample, 20) for sample in range(count // 20)]))
    token_R, _ = draw(prob_V.log().expand(count, -1), uniform_R, ALL)
    expected_V = prob_V * count
    chi_square = ((torch.bincount(token_R, minlength=5) - expected_V) ** 2 / expected_V).sum()
    assert chi_square < 13.3  # 1 % point at 4 degrees of freedom


@given(st.lists(st.integers(0, 5), min_size=1, max_size=600), st.floats(0, 1, exclude_max=True))
@settings(deadline=None, max_examples=100)
def test_a_token_without_probability_is_never_drawn(weights, uniform):
    weights[len(weights) // 2] += 1  # one has some
    logits_V = torch.tensor(weights, dtype=torch.float32).log()
    token_R, logprob_R = draw(logits_V[None], torch.tensor([uniform], dtype=torch.float64), ALL)
    assert weights[int(token_R[0])] > 0
    assert math.isfinite(float(logprob_R[0]))


def test_uniforms_next_to_0_and_1_stay_within_the_tokens_that_have_probability():
    logits = [-math.inf] * 300 + [0.0, -50.0] + [-math.inf] * 700
    assert one(logits, 0.0)[0] == 300
    assert one(logits, 5e-324)[0] == 300
    # total 1 + 2e-22: in float64 the second token adds nothing, so even the largest uniform falls on the first
    assert one(logits, 1 - 2**-53)[0] == 300
    assert one([-math.inf, 0.0, 0.0, -math.inf], 1 - 2**-53)[0] == 2


def test_a_uniform_beyond_what_rounding_leaves_takes_the_last_token_with_probability():
    # a block's sum is taken in float32 and its cumulative sum in float64, so the largest uniform may find nothing left
    logits_RV = torch.randn(200, 700, generator=torch.Generator().manual_seed(0))
    logits_RV[:, 600:] = -math.inf
    token_R, _ = draw(logits_RV, torch.full((200,), 1 - 2**-53, dtype=torch.float64), ALL)
    assert token_R.min() >= 598 and token_R.max() == 599


def test_a_row_does_not_depend_on_its_neighbours():
    logits_RV = torch.randn(7, 700, generator=torch.Generator().manual_seed(0))
    uniform_R = torch.from_numpy(uniforms(0, 0, "p", 0, 7))
    sampling = Sampling(temperature=0.7, top_k=50, top_p=0.9)
    together = draw(logits_RV, uniform_R, sampling)
    alone = [draw(logits_RV[i : i + 1], uniform_R[i : i + 1], sampling) for i in range(7)]
    assert torch.equal(together[0], torch.cat([token for token, _ in alone]))
    torch.testing.assert_close(together[1], torch.cat([logprob for _, logprob in alone]))


# ------------------------------------------------------------------------------------- temperature, top-k and top-p


def test_temperature_divides_the_logits():
    # p = (1/4, 3/4) at temperature 1/2: (1/16, 9/16) -> (0.1, 0.9)
    prob_V = torch.tensor([0.25, 0.75])
    assert drawn(prob_V, Sampling(temperature=0.5)).tolist() == pytest.approx([0.1, 0.9])
    assert one(prob_V.log().tolist(), 0.05, Sampling(temperature=0.5)) == (0, pytest.approx(math.log(0.1)))


def test_greedy_takes_the_most_probable_token_and_reports_its_log_prob_at_temperature_1():
    logits = [math.log(p) for p in (0.2, 0.5, 0.3)]
    for uniform in (0.0, 0.9):
        assert one(logits, uniform, Sampling(temperature=0.0)) == (1, pytest.approx(math.log(0.5)))


def test_top_k_keeps_the_k_most_probable_and_their_proportions():
    prob_V = torch.tensor([0.1, 0.4, 0.2, 0.3])
    assert drawn(prob_V, Sampling(top_k=2), 700).tolist() == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert drawn(prob_V, Sampling(top_k=1)).tolist() == [0, 1, 0, 0]
    for k in (0, 4, 99):  # 0 is no limit
        assert drawn(prob_V, Sampling(top_k=k)).tolist() == pytest.approx(prob_V.tolist())


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    prob_V = torch.tensor([0.125, 0.5, 0.125, 0.25])
    for p, kept in [(0.01, [1]), (0.5, [1]), (0.51, [1, 3]), (0.75, [1, 3])]:
        expected_V = torch.zeros(4)
        expected_V[kept] = prob_V[kept] / prob_V[kept].sum()
        assert drawn(prob_V, Sampling(top_p=p), 600).tolist() == pytest.approx(expected_V.tolist())


def test_tokens_tied_with_the_last_kept_one_stay():
    prob_V = torch.tensor([0.25, 0.5, 0.25])
    assert drawn(prob_V, Sampling(top_k=2)).tolist() == prob_V.tolist()
    assert drawn(prob_V, Sampling(top_p=0.6)).tolist() == prob_V.tolist()


def test_top_p_is_taken_of_what_top_k_left():
    # top-3 of (0.4, 0.3, 0.2, 0.1) leaves 0.9; 0.75 of that is 0.675 <= 0.4 + 0.3, so two tokens, 4 : 3
    prob_V = torch.tensor([0.4, 0.3, 0.2, 0.1])
    assert drawn(prob_V, Sampling(top_k=3, top_p=0.75), 700).tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0])
    # of the whole it would be 0.75 > 0.7: three tokens
    assert drawn(prob_V, Sampling(top_p=0.75), 900).tolist() == pytest.approx([4 / 9, 3 / 9, 2 / 9, 0])


def test_a_nucleus_wider_than_the_first_candidates_is_found():
    size = 5000  # candidates are widened from 512 on
    prob_V = torch.linspace(1, 2, size)
    prob_V /= prob_V.sum()
    kept = int((prob_V.flip(0).double().cumsum(0) < 0.9).sum()) + 1
    lowest, _ = one(prob_V.log().tolist(), 0.0, Sampling(top_p=0.9))  # probabilities rise, so this is the last one kept
    assert abs(lowest - (size - kept)) <= 1


@pytest.mark.parametrize("sampling", [Sampling(top_k=2), Sampling(top_p=0.5), Sampling(temperature=0.5, top_k=1)])
def test_the_log_prob_is_that_before_the_cuts(sampling):
    logits_RV = torch.randn(50, 9, generator=torch.Generator().manual_seed(1))
    token_R, logprob_R = draw(logits_RV, even_uniforms(50), sampling)
    full_RV = torch.log_softmax(logits_RV / sampling.temperature, -1)
    torch.testing.assert_close(logprob_R, full_RV.gather(1, token_R[:, None])[:, 0])


# ------------------------------------------------------------------------------------------------- extreme logits


@pytest.mark.parametrize("sampling", [ALL, Sampling(temperature=0.1), Sampling(top_k=2, top_p=0.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_logits_and_minus_infinity_are_fine(sampling, dtype):
    logits_RV = torch.tensor([[1e30, -1e30, 3e37, -math.inf], [-math.inf, -math.inf, -1e30, -math.inf]], dtype=dtype)
    for uniform in (0.0, 0.5, 1 - 2**-53):
        token_R, logprob_R = draw(logits_RV, torch.full((2,), uniform, dtype=torch.float64), sampling)
        assert token_R.tolist() == [2, 2]
        assert logprob_R.tolist() == [0.0, 0.0]


def test_broken_logits_show_in_the_log_prob():
    for broken in (math.nan, math.inf):
        assert not math.isfinite(one([0.0, broken, 1.0], 0.5)[1])


# ----------------------------------------------------------------------------------------------------- randomness


def test_the_random_numbers_are_pinned():
    """A change here changes every run that was ever made: old runs could not be repeated or resumed."""
    assert uniforms(0, 0, "problem", 0, 3).tolist() == [0.37126011321307606, 0.7039382971385341, 0.7773784339083945]
    assert uniforms(7, 3, "9f86d081884c7d65", 511, 2).tolist() == [0.7095826527134338, 0.24474928259954798]


def test_more_numbers_begin_with_the_same_ones():
    assert uniforms(1, 2, "p", 3, 5).tolist() == uniforms(1, 2, "p", 3, 50)[:5].tolist()


def test_each_of_seed_step_problem_and_sample_matters():
    names = [(s, t, p, i) for s in (0, 1, 11) for t in (0, 1, 11, -1) for p in ("a", "b", "1/1") for i in (0, 1, 11)]
    streams = {tuple(uniforms(*name, 2)) for name in names}
    assert len(streams) == len(names)


def test_streams_of_samples_are_uniform_and_independent():
    number_ST = np.stack([uniforms(0, 0, "p", sample, 64) for sample in range(256)])
    assert number_ST.min() >= 0 and number_ST.max() < 1
    share_10 = np.histogram(number_ST, 10, (0, 1))[0] / number_ST.size
    assert np.abs(share_10 - 0.1).max() < 4 * math.sqrt(0.1 * 0.9 / number_ST.size)
    between_samples = np.corrcoef(number_ST)[np.triu_indices(256, 1)]
    between_tokens = np.corrcoef(number_ST.T)[np.triu_indices(64, 1)]
    assert abs(between_samples.mean()) < 4 / math.sqrt(64 * len(between_samples))
    assert np.abs(between_samples).max() < 6 / math.sqrt(64)
    assert np.abs(between_tokens).max() < 6 / math.sqrt(256)
