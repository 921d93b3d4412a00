"""`anabranch values`: answers to every training problem before any RL, and what they come to.

Data first (a missing file needs no model), then the folder, the judge and the gold answers, then the model.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import torch

from anabranch.engines.episodes import Answerer
from anabranch.engines.opening import environments
from anabranch.engines.requests import Asker
from anabranch.engines.torch_engine import TorchEngine
from anabranch.evaluation import offline
from anabranch.evaluation.command import settings_of
from anabranch.evaluation.folder import EvaluationFolder, weights_digest
from anabranch.evaluation.runner import answer_all
from anabranch.modeling.devices import choose_dtype, full_determinism, settle
from anabranch.modeling.forward import load_streaming
from anabranch.modeling.load import load_tokenizer, prepare
from anabranch.recipe.tree import Recipe
from anabranch.tasks.base import open_task, self_check
from anabranch.tasks.judge import Judge
from anabranch.tracking.display import make_display

VALUES = "values.json"
GOLD_PROBLEMS = 16
"""On how many problems it is proved that right answers are accepted."""


def sample_values(recipe: Recipe, samples: int, folder: Path) -> Path:
    """Answer every training problem, judge the answers, and write how often each was right.

    Stopped at any instant, the same call goes on: no answer is drawn twice, and the file is the same.

    Args:
        recipe: its model, data, prompt, answer, rollout, engine and seed say who is asked what and how.
        samples: answers a problem (the paper: 8).
        folder: where answers and values go; new, or that of the same values.

    Returns:
        The file for `algorithm.tracker.values`.

    Raises:
        AnabranchError: no model, no data, a folder that holds something else, a full disk, ...
    """
    task, source = open_task(recipe.data, recipe.answer), recipe.model.source
    with (
        ExitStack() as stack,
        EvaluationFolder(folder) as place,
        make_display(sys.stdout) as display,
        Judge(task.checker, recipe.answer.workers, recipe.answer.timeout) as judge,
    ):
        self_check(task, judge, GOLD_PROBLEMS)
        prepare(source, display)
        display.phase(f"loading {source}")
        compute = settle(recipe.model if place.compute is None else recipe.model.but(**place.compute))
        full_determinism()
        device = torch.device(compute.device)
        tokenizer = load_tokenizer(source)
        model = load_streaming(source, choose_dtype(compute.dtype, device), device)
        runner = stack.enter_context(environments(recipe.environment, tokenizer, model))
        asker = Asker(recipe, tokenizer, model, None if runner is None else runner.world)
        asker.check(task.problems)
        wanted = settings_of(recipe, samples, task, task.problems, asker) | {"weights": weights_digest(model)}
        place.begin(wanted, compute.model_dump(include={"device", "dtype", "threads"}), source)
        display.note(f"{task.name}: {len(task.problems)} problems, {samples} answers each, by {source}")
        engine = TorchEngine(model, tokenizer, max_rows=recipe.engine.max_rows, kv_gb=recipe.engine.kv_gb)
        answerer = Answerer(engine, tokenizer, runner)
        answered = answer_all(place, asker, answerer, judge, task.problems, samples=samples, display=display)
        offline.write(folder / VALUES, recipe, model, answered.records)
        share = sum(record["value"] for record in answered.records) / len(answered.records)
        display.note(f"right: {share:.1%}. Next: anabranch train ... algorithm.tracker.values={folder / VALUES}")
    return folder / VALUES
