"""Checks of tracked values: who reads them, what rewards they can hold, and sampling by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from anabranch.errors import explain
from anabranch.recipe.reward import Constant, CosineLength, Reward, RewardTerm
from anabranch.recipe.tree import Prioritised, ReasoningGym, Recipe, Tracker

SLACK = 1e-9
"""By how much a bound on rewards may miss 0 or 1: 0.1 + 0.2 + 0.7 is a little more than 1."""


def _readers(recipe: Recipe) -> Iterator[str]:
    """A setting of the tracker must be read by something."""
    tracker, usual = recipe.algorithm.tracker, Tracker()
    if not recipe.tracks:
        for name, default in dict(usual).items():
            found = dict(tracker)[name]
            if found != default:
                where, found = f"algorithm.tracker.{name}", "a prior" if name == "prior" else found
                need = "no value is tracked: the baseline is another one, and problems are drawn uniformly"
                yield explain(where, found, need, "algorithm.baseline=tracker, or algorithm.tracker={}")
        return
    if tracker.rho_min > tracker.rho_max:
        need = f"it is the lower bound, and rho_max is {tracker.rho_max:g}"
        yield explain("algorithm.tracker.rho_min", tracker.rho_min, need, f"algorithm.tracker.rho_min={usual.rho_min}")
    if tracker.divergence == "constant":
        for name in ("rho_max", "d_half", "when"):
            found, default = dict(tracker)[name], dict(usual)[name]
            if found != default:
                where = f"algorithm.tracker.{name}"
                need = "with divergence constant rho is rho_min, and nothing is compared"
                yield explain(where, found, need, f"{where}={default}, or algorithm.tracker.divergence=abs")
    yield from _values(recipe)


def _values(recipe: Recipe) -> Iterator[str]:
    """Offline values are shares of right answers of the first model: rewards and model must be those."""
    tracker, usual = recipe.algorithm.tracker, Tracker()
    if tracker.values is None:
        if tracker.smoothing != usual.smoothing:
            need = "only offline values are smoothed, and there are none"
            fix = f"algorithm.tracker.values=values.json, or algorithm.tracker.smoothing={usual.smoothing}"
            yield explain("algorithm.tracker.smoothing", tracker.smoothing, need, fix)
        return
    if tracker.prior != usual.prior:
        need = "offline values know every problem, so that the prior is never asked"
        yield explain("algorithm.tracker.prior", "a prior", need, "algorithm.tracker.prior={}")
    for name, part in (("cold_start", recipe.cold_start), ("sft", recipe.sft)):
        if part is not None:
            need = f"offline values belong to the model at the start of RL, and {name} comes before that"
            fix = f"{name}=null, with model.source the model folder of a run that made those steps"
            yield explain("algorithm.tracker.values", tracker.values, need, fix)
    weighted = [term for term in recipe.reward if term.weight != 0]
    plain = [(term.term, term.weight, term.wrong) for term in weighted if isinstance(term, RewardTerm)]
    if len(weighted) != 1 or plain != [("accuracy", 1, 0)] or recipe.algorithm.overlong.kind not in ("none", "filter"):
        need = "offline values are shares of right answers, and the reward is something else"
        fix = "reward=[{term: accuracy}] and algorithm.overlong={}, or algorithm.tracker.values=null"
        yield explain("algorithm.tracker.values", tracker.values, need, fix)


def _rewards(recipe: Recipe) -> Iterator[str]:
    """Counts of successes, and weights of the form sqrt(v (1 - v)), need rewards in [0, 1]."""
    if not recipe.tracks:
        return
    by_value = isinstance(recipe.sampling, Prioritised)
    if recipe.algorithm.tracker.form == "ema" and not by_value:
        return
    because = "sampling by value" if by_value else "a tracker of form beta"
    need = f"{because} takes rewards in [0, 1]"
    other = "" if by_value else ", or algorithm.tracker.form=ema"
    kl, overlong = recipe.algorithm.kl, recipe.algorithm.overlong
    if kl.kind == "reward_k1":
        fix = "algorithm.kl.kind=loss_k2, or algorithm.kl={}"
        yield explain("algorithm.kl.kind", kl.kind, f"{need}, and this subtracts from them", fix + other)
    elif overlong.kind == "soft":
        fix = "algorithm.overlong.kind=filter"
        yield explain("algorithm.overlong.kind", overlong.kind, f"{need}, and this goes down to -1", fix + other)
    elif overlong.kind == "stop_properly" and overlong.coef < 0:
        yield explain("algorithm.overlong.coef", overlong.coef, need, "algorithm.overlong.coef=0" + other)
    else:
        yield from _terms(recipe.reward, need, other)


def _terms(terms: tuple[Reward, ...], need: str, other: str) -> Iterator[str]:
    """One error for the term that takes rewards out of [0, 1] most."""
    bounds = [_bounds(term) for term in terms]
    low, high = sum(low for low, _ in bounds), sum(high for _, high in bounds)
    if low < -SLACK:
        index = min(range(len(terms)), key=lambda i: bounds[i][0])
        term = terms[index]
        if term.weight < 0:
            where, fix = f"reward.{index}.weight", f"reward.{index}.weight=0.0"
        elif isinstance(term, CosineLength):
            where, fix = f"reward.{index}.low", f"reward.{index}.low=0.0 with reward.{index}.high above it"
        else:
            where, fix = f"reward.{index}.wrong", f"reward.{index}.wrong=0.0"
    elif high > 1 + SLACK:
        index = max(range(len(terms)), key=lambda i: bounds[i][1])
        where, fix = f"reward.{index}.weight", "weights that add up to 1"
    else:
        return
    yield explain(where, f"rewards from {low:g} to {high:g}", need, fix + other)


def _bounds(term: Reward) -> tuple[float, float]:
    """The least and the largest that a term can add to a reward, in any step."""
    low, high = (term.low, term.high) if isinstance(term, CosineLength) else (term.wrong, 1.0)
    sometimes = not isinstance(term.schedule, Constant) or (isinstance(term, CosineLength) and term.only_correct)
    ends = sorted((term.weight * low, term.weight * high))
    return (min(ends[0], 0.0), max(ends[1], 0.0)) if sometimes else (ends[0], ends[1])


def _sampling(recipe: Recipe) -> Iterator[str]:
    """Values and dynamic sampling do not go together; a pool is smaller than all and large enough for a step."""
    if recipe.tracks and recipe.rollout.dynamic is not None:
        need = "with tracked values groups that agree teach, too: none is drawn again"
        yield explain("rollout.dynamic", "dynamic sampling", need, "rollout.dynamic=null")
    if not isinstance(recipe.sampling, Prioritised) or recipe.sampling.pool is None:
        return
    pool, data, prompts = recipe.sampling.pool, recipe.data, recipe.rollout.prompts
    size = data.size if isinstance(data, ReasoningGym) else data.limit
    if pool < prompts:
        need = f"a step takes {prompts} different problems (rollout.prompts)"
        yield explain("sampling.pool", pool, need, f"sampling.pool={2 * prompts}, or sampling.pool=null")
    elif size is not None and pool >= size:
        need = f"there are {size} problems at most: that is all of them"
        yield explain("sampling.pool", pool, need, "sampling.pool=null")


TRACKING: tuple[Callable[[Recipe], Iterator[str]], ...] = (_readers, _rewards, _sampling)
"""Each yields the problems that it finds, see `anabranch.recipe.checks`."""
