"""What one step does to the probability of being right, at one token: the mass balance of BroRL (arXiv:2510.01180).

One token is drawn N times from p = softmax(z). Tokens are correct (P) or wrong; those that were drawn form the sets A
(correct) and B (wrong), each token once however often it was drawn; U are the tokens that were not drawn. With reward
R_j = R_c >= 0 on A, R_w <= 0 on B and 0 on U, a gradient step on the surrogate -(1/N) sum_i R_i p_i changes

    logits        dz_j = (eta / N) p_j (R_j - S_R)                         S_R = R_c sum_A p + R_w sum_B p
    tokens        dp_i = (eta / N) p_i (p_i (R_i - S_R) - M)               M = sum_j p_j^2 (R_j - S_R)
    correct mass  dQ   = (eta / N) [ (R_c - S_R) Q_neg A_2                 drawn and correct: never negative
                                   + (S_R - R_w) Q_pos B_2                 drawn and wrong: never negative
                                   + S_R (Q_pos U_neg_2 - Q_neg U_pos_2) ] not drawn: of either sign

to first order (section 2, Theorem 1 and appendix C.1; the form for single tokens is ours). Q is a sum of p, the others
are sums of p^2. Functions here give what stands behind eta / N, because that factor shrinks with N while the bracket
grows: compare signs and brackets, not changes, between different N.

Letters: X any number of leading axes (positions), also none; V vocabulary. Probabilities may be of any float dtype, and
what comes out is of the same; where terms nearly cancel, pass float64. Entries of probability 0 change nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from anabranch.errors import ShapeError, explain

Number = Tensor | float
"""One for all positions, or a tensor [X]."""


class Moments(NamedTuple):
    """Sums over the sets of tokens, each float [X] (paper, section 2)."""

    sampled_correct: Tensor
    """P_pos: sum of p over A."""
    sampled_wrong: Tensor
    """P_neg: sum of p over B."""
    correct: Tensor
    """Q_pos: sum of p over all correct tokens, drawn or not."""
    wrong: Tensor
    """Q_neg: sum of p over all the others. Summed itself, not 1 - Q_pos, which loses what little there is of it."""
    sampled_correct_2: Tensor
    """A_2: sum of p^2 over A."""
    sampled_wrong_2: Tensor
    """B_2: sum of p^2 over B."""
    unsampled_correct_2: Tensor
    """U_pos_2: sum of p^2 over the correct tokens that were not drawn."""
    unsampled_wrong_2: Tensor
    """U_neg_2: sum of p^2 over the wrong tokens that were not drawn."""

    @property
    def unsampled_2(self) -> Tensor:
        """U_2: sum of p^2 over all tokens that were not drawn, float [X]."""
        return self.unsampled_correct_2 + self.unsampled_wrong_2


class Terms(NamedTuple):
    """The three terms of the change of the correct mass, each float [X], without the factor eta / N (Theorem 1)."""

    sampled_correct: Tensor
    """(R_c - S_R) Q_neg A_2, never negative (unless rewards are graded, see `graded_terms`)."""
    sampled_wrong: Tensor
    """(S_R - R_w) Q_pos B_2, never negative (with the same exception)."""
    unsampled: Tensor
    """S_R (Q_pos U_neg_2 - Q_neg U_pos_2), of either sign."""

    @property
    def total(self) -> Tensor:
        """What the correct mass changes by, over eta / N, float [X]."""
        return self.sampled_correct + self.sampled_wrong + self.unsampled


def moments(prob_XV: Tensor, correct_XV: Tensor, sampled_XV: Tensor) -> Moments:
    """First and second moments of the sets of Theorem 1.

    Args:
        prob_XV: float [X, V], probabilities.
        correct_XV: bool [X, V], the set P.
        sampled_XV: bool [X, V], drawn at least once: A and B.

    Raises:
        ShapeError: shapes differ, or a set is not bool.
    """
    _check(prob_XV, correct_XV=correct_XV, sampled_XV=sampled_XV)
    wrong_XV, unsampled_XV = ~correct_XV, ~sampled_XV
    square_XV = prob_XV.square()

    def over(value_XV: Tensor, *sets_XV: Tensor) -> Tensor:
        for set_XV in sets_XV:
            value_XV = torch.where(set_XV, value_XV, 0)
        return value_XV.sum(-1)

    return Moments(
        sampled_correct=over(prob_XV, correct_XV, sampled_XV),
        sampled_wrong=over(prob_XV, wrong_XV, sampled_XV),
        correct=over(prob_XV, correct_XV),
        wrong=over(prob_XV, wrong_XV),
        sampled_correct_2=over(square_XV, correct_XV, sampled_XV),
        sampled_wrong_2=over(square_XV, wrong_XV, sampled_XV),
        unsampled_correct_2=over(square_XV, correct_XV, unsampled_XV),
        unsampled_wrong_2=over(square_XV, wrong_XV, unsampled_XV),
    )


def net_reward(found: Moments, reward_correct: Number, reward_wrong: Number) -> Tensor:
    """S_R = R_c P_pos + R_w P_neg, float [X]: between R_w and R_c. Its sign says what happens to undrawn tokens.

    Args:
        found: see `moments`.
        reward_correct: R_c, at least 0.
        reward_wrong: R_w, at most 0.
    """
    return reward_correct * found.sampled_correct + reward_wrong * found.sampled_wrong


def terms(found: Moments, reward_correct: Number, reward_wrong: Number) -> Terms:
    """The three terms of Theorem 1 (see `Terms`); they sum to the change of Q_pos over eta / N.

    Args:
        found: see `moments`.
        reward_correct: R_c, at least 0.
        reward_wrong: R_w, at most 0.
    """
    net_X = net_reward(found, reward_correct, reward_wrong)
    return Terms(
        sampled_correct=(reward_correct - net_X) * found.wrong * found.sampled_correct_2,
        sampled_wrong=(net_X - reward_wrong) * found.correct * found.sampled_wrong_2,
        unsampled=net_X * (found.correct * found.unsampled_wrong_2 - found.wrong * found.unsampled_correct_2),
    )


def graded_terms(found: Moments, prob_XV: Tensor, correct_XV: Tensor, sampled_XV: Tensor, reward_XV: Tensor) -> Terms:
    """The three terms where every drawn token has a reward of its own; with R_c on A and R_w on B they are `terms`.

        Q_neg sum_A p^2 (R - S)        - Q_pos sum_B p^2 (R - S)        S (Q_pos U_neg_2 - Q_neg U_pos_2)

    The sum is `correct_mass_change`. The first two can be negative: a token of A that does worse than S pulls down.

    Args:
        found: `moments` of the same.
        prob_XV: float [X, V].
        correct_XV: bool [X, V].
        sampled_XV: bool [X, V].
        reward_XV: float [X, V], 0 where nothing was drawn.

    Raises:
        ShapeError: shapes differ, or a set is not bool.
    """
    _check(prob_XV, correct_XV=correct_XV, sampled_XV=sampled_XV, reward_XV=reward_XV)
    net_X = (prob_XV * reward_XV).sum(-1)
    pull_XV = prob_XV.square() * (reward_XV - net_X[..., None])
    right_X, wrong_X = (
        torch.where(which_XV & sampled_XV, pull_XV, 0).sum(-1) for which_XV in (correct_XV, ~correct_XV)
    )
    return Terms(
        sampled_correct=found.wrong * right_X,
        sampled_wrong=-found.correct * wrong_X,
        unsampled=net_X * (found.correct * found.unsampled_wrong_2 - found.wrong * found.unsampled_correct_2),
    )


def set_reward(
    correct_XV: Tensor, sampled_XV: Tensor, reward_correct: Number, reward_wrong: Number, dtype: torch.dtype
) -> Tensor:
    """R of every token as the theorem has it: R_c on A, R_w on B, 0 where nothing was drawn, float [X, V].

    Args:
        correct_XV: bool [X, V].
        sampled_XV: bool [X, V].
        reward_correct: R_c.
        reward_wrong: R_w.
        dtype: of what comes out.
    """
    high, low = (
        torch.as_tensor(reward, dtype=dtype, device=correct_XV.device)[..., None]
        for reward in (reward_correct, reward_wrong)
    )
    return torch.where(sampled_XV, torch.where(correct_XV, high, low), 0)


def counted_reward(count_XV: Tensor, reward_XV: Tensor, baseline_X: Number) -> Tensor:
    """g_k = c_k (R_k - b), float [X, V]: what stands in place of R where draws are counted and a baseline is taken off.

    A step on -(1/N) sum over draws of (R - b) p, with b held constant, is the theorem with g in place of R. With every
    count 0 or 1 and b = 0 it is the theorem itself.

    Args:
        count_XV: [X, V], how often each token was drawn; 0 where it was not.
        reward_XV: float [X, V]; where the count is 0 it does not matter, as long as it is finite.
        baseline_X: b.
    """
    baseline_X1 = torch.as_tensor(baseline_X, dtype=reward_XV.dtype, device=reward_XV.device)[..., None]
    return count_XV * (reward_XV - baseline_X1)


def logit_change(prob_XV: Tensor, reward_XV: Tensor) -> Tensor:
    """dz_j = p_j (R_j - S), S = sum_k R_k p_k, float [X, V]: minus the gradient of -sum_i R_i p_i.

    Args:
        prob_XV: float [X, V].
        reward_XV: float [X, V], R (`set_reward`) or g (`counted_reward`).

    Raises:
        ShapeError: shapes differ.
    """
    _check(prob_XV, reward_XV=reward_XV)
    return prob_XV * (reward_XV - (prob_XV * reward_XV).sum(-1, keepdim=True))


def token_change(prob_XV: Tensor, reward_XV: Tensor) -> Tensor:
    """dp_i = p_i (dz_i - sum_j p_j dz_j), float [X, V], for the `logit_change` of these rewards; sums to 0.

    The same as p_i (p_i (R_i - S) - M): a correct token that was not drawn loses where S > 0, unless M makes up for it.

    Args:
        prob_XV: float [X, V].
        reward_XV: float [X, V], R (`set_reward`) or g (`counted_reward`).

    Raises:
        ShapeError: shapes differ.
    """
    change_XV = logit_change(prob_XV, reward_XV)
    return prob_XV * (change_XV - (prob_XV * change_XV).sum(-1, keepdim=True))


def correct_mass_change(prob_XV: Tensor, correct_XV: Tensor, reward_XV: Tensor) -> Tensor:
    """dQ_pos = sum_P p^2 (R - S) - Q_pos sum p^2 (R - S), float [X], over eta / N, for any rewards.

    With the rewards of `set_reward` it is `terms(...).total`; with those of `counted_reward` it is what a step on
    counted draws does, baseline included.

    Args:
        prob_XV: float [X, V].
        correct_XV: bool [X, V].
        reward_XV: float [X, V].

    Raises:
        ShapeError: shapes differ, or `correct_XV` is not bool.
    """
    _check(prob_XV, correct_XV=correct_XV)
    weighted_XV = prob_XV * logit_change(prob_XV, reward_XV)
    correct_X, wrong_X = (torch.where(which, prob_XV, 0).sum(-1) for which in (correct_XV, ~correct_XV))
    gained_X, lost_X = (torch.where(which, weighted_XV, 0).sum(-1) for which in (correct_XV, ~correct_XV))
    return wrong_X * gained_X - correct_X * lost_X


def expected_unsampled(prob_XV: Tensor, num_draws: int) -> Tensor:
    """p^2 (1 - p)^N, float [X, V]: what each token is expected to add to U_2 after N draws (paper, Lemma 2).

    Sum it over a set for E[U_pos_2], E[U_neg_2] or E[U_2]. It falls with N everywhere. As a function of p it is largest
    at `hardest_to_draw`.

    Args:
        prob_XV: float [X, V].
        num_draws: N, at least 0.
    """
    return prob_XV.square() * never_drawn(prob_XV, num_draws)


def never_drawn(prob_XV: Tensor, num_draws: int) -> Tensor:
    """(1 - p)^N, float [X, V]: the chance that N draws miss a token; by log1p, so that small p are not rounded away.

    Raises:
        ValueError: N below 0.
    """
    if num_draws < 0:
        raise ValueError(explain("num_draws", num_draws, "draws are counted", "at least 0"))
    if num_draws == 0:
        return torch.ones_like(prob_XV)
    return torch.exp(num_draws * torch.log1p(-prob_XV))


def hardest_to_draw(num_draws: int) -> float:
    """p = 2 / (N + 2): where p^2 (1 - p)^N is largest, so the probability that contributes most to U_2. Ours."""
    return 2 / (num_draws + 2)


def pass_at_k(correct_X: Tensor, k: int) -> Tensor:
    """1 - (1 - Q_pos)^k, float [X]: the chance that one of k independent draws is correct (paper, section 2).

    Args:
        correct_X: float [X], Q_pos in [0, 1].
        k: at least 1.

    Raises:
        ValueError: k below 1.
    """
    if k < 1:
        raise ValueError(explain("k", k, "at least one token is drawn", "k=1"))
    return -torch.expm1(k * torch.log1p(-correct_X))


def _check(prob_XV: Tensor, **others: Tensor) -> None:
    for name, tensor in others.items():
        if tensor.shape != prob_XV.shape:
            found = f"shape {tuple(tensor.shape)}"
            need = f"there is one value for each probability, shape {tuple(prob_XV.shape)}"
            raise ShapeError(explain(name, found, need, "pass tensors of the same positions and tokens"))
        if name != "reward_XV" and tensor.dtype != torch.bool:
            raise ShapeError(explain(name, str(tensor.dtype), "a set of tokens is bool", f"{name}.bool()"))
