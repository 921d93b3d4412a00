"""What the commands do, in terms of the library. What imports torch is imported inside the function that needs it."""

from __future__ import annotations

import inspect
from itertools import count
from pathlib import Path

from anabranch.errors import RecipeError, explain
from anabranch.presets import PAPERS, PRESETS, load
from anabranch.presets.laptop import laptop
from anabranch.recipe import show as display
from anabranch.recipe.io import from_yaml
from anabranch.recipe.overrides import apply
from anabranch.recipe.text import inline
from anabranch.recipe.tree import Evaluation, Recipe

RUNS = Path("runs")
"""Default home of run folders, below the working directory."""
HUB = "hub:"
"""Prefix of a Hugging Face data set in `eval --data`."""


def train(name: str, overrides: list[str], out: Path | None) -> None:
    """Start a run.

    Raises:
        AnabranchError: anything that the user can mend, see `anabranch.errors`.
    """
    recipe = apply(load(name), overrides)
    folder = out or free_folder(RUNS, f"{recipe.name}-{recipe.seed}")
    _announce(folder)
    from anabranch.train.run import start

    start(recipe, folder)


def resume(run: Path, steps: int | None, seconds: float | None) -> None:
    """Go on with a run, up to `steps` steps or `seconds` of RL if given.

    Raises:
        AnabranchError: not a run, a damaged checkpoint, ...
    """
    from anabranch.train.run import resume as go_on

    go_on(run, steps, seconds)


def sft(name: str, overrides: list[str], out: Path | None) -> None:
    """The supervised steps of a recipe on the file that its `sft` part names, without cold start and RL.

    Raises:
        AnabranchError: no file given, a bad file, ...
    """
    recipe = sft_recipe(load(name), overrides)
    folder = out or free_folder(RUNS, f"{recipe.name}-sft-{recipe.seed}")
    _announce(folder)
    from anabranch.train.run import start

    start(recipe, folder)


def sft_recipe(base: Recipe, overrides: list[str]) -> Recipe:
    """`base` with everything left out that comes before or after the supervised steps.

    Raises:
        RecipeError: no file given, RL steps asked for, or settings that cannot work.
    """
    if base.sft is None and not any(text.startswith(("sft.", "sft=")) for text in overrides):
        raise RecipeError(
            explain("sft.path", "nothing", "a file of worked examples is needed", "sft.path=examples.jsonl")
        )
    recipe = apply(base, ["steps=0", "cold_start=null", *overrides])
    if recipe.steps:
        raise RecipeError(
            explain("steps", recipe.steps, "these are RL steps, and this makes none", f"sft.steps={recipe.steps}")
        )
    return recipe


def evaluate(
    target: str, data: str | None, samples: int | None, problems: int | None, overrides: list[str], out: Path | None
) -> None:
    """Measure a model, or the last checkpoint of a run.

    The folder is the same each time, so that it can be resumed; of a run, each checkpoint has one of its own.

    Raises:
        AnabranchError: no such model, no data, ...
    """
    from anabranch.tracking.checkpoints import newest
    from anabranch.tracking.run_folder import RunPaths, is_run

    run = RunPaths(Path(target)) if is_run(Path(target)) else None
    base = from_yaml(run.recipe) if run else _recipe_for(target)
    recipe = evaluation_recipe(base, data, samples, problems, overrides)
    assert recipe.evaluation is not None
    if run is None and recipe.evaluation.data is None:
        raise RecipeError(explain("--data", "nothing", "a model has no problems of its own", "--data chain_sum"))
    checkpoint = newest(run.checkpoints) if run else None
    folder = out or evaluation_folder(target, data, checkpoint)
    print(f"evaluation folder: {folder}")
    from anabranch.evaluation.command import evaluate as measure

    measure(recipe, checkpoint, folder)


def evaluation_folder(target: str, data: str | None, checkpoint: Path | None) -> Path:
    """Where an evaluation goes if nothing else is said: into the run, named by problems and step, or below `RUNS`."""
    label = "held-out" if data is None else Path(data.removeprefix(HUB)).stem
    if checkpoint is None:
        return RUNS / f"eval-{Path(target).name}-{label}"
    return Path(target) / f"eval-{label}-{checkpoint.name}"


def evaluation_recipe(
    base: Recipe, data: str | None, samples: int | None, problems: int | None, overrides: list[str]
) -> Recipe:
    """`base` with an evaluation as asked for; what is not asked for stays.

    Raises:
        RecipeError: settings that cannot work.
    """
    asked = [] if data is None else [f"evaluation.data={inline(_data(data))}"]
    asked += [] if samples is None else [f"evaluation.samples={samples}"]
    asked += [] if problems is None else [f"evaluation.problems={problems}"]
    return apply(base, [*([] if base.evaluation else ["evaluation={}"]), *asked, *overrides])


def values(name: str, overrides: list[str], samples: int, out: Path | None) -> None:
    """Sample offline values for a recipe's training problems. The folder is the same each time: it can be resumed.

    Raises:
        AnabranchError: no such model, no data, ...
    """
    recipe = apply(load(name), overrides)
    folder = out or RUNS / f"values-{recipe.name}-{recipe.seed}"
    print(f"values folder: {folder}")
    from anabranch.evaluation.values_command import sample_values

    sample_values(recipe, samples, folder)


def show(name: str, overrides: list[str], against: str | None, explain_keys: bool) -> None:
    """Print a recipe, or how it differs from another.

    Raises:
        RecipeError: no such recipe, or one that cannot work.
    """
    recipe = apply(load(name), overrides)
    if against is None:
        print(display.described(recipe, explain=explain_keys), end="")
    else:
        print(display.table(recipe, load(against)))


def recipes() -> None:
    """Print the names of all presets with the first line of their descriptions, then those at a paper's scale."""
    width = max(map(len, (*PRESETS, *PAPERS)))
    for name, preset in PRESETS.items():
        print(f"{name:<{width}}  {(inspect.getdoc(preset) or '').splitlines()[0]}")
    for name, paper in PAPERS.items():
        recipe = paper()
        rollout = recipe.rollout
        print(
            f"{name:<{width}}  {recipe.model.source}, {rollout.prompts} x {rollout.per_problem} answers of up to "
            f"{rollout.max_new_tokens} tokens"
        )


def free_folder(home: Path, name: str) -> Path:
    """`home/name`, or the first of `home/name-2`, `home/name-3`, ... that does not exist."""
    if not (home / name).exists():
        return home / name
    return next(home / f"{name}-{n}" for n in count(2) if not (home / f"{name}-{n}").exists())


def _announce(folder: Path) -> None:
    print(f"run folder: {folder}   (to go on after a stop: anabranch resume {folder})", flush=True)


def _recipe_for(model: str) -> Recipe:
    """What a bare model is asked with: the defaults that all presets share."""
    base = laptop(Recipe(name="eval"))
    return base.but(model=base.model.but(source=model), evaluation=Evaluation())


def _data(text: str) -> dict[str, str]:
    if text.startswith(HUB):
        return {"kind": "hub", "id": text.removeprefix(HUB)}
    if text.endswith((".jsonl", ".json")) or Path(text).is_file():
        return {"kind": "jsonl", "path": text}
    return {"kind": "reasoning_gym", "name": text}
