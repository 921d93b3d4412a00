"""`anabranch ablate` and `anabranch report`: check everything, run the grid, write the report."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from anabranch.errors import RecipeError, RunFolderError, explain
from anabranch.recipe.checks import notes
from anabranch.recipe.tree import Model
from anabranch.study.folder import (
    Manifest,
    StudyPaths,
    check_same,
    facts,
    read_manifest,
    write_json,
)
from anabranch.study.grid import arms, parse_seeds
from anabranch.study.jobs import Standing, run_all, worker_command
from anabranch.study.outline import Outline, read_outline, write_export
from anabranch.study.plan import Job, Study, check_arms, held_out_digests, jobs
from anabranch.study.progress import Progress
from anabranch.study.report import missing_sentence, summary_table, write_report
from anabranch.tasks.base import problem_key
from anabranch.tracking.display import Display, make_display
from anabranch.tracking.files import writing
from anabranch.tracking.lock import FolderLock
from anabranch.tracking.run_folder import RunPaths

STUDIES = Path("studies")
"""Default home of study folders, below the working directory."""
LEAST_SPACE = 64 * 2**20
"""Free bytes without which nothing is started."""


@dataclass(frozen=True)
class Asked:
    """A study as typed."""

    recipe: str
    overrides: tuple[str, ...]
    varied: tuple[str, ...]
    bundles: tuple[str, ...]
    seeds: str

    def study(self) -> Study:
        """All arms and seeds, checked.

        Raises:
            RecipeError: an axis or value that does not exist, arms that are equal, fewer than two of them, ...
        """
        seeds = parse_seeds(self.seeds)
        study = Study(self.recipe, self.overrides, arms(self.recipe, self.overrides, self.varied, self.bundles), seeds)
        check_arms(study)
        return study

    def command(self) -> str:
        """The command that makes this study anew."""
        parts = ["anabranch", "ablate", self.recipe, *self.overrides]
        for option, values in (("--vary", self.varied), ("--arm", self.bundles)):
            parts += [part for value in values for part in (option, value)]
        return shlex.join([*parts, "--seeds", self.seeds])


def ablate(asked: Asked, out: Path | None, at_once: int) -> int:
    """Run a study, or go on with it, and write its report.

    Args:
        asked: which one.
        out: its folder; None: one below `studies/` that the same command finds again.
        at_once: processes at a time.

    Returns:
        How many runs failed.

    Raises:
        AnabranchError: a mistake that the user can mend, found before anything runs; or a full disk.
    """
    study = asked.study()
    return carry_out(
        study,
        out or default_folder(study),
        command=asked.command(),
        at_once=at_once,
        introduce=introduction,
        conclude=lambda root: report(root, None),
    )


def no_preparation(manifest: Manifest, root: Path) -> None:
    """What most studies need before their first run beside models: nothing."""


def carry_out(
    study: Study,
    root: Path,
    *,
    command: str,
    at_once: int,
    introduce: Callable[[Manifest, Path, int, Standing], list[str]],
    conclude: Callable[[Path], object],
    prepare: Callable[[Manifest, Path], None] = no_preparation,
    wanted: Callable[[Job], bool] = lambda job: True,
    more_facts: Mapping[str, Any] = MappingProxyType({}),
) -> int:
    """Run a study in its folder, or go on with it, and export its results.

    Args:
        study: checked.
        root: its folder.
        command: what makes it anew, for the manifest.
        at_once: processes at a time.
        introduce: what is said before the first run, see `introduction`.
        conclude: is given the folder once all is done, if a run is finished.
        prepare: makes what the runs need and the folder does not have, each time before the first of them.
        wanted: which jobs to do now; the others are left as they are.
        more_facts: for the manifest, beside version and machine.

    Returns:
        How many runs failed.

    Raises:
        AnabranchError: a mistake that the user can mend, found before anything runs; or a full disk.
    """
    with make_display(sys.stdout) as display:
        manifest_there = StudyPaths(root).manifest.exists()
        if manifest_there:
            check_same(read_manifest(root).study, study, root)
        else:
            _refuse_other_files(root)
        _check_space(root)
        digests = None if manifest_there else held_out_digests(study)
        with writing(root):
            root.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(root / "lock")
        try:
            if digests is None:
                manifest = read_manifest(root)
            else:
                told = {**facts(command), **more_facts}
                manifest = _begin(study, root, digests, told, at_once, display)
            display.close()
            prepare(manifest, root)
            standing = _run(manifest, root, at_once, introduce, wanted)
            if any(not job.cold for job in standing.done):
                conclude(root)
            return _failures(standing)
        finally:
            lock.release()


def report(path: Path, out: Path | None) -> Outline:
    """Write the report of a study again, from its folder or from its `results.json`, and print its tables.

    Args:
        path: the folder or the file.
        out: where the report goes; None: into the folder, or beside the file.

    Raises:
        RunFolderError: not a study, damaged, or the report cannot be written.
    """
    outline = read_outline(path)
    if not outline.runs:
        need = "a report is made of finished runs"
        raise RunFolderError(explain(str(path), "no finished run", need, "give the `anabranch ablate` command again"))
    folder = out or (path if path.is_dir() else path.parent)
    found = write_report(outline, folder)
    with make_display(sys.stdout) as display:
        display.note("")
        display.table(summary_table(found))
        missing = missing_sentence(found)
        for line in [*(comparison["sentence"] for comparison in found["comparisons"]), *([missing] if missing else [])]:
            display.note(line)
        display.note(f"report: {folder / 'report.html'}")
    return outline


def default_folder(study: Study) -> Path:
    """`studies/NAME-HASH`: the same study has the same folder, another one another."""
    parts = [*map(str, study.seeds), *(f"{arm.name} {arm.recipe!r}" for arm in study.arms)]
    return STUDIES / f"{study.arms[0].recipe.name}-{problem_key(*parts)[:8]}"


def _begin(
    study: Study, root: Path, digests: list[list[str]], told: Mapping[str, Any], at_once: int, display: Display
) -> Manifest:
    """Settle how all runs compute, make the models that are not there, and write the manifest: it makes a study."""
    from anabranch.modeling.load import prepare  # torch
    from anabranch.modeling.small import training_lines

    sources = dict.fromkeys(arm.recipe.model.source for arm in study.arms)
    for source in sources:
        prepare(source, display)
    compute = settled(study, at_once)
    models = list(dict.fromkeys(line for source in sources for line in training_lines(source)))
    manifest = Manifest(study, compute, tuple(tuple(each) for each in digests), {**told, "models": models})
    write_json(StudyPaths(root).manifest, manifest.to_json())
    return manifest


def settled(study: Study, at_once: int) -> Model:
    """dtype, device and threads for all runs: measured once, so that arms do not differ in them.

    Raises:
        RecipeError: arms that differ in them.
    """
    from anabranch.modeling.devices import settle  # torch

    asked = {(m.dtype, m.device, m.threads) for m in (arm.recipe.model for arm in study.arms)}
    if len(asked) > 1:
        need = "all runs of a study compute in one way"
        raise RecipeError(explain("--vary model", "dtype, device or threads", need, "two studies"))
    model = study.arms[0].recipe.model
    if model.threads == 0 and at_once > 1:
        model = model.but(threads=max(1, cores() // at_once))
    return settle(model)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _run(
    manifest: Manifest,
    root: Path,
    at_once: int,
    introduce: Callable[[Manifest, Path, int, Standing], list[str]],
    wanted: Callable[[Job], bool],
) -> Standing:
    """Run what is wanted and not done, and export all results of the folder."""
    study, paths = manifest.study, StudyPaths(root)
    todo = [job for job in jobs(study) if job.cold or wanted(job)]
    done = [job for job in todo if paths.result(study, job).exists()]
    standing = Standing([job for job in todo if job not in done], list(done))
    _drop_needless_cold_starts(standing)

    def metrics(job: Job) -> Path:
        return RunPaths(paths.run(study, job)).log("metrics")

    def steps(job: Job) -> int:
        return study.arms[job.arm].recipe.steps

    with Progress(sys.stdout, metrics, steps, at_once) as progress:
        for line in introduce(manifest, root, at_once, standing):
            progress.note(line)
        environment = {**os.environ, "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED", "0")}
        run_all(
            standing,
            command=worker_command(root),
            log=lambda job: paths.log(study, job),
            at_once=at_once,
            watcher=progress,
            environment=environment,
        )
    write_export(root)
    return standing


def _failures(standing: Standing) -> int:
    """Say what failed and why; how many."""
    for job, reason in standing.failed.items():
        print(f"\nFAILED: {job.title}\n{reason}", file=sys.stderr)
    if standing.failed:
        total = len(standing.done) + len(standing.failed)
        print(f"\n{len(standing.failed)} of {total} failed; the same command tries them again", file=sys.stderr)
    return len(standing.failed)


def _drop_needless_cold_starts(standing: Standing) -> None:
    """A cold start is done once all runs that go on from it are: it need not be there any more."""
    for job in [job for job in standing.waiting if job.cold]:
        if not any(other.after == job.arm and other.seed == job.seed for other in standing.waiting):
            standing.waiting.remove(job)
            standing.done.append(job)


def introduction(manifest: Manifest, root: Path, at_once: int, standing: Standing) -> list[str]:
    """What is said before the first run: grid, seeds, folder, threads, what is shared, what may surprise."""
    study, compute = manifest.study, manifest.compute
    runs = len(study.arms) * len(study.seeds)
    lines = [
        f"study folder: {root}   (stopped, it goes on with the same command)",
        f"{len(study.arms)} arms x {len(study.seeds)} seeds ({', '.join(map(str, study.seeds))}): {runs} runs",
    ]
    lines += [f"  {'reference: ' if not number else ''}{arm.name}" for number, arm in enumerate(study.arms)]
    lines.append(
        f"{at_once} at a time, {compute.threads} threads each, {compute.dtype} on {compute.device} in all of them"
    )
    if at_once * compute.threads > cores():
        lines.append(f"that is more than the {cores()} cores of this machine: runs slow each other down")
    if any(change.startswith("recipe=") for arm in study.arms for change in arm.changes):
        lines.append(
            "of each recipe only the method is taken: algorithm, reward, and how often a batch is used; sizes, model, "
            f"data, optimizer and stages are those of {study.base}"
        )
    shared = study.shared_cold_starts()
    if shared:
        lines.append(f"{len(shared)} arms share a cold start: it is made once a seed, and their runs go on from it")
    before = sum(not job.cold for job in standing.done)
    lines += [f"runs that are finished already: {before}"] if before else []
    for text in dict.fromkeys(note for arm in study.arms for note in notes(arm.recipe)):
        lines.append(f"note: {text}")
    return lines


def _refuse_other_files(root: Path) -> None:
    """A folder with other files is left alone; what a start that failed half-way left behind is not foreign."""
    if not root.exists():
        return
    if not root.is_dir():
        raise RunFolderError(explain(str(root), "a file", "a study is a folder", "--out with a new folder"))
    others = sorted(entry.name for entry in root.iterdir() if entry.name not in ("lock", "study.json.part"))
    if others:
        found = f"other files ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''})"
        raise RunFolderError(
            explain(str(root), found, "a study needs a new folder, or its own", "--out with a new one")
        )


def _check_space(root: Path) -> None:
    """Refuse to begin on a full disk."""
    there = next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if free < LEAST_SPACE:
        found = f"{free / 2**20:.0f} MB free"
        need = f"a study writes runs and needs {LEAST_SPACE / 2**20:.0f} MB at the very least"
        raise RunFolderError(explain(str(root), found, need, "free some space, or choose another disk with --out"))
