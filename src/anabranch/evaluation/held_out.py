"""Held-out problems and how they are asked: the same within a run and in `anabranch eval`, so that numbers agree."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

from anabranch.engines.episodes import Answerer
from anabranch.recipe.tree import Recipe
from anabranch.records import Problem, Reason, Request, Rollout, Verdict
from anabranch.tasks.base import Task, open_task, spread
from anabranch.tasks.judge import Judge
from anabranch.tracking.display import Display

COMMON_STEP = -1
"""`Request.step` of every evaluation: the same random numbers each time, so that differences are paired."""

ANSWERS_A_BATCH = 256
"""Answers that an evaluation samples together: what is lost at most when it is interrupted."""


def held_out_problems(recipe: Recipe, training: Task | None) -> tuple[Task, tuple[Problem, ...]]:
    """The problems that a recipe is evaluated on, and the task whose checker judges the answers.

    Args:
        recipe: with an evaluation.
        training: the task of `recipe.data`; needed where `evaluation.data` names no other one.

    Raises:
        DataError: the data cannot be read, or has too few unseen problems.
    """
    settings = recipe.evaluation
    assert settings is not None
    if settings.data is not None:
        task = open_task(settings.data, recipe.answer)
        return task, spread(task.problems, settings.problems)
    assert training is not None
    return training, training.held_out(settings.problems, recipe.seed)


def batches(problems: Sequence[Problem], samples: int) -> list[Sequence[Problem]]:
    """The problems in batches that are answered one after the other.

    What else is in a batch changes an answer's log-probs by rounding, and in bfloat16 that can change a token: an
    evaluation that is repeated or resumed gives the same answers because it has the same batches.

    Args:
        problems: in order.
        samples: answers a problem.
    """
    size = max(1, ANSWERS_A_BATCH // samples)
    return [problems[start : start + size] for start in range(0, len(problems), size)]


def sample_and_judge(
    answerer: Answerer, judge: Judge, problems: Sequence[Problem], requests: Sequence[Request], display: Display
) -> list[tuple[Rollout, Future[Verdict]]]:
    """Sample all requests and hand every answer to the judge as it finishes; sorted by request, then by sample.

    `problems[i]` belongs to `requests[i]`.

    Raises:
        EngineError: a request that can never be served.
    """
    place = {
        (request.problem_key, request.first_sample + sample): (index, sample)
        for index, request in enumerate(requests)
        for sample in range(request.num_samples)
    }
    found: list[tuple[tuple[int, int], Rollout, Future[Verdict]]] = []
    display.phase(f"generating 0/{len(place)}")
    for rollout in answerer.answers(problems, requests):
        where = place[rollout.problem_key, rollout.sample]
        found.append((where, rollout, judged(judge, problems[where[0]], rollout)))
        display.phase(f"generating {len(found)}/{len(place)}")
    found.sort(key=lambda item: item[0])
    return [(rollout, verdict) for _, rollout, verdict in found]


def judged(judge: Judge, problem: Problem, rollout: Rollout) -> Future[Verdict]:
    """The verdict on a rollout, in time: by its environment if that has one, else by the task's checker.

    If its environment failed the answer is not judged, and worth nothing.
    """
    if not rollout.stop.failed and rollout.reward is None:
        return judge.submit(problem, rollout.text)
    verdict: Future[Verdict] = Future()
    if rollout.stop.failed:
        verdict.set_result(Verdict(0.0, Reason.ENVIRONMENT, None, rollout.failure))
    else:
        assert rollout.reward is not None
        reason = {1.0: Reason.CORRECT, 0.0: Reason.WRONG}.get(rollout.reward, Reason.PARTIAL)
        verdict.set_result(Verdict(rollout.reward, reason, None, "the environment's own reward"))
    return verdict
