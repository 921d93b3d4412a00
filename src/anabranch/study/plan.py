"""What a study will do, all of it checked before anything runs: arms, seeds, shared cold starts, the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anabranch.errors import DataError, RecipeError, explain
from anabranch.evaluation.held_out import held_out_problems
from anabranch.recipe.tree import Model, Recipe
from anabranch.study.grid import Arm
from anabranch.tasks.base import Task, open_task, problem_key

FORMAT = 1
"""Of the manifest and of exported results."""
RL_ONLY: Mapping[str, tuple[str, ...]] = {
    "train": ("minibatches", "epochs"),
    "rollout": ("prompts", "per_problem", "dynamic"),
    "optim": ("lr", "warmup", "schedule"),
}
"""Keys that nothing before RL reads. Only these, and the parts in `RL_PARTS`, may differ between arms that share a cold
start; a key that is not listed costs time, never correctness."""
RL_PARTS = ("name", "seed", "steps", "seconds", "algorithm", "reward", "sampling", "probes", "diagnostics", "save")


@dataclass(frozen=True)
class Study:
    """All that decides the numbers of a study. Plain enough to be written down and compared."""

    base: str
    """The recipe as typed: a preset's name or a file."""
    overrides: tuple[str, ...]
    """Changes that all arms share, as typed."""
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]

    def recipe(self, arm: int, seed: int, compute: Model | None = None) -> Recipe:
        """The recipe of one run; `compute` says how it computes where that was measured once for the whole study."""
        recipe = self.arms[arm].recipe.but(seed=seed)
        if compute is None:
            return recipe
        return recipe.but(model=recipe.model.but(dtype=compute.dtype, device=compute.device, threads=compute.threads))

    def cold_starts(self) -> dict[int, int]:
        """For every arm with supervised steps: the first arm whose steps before RL are exactly the same."""
        first: dict[str, int] = {}
        return {
            number: first.setdefault(json.dumps(_before_rl(arm.recipe), sort_keys=True), number)
            for number, arm in enumerate(self.arms)
            if arm.recipe.cold_start is not None or arm.recipe.sft is not None
        }

    def shared_cold_starts(self) -> dict[int, int]:
        """`cold_starts` without those that only one arm has: they are part of its run."""
        starts = self.cold_starts()
        several = {start for start in starts.values() if list(starts.values()).count(start) > 1}
        return {arm: start for arm, start in starts.items() if start in several}

    def to_json(self) -> dict[str, Any]:
        """What the manifest holds of it."""
        return {
            "base": self.base,
            "overrides": list(self.overrides),
            "seeds": list(self.seeds),
            "arms": [
                {
                    "name": arm.name,
                    "changes": list(arm.changes),
                    "overrides": list(arm.overrides),
                    "recipe": arm.recipe.model_dump(mode="json"),
                }
                for arm in self.arms
            ],
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Study:
        """The inverse of `to_json`. Raises RecipeError where a recipe is of another version of this package."""
        arms = tuple(
            Arm(arm["name"], tuple(arm["changes"]), tuple(arm["overrides"]), Recipe(**arm["recipe"]))
            for arm in stored["arms"]
        )
        return cls(stored["base"], tuple(stored["overrides"]), arms, tuple(stored["seeds"]))


def _before_rl(recipe: Recipe) -> dict[str, Any]:
    """What two arms share if everything before RL is the same to the bit: weights, evaluations, random numbers."""
    dump = recipe.model_dump(mode="json", exclude=set(RL_PARTS))
    for part, keys in RL_ONLY.items():
        for key in keys:
            del dump[part][key]
    return dump


def cold_recipe(recipe: Recipe) -> Recipe:
    """The recipe of what comes before RL, without anything that only RL reads: the same for all arms that share it."""
    before = _before_rl(recipe)
    before["rollout"]["prompts"] = 1  # more than there are problems would be refused
    return Recipe(name=recipe.name, seed=recipe.seed, steps=0, **before)


OF_STUDY = "study:"
"""Before the name of a file: it lies in the study's own folder, wherever that is."""


def located(recipe: Recipe, root: Path) -> Recipe:
    """The recipe of a run with the file of offline values where it is: `study:values.json` lies in the study's folder.

    Args:
        recipe: of a run of the study.
        root: folder of the study.
    """
    tracker = recipe.algorithm.tracker
    if tracker.values is None or not tracker.values.startswith(OF_STUDY):
        return recipe
    there = str(root / tracker.values.removeprefix(OF_STUDY))
    return recipe.but(algorithm=recipe.algorithm.but(tracker=tracker.but(values=there)))


def check_arms(study: Study) -> None:
    """Refuse arms that cannot be compared, and seeds that no run can have.

    Raises:
        RecipeError: no RL steps, no held-out problems, a seed that is too large.
    """
    for number, arm in enumerate(study.arms):
        if arm.recipe.steps == 0:
            raise RecipeError(explain(f"steps in arm '{arm.name}'", 0, "a study compares RL", "steps=50"))
        if arm.recipe.evaluation is None:
            need = "arms are compared on held-out problems"
            fix = "evaluation={}, or evaluation={problems: 64, samples: 4}"
            raise RecipeError(explain(f"evaluation in arm '{arm.name}'", None, need, fix))
        for seed in study.seeds:
            study.recipe(number, seed)


def held_out_digests(study: Study) -> list[list[str]]:
    """For every arm and seed text that stands for its held-out problems. Reads all data: a missing file shows here.

    Raises:
        DataError: data cannot be read, or has too few unseen problems.
        RecipeError: one seed, and arms with different held-out problems: nothing could be compared.
    """
    tasks: dict[str, Task] = {}
    known: dict[str, str] = {}
    found = []
    for number, arm in enumerate(study.arms):
        found.append([_held_out_digest(study.recipe(number, seed), tasks, known, arm.name) for seed in study.seeds])
    if len(study.seeds) == 1 and any(digests != found[0] for digests in found):
        need = "arms whose held-out problems differ can be compared only over several seeds"
        raise RecipeError(explain("--seeds", "one seed", need, "--seeds 5"))
    return found


def _held_out_digest(recipe: Recipe, tasks: dict[str, Task], known: dict[str, str], arm: str) -> str:
    assert recipe.evaluation is not None
    source = f"{recipe.data!r} {recipe.answer!r}"
    key = f"{source} {recipe.evaluation!r} {recipe.seed if recipe.evaluation.data is None else ''}"
    if key not in known:
        try:
            if source not in tasks:
                tasks[source] = open_task(recipe.data, recipe.answer)
            _, problems = held_out_problems(recipe, tasks[source])
        except DataError as error:
            raise DataError(f"in arm '{arm}':\n{error}") from None
        known[key] = problem_key(*(problem.key for problem in problems))
    return known[key]


@dataclass(frozen=True)
class Job:
    """One process: a run of an arm with a seed, or the cold start that several arms share."""

    title: str
    """For people."""
    arm: int
    """Whose recipe; of a cold start the first arm that has it."""
    seed: int
    cold: bool
    """Only what comes before RL."""
    after: int | None = None
    """The arm whose cold start it goes on from; it must be there before."""

    @property
    def key(self) -> tuple[int, int, bool]:
        """What tells it from other jobs."""
        return self.arm, self.seed, self.cold


def jobs(study: Study) -> list[Job]:
    """All processes in their order: seed by seed, so that what is finished early can be compared; cold starts first."""
    shared = study.shared_cold_starts()
    found = []
    for seed in study.seeds:
        for start in sorted(set(shared.values())):
            found.append(Job(f"cold start, seed {seed}", start, seed, cold=True))
        for number, arm in enumerate(study.arms):
            found.append(Job(f"{arm.name}, seed {seed}", number, seed, cold=False, after=shared.get(number)))
    return found


def run_folder(study: Study, root: Path, job: Job) -> Path:
    """Where a job's run lies."""
    name = f"cold-start-{job.arm + 1}" if job.cold else arm_folder(study.arms, job.arm)
    return root / "runs" / name / f"seed-{job.seed}"


def arm_folder(arms: Sequence[Arm], number: int) -> str:
    """The name of an arm's folder: its number makes it unique whatever its name is."""
    return f"{number + 1}-{arms[number].slug}"
