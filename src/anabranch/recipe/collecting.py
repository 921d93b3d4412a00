"""Checks of what a step collects and is compared with: dynamic sampling, rewards, resets of the reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from anabranch.errors import explain
from anabranch.recipe.reward import Constant, CosineLength, RewardTerm
from anabranch.recipe.tree import ReasoningGym, Recipe


def _dynamic(recipe: Recipe) -> Iterator[str]:
    rollout, dynamic, data = recipe.rollout, recipe.rollout.dynamic, recipe.data
    if dynamic is None:
        return
    if rollout.per_problem == 1:
        need = "dynamic sampling keeps groups whose rewards differ, and one answer cannot"
        yield explain("rollout.per_problem", 1, need, "rollout.per_problem=8, or rollout.dynamic=null")
    first = dynamic.problems_for(rollout.prompts)
    if dynamic.rounds == 1 and first == rollout.prompts:
        need = "a single round without problems to spare stops the run at the first group that agrees"
        yield explain("rollout.dynamic.rounds", 1, need, "rollout.dynamic.rounds=10, or rollout.dynamic.overdraw=2.0")
    where, size = ("data.size", data.size) if isinstance(data, ReasoningGym) else ("data.limit", data.limit)
    if size is not None and rollout.prompts <= size < first:  # fewer than `prompts`: refused with or without this
        need = f"the first round alone asks {first} different problems (rollout.dynamic.overdraw={dynamic.overdraw:g})"
        yield explain(where, size, need, f"{where}={first}")


def _reward(recipe: Recipe) -> Iterator[str]:
    terms = recipe.reward
    if not terms:
        yield explain("reward", "no term", "at least one is needed", "reward=[{term: accuracy}]")
    elif all(term.weight == 0 for term in terms):
        yield explain("reward.0.weight", 0.0, "with all weights 0 nothing is learned", "reward.0.weight=1.0")
    for name, count in Counter(term.term for term in terms).items():
        if count > 1:
            yield explain(
                "reward", f"{count} terms '{name}'", "each term stands once", "add their weights up in one term"
            )
    for index, term in enumerate(terms):
        if isinstance(term, CosineLength) and term.low >= term.high:
            need = f"the term falls with length, from high={term.high:g} to low"
            yield explain(f"reward.{index}.low", term.low, need, f"reward.{index}.low={term.high - 0.5:g}")
        if isinstance(term, RewardTerm) and term.term != "accuracy" and term.wrong != 0:
            need = f"term '{term.term}' knows no wrong answer: only accuracy reads it"
            yield explain(f"reward.{index}.wrong", term.wrong, need, f"reward.{index}.wrong=0.0")


def _schedules(recipe: Recipe) -> Iterator[str]:
    """Every term is in force at some step, and at every step some term with a weight is."""
    terms, steps = recipe.reward, recipe.steps
    if not steps or all(isinstance(term.schedule, Constant) for term in terms):
        return
    for index, term in enumerate(terms):
        if not any(term.schedule.in_force(step) for step in range(steps)):
            found = f"a {term.schedule.kind} that begins later than the run ends"
            need = f"a term must be in force at some RL step (steps={steps})"
            yield explain(f"reward.{index}.schedule", found, need, f"reward.{index}.schedule.start=0")
    weighted = [term for term in terms if term.weight != 0]
    empty = next((s for s in range(steps) if not any(term.schedule.in_force(s) for term in weighted)), None)
    if weighted and empty is not None:
        need = "without a reward nothing is learned"
        found = f"no term with a weight in force at RL step {empty} (counted from 0)"
        yield explain("reward", found, need, "reward.0.schedule.kind=constant")


def _reset(recipe: Recipe) -> Iterator[str]:
    kl, reset, evaluation = recipe.algorithm.kl, recipe.algorithm.kl.reset, recipe.evaluation
    if reset is None:
        return
    if kl.kind == "none":
        need = "kl.kind none has no reference model to reset"
        yield explain("algorithm.kl.reset", "a schedule", need, "algorithm.kl.reset=null")
    if reset.every is None and reset.spike is None and reset.stall is None:
        need = "without a cause the reference is never reset"
        yield explain("algorithm.kl.reset", "no cause", need, "algorithm.kl.reset.every=300")
    if reset.stall is not None and (evaluation is None or evaluation.every == 0):
        need = "a stall is seen in the evaluations during RL, and there are none"
        yield explain("algorithm.kl.reset.stall", reset.stall, need, "evaluation.every=10")


def _diagnostics(recipe: Recipe) -> Iterator[str]:
    """Forks and curves are of groups, and of draws of one policy."""
    diagnostics, rollout = recipe.diagnostics, recipe.rollout
    if rollout.per_problem == 1:
        for name, found in (("mass_balance", diagnostics.mass_balance), ("pass_curve", diagnostics.pass_curve)):
            if found:
                where = f"diagnostics.{name}"
                need = "it compares answers to one problem, and rollout.per_problem is 1"
                yield explain(where, found, need, f"rollout.per_problem=8, or {where}={type(found)(0)}".lower())
    if diagnostics.mass_balance > rollout.prompts:
        need = f"a step has only {rollout.prompts} groups (rollout.prompts)"
        fix = f"diagnostics.mass_balance={rollout.prompts}"
        yield explain("diagnostics.mass_balance", diagnostics.mass_balance, need, fix)
    if diagnostics.mass_balance and rollout.asynchronous is not None:
        need = "its draws are of the policy at the start of the step, and asynchronous answers are of older ones, too"
        fix = "diagnostics.mass_balance=0, or rollout.asynchronous=null"
        yield explain("diagnostics.mass_balance", diagnostics.mass_balance, need, fix)


COLLECTING: tuple[Callable[[Recipe], Iterator[str]], ...] = (_dynamic, _reward, _schedules, _reset, _diagnostics)
"""Each yields the problems that it finds, see `anabranch.recipe.checks`."""
