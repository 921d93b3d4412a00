"""Checks of an environment: settings that cannot act, and marks that get into each other's way."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from anabranch.errors import explain
from anabranch.recipe.environment import Calculator, Latency, PythonTool, Verifiers
from anabranch.recipe.text import inline
from anabranch.recipe.tree import Recipe

REACH = 8.0
"""A draw is practically never further than so many standard deviations from its mean."""
EXPRESSION = frozenset("0123456789.+-*/^() ")
"""What an expression for the calculator consists of."""


def _turns(recipe: Recipe) -> Iterator[str]:
    """A turn has one token at least. The usual number is not refused: it is only never reached."""
    environment, limit = recipe.environment, recipe.rollout.max_new_tokens
    usual = None if environment is None else type(environment).model_fields["turns"].default
    if environment is not None and environment.turns > limit and environment.turns != usual:
        need = f"an answer has at most {limit} tokens (rollout.max_new_tokens), and a turn at least one"
        yield explain("environment.turns", environment.turns, need, f"environment.turns={limit}")


def _marks(recipe: Recipe) -> Iterator[str]:
    """A stop string of the rollout must not cut a mark of the environment, nor be hidden behind one."""
    match recipe.environment:
        case PythonTool():
            opening, closing = "<code>", "</code>"
        case Calculator():
            opening, closing = recipe.environment.open, recipe.environment.close
        case Latency():
            opening, closing = "", recipe.environment.stop
        case Verifiers() | None:
            return
    for index, stop in enumerate(recipe.rollout.stop_strings):
        where, fix = f"rollout.stop_strings.{index}", "rollout.stop_strings=[], or environment=null"
        cut = next((mark for mark in (opening, closing) if stop in mark), None)
        if cut is not None:
            yield explain(where, stop, f"it would end every answer at {cut!r}, which the environment waits for", fix)
        elif closing and closing in stop:
            yield explain(where, stop, f"a turn ends at {closing!r} before this can be complete", fix)


def _calculator(recipe: Recipe) -> Iterator[str]:
    calculator, usual = recipe.environment, Calculator()
    if not isinstance(calculator, Calculator):
        return
    if calculator.close in calculator.open:
        need = f"an expression would end as it begins (environment.open is {calculator.open!r})"
        yield explain("environment.close", calculator.close, need, f"environment.close={usual.close}")
    if EXPRESSION.issuperset(calculator.close):
        need = "an expression may hold it, and would end there"
        yield explain("environment.close", calculator.close, need, "environment.close='='")
    if calculator.open and EXPRESSION.issuperset(calculator.open):
        need = "it cannot be told from an expression"
        yield explain("environment.open", calculator.open, need, f"environment.open={usual.open}")
    if calculator.reply.count("{}") != 1:
        need = "the result takes the place of {}, which must stand there once"
        yield explain("environment.reply", calculator.reply, need, "environment.reply=' {}'")


def _latency(recipe: Recipe) -> Iterator[str]:
    """Every number of the mixture must be able to make a difference."""
    latency, usual = recipe.environment, Latency()
    if not isinstance(latency, Latency):
        return
    if not latency.stop:
        for name in ("turns", "reply"):
            found, default = dict(latency)[name], dict(usual)[name]
            if found != default:
                fix = f"environment.stop='{usual.stop}', or environment.{name}={inline(default)}"
                need = "without environment.stop an answer has one turn, and nothing follows it"
                yield explain(f"environment.{name}", found, need, fix)
    unread: tuple[str, ...] = ()
    why = "no call is slow (environment.slow_share=0)"
    if latency.slow_share == 0:
        unread = ("slow_mean", "slow_std")
    elif latency.slow_share == 1:
        unread, why = ("mean", "std"), "every call is slow (environment.slow_share=1)"
    for name in unread:
        found, default = dict(latency)[name], dict(usual)[name]
        if found != default:
            fix = f"environment.slow_share={usual.slow_share}, or environment.{name}={default}"
            yield explain(f"environment.{name}", found, why, fix)
    for mean, std in (("mean", "std"), ("slow_mean", "slow_std")):
        middle, spread = dict(latency)[mean], dict(latency)[std]
        if mean in unread or (middle == latency.floor and spread == 0):
            continue
        if middle + REACH * spread <= latency.floor:
            need = f"no call is that long by itself, so that {mean} and {std} do nothing"
            yield explain("environment.floor", latency.floor, need, f"environment.floor={min(middle, usual.floor)}")


ACTING: tuple[Callable[[Recipe], Iterator[str]], ...] = (_turns, _marks, _calculator, _latency)
"""Each yields the problems that it finds, see `anabranch.recipe.checks`."""
