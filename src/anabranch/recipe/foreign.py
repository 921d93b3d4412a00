"""Checks of environments of the `verifiers` package: problems and environment belong together, and say the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from anabranch.errors import explain
from anabranch.recipe.tree import Recipe, Verifiers, VerifiersTasks


def _belong(recipe: Recipe) -> Iterator[str]:
    """Only the environment judges its problems, and it has no others."""
    environment = recipe.environment
    data = {"data": recipe.data} | ({} if recipe.evaluation is None else {"evaluation.data": recipe.evaluation.data})
    for where, problems in data.items():
        if isinstance(problems, VerifiersTasks) and not isinstance(environment, Verifiers):
            need = "only their environment judges these problems"
            fix = f"environment={{kind: verifiers, options: {{taskset: {{id: {problems.taskset}}}}}}}"
            yield explain("environment", None if environment is None else environment.kind, need, fix)
        elif isinstance(environment, Verifiers) and problems is not None and not isinstance(problems, VerifiersTasks):
            need = "an environment of the package asks its own problems"
            fix = f"{where}={{kind: verifiers, taskset: {_taskset(environment) or 'NAME'}}}"
            yield explain(f"{where}.kind", problems.kind, need, fix)
        elif isinstance(environment, Verifiers) and isinstance(problems, VerifiersTasks) and _taskset(environment):
            yield from _same(where, problems, _taskset(environment))


def _same(where: str, problems: VerifiersTasks, name: str) -> Iterator[str]:
    if _module(problems.taskset) != _module(name):
        need = f"the environment is of taskset '{name}' (environment.options.taskset.id)"
        yield explain(f"{where}.taskset", problems.taskset, need, f"{where}.taskset={name}")


def _taskset(environment: Verifiers) -> str:
    """The name of its taskset; empty without one."""
    taskset = environment.options.get("taskset")
    name = taskset.get("id") if isinstance(taskset, dict) else None
    return name if isinstance(name, str) else ""


def _module(name: str) -> str:
    """The module that the package imports for a name."""
    return name.rsplit("/", 1)[-1].split("@", 1)[0].replace("-", "_").lower()


def _named(recipe: Recipe) -> Iterator[str]:
    environment = recipe.environment
    if isinstance(environment, Verifiers) and not _taskset(environment):
        need = "options.taskset.id names the installed package that has the tasks"
        fix = "environment.options.taskset.id=NAME"
        yield explain("environment.options", str(environment.options), need, fix)


def _held_out(recipe: Recipe) -> Iterator[str]:
    """Evaluation must not ask training problems."""
    train, held_out = recipe.data, None if recipe.evaluation is None else recipe.evaluation.data
    if not isinstance(train, VerifiersTasks) or not isinstance(held_out, VerifiersTasks):
        return
    if (train.taskset, train.options) != (held_out.taskset, held_out.options):
        return
    last = None if train.limit is None else train.skip + train.limit
    before = held_out.limit is not None and held_out.skip + held_out.limit <= train.skip
    if not before and (last is None or held_out.skip < last):
        fix = "data.limit=1000, evaluation.data.skip=1000" if last is None else f"evaluation.data.skip={last}"
        yield explain("evaluation.data.skip", held_out.skip, "these are training problems", fix)


def _turn(recipe: Recipe) -> Iterator[str]:
    """What is written between turns goes on behind the end of one."""
    stops = recipe.rollout.stop_strings
    if isinstance(recipe.environment, Verifiers) and stops:
        need = "a turn ends with the model's own end-of-turn token, behind which the environment speaks"
        yield explain("rollout.stop_strings", stops, need, "rollout.stop_strings=[]")


def _range(recipe: Recipe) -> Iterator[str]:
    environment = recipe.environment
    if isinstance(environment, Verifiers) and environment.lowest >= environment.highest:
        need = f"it must lie below environment.highest={environment.highest:g}"
        fix = f"environment.lowest={environment.highest - 1:g}"
        yield explain("environment.lowest", environment.lowest, need, fix)


FOREIGN: tuple[Callable[[Recipe], Iterator[str]], ...] = (_belong, _named, _held_out, _turn, _range)
"""Each yields the problems that it finds, see `anabranch.recipe.checks`."""
