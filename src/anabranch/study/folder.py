"""The folder of a study.

study.json     the manifest: grid, seeds, recipes, how it computes, held-out problems, machine, command
runs/          a run folder for every arm and seed, and for every shared cold start
logs/          what each of these processes printed
results/       a few KB for every finished run: all that the report needs
results.json   all of these in one file, to be kept or committed
report.json    report.md, report.html
lock           held by the process that runs the study
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anabranch import __version__
from anabranch.errors import RunFolderError, explain
from anabranch.recipe.tree import Model
from anabranch.study.plan import FORMAT, Job, Study, arm_folder, run_folder
from anabranch.tracking.environment import describe_environment
from anabranch.tracking.files import write_atomic, writing

MANIFEST = "study.json"


@dataclass(frozen=True)
class StudyPaths:
    """Where things are in a study's folder."""

    root: Path

    @property
    def manifest(self) -> Path:
        """What was asked for."""
        return self.root / MANIFEST

    @property
    def export(self) -> Path:
        """All results in one file."""
        return self.root / "results.json"

    def run(self, study: Study, job: Job) -> Path:
        """The run folder of a job."""
        return run_folder(study, self.root, job)

    def log(self, study: Study, job: Job) -> Path:
        """What its process printed."""
        run = self.run(study, job)
        return self.root / "logs" / f"{run.parent.name}-{run.name}.log"

    def result(self, study: Study, job: Job) -> Path:
        """What a finished run came to."""
        name = f"cold-start-{job.arm + 1}" if job.cold else arm_folder(study.arms, job.arm)
        return self.root / "results" / f"{name}-seed-{job.seed}.json"


@dataclass(frozen=True)
class Manifest:
    """The study and everything about it that is fixed when it begins."""

    study: Study
    compute: Model
    """dtype, device and threads of all runs; its `source` is that of the first arm."""
    held_out: tuple[tuple[str, ...], ...]
    """For every arm and seed text that stands for the held-out problems."""
    facts: Mapping[str, Any]
    """Version, machine and command: for readers."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "format": FORMAT,
            **self.study.to_json(),
            "compute": self.compute.model_dump(mode="json"),
            "held_out": [list(digests) for digests in self.held_out],
            "facts": dict(self.facts),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], where: str) -> Manifest:
        """The inverse of `to_json`.

        Raises:
            RunFolderError: of another version of this format, or damaged.
        """
        if stored.get("format") != FORMAT:
            found = f"format {stored.get('format')!r}"
            raise RunFolderError(explain(where, found, f"this version reads format {FORMAT}", "use the right version"))
        try:
            return cls(
                study=Study.from_json(stored),
                compute=Model(**stored["compute"]),
                held_out=tuple(tuple(digests) for digests in stored["held_out"]),
                facts=stored["facts"],
            )
        except (KeyError, TypeError) as error:
            raise RunFolderError(explain(where, f"{error!r}", "it is damaged", "restore the file")) from error


def facts(command: str) -> dict[str, Any]:
    """Version, machine, and the command as one would type it, for the manifest."""
    return {"version": __version__, **describe_environment(), "command": command}


def read_json(path: Path, need: str, fix: str) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        RunFolderError: no such file, or no JSON object in it.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunFolderError(explain(str(path), error.strerror or str(error), need, fix)) from error
    except ValueError as error:
        raise RunFolderError(explain(str(path), f"no JSON ({error})", need, fix)) from error
    if not isinstance(found, dict):
        raise RunFolderError(explain(str(path), f"a JSON {type(found).__name__}", need, fix))
    return found


def read_manifest(root: Path) -> Manifest:
    """The manifest of a study's folder.

    Raises:
        RunFolderError: there is none, or it is damaged.
    """
    path = StudyPaths(root).manifest
    stored = read_json(path, "a study was made by `anabranch ablate` and has one", "name the folder of a study")
    return Manifest.from_json(stored, str(path))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a whole file or none. Raises RunFolderError where it cannot be written."""
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def check_same(there: Study, asked: Study, root: Path) -> None:
    """Refuse to go on with another study than the one in the folder.

    Raises:
        RunFolderError: it names what differs.
    """
    if there == asked:
        return
    names = [[arm.name for arm in study.arms] for study in (there, asked)]
    if there.seeds != asked.seeds:
        found = f"a study with seeds {_listed(there.seeds)}, not {_listed(asked.seeds)}"
    elif names[0] != names[1]:
        found = f"a study with the arms {_listed(names[0])}, not {_listed(names[1])}"
    else:
        pairs = zip(there.arms, asked.arms, strict=True)
        changed = [one.name for one, other in pairs if one.recipe != other.recipe]
        found = f"a study whose arm '{changed[0]}' has another recipe" if changed else "a study typed differently"
    need = "a folder holds one study, and what is finished in it stays as it is"
    raise RunFolderError(explain(str(root), found, need, "--out with a new folder, or the command in study.json"))


def _listed(items: Any) -> str:
    return ", ".join(map(str, items))
