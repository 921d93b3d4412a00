"""A study as a report needs it: names and numbers, no recipes that have to be valid in this version.

It is read from a study's folder, or from the one file that keeps it (`results.json`), which is how results are
committed: the report can be made again from it without any run folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anabranch.errors import RunFolderError, explain
from anabranch.study.folder import MANIFEST, StudyPaths, read_json
from anabranch.study.plan import FORMAT
from anabranch.study.results import RunResult
from anabranch.tracking.files import write_atomic


@dataclass(frozen=True)
class ArmOutline:
    """One arm, without its recipe."""

    name: str
    changes: tuple[str, ...]
    overrides: tuple[str, ...]
    """Applied to the base recipe they give the arm's."""
    held_out: tuple[str, ...]
    """For every seed text that stands for the held-out problems."""


@dataclass(frozen=True)
class Outline:
    """A study and its finished runs."""

    base: str
    overrides: tuple[str, ...]
    arms: tuple[ArmOutline, ...]
    seeds: tuple[int, ...]
    compute: Mapping[str, Any]
    facts: Mapping[str, Any]
    runs: Mapping[tuple[str, int], RunResult]
    """By name of the arm and seed; what is missing is not there."""

    def missing(self) -> list[tuple[str, int]]:
        """Runs without a result, by arm and seed."""
        return [(arm.name, seed) for arm in self.arms for seed in self.seeds if (arm.name, seed) not in self.runs]


def read_outline(path: Path) -> Outline:
    """A study from its folder, or from its `results.json`.

    Raises:
        RunFolderError: neither, or damaged, or of another format.
    """
    if path.is_dir() and not (path / MANIFEST).is_file() and (path / "results.json").is_file():
        path = path / "results.json"
    if path.is_dir():
        manifest = read_json(StudyPaths(path).manifest, "a study was made by `anabranch ablate`", "name its folder")
        files = sorted((path / "results").glob("*.json"))
        need, fix = "it is the result of a run", "remove it and give the `anabranch ablate` command again"
        runs = [found for found in (read_json(file, need, fix) for file in files) if "cold_start" not in found]
    else:
        stored = read_json(path, "a study's folder or its results.json is needed", "check the path")
        manifest, runs = stored.get("study", {}), stored.get("runs", [])
    if manifest.get("format") != FORMAT:
        found = f"format {manifest.get('format')!r}"
        raise RunFolderError(explain(str(path), found, f"this version reads format {FORMAT}", "name another study"))
    try:
        return _outline(manifest, [RunResult.from_json(run) for run in runs])
    except (KeyError, TypeError) as error:
        raise RunFolderError(explain(str(path), f"{error!r}", "it is damaged", "restore the files")) from error


def _outline(manifest: Mapping[str, Any], runs: list[RunResult]) -> Outline:
    return Outline(
        base=manifest["base"],
        overrides=tuple(manifest["overrides"]),
        arms=tuple(
            ArmOutline(arm["name"], tuple(arm["changes"]), tuple(arm["overrides"]), tuple(digests))
            for arm, digests in zip(manifest["arms"], manifest["held_out"], strict=True)
        ),
        seeds=tuple(manifest["seeds"]),
        compute=manifest["compute"],
        facts=manifest["facts"],
        runs={(run.arm, run.seed): run for run in runs},
    )


def write_export(root: Path) -> Path:
    """Write all results of a study's folder into its `results.json`, one line a run; returns the file.

    Raises:
        RunFolderError: the study cannot be read, or the file cannot be written.
    """
    paths = StudyPaths(root)
    manifest = read_json(paths.manifest, "a study was made by `anabranch ablate`", "name its folder")
    outline = read_outline(root)
    lines = ",\n".join(json.dumps(run.to_json(), allow_nan=False) for _, run in sorted(outline.runs.items()))
    write_atomic(paths.export, f'{{"study": {json.dumps(manifest)},\n"runs": [\n{lines}\n]}}\n')
    return paths.export
