"""From problems to judged answers: what a step experiences before it learns.

Letters: B answers of the step, G their groups, N trained tokens of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from anabranch.batching.pack import flat_offsets
from anabranch.recipe.tree import Recipe
from anabranch.records import Problem, Rollout, Score, Verdict
from anabranch.rewards.overlong import apply_overlong
from anabranch.rewards.total import total
from anabranch.tracking.rollouts import RolloutRecord, rollout_record
from anabranch.train.clock import Clock
from anabranch.train.session import Session


@dataclass(frozen=True)
class Group:
    """The judged answers to one problem."""

    problem: Problem
    rollouts: Sequence[Rollout]
    scores: Sequence[Score]


@dataclass(frozen=True)
class Dropped:
    """What dynamic sampling left out of a step."""

    agreeing: Sequence[Group] = ()
    """Groups whose rewards are all the same."""
    surplus: Sequence[Group] = ()
    """Groups that differ, and that the step had enough without."""
    rounds: int = 0
    """How often problems were drawn."""


@dataclass(frozen=True)
class Order:
    """Where the answers of a step stand among those in flight."""

    staleness_B: Tensor
    """int64 [B]: steps since the answer was begun."""
    given_up: int
    """Answers that were begun and dropped."""
    left: int
    """Answers in flight after the step."""
    version: int
    """Of the weights at the start of the step."""


@dataclass(frozen=True)
class Experience:
    """The judged answers of one step, in order: group after group, sample after sample."""

    problems: Sequence[Problem]
    """The problem of each answer."""
    rollouts: Sequence[Rollout]
    scores: Sequence[Score]
    group_B: Tensor
    """int64 [B]: which of the step's problems an answer belongs to, 0..G-1."""
    sequence_N: Tensor
    """int64 [N]: which answer a trained token belongs to."""
    dropped: Dropped | None = None
    """What was sampled beside it; None: no dynamic sampling."""
    value_B: Tensor | None = None
    """float64 [B]: the value of each answer's problem before the step; None: no values are tracked."""
    order: Order | None = None
    """None: all answers were begun by the step, and all that it began are here."""

    @property
    def reward_B(self) -> Tensor:
        """float64 [B]."""
        return torch.tensor([score.reward for score in self.scores], dtype=torch.float64)

    @property
    def truncated_B(self) -> Tensor:
        """bool [B]."""
        return torch.tensor([rollout.truncated for rollout in self.rollouts])

    @property
    def groups(self) -> list[Group]:
        """The answers by problem."""
        size = len(self.rollouts) // (int(self.group_B[-1]) + 1)
        return [
            Group(self.problems[start], self.rollouts[start : start + size], self.scores[start : start + size])
            for start in range(0, len(self.rollouts), size)
        ]

    @property
    def everything(self) -> Experience:
        """With all that was sampled: the kept groups first, then the dropped ones."""
        if self.dropped is None:
            return self
        return experience_of_groups([*self.groups, *self.dropped.agreeing, *self.dropped.surplus])


def gather(session: Session, problems: Sequence[Problem], step: int, clock: Clock) -> Experience:
    """Sample, judge and score answers to the problems, at RL step `step` (counted from 0)."""
    recipe = session.recipe
    requests = session.asker.requests(problems, recipe.rollout.per_problem, step)
    rollouts, verdicts = session.answers(problems, requests, session.judge, clock)
    return experience_of(problems, rollouts, scored(recipe, rollouts, verdicts, step))


def scored(recipe: Recipe, rollouts: Sequence[Rollout], verdicts: Sequence[Verdict], step: int) -> list[Score]:
    """Rewards of judged answers at RL step `step` (counted from 0)."""
    limit = recipe.rollout.max_new_tokens
    scores = []
    for rollout, verdict in zip(rollouts, verdicts, strict=True):
        score = total(recipe.reward, rollout, verdict, step=step, max_new_tokens=limit)
        scores.append(apply_overlong(recipe.algorithm.overlong, score, rollout, limit))
    return scores


def experience_of(problems: Sequence[Problem], rollouts: Sequence[Rollout], scores: Sequence[Score]) -> Experience:
    """The answers of a step by problem: as many to each, those of one after those of another."""
    per_problem = len(rollouts) // len(problems)
    return Experience(
        problems=[problem for problem in problems for _ in range(per_problem)],
        rollouts=rollouts,
        scores=scores,
        group_B=torch.arange(len(problems)).repeat_interleave(per_problem),
        sequence_N=torch.from_numpy(
            np.repeat(np.arange(len(rollouts)), np.diff(flat_offsets([rollout.graph for rollout in rollouts])))
        ),
    )


def experience_of_groups(groups: Sequence[Group], dropped: Dropped | None = None) -> Experience:
    """The answers of a step, group after group; all groups have as many answers, and there is at least one."""
    experience = experience_of(
        [group.problem for group in groups],
        [rollout for group in groups for rollout in group.rollouts],
        [score for group in groups for score in group.scores],
    )
    return replace(experience, dropped=dropped)


def answer_records(session: Session, experience: Experience, step: int) -> list[RolloutRecord]:
    """The lines of `rollouts.jsonl`: the answers of the step, then those that were dropped."""
    dropped = experience.dropped or Dropped()
    return [
        *group_records(session, experience.groups, step),
        *group_records(session, dropped.agreeing, step, "agrees"),
        *group_records(session, dropped.surplus, step, "surplus"),
    ]


def group_records(
    session: Session, groups: Sequence[Group], step: int, dropped: str | None = None
) -> list[RolloutRecord]:
    """The lines of `rollouts.jsonl` for some groups; `dropped`: see `RolloutRecord`."""
    records = []
    for group in groups:
        prompt = session.tokenizer.decode(group.rollouts[0].prompt_tokens)
        for rollout, score in zip(group.rollouts, group.scores, strict=True):
            records.append(rollout_record(step, "rl", group.problem, rollout, score, prompt=prompt, dropped=dropped))
    return records
