"""One run of a study in a process of its own: `python -m anabranch.study.worker STUDY ARM SEED run|cold`.

It does what `anabranch train` or `anabranch resume` does. It dies with the process that started it: its standard input
is a pipe that only that process holds open. Nothing is lost by that, see *Exact resume* in docs/design.md.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

from anabranch.errors import AnabranchError
from anabranch.recipe.io import to_yaml
from anabranch.recipe.tree import Recipe
from anabranch.study.folder import StudyPaths, read_manifest, write_json
from anabranch.study.plan import Job, Study, cold_recipe, jobs, located
from anabranch.study.results import extract, is_finished
from anabranch.tracking.files import write_atomic, writing
from anabranch.tracking.lock import FolderLock
from anabranch.tracking.run_folder import RunPaths, is_run

FAILED = 2
"""Exit code of an error that was explained."""
DISK_FULL = 28
"""Exit code where the disk is full: what else would be started would fail in the same way."""


def main(arguments: list[str]) -> int:
    """Do one job of a study; the exit code."""
    threading.Thread(target=_die_with_the_parent, daemon=True).start()
    root, arm, seed, kind = Path(arguments[0]), int(arguments[1]), int(arguments[2]), arguments[3]
    try:
        work(root, arm, seed, cold=kind == "cold")
    except AnabranchError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return DISK_FULL if disk_is_full(error) else FAILED
    return 0


def _die_with_the_parent() -> None:
    """Wait until the other end of standard input is closed, which the kernel does whatever the parent dies of."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error goes back to a full disk or quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def work(root: Path, arm: int, seed: int, *, cold: bool) -> None:
    """Start a run or go on with it, up to its end; then write its result.

    Args:
        root: folder of the study.
        arm: number of the arm, from 0.
        seed: of the run.
        cold: only what comes before RL.

    Raises:
        AnabranchError: whatever the run ends with.
    """
    manifest = read_manifest(root)
    study, paths = manifest.study, StudyPaths(root)
    job = next(job for job in jobs(study) if job.key == (arm, seed, cold))
    run = paths.run(study, job)
    recipe = located(study.recipe(arm, seed, manifest.compute), root)
    if cold:
        recipe = cold_recipe(recipe)
    if not is_finished(run):
        _train(study, paths, job, run, recipe)
    if cold:
        write_json(paths.result(study, job), {"cold_start": str(run.relative_to(root))})
    else:
        write_json(paths.result(study, job), extract(run, study.arms[arm].name, seed).to_json())


def _train(study: Study, paths: StudyPaths, job: Job, run: Path, recipe: Recipe) -> None:
    from anabranch.train.run import resume, start  # torch

    if is_run(run):
        resume(run, None)
    elif job.after is None:
        start(recipe, run)
    else:
        branch_off(paths.run(study, Job("", job.after, job.seed, cold=True)), run, recipe)
        resume(run, None)


def branch_off(cold_start: Path, run: Path, recipe: Recipe) -> None:
    """Make a run that stands at the end of a finished cold start: logs, checkpoint, and its own recipe.

    What it goes on to is what it would have come to by itself, to the bit: up to here nothing read what differs.

    Args:
        cold_start: a finished run without RL steps.
        run: the new run; what a kill left of it is replaced.
        recipe: of the new run.

    Raises:
        RunFolderError: something cannot be written.
    """
    partial = run.with_name(f".partial-{run.name}")
    with writing(run):
        shutil.rmtree(partial, ignore_errors=True)
        source = RunPaths(cold_start)
        skipped = shutil.ignore_patterns(source.lock.name, source.recipe.name, "curve.svg", ".partial-*")
        shutil.copytree(cold_start, partial, ignore=skipped)
        write_atomic(RunPaths(partial).recipe, to_yaml(recipe))
        FolderLock(RunPaths(partial).lock).release()
        partial.rename(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
