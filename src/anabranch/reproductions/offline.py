"""Offline values for a study: made once, before its runs, in its own folder, for all arms and seeds that read them."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from anabranch.recipe.tree import Recipe
from anabranch.study.folder import Manifest, StudyPaths
from anabranch.study.outline import Outline
from anabranch.study.plan import OF_STUDY, Job, jobs

FOLDER = "values"
FILE = f"{OF_STUDY}{FOLDER}/values.json"
"""What an arm that starts from them names as `algorithm.tracker.values`."""
SETTING = f"algorithm.tracker.values={FILE}"


def maker(samples: int, wanted: Callable[[Job], bool]) -> Callable[[Manifest, Path], None]:
    """Makes the file of a study's folder, if a run that is still to do reads it and it is not there.

    Training problems, prompts and model must be the same in all arms that read it; a run refuses what is not its own.
    What is stopped goes on with the same command, and the file is the same: see `anabranch values`.

    Args:
        samples: answers a problem.
        wanted: which runs are to be done now.
    """

    def make(manifest: Manifest, root: Path) -> None:
        study, paths = manifest.study, StudyPaths(root)
        readers = [
            job.arm
            for job in jobs(study)
            if study.arms[job.arm].recipe.algorithm.tracker.values == FILE
            and not job.cold
            and wanted(job)
            and not paths.result(study, job).exists()
        ]
        folder = root / FOLDER
        if readers and not (folder / "values.json").exists():
            from anabranch.evaluation.values_command import sample_values  # torch

            arm = readers[0]
            recipe = study.recipe(arm, study.arms[arm].recipe.seed, manifest.compute)
            sample_values(without_values(recipe), samples, folder)

    return make


def without_values(recipe: Recipe) -> Recipe:
    """The recipe that starts from the prior: values are asked for before there are any."""
    return recipe.but(algorithm=recipe.algorithm.but(tracker=recipe.algorithm.tracker.but(values=None)))


def command(outline: Outline, samples: int) -> str | None:
    """What makes the file outside of a study, where the runs of single arms look for it; None: no arm reads it."""
    reader = next((arm for arm in outline.arms if SETTING in arm.overrides), None)
    if reader is None:
        return None
    compute = [f"model.{name}={outline.compute[name]}" for name in ("threads", "dtype", "device")]
    changes = [text for text in reader.overrides if text != SETTING]
    typed = ["anabranch", "values", outline.base, *changes, *compute, "--samples", str(samples), "--out", FOLDER]
    return shlex.join(typed)


def outside(command: str) -> str:
    """The command of a run that reads the file where `command` above puts it."""
    return command.replace(FILE, FILE.removeprefix(OF_STUDY))
