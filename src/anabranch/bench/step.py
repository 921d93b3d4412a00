"""`anabranch bench step`: a full on-policy step, from prompts to new weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anabranch.bench.generate import settings
from anabranch.bench.measure import Report, Values, load_average, machine, repeat
from anabranch.bench.workloads import load_learner, on_policy_step, word_problems
from anabranch.recipe.tree import Recipe
from anabranch.train.session import Learner


def step(recipe: Recipe, *, prompt_tokens: int, warmup: int, repeats: int, path: Path | None) -> Report:
    """Measure whole steps; prints a table, and writes JSON to `path`. Arguments as those of `generate.generate`.

    Raises:
        AnabranchError: the model cannot be loaded, the prompts cannot have that length, ...
    """
    load = load_average()
    learner = load_learner(recipe)
    asked = settings(learner.recipe, prompt_tokens, warmup, repeats)
    report = Report("step", asked, machine(learner.recipe.model, load), path)
    run = steps(learner, prompt_tokens)
    with report:
        repeat(run, report, warmup=warmup, repeats=repeats)
    return report


def steps(learner: Learner, prompt_tokens: int) -> Callable[[int], Values]:
    """A function that makes one step on the same prompts and says how long its phases took."""
    problems = word_problems(learner.asker, learner.recipe.rollout.prompts, prompt_tokens)

    def run(index: int) -> Values:
        start = time.process_time()
        record = on_policy_step(learner, problems, index)
        return step_values(record, time.process_time() - start)

    return run


def step_values(record: dict[str, Any], cpu_seconds: float) -> Values:
    """What is worth reporting of a step's record: speed, phases, what no phase covers, memory."""
    seconds = record["time/step"]
    phases = {name: value for name, value in record.items() if name.startswith("time/") and name != "time/step"}
    return {
        "samples_per_second": record["generated_rollouts"] / seconds,
        "tokens_per_second": record["sampled_tokens"] / seconds,
        "computed_tokens": record["prompt_tokens"] + record["sampled_tokens"] + record["packed_tokens"],
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        **phases,
        "time/other": seconds - sum(phases.values()),
        "memory_peak_mb": record["memory_peak_mb"],
    }
