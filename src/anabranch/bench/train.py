"""`anabranch bench train`: forward and backward, beside plain `transformers`, and where the time goes on both sides.

Both sides compute the gradient of the same loss on the same answers, in turns in one process:

* ours: the rows that the trainer packs, prompts shared, through `train.trainer.accumulate`;
* plain: one row an answer with its prompt in full, scaled-dot-product attention, logits of every token, log-softmax.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from anabranch.batching.pack import packed_tokens
from anabranch.bench.generate import settings
from anabranch.bench.measure import (
    Report,
    Values,
    load_average,
    machine,
    number,
    repeat,
    say,
    side_by_side,
    summary,
    title,
)
from anabranch.bench.products import PRODUCTS, Product, Replay, record
from anabranch.bench.workloads import forced_requests, judged, load_learner, made_up_answers, word_problems
from anabranch.errors import RecipeError, explain
from anabranch.modeling.devices import choose_device, choose_dtype, full_determinism
from anabranch.modeling.load import load_model
from anabranch.recipe.tree import Recipe
from anabranch.tracking.tables import TextTable
from anabranch.train.clock import Clock
from anabranch.train.experience import Experience, experience_of
from anabranch.train.lesson import Lesson
from anabranch.train.rl import objective_of, prepare
from anabranch.train.session import Learner
from anabranch.train.trainer import accumulate

SIDES = ("ours", "plain")
TOP = 8
"""How many operations and products a table names."""


@dataclass(frozen=True)
class Side:
    """One way to compute the gradient."""

    compute: Callable[[Clock], None]
    """Forward and backward over everything; leaves the gradient on the model. Times `forward` and `backward`."""
    forget: Callable[[], None]
    """Frees the gradient."""
    trained_tokens: int
    """Tokens in the loss."""
    computed_tokens: int
    """Tokens that go through the model, prompts too, padding not."""
    model: PreTrainedModel


def train(
    recipe: Recipe, *, prompt_tokens: int, plain_answers: int | None, warmup: int, repeats: int, path: Path | None
) -> Report:
    """Measure forward and backward of both sides; prints tables, and writes JSON to `path`.

    Args:
        recipe: of `workloads.bench_recipe`; its rollout part says how many answers of how many (random) tokens.
        prompt_tokens: length of every prompt.
        plain_answers: answers that the plain side computes at a time; None: as many as fit into `train.row_tokens`.
        warmup: rounds that do not count.
        repeats: rounds that do.
        path: where to write; None: nowhere.

    Raises:
        AnabranchError: the model cannot be loaded, the prompts cannot have that length, not on a CPU, ...
    """
    load = load_average()
    if choose_device(recipe.model.device).type != "cpu":
        need = "matrix products are timed one by one, which is done on a CPU only"
        raise RecipeError(explain("model.device", recipe.model.device, need, "model.device=cpu"))
    learner = load_learner(recipe)
    recipe = learner.recipe
    if plain_answers is None:
        plain_answers = max(1, recipe.train.row_tokens // (prompt_tokens + recipe.rollout.max_new_tokens))
    asked = {**settings(recipe, prompt_tokens, warmup, repeats), "plain_answers": plain_answers}
    report = Report("train", asked, machine(recipe.model, load), path, tables=tables)
    experience, lesson = exercise(learner, prompt_tokens)
    sides = {"ours": ours(learner, lesson), "plain": plain(recipe, experience, lesson, plain_answers)}
    with report:
        replays = {name: Replay(products_of(name, side)) for name, side in sides.items()}
        products: dict[str, list[dict[Product, float]]] = {name: [] for name in SIDES}
        repeat(lambda _: _round(sides, replays, products), report, warmup=warmup, repeats=repeats)
        for name, side in sides.items():
            seconds = summary(report.runs)[f"{name}/seconds"]["median"]
            found = _median_seconds(products[name][warmup:])
            report.parts.setdefault("products", {})[name] = _product_list(replays[name], found)
            report.parts.setdefault("roofline", {})[name] = roofline(side, found, seconds)
            say(f"train: {name} profiled")
    return report


# ------------------------------------------------------------------------------------------------------ the sides


def exercise(learner: Learner, prompt_tokens: int) -> tuple[Experience, Lesson]:
    """Answers of random tokens to the recipe's number of prompts, and what the trainer makes of them."""
    rollout = learner.recipe.rollout
    problems = word_problems(learner.asker, rollout.prompts, prompt_tokens)
    requests = forced_requests(learner.asker, problems, rollout.per_problem)
    rollouts = made_up_answers(requests, learner.model.get_input_embeddings().weight.shape[0])
    experience = experience_of(problems, rollouts, judged(rollouts, rollout.per_problem))
    return experience, prepare(learner, experience, Clock())


def ours(learner: Learner, lesson: Lesson) -> Side:
    """The trainer's own forward and backward of a lesson."""
    rows = [row for part in lesson.rows for row in part]
    objective = objective_of(learner.recipe.algorithm, lesson, on_policy=lesson.old_N is None)
    slots, temperature = len(lesson.credit.advantage_M), learner.recipe.rollout.temperature

    def compute(clock: Clock) -> None:
        accumulate(learner.model, rows, objective, slots, temperature=temperature, clock=clock)

    return Side(
        compute,
        learner.optimizer.drop_gradients,
        trained_tokens=sum(len(row.target_M) for row in rows),
        computed_tokens=packed_tokens(rows),
        model=learner.model,
    )


def plain(recipe: Recipe, experience: Experience, lesson: Lesson, answers: int) -> Side:
    """The same gradient with `transformers` alone: a model of its own, `answers` full sequences at a time.

    Only what makes the sequences equal in length lets them stand in one array: answers here have a forced length.
    """
    model = load_model(
        recipe.model.source,
        choose_dtype(recipe.model.dtype, choose_device(recipe.model.device)),
        choose_device(recipe.model.device),
        attention="sdpa",
    )
    graphs = [rollout.graph for rollout in experience.rollouts]
    token_BT = torch.from_numpy(
        np.stack([np.concatenate([segment.tokens for segment in graph.segments]) for graph in graphs]).astype(np.int64)
    )
    first = len(graphs[0].segments[0])
    pull_BA = (lesson.credit.advantage_M * lesson.credit.weight_M).float().view(len(graphs), -1)
    temperature = recipe.rollout.temperature

    def compute(clock: Clock) -> None:
        with _undetermined():
            for start in range(0, len(token_BT), answers):
                chosen_BT, pull = token_BT[start : start + answers], pull_BA[start : start + answers]
                with clock.phase("forward"):
                    logits_BTV = model(input_ids=chosen_BT, use_cache=False).logits[:, :-1].float() / temperature
                    logprob_BTV = torch.log_softmax(logits_BTV, dim=-1)
                    logprob_BT = logprob_BTV.gather(-1, chosen_BT[:, 1:, None])[..., 0]
                    loss = -(pull * logprob_BT[:, first - 1 :]).sum()
                    del logits_BTV, logprob_BTV
                with clock.phase("backward"):
                    torch.autograd.backward(loss)

    return Side(
        compute,
        lambda: model.zero_grad(set_to_none=True),
        trained_tokens=pull_BA.numel(),
        computed_tokens=token_BT.numel(),
        model=model,
    )


@contextmanager
def _undetermined() -> Iterator[None]:
    """torch as it comes, without the bit-exact forms that a run asks for: the plain side shall not pay for them."""
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        full_determinism()


# ------------------------------------------------------------------------------------------------------- measuring


def products_of(name: str, side: Side) -> list[Product]:
    """The matrix products of a side's forward and backward, in order.

    Raises:
        RuntimeError: there is none, so what was seen cannot be all.
    """
    found = record(side.model, lambda: side.compute(Clock()))
    side.forget()
    if not found:
        raise RuntimeError(f"no matrix product of {name} was seen: a kind of operation is missing in products.PRODUCTS")
    return found


def _round(
    sides: Mapping[str, Side], replays: Mapping[str, Replay], products: Mapping[str, list[dict[Product, float]]]
) -> Values:
    """Everything once, in turns: a side, its matrix products alone, the other side, its products."""
    values: dict[str, float] = {}
    for name, side in sides.items():
        clock, cpu_start = Clock(), time.process_time()
        side.compute(clock)
        seconds, cpu_seconds = clock.elapsed, time.process_time() - cpu_start
        side.forget()
        found = replays[name].run()
        products[name].append(found)
        flops = sum(product.flops * count for product, count in replays[name].counts.items())
        alone = sum(found.values())
        unbatched = sum(spent for product, spent in found.items() if not product.batched)
        here = {
            "tokens_per_second": side.trained_tokens / seconds,
            "computed_tokens_per_second": side.computed_tokens / seconds,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            **clock.times(),
            "products_seconds": alone,
            "products_share": alone / seconds,
            "linear_share": unbatched / seconds,
            "teraflops": flops / seconds / 1e12,
            "products_teraflops": flops / alone / 1e12,
        }
        values |= {f"{name}/{key}": value for key, value in here.items()}
    for key in ("tokens_per_second", "computed_tokens_per_second"):
        values[f"ratio/{key}"] = values[f"ours/{key}"] / values[f"plain/{key}"]
    return values


def _median_seconds(rounds: Sequence[Mapping[Product, float]]) -> dict[Product, float]:
    return {product: float(np.median([found[product] for found in rounds])) for product in rounds[0]}


def _product_list(replay: Replay, seconds: Mapping[Product, float]) -> list[dict[str, Any]]:
    """Every distinct product, the most expensive first."""
    counts = replay.counts
    return [
        {
            "product": product.name,
            "strides": [list(factor.stride) for factor in product.factors],
            "calls": counts[product],
            "seconds": spent,
            "teraflops": product.flops * counts[product] / spent / 1e12,
        }
        for product, spent in sorted(seconds.items(), key=lambda item: -item[1])
    ]


def roofline(side: Side, products: Mapping[Product, float], seconds: float) -> dict[str, float]:
    """What shares of a side's time its parts have.

    The matrix products as they run alone; every other operation by its own time in a profile, over the time of the
    profiled pass; the rest is what is in between (Python, dispatch) and what products lose by not running alone.

    Args:
        side: is computed once more, profiled.
        products: seconds of each product.
        seconds: of the whole.
    """
    shares = {"matrix products: linear layers": 0.0, "matrix products: head": 0.0, "matrix products: attention": 0.0}
    for product, spent in products.items():
        kind = "attention" if product.batched else "head" if product.in_head else "linear layers"
        shares[f"matrix products: {kind}"] += spent / seconds
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        side.compute(Clock())
        whole = time.perf_counter() - start
    side.forget()
    products_in_profile = {f"aten::{str(op).split('.')[1]}" for op in PRODUCTS}
    others = {
        event.key: event.self_cpu_time_total / 1e6 / whole
        for event in profiler.key_averages()
        if event.key.startswith("aten::") and event.key not in products_in_profile
    }
    ranked = sorted(others.items(), key=lambda item: -item[1])
    shares |= dict(ranked[:TOP])
    shares["all other operations"] = sum(share for _, share in ranked[TOP:])
    shares["in between"] = 1 - sum(shares.values())
    return shares


# --------------------------------------------------------------------------------------------------------- showing


def tables(report: Report) -> list[TextTable]:
    """Both sides side by side; where the time goes; the most expensive products. What is missing is left out."""
    found = [side_by_side(report, "", SIDES, title(report))]
    if set(report.parts.get("roofline", ())) == set(SIDES):
        found += [_roofline_table(report), _products_table(report)]
    return found


def _roofline_table(report: Report) -> TextTable:
    shares = report.parts["roofline"]
    names = dict.fromkeys(name for side in SIDES for name in shares[side])
    last = ("all other operations", "in between")
    ordered = [*(name for name in names if name not in last), *last]
    rows = tuple(
        (name, *(f"{shares[side][name]:.1%}" if name in shares[side] else "" for side in SIDES)) for name in ordered
    )
    return TextTable("where the time goes", ("share of forward and backward", *SIDES), rows)


def _products_table(report: Report) -> TextTable:
    rows = tuple(
        (f"{side}: {p['product']}", str(p["calls"]), number(p["seconds"]), number(p["teraflops"]))
        for side in SIDES
        for p in report.parts["products"][side][:TOP]
    )
    return TextTable("matrix products alone, the most expensive ones", ("product", "calls", "s", "TFLOP/s"), rows)
