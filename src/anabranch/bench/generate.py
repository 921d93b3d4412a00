"""`anabranch bench generate`: how fast the engine samples answers of a forced length."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from anabranch.bench.measure import Report, Values, load_average, machine, repeat
from anabranch.bench.workloads import Answerer, forced_requests, load_answerer, sample, word_problems
from anabranch.recipe.tree import Recipe
from anabranch.tracking.memory import peak_rss_mb


def generate(recipe: Recipe, *, prompt_tokens: int, warmup: int, repeats: int, path: Path | None) -> Report:
    """Measure generation by itself; prints a table, and writes JSON to `path`.

    Args:
        recipe: of `workloads.bench_recipe`; its rollout part says how many answers of how many tokens.
        prompt_tokens: length of every prompt.
        warmup: runs that do not count.
        repeats: runs that do.
        path: where to write; None: nowhere.

    Raises:
        AnabranchError: the model cannot be loaded, the prompts cannot have that length, ...
    """
    load = load_average()
    parts = load_answerer(recipe)
    asked = settings(parts.recipe, prompt_tokens, warmup, repeats)
    report = Report("generate", asked, machine(parts.recipe.model, load), path)
    run = generation(parts, prompt_tokens)
    with report:
        repeat(run, report, warmup=warmup, repeats=repeats)
    return report


def settings(recipe: Recipe, prompt_tokens: int, warmup: int, repeats: int) -> dict[str, object]:
    """What was asked for, for the report; plain JSON types."""
    rollout = recipe.rollout
    return {
        "model": recipe.model.source,
        "prompts": rollout.prompts,
        "answers": rollout.per_problem,
        "tokens": rollout.max_new_tokens,
        "prompt_tokens": prompt_tokens,
        "warmup": warmup,
        "repeats": repeats,
        "recipe": recipe.model_dump(mode="json"),
    }


def generation(parts: Answerer, prompt_tokens: int) -> Callable[[int], Values]:
    """A function that samples all answers once and says how long that took; another number draws other tokens."""
    rollout = parts.recipe.rollout
    problems = word_problems(parts.asker, rollout.prompts, prompt_tokens)

    def run(index: int) -> Values:
        requests = forced_requests(parts.asker, problems, rollout.per_problem, index)
        parts.engine.load_weights(index)
        start, cpu_start = time.perf_counter(), time.process_time()
        answers = sample(parts.engine, requests)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        phases = {f"time/{name}": phase for name, phase in parts.engine.times.items()}
        sampled = sum(answer.num_answer_tokens for answer in answers)
        return {
            "tokens_per_second": sampled / seconds,
            "computed_tokens": sum(len(request.prompt_tokens) for request in requests) + sampled,
            "samples_per_second": len(answers) / seconds,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            **phases,
            "time/other": seconds - sum(phases.values()),
            "memory_peak_mb": peak_rss_mb(),
        }

    return run
