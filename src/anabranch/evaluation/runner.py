"""Answers to all problems of an evaluation, batch by batch; what is on disk already is not answered again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from anabranch.engines.episodes import Answerer
from anabranch.engines.requests import Asker
from anabranch.evaluation.folder import AnswerRecord, EvaluationFolder, answer_record
from anabranch.evaluation.held_out import COMMON_STEP, batches, sample_and_judge
from anabranch.records import Problem, StopReason
from anabranch.tasks.judge import Judge
from anabranch.tracking.display import Display

STAGE = "evaluation"


@dataclass(frozen=True)
class Answers:
    """What `answer_all` found."""

    records: list[AnswerRecord]
    """Problem after problem, sample after sample."""
    per_second: float | None
    """Answers a second; None if all of them were on disk already."""


def answer_all(
    folder: EvaluationFolder,
    asker: Asker,
    answerer: Answerer,
    judge: Judge,
    problems: Sequence[Problem],
    *,
    samples: int,
    display: Display,
) -> Answers:
    """Sample and judge what is missing.

    The result does not depend on where an earlier process was stopped: answers are keyed by problem and sample, and a
    batch is answered as a whole.

    Args:
        folder: begun with the settings of this evaluation.
        asker: makes the requests.
        answerer: answers them.
        judge: of the task that the problems belong to.
        problems: distinct by key.
        samples: K, answers a problem.
        display: shows a line a batch.

    Raises:
        RunFolderError: the folder holds other answers, or a batch could not be written; whole batches stay.
    """
    parts = batches(problems, samples)
    records = folder.finished([[(p.key, sample) for p in part for sample in range(samples)] for part in parts])
    before, total = len(records), len(problems) * samples
    if before:
        display.note(f"{before} of {total} answers are here already")
    if before < total:
        display.stage(STAGE, len(parts))
    seconds = 0.0
    for number, part in enumerate(parts, start=1):
        if sum(map(len, parts[:number])) * samples <= before:
            continue
        start = time.perf_counter()
        fresh = _answer(asker, answerer, judge, part, samples, display)
        folder.append(fresh)
        records += fresh
        took = time.perf_counter() - start
        seconds += took
        display.step(_progress(records, fresh, number, took))
    return Answers(records, (len(records) - before) / seconds if seconds else None)


def _answer(
    asker: Asker, answerer: Answerer, judge: Judge, problems: Sequence[Problem], samples: int, display: Display
) -> list[AnswerRecord]:
    """The judged answers of one batch."""
    by_key = {problem.key: problem for problem in problems}
    answered = sample_and_judge(answerer, judge, problems, asker.requests(problems, samples, COMMON_STEP), display)
    display.phase("judging")
    return [answer_record(by_key[rollout.problem_key], rollout, verdict.result()) for rollout, verdict in answered]


def _progress(
    records: Sequence[AnswerRecord], fresh: Sequence[AnswerRecord], number: int, seconds: float
) -> dict[str, object]:
    """What the line of a batch shows: accuracy, length and cuts of all answers so far, speed of this batch."""
    return {
        "stage": STAGE,
        "step": number,
        "accuracy": sum(record["value"] for record in records) / len(records),
        "answer_length_mean": sum(record["tokens"] for record in records) / len(records),
        "truncated": sum(record["stop"] == StopReason.LENGTH for record in records) / len(records),
        "rollouts_per_second": len(fresh) / seconds,
        "tokens_per_second": sum(record["tokens"] for record in fresh) / seconds,
        "time/step": seconds,
    }
