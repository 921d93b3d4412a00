"""The record of one sampled answer in `rollouts.jsonl`."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from anabranch.records import UNSAMPLED, Problem, Rollout, Score


class RolloutRecord(TypedDict):
    """One line of `rollouts.jsonl`: everything needed to see why an answer got its reward."""

    step: int
    stage: str
    begun: NotRequired[int]
    """The step in which an RL answer was begun, if that is another one."""
    key: str
    """The problem's identity."""
    sample: int
    """Which answer to the problem."""
    source: str
    question: str
    prompt: NotRequired[str]
    """The whole prompt as the model got it, special tokens and all."""
    answer: str
    """The model's text, as it came, with what was said to it: hostile input for whoever shows it."""
    verdict: str
    """Reason code."""
    detail: str
    extracted: str | None
    gold: str
    parts: dict[str, float]
    """Raw value of every reward term."""
    reward: float
    stop: str
    tokens: int
    """Of the answer."""
    turns: NotRequired[int]
    """How often the model had the word, if more than once."""
    policy_versions: list[int]
    """Of the weights that drew the answer's tokens, ascending; more than one if they changed under way."""
    dropped: NotRequired[str]
    """Why dynamic sampling left the answer's group out of the step: `agrees` (its rewards are all the same) or
    `surplus` (the step had enough without it). Not there for answers that were kept."""


def rollout_record(
    step: int,
    stage: str,
    problem: Problem,
    rollout: Rollout,
    score: Score,
    *,
    prompt: str | None = None,
    dropped: str | None = None,
) -> RolloutRecord:
    """Gather the record of one answer.

    Args:
        step: as in the step's metrics record.
        stage: as there.
        problem: the problem that was asked.
        rollout: the answer to it.
        score: what it was given.
        prompt: the prompt's text; None: left out (it is the same for all answers to a problem).
        dropped: why the step does not learn from it; None: it does.

    Raises:
        ValueError: the rollout answers another problem (a bug of ours).
    """
    if rollout.problem_key != problem.key:
        raise ValueError(f"rollout of problem {rollout.problem_key!r} recorded with problem {problem.key!r}")
    versions = {int(version) for segment in rollout.graph.segments for version in segment.policy_version}
    record = RolloutRecord(
        step=step,
        stage=stage,
        key=problem.key,
        sample=rollout.sample,
        source=problem.source,
        question=problem.question,
        answer=rollout.text if rollout.transcript is None else rollout.transcript,
        verdict=score.verdict.reason.value,
        detail=score.verdict.detail,
        extracted=score.verdict.extracted,
        gold=problem.answer,
        parts=dict(score.parts),
        reward=score.reward,
        stop=rollout.stop.value,
        tokens=rollout.num_answer_tokens,
        policy_versions=sorted(versions - {UNSAMPLED}),
    )
    if stage == "rl" and rollout.step + 1 != step:
        record["begun"] = rollout.step + 1
    if rollout.transcript is not None:
        record["turns"] = rollout.turns
    if prompt is not None:
        record["prompt"] = prompt
    if dropped is not None:
        record["dropped"] = dropped
    return record
