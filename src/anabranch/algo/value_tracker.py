"""How often each problem is answered right, as a running estimate that forgets: the baseline of SPO (arXiv:2509.13232).

Of every problem two numbers are kept, its value v (expected reward) and N, how many answers that estimate is worth. At
each visit the old answers count less, by rho, and the new ones are added. Two forms of the same recursion (Eq 5, Eq 7):

    beta    alpha = rho alpha + r              v = alpha / (alpha + beta)      N = alpha + beta
            beta  = rho beta + (1 - r)
    ema     N = rho N + 1                      v = v + (r - v) / N

The farther the policy has moved since a problem was last visited, the more is forgotten: rho = 2^(-D / D_half), held
within [rho_min, rho_max], where D compares the log-probs of the problem's last answer then and now. The paper calls D a
KL and names no estimator; the published code takes "abs". A problem that is not visited keeps its numbers.

Everything here is a pure function over an explicit state, in float64. Letters: P problems of the state, B answers of a
step, K problems of a step, M tokens of their last answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

FormName = Literal["beta", "ema"]
Duplicates = Literal["joint", "last"]

LOG_RATIO_LIMIT = 20.0
"""k3 holds a log-ratio within +- this before exp, as `anabranch.algo.ratio` does."""
TINY = 1e-8
"""Added to the number of tokens that a divergence is the mean over, as the published code does."""

# ------------------------------------------------------------------------------------------------------------ forms


class Form(NamedTuple):
    """What is kept of a problem: two numbers, and how they change. All functions take and give float64 [P]."""

    names: tuple[str, str]
    start: Callable[[Float64, Float64], tuple[Float64, Float64]]
    """(v, N) -> the two numbers."""
    read: Callable[[Float64, Float64], tuple[Float64, Float64]]
    """The two numbers -> (v, N)."""
    step: Callable[[Float64, Float64, Float64, Float64, Float64], tuple[Float64, Float64]]
    """(the two numbers, rho, sum of the new rewards, how many) -> the two numbers after the visit."""


def _beta_step(
    alpha: Float64, beta: Float64, rho: Float64, total: Float64, answers: Float64
) -> tuple[Float64, Float64]:
    return rho * alpha + total, rho * beta + (answers - total)


def _ema_step(
    value: Float64, count: Float64, rho: Float64, total: Float64, answers: Float64
) -> tuple[Float64, Float64]:
    after = rho * count + answers
    return value + (total - answers * value) / after, after


FORMS: Mapping[FormName, Form] = {
    "beta": Form(
        ("alpha", "beta"),
        lambda value, count: (value * count, (1 - value) * count),
        lambda alpha, beta: (alpha / (alpha + beta), alpha + beta),
        _beta_step,
    ),
    "ema": Form(
        ("value", "count"), lambda value, count: (value, count), lambda value, count: (value, count), _ema_step
    ),
}
"""beta: counts of a Beta distribution, for rewards in [0, 1]. ema: a running mean, for any rewards. On rewards in
[0, 1] both give the same v and N up to rounding."""

# ------------------------------------------------------------------------------------------------------------ state


@dataclass(frozen=True)
class Prior:
    """What is believed of a problem that the state does not know."""

    value: float
    """Expected reward."""
    count: float
    """How many answers that belief is worth, above 0."""


@dataclass(frozen=True, eq=False)
class TrackerState:
    """What is known of each problem. Made by `init`, changed by `update`.

    Example: `init("beta", ["a"], [0.25], 8)` keeps alpha 2 and beta 6 of problem "a", which was not visited yet.
    """

    form: FormName
    keys: tuple[str, ...]
    """Identity of each problem (a hash of its content)."""
    first_P: Float64
    """alpha, or value."""
    second_P: Float64
    """beta, or count."""
    visits_P: Int64
    """Updates so far."""

    @cached_property
    def places(self) -> dict[str, int]:
        """Where a problem stands."""
        return {key: place for place, key in enumerate(self.keys)}


def init(form: FormName, keys: Sequence[str], value_P: Sequence[float] | Float64, count: float) -> TrackerState:
    """A state that knows these problems, each worth `count` answers and never visited.

    Raises:
        ValueError: as many values as problems are needed, and a positive count.
    """
    value = np.asarray(value_P, dtype=np.float64)
    if value.shape != (len(keys),) or not count > 0:
        raise ValueError(f"{len(keys)} problems, values of shape {value.shape}, count {count}")
    first, second = FORMS[form].start(value, np.full(len(keys), count, dtype=np.float64))
    return TrackerState(form, tuple(keys), first, second, np.zeros(len(keys), dtype=np.int64))


class Known(NamedTuple):
    """What the state knows of some problems, in the order that was asked for."""

    value_K: Float64
    count_K: Float64
    visits_K: Int64


def look_up(state: TrackerState, keys: Sequence[str], prior: Prior) -> Known:
    """Value, count and visits of these problems; one that the state does not know has the prior and no visit."""
    known = extend(state, keys, prior)
    place_K = np.fromiter((known.places[key] for key in keys), dtype=np.int64, count=len(keys))
    value_K, count_K = FORMS[state.form].read(known.first_P[place_K], known.second_P[place_K])
    return Known(value_K, count_K, known.visits_P[place_K])


def value(state: TrackerState, keys: Sequence[str], prior: Prior) -> Float64:
    """Expected reward of each of these problems, float64 [K]."""
    return look_up(state, keys, prior).value_K


def extend(state: TrackerState, keys: Sequence[str], prior: Prior) -> TrackerState:
    """The state with those of the problems that it did not know, at the prior."""
    new = [key for key in dict.fromkeys(keys) if key not in state.places]
    if not new:
        return state
    more = init(state.form, new, [prior.value] * len(new), prior.count)
    return replace(
        state,
        keys=state.keys + more.keys,
        first_P=np.concatenate([state.first_P, more.first_P]),
        second_P=np.concatenate([state.second_P, more.second_P]),
        visits_P=np.concatenate([state.visits_P, more.visits_P]),
    )


def update(
    state: TrackerState,
    keys_B: Sequence[str],
    reward_B: Sequence[float] | Float64,
    rho_B: Sequence[float] | Float64,
    *,
    prior: Prior,
    duplicates: Duplicates,
) -> TrackerState:
    """The state after the answers of a step.

    Args:
        state: before the step.
        keys_B: the problem of each answer.
        reward_B: its reward; with form "beta" in [0, 1].
        rho_B: how much of the old answers to its problem still counts; the same for all answers to a problem.
        prior: of problems that the state does not know.
        duplicates: a problem with several answers. "joint": it forgets once and takes all of them in, alpha =
            rho alpha + sum r, in any order. "last": each would be taken in alone, from the state before the step, and
            the last one stands; the others are not counted (the published code).

    Raises:
        ValueError: lengths differ, a reward is outside [0, 1] where that matters, or answers to a problem disagree on
            how much it forgets.
    """
    reward, rho = np.asarray(reward_B, dtype=np.float64), np.asarray(rho_B, dtype=np.float64)
    names = list(dict.fromkeys(keys_B))
    number = {key: index for index, key in enumerate(names)}
    group_B = np.fromiter((number[key] for key in keys_B), dtype=np.int64, count=len(keys_B))
    last_K = np.zeros(len(names), dtype=np.int64)
    last_K[group_B] = np.arange(len(keys_B))
    _check(state.form, group_B, reward, rho, last_K)
    if duplicates == "joint":
        total_K: Float64 = np.bincount(group_B, reward, len(names)).astype(np.float64)
        answers_K: Float64 = np.bincount(group_B, minlength=len(names)).astype(np.float64)
    else:
        total_K, answers_K = reward[last_K], np.ones(len(names))
    known = extend(state, names, prior)
    place_K = np.array([known.places[key] for key in names], dtype=np.int64)
    first_P, second_P, visits_P = known.first_P.copy(), known.second_P.copy(), known.visits_P.copy()
    first_P[place_K], second_P[place_K] = FORMS[state.form].step(
        first_P[place_K], second_P[place_K], rho[last_K], total_K, answers_K
    )
    visits_P[place_K] += 1
    return replace(known, first_P=first_P, second_P=second_P, visits_P=visits_P)


def _check(form: FormName, group_B: Int64, reward_B: Float64, rho_B: Float64, last_K: Int64) -> None:
    if not len(group_B) == len(reward_B) == len(rho_B):
        raise ValueError(f"{len(group_B)} problems, {len(reward_B)} rewards, {len(rho_B)} values of rho")
    bad = ~np.isfinite(reward_B) if form == "ema" else ~((reward_B >= 0) & (reward_B <= 1))
    if bad.any():
        raise ValueError(f"a reward of {reward_B[bad][0]:g}: form {form!r} takes rewards in [0, 1]")
    if not np.array_equal(rho_B, rho_B[last_K][group_B]):
        raise ValueError("answers to one problem have different values of rho")


def to_arrays(state: TrackerState) -> dict[str, NDArray[Any]]:
    """All numbers of the state by name (`alpha`, `beta`, `visits`, or `value`, `count`, `visits`)."""
    first, second = FORMS[state.form].names
    return {first: state.first_P, second: state.second_P, "visits": state.visits_P}


def from_arrays(form: FormName, keys: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> TrackerState:
    """The inverse of `to_arrays`.

    Raises:
        KeyError: the numbers of another form.
    """
    first, second = FORMS[form].names
    return TrackerState(form, tuple(keys), arrays[first], arrays[second], arrays["visits"])


# ------------------------------------------------------------------------------------------------------- first values


def window(rho: float) -> float:
    """How many answers an estimate is worth in the long run if every visit keeps the share `rho`: 1 / (1 - rho).

    Offline values start with that of rho_min (the paper's N0: 8 for 0.875).
    """
    return 1 / (1 - rho)


def smoothed(right_P: Sequence[float] | Float64, samples_P: Sequence[int] | Int64, smoothing: float) -> Float64:
    """(right + smoothing) / (samples + 2 smoothing), float64 [P]: 0 is the plain share (Eq 6), 0.5 that of the code."""
    return (np.asarray(right_P, np.float64) + smoothing) / (np.asarray(samples_P, np.float64) + 2 * smoothing)


# --------------------------------------------------------------------------------------------------------- forgetting


def forgetting(divergence_K: Float64, d_half: float) -> Float64:
    """2^(-D / D_half), float64 [K]: what a visit keeps of the old answers, before bounds."""
    return np.exp2(-np.asarray(divergence_K, dtype=np.float64) / d_half)


def _abs(x_M: Float64) -> Float64:
    return np.abs(x_M)


def _k1(x_M: Float64) -> Float64:
    return x_M


def _k2(x_M: Float64) -> Float64:
    return np.square(x_M) / 2


def _k3(x_M: Float64) -> Float64:
    x_M = np.clip(x_M, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return np.expm1(-x_M) + x_M


ESTIMATORS: Mapping[str, Callable[[Float64], Float64]] = {"abs": _abs, "k1": _k1, "k2": _k2, "k3": _k3}
"""By token, of x = log-prob then - log-prob now. The token was drawn by the policy of then, so k1, k2 and k3 estimate
KL(then || now); k1 can be negative, which forgets as little as 0 does. "abs" is no KL; D_half 0.06 belongs to it."""


def divergence(estimator: str, old_M: Float64, now_M: Float64, sequence_M: Int64, size: int) -> Float64:
    """D of each problem: the mean over the tokens of its last answer, float64 [K].

    Args:
        estimator: one of `ESTIMATORS`.
        old_M: log-probs of the tokens when they were kept.
        now_M: the same under the weights of now.
        sequence_M: which problem each token belongs to, 0..size - 1.
        size: K. A problem without tokens has D = 0.
    """
    x_M = np.asarray(old_M, dtype=np.float64) - np.asarray(now_M, dtype=np.float64)
    total_K = np.bincount(sequence_M, ESTIMATORS[estimator](x_M), size)
    return total_K / (np.bincount(sequence_M, minlength=size) + TINY)
