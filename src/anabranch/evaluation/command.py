"""`anabranch eval`: the accuracy of a model, or of a run's checkpoint, on one set of problems.

Data first (a missing file needs no model), then the folder, the judge and the gold answers, then the model.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anabranch.engines.episodes import Answerer
from anabranch.engines.opening import environments
from anabranch.engines.requests import Asker
from anabranch.engines.torch_engine import TorchEngine
from anabranch.errors import DataError, explain
from anabranch.evaluation.folder import EvaluationFolder, digest, weights_digest
from anabranch.evaluation.held_out import held_out_problems
from anabranch.evaluation.overlap import find_overlap
from anabranch.evaluation.report import accuracy_table, numbers, overlap_numbers, remarks, verdict_table
from anabranch.evaluation.runner import answer_all
from anabranch.modeling.devices import choose_dtype, full_determinism, settle
from anabranch.modeling.forward import load_streaming
from anabranch.modeling.load import load_tokenizer, prepare
from anabranch.recipe.tree import Evaluation, Recipe
from anabranch.records import Problem, Reason, Verdict
from anabranch.tasks import answers
from anabranch.tasks.base import Task, open_task
from anabranch.tasks.judge import Judge
from anabranch.tasks.solutions import read_solutions
from anabranch.tracking.checkpoints import model_of
from anabranch.tracking.display import Display, make_display


def evaluate(recipe: Recipe, checkpoint: Path | None, folder: Path) -> None:
    """Answer the evaluation's problems, judge the answers, write them and print a table.

    Stopped at any instant, the same call goes on with the same final numbers.

    Args:
        recipe: with an evaluation. Its prompt, answer, rollout, engine and seed say how problems are asked.
        checkpoint: a whole one of a run with this recipe, whose model is evaluated; None: `recipe.model.source` is.
        folder: where answers and result go; new, or that of the same evaluation.

    Raises:
        AnabranchError: no model, no data, a folder that holds something else, a full disk, ...
    """
    assert recipe.evaluation is not None
    source = recipe.model.source if checkpoint is None else str(model_of(checkpoint))
    data = _Data.read(recipe, trained=checkpoint is not None)
    limits = recipe.answer.workers, recipe.answer.timeout
    with (
        EvaluationFolder(folder) as place,
        make_display(sys.stdout) as display,
        Judge(data.task.checker, *limits) as judge,
    ):
        gold = _submit_gold(data, judge)
        prepare(source, display)
        display.phase(f"loading {source}")
        result = _measure(recipe, recipe.evaluation, source, data, place, judge, gold, display)
        place.write_result(result)
        _show(recipe, result, display)
        display.note(f"written to {folder}: answers.jsonl, result.json")


@dataclass(frozen=True)
class _Data:
    """What is evaluated, and what it has in common with the training of the run."""

    task: Task
    problems: tuple[Problem, ...]
    overlap: dict[str, Any] | None
    """As in `result.json`; None for a model that no run of ours trained."""

    @classmethod
    def read(cls, recipe: Recipe, *, trained: bool) -> _Data:
        """Raises DataError where the problems cannot be read. Training data that is gone is not an error."""
        assert recipe.evaluation is not None
        own = recipe.evaluation.data is None
        training = open_task(recipe.data, recipe.answer) if own else None
        task, problems = held_out_problems(recipe, training)
        if not trained:
            return cls(task, problems, None)
        try:
            seen = list((training or open_task(recipe.data, recipe.answer)).problems)
            seen += [problem for problem, _ in read_solutions(recipe.sft)] if recipe.sft else []
        except DataError as error:
            return cls(task, problems, {"unknown": str(error).splitlines()[0]})
        return cls(task, problems, overlap_numbers(find_overlap(seen, problems)))


def _submit_gold(data: _Data, judge: Judge) -> list[Future[Verdict]]:
    extract = data.task.checker.extract
    return [judge.submit(problem, answers.written(problem.answer, extract)) for problem in data.problems]


def _refused(data: _Data, gold: Sequence[Future[Verdict]]) -> list[str]:
    """Keys of the problems whose own gold answers are not accepted.

    Raises:
        DataError: not one gold answer is.
    """
    verdicts = [future.result() for future in gold]
    refused = [
        p.key for p, verdict in zip(data.problems, verdicts, strict=True) if verdict.reason is not Reason.CORRECT
    ]
    if len(refused) == len(verdicts):
        raise DataError(
            explain(
                f"data '{data.task.name}'",
                f"no gold answer that is accepted (the first: {data.problems[0].answer[:60]!r}, {verdicts[0].reason})",
                "a gold answer must score 1",
                "name the right column with evaluation.data.answer=..., or change answer.extract",
            )
        )
    return refused


def _measure(
    recipe: Recipe,
    settings: Evaluation,
    source: str,
    data: _Data,
    place: EvaluationFolder,
    judge: Judge,
    gold: Sequence[Future[Verdict]],
    display: Display,
) -> dict[str, Any]:
    """Load the model, answer what is not answered yet, and compute the numbers of `result.json`."""
    compute = settle(recipe.model if place.compute is None else recipe.model.but(**place.compute))
    full_determinism()
    device = torch.device(compute.device)
    tokenizer = load_tokenizer(source)
    model = load_streaming(source, choose_dtype(compute.dtype, device), device)
    with environments(recipe.environment, tokenizer, model) as runner:
        asker = Asker(recipe, tokenizer, model, None if runner is None else runner.world)
        asker.check(data.problems)
        refused = _refused(data, gold)
        wanted = settings_of(recipe, settings.samples, data.task, data.problems, asker) | {
            "weights": weights_digest(model)
        }
        place.begin(wanted, compute.model_dump(include={"device", "dtype", "threads"}), source)
        display.note(f"{source}: {compute.dtype} on {compute.device}, {compute.threads} threads")
        display.note(f"{data.task.name}: {len(data.problems)} problems, {settings.samples} answers each")
        engine = TorchEngine(model, tokenizer, max_rows=recipe.engine.max_rows, kv_gb=recipe.engine.kv_gb)
        answered = answer_all(
            place,
            asker,
            Answerer(engine, tokenizer, runner),
            judge,
            data.problems,
            samples=settings.samples,
            display=display,
        )
    before = place.result or {}
    return {
        "model": source,
        "data": data.task.name,
        **numbers(answered.records, settings.samples),
        "gold_refused": refused,
        "overlap": data.overlap,
        "answers_per_second": answered.per_second or before.get("answers_per_second"),
    }


def settings_of(recipe: Recipe, samples: int, task: Task, problems: Sequence[Problem], asker: Asker) -> dict[str, Any]:
    """Everything but the weights that decides the answers and their verdicts; what only decides the speed is left out.

    Device, dtype and threads are here as they were asked for: `auto` may be measured differently next time, so what it
    came to is kept apart (`EvaluationFolder.compute`).
    """
    rollout = recipe.rollout.model_dump(mode="json", exclude={"prompts", "per_problem", "dynamic", "asynchronous"})
    return {
        "evaluation.problems": len(problems),
        "evaluation.samples": samples,
        "seed": recipe.seed,
        **{f"rollout.{name}": value for name, value in rollout.items()},
        **{f"model.{name}": value for name, value in recipe.model.model_dump(exclude={"source"}).items()},
        "environment": None if recipe.environment is None else recipe.environment.model_dump(mode="json"),
        "engine.max_rows": recipe.engine.max_rows,
        "engine.kv_gb": recipe.engine.kv_gb,
        "answer.timeout": recipe.answer.timeout,
        "checker": repr(task.checker),
        "problems": digest([problem.key for problem in problems]),
        "prompts": digest([str(asker.prompt_tokens(problem)) for problem in problems]),
        "stop tokens": list(asker.sampling.stop_tokens),
    }


def _show(recipe: Recipe, result: dict[str, Any], display: Display) -> None:
    rollout = recipe.rollout
    title = (
        f"{result['data']}: {result['problems']} problems, {result['samples']} answers each, temperature "
        f"{rollout.temperature:g}"
    )
    for table in (accuracy_table(result, title), verdict_table(result)):
        display.note("")
        display.table(table)
    display.note("")
    for line in remarks(result, rollout.max_new_tokens, recipe.answer.extract):
        display.note(line)
