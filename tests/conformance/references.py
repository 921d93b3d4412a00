"""Published methods, slowly: each one written down from its paper, answer by answer and token by token, in float64.

Nothing of the library is imported. A reference gets the answers of one rollout batch and the current log-prob of every
token (scalars that carry a gradient), and returns one loss for every optimizer step of the batch. Conventions that the
papers leave open, and that the library states in its documentation:

* a standard deviation is unbiased (n - 1), and one of at most 1e-6 counts as zero: then the advantage is 0;
* "mean over tokens" and "mean over answers" are over the optimizer step, statistics of rewards over the rollout batch.

To add one: write it here, and put it into `REFERENCES` under the preset's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """One sampled answer: everything that is known before its loss is."""

    group: int
    """Which problem it answers."""
    update: int
    """Which optimizer step of the batch it is trained in."""
    reward: float
    """The verdict: no rule about length has been applied."""
    truncated: bool
    """It was cut at the length limit."""
    old: tuple[float, ...]
    """Log-prob of each token under the weights at the start of the step, as the trainer computes it."""
    engine: tuple[float, ...]
    """The same as the engine recorded it while sampling."""
    ref: tuple[float, ...]
    """Log-prob of each token under the reference model."""
    value: float = 0.0
    """What was expected of its problem before the step."""


Now = Sequence[Sequence[Tensor]]
"""Current log-probs, answer by answer: 0-dimensional float64 tensors that carry the gradient."""
Reference = Callable[[Sequence[Answer], Now, int], list[Tensor]]
"""(answers, current log-probs, length limit) -> the loss of each optimizer step."""

ZERO = 1e-6


# ---------------------------------------------------------------------------------------------------- arithmetic


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """Unbiased; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    centre = mean(values)
    return math.sqrt(sum((value - centre) ** 2 for value in values) / (len(values) - 1))


def over(centred: float, scale: float) -> float:
    return centred / scale if scale > ZERO else 0.0


def siblings(answers: Sequence[Answer], group: int) -> list[Answer]:
    return [answer for answer in answers if answer.group == group]


def number_of_updates(answers: Sequence[Answer]) -> int:
    return 1 + max(answer.update for answer in answers)


def members(answers: Sequence[Answer], update: int) -> list[int]:
    return [index for index, answer in enumerate(answers) if answer.update == update]


def nothing() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def value(tensor: Tensor) -> float:
    return float(tensor.detach())


def ratio(now: Tensor, old: float) -> Tensor:
    return torch.exp(now - old)


def clipped(rho: Tensor, advantage: float, low: float, high: float) -> Tensor:
    """min(rho A, clip(rho) A); a bound is a constant and has no gradient."""
    lowest, highest = 1 - low, 1 + high
    inside = rho
    if value(rho) < lowest:
        inside = torch.tensor(lowest, dtype=torch.float64)
    elif value(rho) > highest:
        inside = torch.tensor(highest, dtype=torch.float64)
    one, other = rho * advantage, inside * advantage
    return one if value(one) <= value(other) else other


# ------------------------------------------------------------------------------------------------------- methods


def ppo_vanilla(answers: Sequence[Answer], now: Now, limit: int) -> list[Tensor]:
    """PPO's clipped objective with the bare reward; each answer's mean over tokens, mean over answers."""
    losses = []
    for update in range(number_of_updates(answers)):
        here = members(answers, update)
        total = nothing()
        for i in here:
            answer = answers[i]
            of_answer = nothing()
            for t, old in enumerate(answer.old):
                of_answer = of_answer + clipped(ratio(now[i][t], old), answer.reward, 0.2, 0.2)
            total = total + of_answer / len(answer.old)
        losses.append(-total / max(1, len(here)))
    return losses


def reinforce_pp(answers: Sequence[Answer], now: Now, limit: int) -> list[Tensor]:
    """REINFORCE++: beta (old - ref) a token, the reward with the last one; whitened over tokens."""
    beta = 0.01
    returns: list[list[float]] = []
    for answer in answers:
        paid = [-beta * (old - ref) for old, ref in zip(answer.old, answer.ref, strict=True)]
        paid[-1] += answer.reward
        returns.append([sum(paid[t:]) for t in range(len(paid))])
    every = [value for of_answer in returns for value in of_answer]
    centre, scale = mean(every), deviation(every)
    losses = []
    for update in range(number_of_updates(answers)):
        total, count = nothing(), 0
        for i in members(answers, update):
            for t, old in enumerate(answers[i].old):
                advantage = over(returns[i][t] - centre, scale)
                total = total + clipped(ratio(now[i][t], old), advantage, 0.2, 0.2)
                count += 1
        losses.append(-total / max(1, count))
    return losses


def grpo(answers: Sequence[Answer], now: Now, limit: int) -> list[Tensor]:
    """GRPO: (1/G) sum_i (1/L_i) sum_t [ clipped - beta (ref/now - log(ref/now) - 1) ]."""
    beta = 0.04
    losses = []
    for update in range(number_of_updates(answers)):
        here = members(answers, update)
        total = nothing()
        for i in here:
            answer = answers[i]
            rewards = [other.reward for other in siblings(answers, answer.group)]
            advantage = over(answer.reward - mean(rewards), deviation(rewards))
            of_answer = nothing()
            for t, old in enumerate(answer.old):
                toward = answer.ref[t] - now[i][t]
                distance = torch.exp(toward) - toward - 1
                of_answer = of_answer + clipped(ratio(now[i][t], old), advantage, 0.2, 0.2) - beta * distance
            total = total + of_answer / len(answer.old)
        losses.append(-total / max(1, len(here)))
    return losses


def dr_grpo(answers: Sequence[Answer], now: Now, limit: int) -> list[Tensor]:
    """Dr. GRPO: no std, and every answer's sum over tokens is divided by the same constant, the length limit."""
    losses = []
    for update in range(number_of_updates(answers)):
        here = members(answers, update)
        total = nothing()
        for i in here:
            answer = answers[i]
            advantage = answer.reward - mean([other.reward for other in siblings(answers, answer.group)])
            for t, old in enumerate(answer.old):
                total = total + clipped(ratio(now[i][t], old), advantage, 0.2, 0.2) / limit
        losses.append(-total / max(1, len(here)))
    return losses


def gspo(answers: Sequence[Answer], now: Now, limit: int) -> list[Tensor]:
    """GSPO: one ratio an answer, (p_now(y) / p_old(y)) ^ (1 / L), clipped to [1 - 3e-4, 1 + 4e-4]."""
    losses = []
    for update in range(number_of_updates(answers)):
        here = members(answers, update)
        total = nothing()
        for i in here:
            answer = answers[i]
            rewards = [other.reward for other in siblings(answers, answer.group)]
            advantage = over(answer.reward - mean(rewards), deviation(rewards))
            log_new = nothing()
            for logprob in now[i]:
                log_new = log_new + logprob
            whole = torch.exp((log_new - sum(answer.old)) / len(answer.old))
            total = total + clipped(whole, advantage, 3e-4, 4e-4)
        losses.append(-total / max(1, len(here)))
    return losses


def cispo(answers: Sequence[Answer], now: Now, limit: int) -> list[Tensor]:
    """CISPO: REINFORCE with the weight min(rho, 5), a constant; mean over tokens."""
    losses = []
    for update in range(number_of_updates(answers)):
        total, count = nothing(), 0
        for i in members(answers, update):
            answer = answers[i]
            rewards = [other.reward for other in siblings(answers, answer.group)]
            advantage = over(answer.reward - mean(rewards), deviation(rewards))
            for t, old in enumerate(answer.old):
                weight = min(5.0, math.exp(value(now[i][t]) - old))
                total = total + weight * advantage * now[i][t]
                count += 1
        losses.append(-total / max(1, count))
    return losses


def lite_ppo(answers: Sequence[Answer], now: Now, limit: int) -> list[Tensor]:
    """Lite PPO: group mean, std of the raw rewards of the whole batch, mean over tokens."""
    spread = deviation([answer.reward for answer in answers])
    losses = []
    for update in range(number_of_updates(answers)):
        total, count = nothing(), 0
        for i in members(answers, update):
            answer = answers[i]
            centre = mean([other.reward for other in siblings(answers, answer.group)])
            for t, old in enumerate(answer.old):
                total = total + clipped(ratio(now[i][t], old), over(answer.reward - centre, spread), 0.2, 0.2)
                count += 1
        losses.append(-total / max(1, count))
    return losses


def dapo(answers: Sequence[Answer], now: Now, limit: int) -> list[Tensor]:
    """DAPO: soft punishment over the last fifth, groups that agree are gone, clip 0.2/0.28, mean over tokens.

    Dual clip 10: for A < 0 the objective is at least 10 A.
    """
    buffer = limit // 5

    def reward(answer: Answer) -> float:
        length = len(answer.old)
        if length <= limit - buffer:
            return answer.reward
        return answer.reward + ((limit - buffer) - length) / buffer

    losses = []
    for update in range(number_of_updates(answers)):
        total, count = nothing(), 0
        for i in members(answers, update):
            answer = answers[i]
            rewards = [reward(other) for other in siblings(answers, answer.group)]
            if len(set(rewards)) == 1:
                continue  # this group was redrawn
            advantage = over(reward(answer) - mean(rewards), deviation(rewards))
            for t, old in enumerate(answer.old):
                objective = clipped(ratio(now[i][t], old), advantage, 0.2, 0.28)
                if advantage < 0 and value(objective) < 10 * advantage:
                    objective = torch.tensor(10 * advantage, dtype=torch.float64)
                total = total + objective
                count += 1
        losses.append(-total / max(1, count))
    return losses


def prorl_v2(answers: Sequence[Answer], now: Now, limit: int) -> list[Tensor]:
    """ProRLv2: an answer that was cut earns nothing, groups that agree are gone, REINFORCE++ with a group baseline.

    w = p_old / p_engine, held within [0.5, 5], weighs the clipped objective; 1e-4 x^2 / 2 is added to the loss, with
    x = log(now / ref) held within +-10. Everything is a mean over tokens.
    """

    def reward(answer: Answer) -> float:
        return 0.0 if answer.truncated else answer.reward

    kept = [i for i, a in enumerate(answers) if len({reward(b) for b in siblings(answers, a.group)}) > 1]
    centred = {
        i: reward(answers[i]) - mean([reward(other) for other in siblings(answers, answers[i].group)]) for i in kept
    }
    if not kept:
        return [nothing() for _ in range(number_of_updates(answers))]
    centre, scale = mean(list(centred.values())), deviation(list(centred.values()))
    losses = []
    for update in range(number_of_updates(answers)):
        total, count = nothing(), 0
        for i in members(answers, update):
            if i not in centred:
                continue
            answer = answers[i]
            for t, old in enumerate(answer.old):
                weight = min(5.0, max(0.5, math.exp(old - answer.engine[t])))
                objective = weight * clipped(ratio(now[i][t], old), over(centred[i] - centre, scale), 0.2, 0.28)
                gap = now[i][t] - answer.ref[t]
                if abs(value(gap)) > 10:
                    gap = torch.tensor(10.0, dtype=torch.float64)  # squared: the sign does not matter
                total = total + objective - 1e-4 * gap * gap / 2
                count += 1
        losses.append(-total / max(1, count))
    return losses


def spo(answers: Sequence[Answer], now: Now, limit: int) -> list[Tensor]:
    """SPO: (r - v) standardised over the answers of the batch, clip 0.2/0.28, dual clip 10, mean over tokens."""
    surplus = [answer.reward - answer.value for answer in answers]
    centre, scale = mean(surplus), deviation(surplus)
    losses = []
    for update in range(number_of_updates(answers)):
        total, count = nothing(), 0
        for i in members(answers, update):
            advantage = over(surplus[i] - centre, scale)
            for t, old in enumerate(answers[i].old):
                objective = clipped(ratio(now[i][t], old), advantage, 0.2, 0.28)
                if advantage < 0 and value(objective) < 10 * advantage:
                    objective = torch.tensor(10 * advantage, dtype=torch.float64)
                total = total + objective
                count += 1
        losses.append(-total / max(1, count))
    return losses


def bspo(answers: Sequence[Answer], now: Now, limit: int) -> list[Tensor]:
    """BSPO: the answers to a problem share its value and are answers like any other."""
    return spo(answers, now, limit)


# ----------------------------------------------------------------------------------------------- values of problems

Counts = Mapping[int, tuple[float, float]]
"""Successes and failures by problem."""
Tracking = Callable[[Counts, Sequence[tuple[int, float]], Mapping[int, float]], Counts]
"""(counts before, (problem, reward) of each answer in order, D of each problem) -> counts after."""


def kept(distance: float) -> float:
    """2^(-D / 0.06), within [0.875, 0.96]."""
    return min(0.96, max(0.875, 2.0 ** (-distance / 0.06)))


def spo_values(before: Counts, outcomes: Sequence[tuple[int, float]], distance: Mapping[int, float]) -> Counts:
    """Each answer is taken in from the counts before the step; of several to a problem, the last one stands."""
    after = dict(before)
    for problem, reward in outcomes:
        alpha, beta = before.get(problem, (0.5, 0.5))
        rho = kept(distance[problem])
        after[problem] = (rho * alpha + reward, rho * beta + 1 - reward)
    return after


def bspo_values(before: Counts, outcomes: Sequence[tuple[int, float]], distance: Mapping[int, float]) -> Counts:
    """Forget once a problem, then take in every answer."""
    after = dict(before)
    for problem in {problem for problem, _ in outcomes}:
        alpha, beta = before.get(problem, (0.5, 0.5))
        rho = kept(distance[problem])
        after[problem] = (rho * alpha, rho * beta)
    for problem, reward in outcomes:
        alpha, beta = after[problem]
        after[problem] = (alpha + reward, beta + 1 - reward)
    return after


TRACKINGS: Mapping[str, Tracking] = {"spo": spo_values, "bspo": bspo_values}
"""Of every method among the presets that keeps values."""

REFERENCES: Mapping[str, Reference] = {
    "ppo_vanilla": ppo_vanilla,
    "reinforce_pp": reinforce_pp,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "gspo": gspo,
    "cispo": cispo,
    "lite_ppo": lite_ppo,
    "dapo": dapo,
    "prorl_v2": prorl_v2,
    "spo": spo,
    "bspo": bspo,
}
"""Every method among the presets."""
