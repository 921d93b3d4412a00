"""The folder of a run: what was asked for, what it ran on, what happened.

recipe.yaml         the resolved recipe; its presence makes a folder a run
environment.json    software, machine, commit, command line of the start
metrics.jsonl       one record a training step (docs/metrics.md)
rollouts.jsonl      one record a sampled answer
evaluations.jsonl   one record an evaluation
clipped_tokens.jsonl  which tokens were clipped, one record a step; only where some were
checkpoints/
curve.svg           accuracy over the RL steps, drawn at the end
lock                held by the process that writes
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from anabranch.errors import RunFolderError, explain
from anabranch.tracking.environment import describe_environment
from anabranch.tracking.files import write_atomic, writing
from anabranch.tracking.jsonl import JsonlWriter, check_cut, file_size, truncate_to
from anabranch.tracking.lock import FolderLock
from anabranch.tracking.metrics import validate

LOGS = ("metrics", "rollouts", "evaluations", "clipped_tokens")
"""Names of the logs; `metrics` is `metrics.jsonl`."""


@dataclass(frozen=True)
class RunPaths:
    """Where things are in a run folder. Needs no lock: for readers."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.root / "recipe.yaml"

    @property
    def environment(self) -> Path:
        """What it ran on."""
        return self.root / "environment.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.root / "checkpoints"

    @property
    def lock(self) -> Path:
        """The lock file."""
        return self.root / "lock"

    def log(self, name: str) -> Path:
        """The file of one of `LOGS`."""
        return self.root / f"{name}.jsonl"


def is_run(path: Path) -> bool:
    """Whether a folder holds a run.

    Raises:
        RunFolderError: it cannot be told: no permission, a name that is too long, ...
    """
    try:
        return RunPaths(path).recipe.is_file()
    except OSError as error:
        found = error.strerror or str(error)
        raise RunFolderError(explain(str(path), found, "it must be readable", "choose another folder")) from error


def find_run(path: Path) -> RunPaths:
    """The paths of an existing run, for reading.

    Raises:
        RunFolderError: the path is not a run.
    """
    if is_run(path):
        return RunPaths(path)
    found = "no such folder" if not path.exists() else "no recipe.yaml" if path.is_dir() else "a file"
    need = "a run folder was made by `anabranch train` and holds recipe.yaml"
    raise RunFolderError(explain(str(path), found, need, "name a run folder, or start one with `anabranch train`"))


class RunFolder:
    """A run that this process writes to: the paths, the lock, the logs. Use `create` or `open`."""

    def __init__(self, paths: RunPaths, lock: FolderLock) -> None:
        self.paths = paths
        self._lock = lock

    @classmethod
    def create(cls, path: Path | str, recipe_yaml: str, recipe_name: str) -> RunFolder:
        """Make a new run.

        Args:
            path: a folder that does not exist yet, or is empty.
            recipe_yaml: the resolved recipe.
            recipe_name: its name, kept in environment.json.

        Raises:
            RunFolderError: there is a run already (it names `anabranch resume`), another process is at it, there are
                other files, or something cannot be written.
        """
        paths = RunPaths(Path(path))
        if not is_run(paths.root):
            _refuse_other_files(paths)
        with writing(paths.root):
            paths.root.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(paths.lock)
        try:
            if is_run(paths.root):  # asked with the lock held: two processes may create at the same time
                need = "a new run needs a new folder"
                fix = f"anabranch resume {paths.root}, or choose another folder"
                raise RunFolderError(explain(str(paths.root), "a run", need, fix))
            with writing(paths.checkpoints):
                paths.checkpoints.mkdir(exist_ok=True)
            environment = {"recipe": recipe_name, **describe_environment()}
            write_atomic(paths.environment, json.dumps(environment, indent=2) + "\n")
            write_atomic(paths.recipe, recipe_yaml)  # last: from here on it is a run
        except BaseException:
            lock.release()
            raise
        return cls(paths, lock)

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """Take over an existing run. Call `cut_logs` before writing to a log.

        Raises:
            RunFolderError: not a run, in use by another process, or not writable.
        """
        paths = find_run(Path(path))
        return cls(paths, FolderLock(paths.lock))

    def recipe_yaml(self) -> str:
        """The resolved recipe of this run."""
        return self.paths.recipe.read_text(encoding="utf-8")

    @cached_property
    def metrics(self) -> JsonlWriter:
        """The log of training steps. Write with `write_metrics`, which checks the record."""
        return JsonlWriter(self.paths.log("metrics"))

    @cached_property
    def rollouts(self) -> JsonlWriter:
        """The log of sampled answers."""
        return JsonlWriter(self.paths.log("rollouts"))

    @cached_property
    def evaluations(self) -> JsonlWriter:
        """The log of evaluations."""
        return JsonlWriter(self.paths.log("evaluations"))

    @cached_property
    def clipped_tokens(self) -> JsonlWriter:
        """The log of clipped tokens. Many runs have none: the file is made by the first record."""
        return JsonlWriter(self.paths.log("clipped_tokens"))

    def write_metrics(self, record: Mapping[str, Any]) -> None:
        """Check a step's record against the registry and take it.

        Raises:
            ValueError: the record breaks the registry (a bug of ours).
        """
        validate(record)
        self.metrics.write(record)

    def commit(self) -> dict[str, int]:
        """Put all logs safely on disk. Returns the bytes of each: what a checkpoint has to remember.

        Raises:
            RunFolderError: a log could not be written; the last good checkpoint is as it was.
        """
        clipped = "clipped_tokens"
        return {
            "metrics": self.metrics.commit(),
            "rollouts": self.rollouts.commit(),
            "evaluations": self.evaluations.commit(),
            clipped: self.clipped_tokens.commit() if clipped in self.__dict__ else file_size(self.paths.log(clipped)),
        }

    def cut_logs(self, sizes: Mapping[str, int] | None) -> None:
        """Cut the logs back to a checkpoint's `commit`. None: there is no checkpoint, all are emptied.

        Raises:
            RunFolderError: a log is not the one of that checkpoint; then no log was touched.
            ValueError: sizes for other logs than `LOGS`, or a log is open already (a bug of ours).
        """
        # Checkpoints of older versions know nothing of clipped tokens: none were written.
        wanted = dict.fromkeys(LOGS, 0) if sizes is None else {"clipped_tokens": 0, **sizes}
        if set(wanted) != set(LOGS):
            raise ValueError(f"sizes are for {sorted(wanted)}, the logs are {sorted(LOGS)}")
        if any(name in self.__dict__ for name in LOGS):
            raise ValueError("cut_logs comes before the first write")
        for name, size in wanted.items():
            check_cut(self.paths.log(name), size)
        for name, size in wanted.items():
            truncate_to(self.paths.log(name), size)

    def withdraw(self) -> None:
        """Take back a new run in which nothing was recorded yet: its files, and the folder. Otherwise do nothing.

        For a start that fails at once: the same command may then be given again. Call `close` as ever.

        Raises:
            RunFolderError: something cannot be removed.
        """
        paths, logs = self.paths, [self.paths.log(name) for name in LOGS]
        own = {paths.recipe, paths.environment, paths.lock, paths.checkpoints, *logs}
        if set(paths.root.iterdir()) - own or any(paths.checkpoints.iterdir()) or any(map(file_size, logs)):
            return
        with writing(paths.root):
            for file in (*logs, paths.recipe, paths.environment, paths.lock):
                file.unlink(missing_ok=True)
            paths.checkpoints.rmdir()
            paths.root.rmdir()

    def close(self) -> None:
        """Commit and close the logs that were opened, and let others have the folder. May be called twice."""
        try:
            for name in LOGS:
                if name in self.__dict__:
                    self.__dict__[name].close()
        finally:
            self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _refuse_other_files(paths: RunPaths) -> None:
    """A folder with foreign files is left alone; what a start that failed half-way left behind is not foreign."""
    if not paths.root.is_dir():
        return
    own = {paths.lock.name, paths.checkpoints.name, paths.environment.name}
    own |= {f"{paths.environment.name}.part", f"{paths.recipe.name}.part"}
    others = sorted(entry.name for entry in paths.root.iterdir() if entry.name not in own)
    if others:
        found = f"other files ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''})"
        raise RunFolderError(explain(str(paths.root), found, "a new run needs a new or empty folder", "choose another"))
