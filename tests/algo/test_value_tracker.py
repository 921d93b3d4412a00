"""The value of a problem: both forms of the recursion, forgetting, repeats in a batch; checks of "spo" section 14."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.algo.value_tracker import (
    ESTIMATORS,
    FORMS,
    Prior,
    divergence,
    extend,
    forgetting,
    from_arrays,
    init,
    look_up,
    smoothed,
    to_arrays,
    update,
    value,
    window,
)

PRIOR = Prior(0.5, 1.0)
RATES = st.floats(0.875, 0.96)


def one(form="beta", alpha=2.0, beta=6.0):
    """A state that knows problem "a"."""
    return init(form, ["a"], [alpha / (alpha + beta)], alpha + beta)


def after(state, rewards, rho, duplicates="joint", key="a"):
    return update(state, [key] * len(rewards), rewards, [rho] * len(rewards), prior=PRIOR, duplicates=duplicates)


def numbers(state):
    return state.first_P.tolist() + state.second_P.tolist()


# ------------------------------------------------------------------------------------------------- "spo" section 14


def test_S1_first_values_and_what_they_are_worth():
    assert window(0.875) == 8
    assert numbers(one()) == [2, 6]
    value_P = smoothed([2, 0, 8], [8, 8, 8], 0.5)
    assert value_P == pytest.approx([0.277778, 0.055556, 0.944444], abs=1e-6)
    state = init("beta", ["a", "b", "c"], value_P, window(0.875))
    assert (state.first_P[0], state.second_P[0]) == pytest.approx((2.222222, 5.777778), abs=1e-6)
    assert (state.first_P + state.second_P).tolist() == pytest.approx([8, 8, 8])
    assert smoothed([2], [8], 0) == [0.25]


def test_S2_a_success():
    assert numbers(after(one(), [1], 0.875)) == [2.75, 5.25]
    assert value(after(one(), [1], 0.875), ["a"], PRIOR) == pytest.approx([0.34375])
    state = after(one(), [1], 0.96)
    assert numbers(state) == pytest.approx([2.92, 5.76])
    known = look_up(state, ["a"], PRIOR)
    assert (known.value_K[0], known.count_K[0]) == pytest.approx((0.3364055, 8.68), abs=1e-6)
    for rho, eta, expected in ((0.875, 0.125, 0.34375), (0.96, 0.1152074, 0.3364055)):
        (found,) = after(one("ema"), [1], rho).first_P
        assert found == pytest.approx(0.25 + eta * (1 - 0.25), abs=1e-6)
        assert found == pytest.approx(expected, abs=1e-6)


def test_S3_a_failure():
    state = after(one(), [0], 0.875)
    assert numbers(state) == [1.75, 6.25]
    assert value(state, ["a"], PRIOR) == pytest.approx([0.21875])


def test_S4_counts_and_moving_average_are_one_recursion():
    random = np.random.default_rng(4)
    alpha, beta = random.uniform(0.1, 10, (2, 1000))
    rho, reward = random.uniform(0.875, 0.96, 1000), random.integers(0, 2, 1000)
    keys = [str(number) for number in range(1000)]
    values = []
    for form in ("beta", "ema"):
        states = [init(form, [k], [a / (a + b)], a + b) for k, a, b in zip(keys, alpha, beta, strict=True)]
        done = [update(s, [k], [r], [q], prior=PRIOR, duplicates="joint")
                for s, k, r, q in zip(states, keys, reward, rho, strict=True)]  # fmt: skip
        values.append(np.concatenate([value(s, [k], PRIOR) for s, k in zip(done, keys, strict=True)]))
    assert np.abs(values[0] - values[1]).max() < 1e-12
    before = alpha / (alpha + beta)
    as_printed = before + (reward - before) / (rho * (alpha + beta + 1) + 1)  # the text's N_eff = alpha + beta + 1
    assert np.abs(as_printed - values[0]).min() > 1e-5


def test_S5_forgetting_by_divergence():
    distances = [0, 0.003, 0.006, 0.01, 0.0115587, 0.06]
    raw = forgetting(np.array(distances), 0.06)
    assert raw[[0, 1, 5]] == pytest.approx([1, 0.965936, 0.5], abs=1e-6)
    assert np.clip(raw, 0.875, 0.96) == pytest.approx([0.96, 0.96, 0.933033, 0.890899, 0.875, 0.875], abs=1e-6)


def test_S6_what_an_estimate_is_worth_settles_at_the_window():
    for form in ("beta", "ema"):
        state, counts = one(form), {}
        for visit in range(1, 400):
            state = after(state, [visit % 2], 0.96)
            counts[visit] = look_up(state, ["a"], PRIOR).count_K[0]
        assert [counts[n] for n in (1, 5, 10, 50)] == pytest.approx([8.68, 11.138664, 13.697845, 22.791942], abs=1e-6)
        assert counts[399] == pytest.approx(window(0.96), abs=1e-5)
        assert look_up(after(one(form), [1], 0.875), ["a"], PRIOR).count_K == pytest.approx([8])
        assert look_up(state, ["a"], PRIOR).visits_K.tolist() == [399]


def tracked(probabilities, rho, start, seeds):
    """Values of one problem over visits, for many runs at once (each run has a key of its own): [visits + 1, seeds]."""
    random, keys = np.random.default_rng(14), [str(seed) for seed in range(seeds)]
    state = init("beta", keys, np.full(seeds, start), 8)
    found = [value(state, keys, PRIOR)]
    for p in probabilities:
        outcome = (random.random(seeds) < p).astype(float)
        state = update(state, keys, outcome, np.full(seeds, rho), prior=PRIOR, duplicates="joint")
        found.append(value(state, keys, PRIOR))
    return np.stack(found)


def test_S14_a_jump_is_followed_at_the_rate_of_the_window():
    runs = tracked([0.2] * 200 + [0.8] * 20, 0.875, 0.2, 2000)
    assert runs[205].mean() == pytest.approx(0.492255, abs=0.01)  # .8 - .6 * .875^5
    assert runs[220].mean() == pytest.approx(0.758475, abs=0.01)


@pytest.mark.parametrize(("rho", "variance"), [(0.875, 0.0106667), (0.96, 0.0032653)])
def test_S14_the_steady_variance_is_that_of_the_window(rho, variance):
    eta = 1 - rho
    assert 0.8 * 0.2 * eta / (2 - eta) == pytest.approx(variance, abs=1e-7)
    assert tracked([0.8] * 200, rho, 0.8, 10_000)[-1].var() == pytest.approx(variance, rel=0.05)


def test_S15_two_answers_to_one_problem_in_a_batch():
    assert numbers(after(one(), [1, 0], 0.875, "last")) == [1.75, 6.25]
    assert numbers(after(one(), [1, 0], 0.875, "joint")) == [2.75, 6.25]


# ------------------------------------------------------------------------------------------------------- properties

BATCHES = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 1)), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(st.lists(BATCHES, min_size=1, max_size=5), RATES, st.sampled_from(["joint", "last"]))
def test_both_forms_keep_the_same_value_and_count_over_any_history(history, rho, duplicates):
    states = {form: init(form, ["a"], [0.25], 8) for form in FORMS}
    for batch in history:
        keys, rewards = [key for key, _ in batch], [reward for _, reward in batch]
        for form, state in states.items():
            states[form] = update(
                state, keys, rewards, [rho] * len(batch), prior=Prior(0.5, 2.0), duplicates=duplicates
            )
    beta, ema = (look_up(state, list("abcd"), Prior(0.5, 2.0)) for state in states.values())
    assert beta.value_K == pytest.approx(ema.value_K, abs=1e-12)
    assert beta.count_K == pytest.approx(ema.count_K, abs=1e-12)
    assert beta.visits_K.tolist() == ema.visits_K.tolist()
    assert ((beta.value_K > 0) & (beta.value_K < 1)).all()


@settings(deadline=None, max_examples=60)
@given(BATCHES, RATES, st.randoms(use_true_random=False), st.sampled_from(list(FORMS)))
def test_a_joint_update_does_not_depend_on_the_order_of_the_answers(batch, rho, random, form):
    shuffled = random.sample(batch, len(batch))
    values = []
    for order in (batch, shuffled):
        keys, rewards = zip(*order, strict=True)
        state = update(init(form, ["a"], [0.3], 8), keys, rewards, [rho] * len(order), prior=PRIOR, duplicates="joint")
        values.append([look_up(state, [key], PRIOR).value_K[0] for key in "abcd"])
    assert values[0] == values[1]


@settings(deadline=None, max_examples=60)
@given(BATCHES, RATES)
def test_the_last_answer_stands_as_if_it_had_been_alone(batch, rho):
    keys, rewards = zip(*batch, strict=True)
    together = update(one(), keys, rewards, [rho] * len(batch), prior=PRIOR, duplicates="last")
    alone = one()
    for key in dict.fromkeys(keys):
        (reward, *_) = [r for k, r in reversed(batch) if k == key]
        alone = update(alone, [key], [reward], [rho], prior=PRIOR, duplicates="last")
    assert numbers(together) == numbers(alone)


@settings(deadline=None, max_examples=40)
@given(st.lists(BATCHES, min_size=2, max_size=5), RATES, st.sampled_from(list(FORMS)))
def test_a_state_that_was_saved_goes_on_to_the_same_bits(history, rho, form):
    whole = again = init(form, [], [], 1)
    for batch in history:
        keys, rewards = zip(*batch, strict=True)
        rates = [rho] * len(batch)
        whole = update(whole, keys, rewards, rates, prior=PRIOR, duplicates="joint")
        arrays = {name: np.frombuffer(a.tobytes(), a.dtype) for name, a in to_arrays(again).items()}
        again = from_arrays(form, json.loads(json.dumps(again.keys)), arrays)
        again = update(again, keys, rewards, rates, prior=PRIOR, duplicates="joint")
    assert (whole.keys, numbers(whole), whole.visits_P.tolist()) == (
        again.keys,
        numbers(again),
        again.visits_P.tolist(),
    )


def test_problems_that_are_not_visited_keep_their_numbers():
    state = init("beta", ["a", "b"], [0.25, 0.75], 8)
    done = after(state, [1], 0.9)
    assert (done.first_P[1], done.second_P[1], done.visits_P[1]) == (6, 2, 0)
    assert numbers(state) == [2, 6, 6, 2]  # the state before is as it was


def test_an_unknown_problem_has_the_prior_and_is_known_after_its_first_visit():
    known = look_up(one(), ["new", "a"], Prior(0.4, 5.0))
    assert [list(part) for part in known] == [[0.4, 0.25], [5, 8], [0, 0]]
    state = update(one(), ["new"], [1], [0.96], prior=Prior(0.4, 5.0), duplicates="joint")
    assert look_up(state, ["new"], Prior(0.0, 1.0)).value_K == pytest.approx([(0.96 * 2 + 1) / (0.96 * 5 + 1)])
    assert extend(state, ["new", "a"], PRIOR) is state


def test_rewards_outside_0_and_1_are_for_the_moving_average_alone():
    assert value(after(one("ema"), [-3.0], 0.875), ["a"], PRIOR) == pytest.approx([0.25 - 0.125 * 3.25])
    for reward in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="rewards in"):
            after(one(), [reward], 0.875)


def test_bookkeeping_errors_are_refused():
    with pytest.raises(ValueError, match="different values of rho"):
        update(one(), ["a", "a"], [1, 0], [0.9, 0.95], prior=PRIOR, duplicates="joint")
    with pytest.raises(ValueError, match="1 problems, 2 rewards"):
        update(one(), ["a"], [1, 0], [0.9], prior=PRIOR, duplicates="joint")
    with pytest.raises(ValueError, match="count 0"):
        init("beta", ["a"], [0.5], 0)


# ------------------------------------------------------------------------------------------------------- divergence


def test_divergences_by_hand():
    old, now = np.log([0.5, 0.2, 0.9]), np.log([0.25, 0.4, 0.9])  # log 2, -log 2; 0
    sequence = np.array([0, 0, 1])
    found = {name: divergence(name, old, now, sequence, 3).tolist() for name in ESTIMATORS}
    assert found["abs"] == pytest.approx([np.log(2), 0, 0])
    assert found["k1"] == pytest.approx([0, 0, 0])
    assert found["k2"] == pytest.approx([np.log(2) ** 2 / 2, 0, 0])
    assert found["k3"] == pytest.approx([0.25, 0, 0])  # ((1/2 - 1 + log 2) + (2 - 1 - log 2)) / 2
    assert np.isfinite(divergence("k3", np.array([-2000.0]), np.array([0.0]), np.array([0]), 1)).all()


def test_the_unbiased_estimators_find_the_divergence_of_the_policy_then_from_the_policy_now():
    then, now = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
    expected = float((then * np.log(then / now)).sum())
    for name, exact in (("k1", True), ("k3", True), ("abs", False)):
        each = [
            divergence(name, np.log(then[[t]]), np.log(now[[t]]), np.array([0]), 1)[0] for t in range(3)
        ]  # every token, weighted as the policy of then draws it
        assert (float((then * each).sum()) == pytest.approx(expected, rel=1e-6)) is exact
