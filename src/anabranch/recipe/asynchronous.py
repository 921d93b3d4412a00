"""Checks of steps that learn from what finishes first: settings that cannot act, and bounds that cannot hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from anabranch.errors import explain
from anabranch.recipe.tree import Asynchronous, ReasoningGym, Recipe

_WHERE = "rollout.asynchronous"


def _bound(recipe: Recipe) -> Iterator[str]:
    """What is left over must be learned from within the bound, or given up: see `anabranch.train.staleness`."""
    settings = recipe.rollout.asynchronous
    if settings is None:
        return
    staleness, usual = settings.max_staleness, Asynchronous().max_staleness
    if settings.leftover == "drop":
        if staleness != 0:
            need = "with leftover drop nothing is older than its step"
            fix = f"{_WHERE}.max_staleness=0, or {_WHERE}.leftover=continue"
            yield explain(f"{_WHERE}.max_staleness", staleness, need, fix)
        if settings.keys != "keep":
            need = "with leftover drop nothing is in flight when weights change"
            yield explain(f"{_WHERE}.keys", settings.keys, need, f"{_WHERE}.keys=keep, or {_WHERE}.leftover=continue")
        return
    prompts = recipe.rollout.prompts
    spare = settings.capacity(prompts) - prompts
    least = math.ceil(spare / prompts)
    if staleness < least:
        need = (
            f"{spare} problems beyond the {prompts} of a step (oversample {settings.oversample:g}) take {least} more "
            f"steps to be learned from"
        )
        low = f"{_WHERE}.oversample={staleness:.1f}, or " if staleness else f"{_WHERE}.leftover=drop, or "
        fix = f"{low}{_WHERE}.max_staleness={max(least, usual)}"
        yield explain(f"{_WHERE}.max_staleness", staleness, need, fix)


def _schedule(recipe: Recipe) -> Iterator[str]:
    settings = recipe.rollout.asynchronous
    if settings is not None and settings.schedule != "clock" and recipe.environment is None:
        need = "without an environment nothing is waited for, and every run is counted anyway"
        yield explain(f"{_WHERE}.schedule", settings.schedule, need, f"{_WHERE}.schedule=clock")


def _collecting(recipe: Recipe) -> Iterator[str]:
    """It replaces the rounds of dynamic sampling, and needs more problems than a step takes."""
    settings, data = recipe.rollout.asynchronous, recipe.data
    if settings is None:
        return
    if recipe.rollout.dynamic is not None:
        need = "dynamic sampling waits for a whole round, and then for the next one"
        yield explain("rollout.dynamic", "with rollout.asynchronous", need, "rollout.dynamic=null")
    size = data.size if isinstance(data, ReasoningGym) else data.limit
    where = "data.size" if isinstance(data, ReasoningGym) else "data.limit"
    room = settings.capacity(recipe.rollout.prompts)
    if size is not None and recipe.rollout.prompts <= size < room:  # fewer than `prompts`: refused in any case
        yield explain(where, size, f"{room} problems are in flight at the same time ({_WHERE})", f"{where}={room}")


def surprises(recipe: Recipe) -> Iterator[str]:
    """What is allowed but may surprise, for `anabranch show`."""
    settings = recipe.rollout.asynchronous
    if settings is None:
        return
    if settings.leftover == "continue" and recipe.algorithm.mismatch.kind == "none":
        yield (
            f"{_WHERE}, algorithm.mismatch.kind=none: tokens that older weights drew are learned from as if those of "
            "the step had; algorithm.mismatch.kind=tis weighs them by how likely they are now"
        )
    if settings.leftover == "drop":
        yield f"{_WHERE}.leftover=drop: long rollouts are given up more often than short ones, which favours short ones"
    if settings.schedule == "clock" and recipe.environment is not None and settings.leftover == "continue":
        yield (
            f"{_WHERE}.schedule=clock: what a step learns from depends on how long environments take, so that a "
            "resumed run is not the same to the bit; schedule=counted is"
        )


ASYNCHRONOUS: tuple[Callable[[Recipe], Iterator[str]], ...] = (_bound, _schedule, _collecting)
"""Each yields the problems that it finds, see `anabranch.recipe.checks`."""
