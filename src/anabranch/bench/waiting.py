"""`anabranch bench waiting`: how soon a batch is complete when every answer calls a tool that takes its time.

Both sides ask the same model the same problems, have the same answers in flight and the same draws of how long each
call takes, and need as many answers: one waits for whole groups, the other takes answers one by one. The calls really
sleep, `scale` times as long as drawn; what the model computes beside them counts as well.

    begin prompts x answers, more than the batch  ->  advance until enough are over  ->  drop the rest
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from anabranch.bench import workloads
from anabranch.bench.measure import Report, Values, load_average, machine, repeat
from anabranch.engines.episodes import Answerer, environment_key
from anabranch.engines.requests import Asker
from anabranch.environments.latency import LatencyWorld, duration
from anabranch.environments.runner import Runner
from anabranch.presets import load
from anabranch.recipe.overrides import apply
from anabranch.recipe.text import inline
from anabranch.recipe.tree import Latency, Recipe
from anabranch.records import Name, Problem, Request
from anabranch.sampling import uniform
from anabranch.tasks.base import open_task
from anabranch.tasks.judge import Judge
from anabranch.train.flight import Flight

SIDES = {"group": "group_mean", "free": "tracker"}
"""Baselines of the two sides: one compares the answers to a problem, the other does not."""


@dataclass(frozen=True)
class Waiting:
    """What is measured."""

    prompts: int = 3
    """Problems of a batch."""
    answers: int = 8
    """Answers to each: the group."""
    oversample: float = 1.0
    """How much more is in flight, as a share of the batch."""
    slow_shares: Sequence[float] = (0.25, 0.0)
    """Shares of slow calls that are compared."""
    scale: float = 0.02
    """Seconds slept for each second drawn."""


def waiting_recipe(model: str, side: str, asked: Waiting, slow_share: float) -> Recipe:
    """The recipe of a side.

    Raises:
        RecipeError: sizes that cannot be.
    """
    plain = Latency(stop="")
    slow = {} if slow_share else {"slow_mean": plain.slow_mean, "slow_std": plain.slow_std}
    environment = Latency(stop="", slow_share=slow_share, scale=asked.scale, **slow)
    return apply(
        load("small_sums"),
        [
            "name=waiting",
            f"model.source={inline(model)}",
            f"rollout.prompts={asked.prompts}",
            f"rollout.per_problem={asked.answers}",
            f"algorithm.baseline={SIDES[side]}",
            "algorithm.scale=none",
            f"rollout.asynchronous={{oversample: {float(asked.oversample)}, leftover: drop, max_staleness: 0}}",
            f"environment={inline(environment.model_dump(mode='json'))}",
        ],
    )


def waiting(model: str, asked: Waiting, *, warmup: int, repeats: int, path: Path | None) -> Report:
    """Measure both sides in turns; prints a table, and writes JSON to `path`.

    Args:
        model: built-in name, folder, or Hugging Face id.
        asked: what is measured.
        warmup: rounds that do not count.
        repeats: rounds that do.
        path: where to write; None: nowhere.

    Raises:
        AnabranchError: the model cannot be loaded, sizes that cannot be, ...
    """
    recipes = {
        (side, share): waiting_recipe(model, side, asked, share) for share in asked.slow_shares for side in SIDES
    }
    before = load_average()
    parts = workloads.load_answerer(next(iter(recipes.values())))
    task = open_task(parts.recipe.data, parts.recipe.answer)
    settings: dict[str, object] = {
        "model": model,
        "batch": asked.prompts * asked.answers,
        "in flight": asked.answers * next(iter(recipes.values())).rollout.asynchronous.capacity(asked.prompts),  # type: ignore[union-attr]  # it has one
        "group": asked.answers,
        "slow shares": list(asked.slow_shares),
        "scale": asked.scale,
        "repeats": repeats,
    }
    report = Report("waiting", settings, machine(parts.recipe.model, before), path)
    with Judge(task.checker, parts.recipe.answer.workers, parts.recipe.answer.timeout) as judge, report:
        repeat(_round(parts, recipes, task.problems, judge), report, warmup=warmup, repeats=repeats)
    return report


def _round(
    parts: workloads.Answerer, recipes: dict[tuple[str, float], Recipe], problems: Sequence[Problem], judge: Judge
) -> Callable[[int], Values]:
    """A function that fills a batch for every side and share, all with the same answers of this round."""

    def run(index: int) -> Values:
        values: dict[str, float] = {}
        for share in dict.fromkeys(share for _, share in recipes):
            for side in SIDES:
                measured, drawn = _fill(parts, recipes[side, share], problems, judge, index)
                values |= {f"{share:g}/{side}/seconds": measured, f"{share:g}/{side}/drawn_seconds": drawn}
            for name, what in (("seconds", "measured"), ("drawn_seconds", "drawn")):
                ratio = values[f"{share:g}/group/{name}"] / values[f"{share:g}/free/{name}"]
                values[f"ratio/{what} at {share:g} slow"] = ratio
        return values

    return run


def _fill(
    parts: workloads.Answerer, recipe: Recipe, problems: Sequence[Problem], judge: Judge, index: int
) -> tuple[float, float]:
    """Seconds until a batch is complete: measured, and as drawn, without anything that is computed."""
    settings = recipe.environment
    assert isinstance(settings, Latency)
    with Runner(LatencyWorld(settings)) as runner:
        answerer = Answerer(parts.engine, parts.tokenizer, runner)
        asker = Asker(recipe, parts.tokenizer, parts.model, runner.world)
        flight = Flight(recipe, answerer.open(), judge)
        drawn, _ = uniform.draw(uniform.init(len(problems), seed=index), flight.room)
        chosen = [problems[place] for place in drawn]
        requests = asker.requests(chosen, recipe.rollout.per_problem, index)
        start = time.perf_counter()
        flight.begin(chosen, requests)
        while (numbers := flight.enough(index)) is None:
            flight.advance()
        seconds = time.perf_counter() - start
        flight.take(numbers)
    return seconds, _as_drawn(settings, requests, recipe)


def _as_drawn(settings: Latency, requests: Sequence[Request], recipe: Recipe) -> float:
    """When the batch would be complete if nothing but the calls took time."""
    groups = []
    for request in requests:
        names = [Name(request.problem_key, request.step, sample) for sample in range(request.num_samples)]
        groups.append([duration(settings, environment_key(request, name), 0) for name in names])
    if recipe.algorithm.compares_groups:
        return sorted(max(group) for group in groups)[recipe.rollout.prompts - 1]
    everything = sorted(seconds for group in groups for seconds in group)
    return everything[recipe.rollout.prompts * recipe.rollout.per_problem - 1]
