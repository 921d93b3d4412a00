"""Checks of a recipe as a whole: settings that contradict each other, and settings that nothing would read.

A setting that would be ignored is refused, never skipped. All problems of a recipe are reported at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from anabranch.errors import RecipeError, explain
from anabranch.recipe.acting import ACTING
from anabranch.recipe.asynchronous import ASYNCHRONOUS, surprises
from anabranch.recipe.collecting import COLLECTING
from anabranch.recipe.foreign import FOREIGN
from anabranch.recipe.tracking import TRACKING
from anabranch.recipe.tree import WORKED, HubDataset, JsonLines, Kl, Mismatch, ReasoningGym, Recipe

K3_LIMIT = 20.0
"""How far from 0 a log-ratio may be in k3: `anabranch.algo.ratio.LOG_RATIO_LIMIT`, which lies behind torch."""


def check(recipe: Recipe) -> None:
    """Refuse a recipe that cannot work, or that asks for something that nothing would honour.

    Raises:
        RecipeError: with every problem found, each as where, found, needed, fix.
    """
    topics = (_groups, _spread, _kl, _mismatch, _overlong, _loss, _training, _data, _evaluation, _cold_start)
    all_topics = (*topics, *COLLECTING, *TRACKING, *ACTING, *FOREIGN, *ASYNCHRONOUS)
    problems = [text for topic in all_topics for text in topic(recipe)]
    if problems:
        raise RecipeError("\n".join(problems))


def notes(recipe: Recipe) -> list[str]:
    """What is allowed but may surprise, one sentence each, for `anabranch show`."""
    found = []
    if recipe.train.minibatches == recipe.train.epochs == 1:
        found.append(
            "train.minibatches=1, train.epochs=1: a rollout batch gives one update, at which the ratio is exactly 1; "
            "algorithm.ratio and algorithm.clip cannot matter"
        )
    return [*found, *surprises(recipe)]


def _groups(recipe: Recipe) -> Iterator[str]:
    """Axes that compare answers need answers to compare."""
    algorithm, rollout = recipe.algorithm, recipe.rollout
    if rollout.per_problem == 1:
        if algorithm.baseline in ("group_mean", "leave_one_out"):
            yield explain(
                "rollout.per_problem",
                1,
                f"baseline '{algorithm.baseline}' compares answers to one problem and needs at least 2",
                "rollout.per_problem=8, or algorithm.baseline=batch_mean",
            )
        if algorithm.scale == "group_std":
            yield explain(
                "rollout.per_problem",
                1,
                "scale 'group_std' is the spread of answers to one problem and needs at least 2",
                "rollout.per_problem=8, or algorithm.scale=batch_std_raw",
            )
    if rollout.per_problem * rollout.prompts == 1:
        batch_wide = {
            "algorithm.baseline": algorithm.baseline == "batch_mean",
            "algorithm.scale": algorithm.scale in ("batch_std_raw", "batch_std_centred", "token_std"),
            "algorithm.whiten": algorithm.whiten != "none",
        }
        for where, compares in batch_wide.items():
            if compares:
                yield explain("rollout.prompts", 1, f"{where} compares the answers of a batch", "rollout.prompts=16")


def _spread(recipe: Recipe) -> Iterator[str]:
    algorithm = recipe.algorithm
    batch_wide = algorithm.scale in ("batch_std_raw", "batch_std_centred", "token_std")
    if batch_wide and algorithm.whiten != "none" and algorithm.kl.kind != "reward_k1":
        yield explain(
            "algorithm.scale",
            algorithm.scale,
            f"whitening over {algorithm.whiten} divides by the spread of the whole batch again and undoes it",
            "algorithm.scale=none, or algorithm.whiten=none",
        )
    if algorithm.std != "unbiased" and algorithm.scale == "none" and algorithm.whiten == "none":
        yield explain(
            "algorithm.std",
            algorithm.std,
            "no standard deviation is taken (scale and whiten are none)",
            "algorithm.std=unbiased",
        )


def _kl(recipe: Recipe) -> Iterator[str]:
    kl = recipe.algorithm.kl
    if kl.kind == "none" and kl.coef > 0:
        yield explain("algorithm.kl.coef", kl.coef, "kl.kind none has no penalty to weigh", "algorithm.kl.kind=loss_k3")
    if kl.kind != "none" and kl.coef == 0:
        yield explain(
            "algorithm.kl.coef",
            kl.coef,
            f"kl.kind '{kl.kind}' with weight 0 does nothing",
            "algorithm.kl.coef=0.001, or algorithm.kl.kind=none",
        )
    yield from _kl_limits(kl)


def _kl_limits(kl: Kl) -> Iterator[str]:
    """A limit must be able to act: on something, and before another one does."""
    if kl.kind == "none":
        for name, limit in (("input_limit", kl.input_limit), ("output_limit", kl.output_limit)):
            if limit is not None:
                where = f"algorithm.kl.{name}"
                yield explain(where, limit, "kl.kind none estimates nothing", f"{where}=null")
        return
    if kl.kind == "loss_k3" and kl.input_limit is not None and kl.input_limit >= K3_LIMIT:
        need = f"loss_k3 holds the log-ratio within +-{K3_LIMIT:g} in any case"
        yield explain("algorithm.kl.input_limit", kl.input_limit, need, "algorithm.kl.input_limit=null")
    elif kl.input_limit is not None and kl.output_limit is not None:
        x = kl.input_limit
        largest = {"loss_k2": x * x / 2, "loss_k3": math.exp(min(x, K3_LIMIT)) - x - 1}.get(kl.kind, x)
        if kl.output_limit >= largest:
            need = f"with a log-ratio of at most {x:g} the estimate never exceeds {largest:.4g}"
            yield explain("algorithm.kl.output_limit", kl.output_limit, need, "algorithm.kl.output_limit=null")


def _mismatch(recipe: Recipe) -> Iterator[str]:
    mismatch, default = recipe.algorithm.mismatch, Mismatch()
    if mismatch.kind == "none":
        for name, bound, usual in (("low", mismatch.low, default.low), ("high", mismatch.high, default.high)):
            if bound != usual:
                where = f"algorithm.mismatch.{name}"
                fix = f"algorithm.mismatch.kind=tis, or {where}={usual}"
                yield explain(where, bound, "mismatch.kind none has no weight to bound", fix)
    elif mismatch.kind != "tis" and mismatch.low is None and mismatch.high is None:
        need = "without a bound nothing is ever taken out"
        fix = "algorithm.mismatch.high=5.0, or algorithm.mismatch.kind=tis for the bare weights"
        yield explain("algorithm.mismatch.kind", mismatch.kind, need, fix)


def _overlong(recipe: Recipe) -> Iterator[str]:
    overlong = recipe.algorithm.overlong
    limit = recipe.rollout.max_new_tokens
    if overlong.buffer is not None and overlong.kind != "soft":
        yield explain(
            "algorithm.overlong.buffer",
            overlong.buffer,
            f"only kind soft reads it, and the kind is {overlong.kind}",
            "algorithm.overlong.kind=soft, or algorithm.overlong.buffer=null",
        )
    elif overlong.buffer is not None and overlong.buffer > limit:
        yield explain(
            "algorithm.overlong.buffer",
            overlong.buffer,
            f"an answer has at most {limit} tokens (rollout.max_new_tokens)",
            f"algorithm.overlong.buffer={max(1, limit // 5)}",
        )
    if overlong.coef != 0 and overlong.kind != "stop_properly":
        yield explain(
            "algorithm.overlong.coef",
            overlong.coef,
            f"only kind stop_properly reads it, and the kind is {overlong.kind}",
            "algorithm.overlong.kind=stop_properly, or algorithm.overlong.coef=0",
        )
    elif overlong.coef == 1:
        yield explain(
            "algorithm.overlong.coef",
            overlong.coef,
            "a factor of 1 leaves the reward as it is",
            "algorithm.overlong.coef=0, or algorithm.overlong.kind=none",
        )


def _loss(recipe: Recipe) -> Iterator[str]:
    algorithm = recipe.algorithm
    if algorithm.constant is not None and algorithm.aggregate != "token_sum_constant":
        yield explain(
            "algorithm.constant",
            algorithm.constant,
            f"only aggregate token_sum_constant divides by it, and aggregate is {algorithm.aggregate}",
            "algorithm.aggregate=token_sum_constant, or algorithm.constant=null",
        )
    if algorithm.ratio == "detached" and algorithm.clip.dual is not None:
        yield explain(
            "algorithm.clip.dual",
            algorithm.clip.dual,
            "ratio 'detached' has no objective that a dual clip could bound",
            "algorithm.clip.dual=null",
        )
    if algorithm.clip.low is not None and algorithm.clip.low >= 1:
        yield explain(
            "algorithm.clip.low",
            algorithm.clip.low,
            "a ratio is never below 0, so a bound of 1 - low <= 0 does nothing",
            "algorithm.clip.low=null",
        )


def _training(recipe: Recipe) -> Iterator[str]:
    if recipe.train.minibatches > recipe.rollout.prompts:
        yield explain(
            "train.minibatches",
            recipe.train.minibatches,
            f"a step has only {recipe.rollout.prompts} groups to deal out (rollout.prompts)",
            f"train.minibatches={recipe.rollout.prompts}",
        )
    if recipe.steps == 0 and recipe.cold_start is None and recipe.sft is None:
        yield explain("steps", 0, "without RL steps and without a cold start there is nothing to do", "steps=10")


def _data(recipe: Recipe) -> Iterator[str]:
    """A step should not hold one problem twice: its two groups would be one larger group in disguise."""
    data = recipe.data
    where, size = ("data.size", data.size) if isinstance(data, ReasoningGym) else ("data.limit", data.limit)
    if size is not None and size < recipe.rollout.prompts:
        yield explain(
            where,
            size,
            f"a step takes {recipe.rollout.prompts} different problems (rollout.prompts)",
            f"{where}={recipe.rollout.prompts}",
        )


def _evaluation(recipe: Recipe) -> Iterator[str]:
    if recipe.evaluation is None:
        return
    train, held_out = recipe.data, recipe.evaluation.data
    if held_out is None and not isinstance(train, ReasoningGym):
        yield explain(
            "evaluation.data",
            None,
            f"held-out problems cannot be made from '{train.kind}' data",
            "evaluation.data.path=TEST.jsonl, or evaluation=null",
        )
    if isinstance(held_out, JsonLines) and isinstance(train, JsonLines) and held_out.path == train.path:
        yield explain(
            "evaluation.data.path", held_out.path, "these are the training problems", "evaluation.data.path=TEST.jsonl"
        )
    elif isinstance(held_out, HubDataset) and isinstance(train, HubDataset):
        if (held_out.id, held_out.config, held_out.split) == (train.id, train.config, train.split):
            yield explain(
                "evaluation.data.split", held_out.split, "these are the training problems", "evaluation.data.split=test"
            )
    elif isinstance(held_out, ReasoningGym) and held_out == train:
        yield explain(
            "evaluation.data.seed",
            held_out.seed,
            "these are the training problems",
            f"evaluation.data.seed={held_out.seed + 1}, or evaluation.data=null",
        )


def _cold_start(recipe: Recipe) -> Iterator[str]:
    """Rows of a file may bring a worked `solution`; whether they do is seen when the file is read."""
    data = recipe.data
    if recipe.cold_start is not None and isinstance(data, ReasoningGym) and data.name not in WORKED:
        yield explain(
            "cold_start",
            f"one on '{data.name}'",
            f"worked examples can be made only for: {', '.join(WORKED)}",
            "cold_start=null",
        )
