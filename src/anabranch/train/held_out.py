"""Evaluation within a run: accuracy on problems never trained on, in the same way before and after."""

from __future__ import annotations

from typing import Any

from anabranch.evaluation.held_out import COMMON_STEP, batches
from anabranch.evaluation.metrics import mean_at_k, paired_difference_interval, pass_at_k
from anabranch.records import Reason, Verdict
from anabranch.tracking.jsonl import read_jsonl
from anabranch.tracking.summary import evaluation_record
from anabranch.train.clock import Clock
from anabranch.train.session import Session
from anabranch.train.state import RunState


def evaluate(session: Session, state: RunState, stage: str) -> dict[str, Any]:
    """Answer the held-out problems and append the result to `evaluations.jsonl`.

    Args:
        session: with `held_out` problems.
        state: where the run stands.
        stage: `before`, or the stage that the weights come from.

    Returns:
        The record. Its `change` is the paired difference to the stage before: what this stage alone did.
    """
    settings = session.recipe.evaluation
    assert settings is not None
    clock = Clock()
    K = settings.samples
    verdicts: list[Verdict] = []
    for problems in batches(session.held_out, K):
        requests = session.asker.requests(problems, K, COMMON_STEP)
        verdicts += session.answers(problems, requests, session.held_judge, clock)[1]
    values = [[verdict.value for verdict in verdicts[start : start + K]] for start in range(0, len(verdicts), K)]
    correct = [
        [verdict.reason is Reason.CORRECT for verdict in verdicts[start : start + K]]
        for start in range(0, len(verdicts), K)
    ]
    estimates = {f"mean@{K}": mean_at_k(values)}
    estimates |= {f"pass@{k}": pass_at_k(correct, k) for k in sorted({1, K})}  # pass@1 is the accuracy
    means = [sum(answers) / K for answers in values]
    earlier = _last_of_earlier_stage(session, stage)
    change = None
    if earlier is not None:
        change = (earlier["stage"], paired_difference_interval(earlier["per_problem"], means))
    record = evaluation_record(
        step=state.step if stage != "before" else 0,
        stage=stage,
        policy_version=state.version,
        estimates=estimates,
        change=change,
    )
    record["per_problem"] = means
    session.folder.evaluations.write(record)
    session.folder.evaluations.commit()
    session.engine.load_weights(state.version)  # the same weights; what it timed here is not the next step's
    session.pending_times["time/evaluate"] = session.pending_times.get("time/evaluate", 0.0) + clock.elapsed
    return record


def _last_of_earlier_stage(session: Session, stage: str) -> dict[str, Any] | None:
    """The last evaluation before this stage began."""
    session.folder.evaluations.commit()
    earlier = [record for record in read_jsonl(session.folder.evaluations.path) if record["stage"] != stage]
    return earlier[-1] if earlier else None
