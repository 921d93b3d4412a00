"""What one step does to the correct mass: worked examples, autograd, and what always holds. Numbers: the BroRL spec."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.algo.mass_balance import (
    correct_mass_change,
    counted_reward,
    expected_unsampled,
    graded_terms,
    hardest_to_draw,
    logit_change,
    moments,
    net_reward,
    never_drawn,
    pass_at_k,
    set_reward,
    terms,
    token_change,
)
from anabranch.errors import ShapeError

HAND = torch.tensor([0.4, 0.1, 0.3, 0.2], dtype=torch.float64)
RIGHT = torch.tensor([True, True, False, False])


def among(size, *tokens):
    """bool [size]: these tokens."""
    found = torch.zeros(size, dtype=torch.bool)
    found[list(tokens)] = True
    return found


def near(value):
    return pytest.approx(value, abs=1e-12)


# ------------------------------------------------------------------------------------------------- worked examples


def test_B1_the_hand_example():
    """Q_neg .5: (1 - .1) .5 .16 = .072; (.1 + 1) .5 .09 = .0495; .1 (.5 .04 - .5 .01) = .0015; sum .123."""
    sampled = among(4, 0, 2)
    found = moments(HAND, RIGHT, sampled)
    assert net_reward(found, 1.0, -1.0).item() == near(0.1)
    assert (found.sampled_correct.item(), found.sampled_wrong.item()) == (near(0.4), near(0.3))
    assert (found.correct.item(), found.wrong.item()) == (near(0.5), near(0.5))
    assert (found.sampled_correct_2.item(), found.sampled_wrong_2.item()) == (near(0.16), near(0.09))
    assert (found.unsampled_correct_2.item(), found.unsampled_wrong_2.item()) == (near(0.01), near(0.04))
    assert found.unsampled_2.item() == near(0.05)
    parts = terms(found, 1.0, -1.0)
    assert [part.item() for part in parts] == [near(0.072), near(0.0495), near(0.0015)]
    assert parts.total.item() == near(0.123)
    reward = set_reward(RIGHT, sampled, 1.0, -1.0, torch.float64)
    assert reward.tolist() == [1, 0, -1, 0]
    assert token_change(HAND, reward)[RIGHT].sum().item() == near(0.123)
    assert correct_mass_change(HAND, RIGHT, reward).item() == near(0.123)


def test_B1_the_hand_example_where_wrong_tokens_get_nothing():
    """S_R = .4: (1 - .4) .5 .16 = .048; .4 .5 .09 = .018; .4 (.02 - .005) = .006; sum .072."""
    found = moments(HAND, RIGHT, among(4, 0, 2))
    assert net_reward(found, 1.0, 0.0).item() == near(0.4)
    parts = terms(found, 1.0, 0.0)
    assert [*(part.item() for part in parts), parts.total.item()] == [near(n) for n in (0.048, 0.018, 0.006, 0.072)]


def test_B2_correct_mass_is_lost_where_it_is_concentrated_and_was_not_drawn():
    """Q .5, S_R .02: .98 .5 .0004 = .000196; .02 (.5 50 .0001 - .5 .2304) = -.002254."""
    prob = torch.tensor([0.02, 0.48, *[0.01] * 50], dtype=torch.float64)
    correct, sampled = among(52, 0, 1), among(52, 0)
    found = moments(prob, correct, sampled)
    parts = terms(found, 1.0, -1.0)
    assert net_reward(found, 1.0, -1.0).item() == near(0.02)
    assert [part.item() for part in parts] == [near(0.000196), 0, near(-0.002254)]
    assert parts.total.item() == near(-0.002058)
    change = token_change(prob, set_reward(correct, sampled, 1.0, -1.0, torch.float64))
    assert change[1] < 0 < change[0]  # the correct token that was not drawn loses


@pytest.mark.parametrize(
    ("drawn", "net", "expected"),
    [
        # all: S_R 0. A_2 = .16 + .01, times .5 = .085; B_2 = .09 + .04, times .5 = .065
        ((0, 1, 2, 3), 0.0, (0.085, 0.065, 0.0)),
        # S_R -.3: (-.3 + 1) .5 .09 = .0315; -.3 (.5 .04 - .5 (.16 + .01)) = .0195
        ((2,), -0.3, (0.0, 0.0315, 0.0195)),
        ((), 0.0, (0.0, 0.0, 0.0)),
    ],
)
def test_B3_everything_only_wrong_ones_and_nothing_drawn(drawn, net, expected):
    found = moments(HAND, RIGHT, among(4, *drawn))
    assert net_reward(found, 1.0, -1.0).item() == near(net)
    parts = terms(found, 1.0, -1.0)
    assert [part.item() for part in parts] == [near(part) for part in expected]
    assert parts.total.item() == near(sum(expected))


# --------------------------------------------------------------------------------------------- against the derivative


@pytest.fixture(scope="module")
def random_positions():
    """1,000 positions of 3 to 200 tokens, padded with tokens of probability 0: (logits, correct, sampled, R_c, R_w)."""
    X, V = 1000, 200
    random = torch.Generator().manual_seed(0)

    def uniform(*shape):
        return torch.rand(*shape, generator=random, dtype=torch.float64)

    size_X1 = torch.randint(3, V + 1, (X, 1), generator=random)
    inside_XV = torch.arange(V) < size_X1
    logits_XV = 3 * uniform(X, 1) * torch.randn(X, V, generator=random, dtype=torch.float64)
    correct_XV = (uniform(X, V) < uniform(X, 1)) & inside_XV
    correct_XV[:, 0], correct_XV[:, 1] = True, False  # neither empty nor everything
    sampled_XV = (uniform(X, V) < uniform(X, 1)) & inside_XV
    return (
        logits_XV.masked_fill(~inside_XV, -math.inf),
        correct_XV,
        sampled_XV,
        2 * uniform(X),
        -2 * uniform(X),
    )


def correct_mass(logits_XV, correct_XV):
    return torch.where(correct_XV, torch.softmax(logits_XV, -1), 0).sum(-1)


def test_B4_the_theorem_is_the_derivative_of_the_correct_mass(random_positions):
    logits_XV, correct_XV, sampled_XV, high_X, low_X = random_positions
    prob_XV = torch.softmax(logits_XV, -1)
    reward_XV = set_reward(correct_XV, sampled_XV, high_X, low_X, torch.float64)
    step_XV = logit_change(prob_XV, reward_XV)
    total_X = terms(moments(prob_XV, correct_XV, sampled_XV), high_X, low_X).total
    _, along_X = torch.func.jvp(lambda z: correct_mass(z, correct_XV), (logits_XV,), (step_XV,))
    assert ((total_X - along_X).abs() <= 1e-9 * along_X.abs()).all()
    h = 1e-6
    up_X, down_X = (correct_mass(logits_XV + sign * h * step_XV, correct_XV) for sign in (1, -1))
    numeric_X = (up_X - down_X) / (2 * h)
    assert ((total_X - numeric_X).abs() <= 1e-5 * total_X.abs().clamp(min=1e-3)).all()
    torch.testing.assert_close(correct_mass_change(prob_XV, correct_XV, reward_XV), total_X, rtol=1e-9, atol=1e-15)


def test_B4_the_step_is_minus_the_gradient_of_the_surrogate(random_positions):
    logits_XV, correct_XV, sampled_XV, high_X, low_X = random_positions
    reward_XV = set_reward(correct_XV, sampled_XV, high_X, low_X, torch.float64)
    asked = logits_XV.clone().requires_grad_()
    (-(reward_XV * torch.softmax(asked, -1)).sum()).backward()
    torch.testing.assert_close(-asked.grad, logit_change(torch.softmax(logits_XV, -1), reward_XV), rtol=0, atol=1e-12)


def test_B4_what_always_holds(random_positions):
    logits_XV, correct_XV, sampled_XV, high_X, low_X = random_positions
    prob_XV = torch.softmax(logits_XV, -1)
    found = moments(prob_XV, correct_XV, sampled_XV)
    parts, net_X = terms(found, high_X, low_X), net_reward(found, high_X, low_X)
    assert parts.sampled_correct.min() >= -1e-12
    assert parts.sampled_wrong.min() >= -1e-12
    assert (net_X >= low_X - 1e-12).all() and (net_X <= high_X + 1e-12).all()
    assert parts.unsampled.min() < 0 < parts.unsampled.max()  # of either sign
    reward_XV = set_reward(correct_XV, sampled_XV, high_X, low_X, torch.float64)
    change_XV = token_change(prob_XV, reward_XV)
    assert change_XV.sum(-1).abs().max() <= 1e-12
    gained_X = torch.where(correct_XV, change_XV, 0).sum(-1)
    torch.testing.assert_close(gained_X, parts.total, rtol=0, atol=1e-12)
    # p (p (R - S) - M), the form for single tokens
    pull_XV = prob_XV * (reward_XV - net_X[:, None])
    by_token_XV = prob_XV * (pull_XV - (prob_XV * pull_XV).sum(-1, keepdim=True))
    torch.testing.assert_close(change_XV, by_token_XV, rtol=0, atol=1e-12)


def test_graded_rewards_give_the_same_terms_and_always_the_same_sum(random_positions):
    logits_XV, correct_XV, sampled_XV, high_X, low_X = random_positions
    prob_XV = torch.softmax(logits_XV, -1)
    found = moments(prob_XV, correct_XV, sampled_XV)
    two_XV = set_reward(correct_XV, sampled_XV, high_X, low_X, torch.float64)
    for mine, theirs in zip(
        graded_terms(found, prob_XV, correct_XV, sampled_XV, two_XV), terms(found, high_X, low_X), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-15)
    noise_XV = torch.rand(prob_XV.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    graded_XV = torch.where(sampled_XV, noise_XV - 0.5, 0)
    total_X = graded_terms(found, prob_XV, correct_XV, sampled_XV, graded_XV).total
    torch.testing.assert_close(total_X, correct_mass_change(prob_XV, correct_XV, graded_XV), rtol=0, atol=1e-12)


def test_counted_draws_with_a_baseline_are_the_gradient_of_the_surrogate_over_draws():
    """Tokens 0, 0, 2, 3, 0 with rewards 1, 1, -1, -1, 1: b = .2; g = 3 .8, 0, -1.2, -1.2."""
    drawn = torch.tensor([0, 0, 2, 3, 0])
    reward = torch.where(RIGHT, 1.0, -1.0).double()
    baseline = reward[drawn].mean()
    credit = counted_reward(torch.bincount(drawn, minlength=4), reward, baseline)
    assert credit.tolist() == pytest.approx([2.4, 0.0, -1.2, -1.2])
    logits = HAND.log().requires_grad_()
    (-((reward[drawn] - baseline) * torch.softmax(logits, 0)[drawn]).sum()).backward()
    torch.testing.assert_close(-logits.grad, logit_change(HAND, credit), rtol=0, atol=1e-15)
    _, along = torch.func.jvp(lambda z: correct_mass(z, RIGHT), (HAND.log(),), (logit_change(HAND, credit),))
    assert correct_mass_change(HAND, RIGHT, credit).item() == near(along.item())


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=25)
def test_single_draws_without_a_baseline_are_the_theorem(seed):
    random = torch.Generator().manual_seed(seed)
    prob = torch.rand(6, generator=random, dtype=torch.float64).softmax(0)
    correct, sampled = (torch.rand(6, generator=random) < 0.5 for _ in range(2))
    reward = torch.where(correct, *torch.tensor([0.7, -0.2], dtype=torch.float64))
    counted = counted_reward(sampled.long(), reward, 0.0)
    assert torch.equal(counted, set_reward(correct, sampled, 0.7, -0.2, torch.float64))
    total = terms(moments(prob, correct, sampled), 0.7, -0.2).total.item()
    assert correct_mass_change(prob, correct, counted).item() == near(total)


# ------------------------------------------------------------------------------------------------------- many draws


def test_B5_what_is_expected_of_a_token_that_was_not_drawn():
    """.1^2 .9^10 = .01 .34867844."""
    assert expected_unsampled(torch.tensor([0.1], dtype=torch.float64), 10).item() == pytest.approx(
        0.00348678, abs=1e-8
    )
    random = torch.Generator().manual_seed(0)
    missed = (torch.rand(100_000, 10, generator=random) >= 0.1).all(1).double().mean().item()
    assert 0.1**2 * missed == pytest.approx(0.00348678, rel=0.02)


@pytest.mark.parametrize(("draws", "peak", "value"), [(4, 0.3333, 0.0219479), (16, 0.1111, 0.00187532)])
def test_B5_a_token_of_two_over_N_plus_two_is_the_worst(draws, peak, value):
    check_peak(draws, peak, value, 1e-4)


def test_B5_a_token_of_two_over_N_plus_two_is_the_worst_with_512_draws():
    check_peak(512, 0.00389105, 2.05701e-6, 1e-8)


def check_peak(draws, peak, value, within):
    assert hardest_to_draw(draws) == pytest.approx(peak, abs=within)
    grid = torch.linspace(0, 1, 100_001, dtype=torch.float64)[:-1]
    everywhere = expected_unsampled(grid, draws)
    assert everywhere.max().item() == pytest.approx(value, rel=1e-5)
    assert grid[everywhere.argmax()].item() == pytest.approx(hardest_to_draw(draws), abs=1e-5)


@pytest.mark.parametrize(
    ("draws", "correct", "wrong", "missed"),
    [
        (4, 3.98509e-5, 1.15968e-6, 0.99975),
        (16, 3.98198e-5, 1.15964e-6, 0.99899),
        (512, 3.85576e-5, 1.15784e-6, 0.96827),
        (51_200, 1.57765e-6, 9.87726e-7, 0.03979),
    ],
)
def test_B5_the_start_of_the_simulator(draws, correct, wrong, missed):
    """128,000 tokens: the anchor at 5, 9,999 other correct ones at 3, the rest at 0."""
    logits = torch.zeros(128_000, dtype=torch.float64)
    logits[:10_000], logits[0] = 3, 5
    prob = torch.softmax(logits, 0)
    expected = expected_unsampled(prob, draws)
    assert expected[:10_000].sum().item() == pytest.approx(correct, rel=5e-6)
    assert expected[10_000:].sum().item() == pytest.approx(wrong, rel=5e-6)
    assert never_drawn(prob[1], draws).item() == pytest.approx(missed, abs=5e-6)


@given(st.floats(0, 1), st.integers(0, 5000))
@settings(deadline=None, max_examples=50)
def test_more_draws_never_leave_more_unsampled(p, draws):
    prob = torch.tensor(p, dtype=torch.float64)
    assert expected_unsampled(prob, draws + 1) <= expected_unsampled(prob, draws) <= prob.square()


def test_B9_pass_at_k():
    """1 - .7^4 = .7599."""
    assert pass_at_k(torch.tensor(0.3, dtype=torch.float64), 4).item() == near(0.7599)
    mass = torch.linspace(0, 1, 101, dtype=torch.float64)
    for k in (1, 4, 16):
        assert (pass_at_k(mass[:80], k).diff() > 0).all()  # beyond, float64 rounds to 1
    assert pass_at_k(mass, 512)[[0, -1]].tolist() == [0, 1]
    assert pass_at_k(torch.tensor(1e-12, dtype=torch.float64), 10).item() == pytest.approx(1e-11)  # not rounded away


# --------------------------------------------------------------------------------------------------------- refusals


def test_tensors_of_other_positions_are_refused():
    with pytest.raises(ShapeError, match="correct_XV"):
        moments(HAND, RIGHT[:3], RIGHT)
    with pytest.raises(ShapeError, match="sampled_XV"):
        moments(HAND, RIGHT, RIGHT.long())
    with pytest.raises(ShapeError, match="reward_XV"):
        logit_change(HAND, HAND[:3])
    with pytest.raises(ValueError, match="at least 0"):
        never_drawn(HAND, -1)
    with pytest.raises(ValueError, match="at least one"):
        pass_at_k(HAND, 0)
