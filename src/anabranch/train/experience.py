"""From problems to judged answers: what a step experiences before it learns.

Letters: B answers of the step, N trained tokens of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anabranch.batching.pack import flat_offsets
from anabranch.records import Problem, Rollout, Score
from anabranch.rewards.overlong import apply_overlong
from anabranch.rewards.total import total
from anabranch.tracking.rollouts import RolloutRecord, rollout_record
from anabranch.train.clock import Clock
from anabranch.train.session import Session


@dataclass(frozen=True)
class Experience:
    """The judged answers of one step, in order: group after group, sample after sample."""

    problems: Sequence[Problem]
    """The problem of each answer."""
    rollouts: Sequence[Rollout]
    scores: Sequence[Score]
    group_B: Tensor
    """int64 [B]: which of the step's drawn problems an answer belongs to."""
    sequence_N: Tensor
    """int64 [N]: which answer a trained token belongs to."""

    @property
    def reward_B(self) -> Tensor:
        """float64 [B]."""
        return torch.tensor([score.reward for score in self.scores], dtype=torch.float64)

    @property
    def truncated_B(self) -> Tensor:
        """bool [B]."""
        return torch.tensor([rollout.truncated for rollout in self.rollouts])


def gather(session: Session, problems: Sequence[Problem], step: int, clock: Clock) -> Experience:
    """Sample, judge and score answers to the problems."""
    settings, overlong = session.recipe.rollout, session.recipe.algorithm.overlong
    requests = session.asker.requests(problems, settings.per_problem, step)
    rollouts, verdicts = session.answers(problems, requests, session.judge, clock)
    scores = [
        apply_overlong(overlong, total(session.recipe.reward, rollout, verdict), rollout, settings.max_new_tokens)
        for rollout, verdict in zip(rollouts, verdicts, strict=True)
    ]
    return experience_of(problems, rollouts, scores)


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


def answer_records(session: Session, experience: Experience, step: int) -> list[RolloutRecord]:
    """The lines of `rollouts.jsonl`."""
    tokens = {rollout.problem_key: rollout.prompt_tokens for rollout in experience.rollouts}
    prompts = {key: session.tokenizer.decode(prompt) for key, prompt in tokens.items()}
    return [
        rollout_record(step, "rl", problem, rollout, score, prompt=prompts[problem.key])
        for problem, rollout, score in zip(experience.problems, experience.rollouts, experience.scores, strict=True)
    ]
