"""What `diagnostics` asks for; above all the mass balance at single tokens (BroRL, arXiv:2510.01180, section 2).

The theorem (`anabranch.algo.mass_balance`) is about one token that is drawn N times from one distribution. A group of
answers has one place that is sure to be like that and where something was decided: the **first fork**, the first token
at which two answers differ. All have the same text before it, so that all N tokens there are draws from the same
distribution p (given that they are not all the same). Later places, and those where p has the most entropy, are shared
by fewer answers. A step looks at the first forks of its first groups whose rewards differ.

What is known there, and what is not:

* p, by a forward pass of the trainer with the weights that sampled, at the temperature of sampling, before top-k and
  top-p. After the step's updates, p again.
* R_k of a token that was drawn: the mean reward of the answers that go on with it. It estimates what the token is worth
  under this policy, with few answers badly. b is the mean reward of the group.
* Whether a token is "correct" is not known inside an answer. Here **right** are the tokens that were drawn and whose
  answers did better than the group, R_k > b; **other** are the remaining drawn ones. Q is the mass of the right ones.
* Of a token that was not drawn nothing is known, so that U_2 is not split into correct and wrong. Undrawn tokens count
  as not right, which makes term 3 equal to S Q U_2. With undrawn correct tokens counted as correct it would be
  S (Q' U_neg_2 - (1 - Q') U_pos_2), Q' with their mass: of the other sign, if they are the more concentrated ones.
* The terms are those of the theorem's step: on the logits of this place alone, linear in p, with R_k - b for each drawn
  token once. The step that training makes is another one (log-probs, all places, shared weights, clipping, AdamW), and
  p also moves by what is learned elsewhere. `mass_balance/change` is what really happened to Q; the terms say what the
  theorem would have it do, and `mass_balance/agreement` how often both have the same sign.

Letters: K forks, V vocabulary, N answers of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anabranch.algo.mass_balance import expected_unsampled, graded_terms, moments
from anabranch.evaluation.metrics import pass_at_k
from anabranch.evaluation.report import sizes
from anabranch.modeling.next_token import next_probabilities
from anabranch.records import Reason
from anabranch.train.clock import Clock
from anabranch.train.experience import Experience, Group
from anabranch.train.session import Learner

Int32 = NDArray[np.int32]
Record = dict[str, object]


@dataclass(frozen=True, eq=False)
class Fork:
    """Where the answers of a group differ for the first time."""

    before: Int32
    """int32 [T]: the prompt and what all answers begin with."""
    depth: int
    """Tokens of the answers before it."""
    drawn_N: Int32
    """int32 [N]: the token of each answer."""
    reward_N: NDArray[np.float64]
    """float64 [N]: the reward of each answer."""


@dataclass(frozen=True, eq=False)
class Look:
    """Forks of a step, and the policy there before it."""

    forks: Sequence[Fork]
    prob_KV: Tensor
    """float64 [K, V]."""


def first_fork(group: Group) -> Fork | None:
    """The first fork of a group.

    None: its rewards are all the same; or there is none that all answers reach, because one answer is the beginning of
    another; or what differs there was not drawn by the policy.
    """
    reward_N = np.array([score.reward for score in group.scores])
    answers = [rollout.graph.segments[1] for rollout in group.rollouts if len(rollout.graph.segments) > 1]
    if len(answers) < len(reward_N) or (reward_N == reward_N[0]).all():
        return None
    shared = min(len(answer) for answer in answers)
    tokens_NT = np.stack([answer.tokens[:shared] for answer in answers])
    differs_T = (tokens_NT != tokens_NT[0]).any(0)
    if not differs_T.any():
        return None
    depth = int(differs_T.argmax())
    if not all(answer.trained[depth] for answer in answers):
        return None
    before = np.concatenate([group.rollouts[0].prompt_tokens, tokens_NT[0, :depth]])
    return Fork(before, depth, tokens_NT[:, depth], reward_N)


def look_before(learner: Learner, experience: Experience, clock: Clock) -> Look | None:
    """The forks that this step looks at, with the weights of its start; None: the recipe asks for none."""
    most = learner.recipe.diagnostics.mass_balance
    if most == 0:
        return None
    with clock.phase("diagnose"):
        forks: list[Fork] = []
        for group in experience.groups:
            fork = first_fork(group) if len(forks) < most else None
            forks += [] if fork is None else [fork]
        return Look(forks, _probabilities(learner, forks))


def after_step(learner: Learner, experience: Experience, look: Look | None, clock: Clock) -> Record:
    """What the recipe's diagnostics add to the step's record. Names and meanings: docs/metrics.md.

    Args:
        learner: the weights are those after the updates.
        experience: of the step.
        look: from `look_before`.
        clock: takes the time of all this.
    """
    record: Record = {}
    if look is not None:
        with clock.phase("diagnose"):
            record |= balance_record(look, _probabilities(learner, look.forks))
    if learner.recipe.diagnostics.pass_curve:
        with clock.phase("diagnose"):
            record |= pass_record(experience)
    return record


def balance_record(look: Look, after_KV: Tensor) -> Record:
    """Group *mass balance* of the metrics: means over forks; only their number where there is none.

    Args:
        look: before the updates.
        after_KV: float64 [K, V]: the policy after them.
    """
    count = len(look.forks)
    if count == 0:
        return {"mass_balance/forks": 0}
    prob_KV = look.prob_KV
    advantage_KV, sampled_KV = _advantages(look.forks, prob_KV.shape[1])
    right_KV = advantage_KV > 0
    found = moments(prob_KV, right_KV, sampled_KV)
    parts = graded_terms(found, prob_KV, right_KV, sampled_KV, advantage_KV)
    draws = len(look.forks[0].drawn_N)
    change_KV = after_KV - prob_KV

    def over(value_KV: Tensor, set_KV: Tensor) -> Tensor:
        return torch.where(set_KV, value_KV, 0).sum(-1)

    change_K = over(change_KV, right_KV)
    values = {
        "depth": torch.tensor([float(fork.depth) for fork in look.forks]),
        "kinds": sampled_KV.sum(-1).double(),
        "right": found.sampled_correct,
        "other": found.sampled_wrong,
        "unsampled": over(prob_KV, ~sampled_KV),
        "right_2": found.sampled_correct_2,
        "other_2": found.sampled_wrong_2,
        "unsampled_2": found.unsampled_2,
        "unsampled_2_expected": expected_unsampled(prob_KV, draws).sum(-1),
        "net": (prob_KV * advantage_KV).sum(-1),
        "term_right": parts.sampled_correct,
        "term_other": parts.sampled_wrong,
        "term_unsampled": parts.unsampled,
        "total": parts.total,
        "change": change_K,
        "change_other": over(change_KV, sampled_KV & ~right_KV),
        "change_unsampled": over(change_KV, ~sampled_KV),
        "agreement": (change_K * parts.total > 0).double(),
    }
    means = {f"mass_balance/{name}": float(value_K.mean()) for name, value_K in values.items()}
    return {"mass_balance/forks": count, **means}


def pass_record(experience: Experience) -> Record:
    """Estimated pass@k of a step's answers, dropped ones too, with intervals over problems."""
    correct = [
        [score.verdict.reason is Reason.CORRECT for score in group.scores] for group in experience.everything.groups
    ]
    record: Record = {}
    for k in sizes(len(correct[0])):
        found = pass_at_k(correct, k)
        record |= {f"pass_at/{k}": found.value, f"pass_at_low/{k}": found.low, f"pass_at_high/{k}": found.high}
    return record


def _advantages(forks: Sequence[Fork], vocabulary: int) -> tuple[Tensor, Tensor]:
    """R_k - b of the drawn tokens and 0 elsewhere, float64 [K, V]; and which were drawn, bool [K, V]."""
    advantage_KV = torch.zeros(len(forks), vocabulary, dtype=torch.float64)
    sampled_KV = torch.zeros(len(forks), vocabulary, dtype=torch.bool)
    for row, fork in enumerate(forks):
        kinds, kind_N, count = np.unique(fork.drawn_N, return_inverse=True, return_counts=True)
        mean = np.bincount(kind_N, weights=fork.reward_N) / count
        centred = mean - fork.reward_N.mean()
        centred[np.abs(centred) < 1e-12] = 0.0  # as good as the group, but for rounding
        place = torch.from_numpy(kinds.astype(np.int64))
        advantage_KV[row, place] = torch.from_numpy(centred)
        sampled_KV[row, place] = True
    return advantage_KV, sampled_KV


def _probabilities(learner: Learner, forks: Sequence[Fork]) -> Tensor:
    recipe = learner.recipe
    return next_probabilities(
        learner.model,
        [fork.before for fork in forks],
        temperature=recipe.rollout.temperature,
        row_tokens=recipe.train.row_tokens,
    )
