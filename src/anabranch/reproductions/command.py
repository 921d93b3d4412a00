"""`anabranch reproduce`: run the study of a reproduction, judge it, and keep it as a ledger."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from anabranch.errors import RecipeError, RunFolderError, explain
from anabranch.presets import load
from anabranch.reproductions.catalog import REPRODUCTIONS, find
from anabranch.reproductions.claims import Finding, Reproduction
from anabranch.reproductions.ledger import index_text, write_ledger, write_report
from anabranch.reproductions.offline import maker
from anabranch.reproductions.page import summary
from anabranch.study.command import carry_out, cores, default_folder, no_preparation
from anabranch.study.folder import Manifest, StudyPaths
from anabranch.study.grid import check_distinct, make_arm, parse_seeds
from anabranch.study.jobs import Standing
from anabranch.study.outline import Outline, read_outline
from anabranch.study.plan import Job, Study, check_arms
from anabranch.tracking.display import make_display
from anabranch.tracking.tables import TextTable


def show_listing() -> None:
    """Print what can be reproduced."""
    with make_display(sys.stdout) as display:
        display.table(listing())


def listing() -> TextTable:
    """What can be reproduced, and how long it takes."""
    rows = [
        (
            each.name,
            each.title,
            f"{len(each.findings)} findings, {len(list(each.claims))} claims",
            f"{len(each.arms)} arms x {each.seeds} seeds, meant for {each.time}",
            f"{len(each.quick.arms)} arms x {each.quick.seeds} seeds, meant for {each.quick.time}",
        )
        for each in REPRODUCTIONS.values()
    ]
    return TextTable(
        "What can be reproduced (on two cores)", ("name", "what", "claims", "whole", "--quick"), tuple(rows)
    )


def study_of(reproduction: Reproduction, *, quick: bool, seeds: str | None) -> Study:
    """The study that a reproduction is: all of its arms, whatever is run of them at a time.

    Args:
        reproduction: which one.
        quick: only its quick part.
        seeds: as `--seeds` has them; None: as many as it says itself.

    Raises:
        RecipeError: seeds that cannot be.
    """
    part = reproduction.quick
    common = (*reproduction.common, *(part.changes if quick else ()))
    keys = part.arms if quick else tuple(reproduction.arms)
    base = load(reproduction.base)
    arms = tuple(make_arm(base, key, common, reproduction.arms[key]) for key in keys)
    check_distinct(arms)
    numbers = parse_seeds(seeds if seeds is not None else str(part.seeds if quick else reproduction.seeds))
    study = Study(reproduction.base, (), arms, numbers)
    check_arms(study)
    return study


def reproduce(
    name: str,
    *,
    quick: bool = False,
    only: str | None = None,
    seeds: str | None = None,
    out: Path | None = None,
    at_once: int | None = None,
    ledger: Path | None = None,
) -> int:
    """Run a reproduction, or go on with it, and write what came out.

    Args:
        name: which one.
        quick: the part that takes minutes; it has a folder of its own.
        only: `T1,T3`: run only the arms of these findings now; the study stays the whole one.
        seeds: as in `anabranch ablate`.
        out: folder of the study; None: one below `studies/` that the same command finds again.
        at_once: runs at a time, a thread each; None: as many as there are cores.
        ledger: the folder `docs` whose ledger is written; None: none.

    Returns:
        How many runs failed.

    Raises:
        AnabranchError: a mistake that the user can mend, found before anything runs; or a full disk.
    """
    reproduction = find(name)
    if quick and ledger is not None:
        need = "a ledger comes from the whole reproduction"
        raise RecipeError(explain("--ledger", "with --quick", need, f"anabranch reproduce {name} --ledger {ledger}"))
    if ledger is not None:
        index_text(reproduction, ledger)  # hours before it is written
    findings = reproduction.chosen(only)
    study = study_of(reproduction, quick=quick, seeds=seeds)
    keys = {key for finding in findings for key in finding.arms}
    wanted = {number for number, arm in enumerate(study.arms) if arm.name in keys}
    if not wanted:
        ids = ", ".join(finding.id for finding in findings)
        raise RecipeError(explain("--only", ids, "--quick has no arm of it", "leave out --quick"))
    typed = f"anabranch reproduce {name}" + (" --quick" if quick else "") + (f" --seeds {seeds}" if seeds else "")

    def chosen(job: Job) -> bool:
        return job.arm in wanted

    def conclude(root: Path) -> None:
        _say(reproduction, read_outline(root), root)
        if ledger is not None:
            write_ledger(reproduction, StudyPaths(root).export, ledger)

    return carry_out(
        study,
        out or default_folder(study),
        command=typed,
        at_once=at_once or cores(),
        introduce=_introduction(reproduction, findings, wanted),
        conclude=conclude,
        prepare=maker(reproduction.value_samples, chosen) if reproduction.value_samples else no_preparation,
        wanted=chosen,
        more_facts={"reproduction": name, "registered": [claim.to_json() for claim in reproduction.claims]},
    )


def refuse_with_results(options: Sequence[str]) -> None:
    """Options of a run have no place where nothing is run.

    Raises:
        RecipeError: there are some.
    """
    if options:
        need = "finished results are judged as they are"
        raise RecipeError(explain("--results", f"with {', '.join(options)}", need, f"leave out {', '.join(options)}"))


def rewrite(name: str, results: Path, ledger: Path | None) -> None:
    """Judge finished results again, without running anything, and write their report or the ledger.

    Args:
        name: of the reproduction.
        results: the study's folder, or its `results.json`.
        ledger: the folder `docs` whose ledger is written; None: the report goes beside the results.

    Raises:
        AnabranchError: results of something else, damaged, or without a finished run.
    """
    reproduction = find(name)
    outline = check_results(reproduction, results)
    if ledger is None:
        _say(reproduction, outline, results if results.is_dir() else results.parent)
    else:
        write_ledger(reproduction, results / "results.json" if results.is_dir() else results, ledger)


def check_results(reproduction: Reproduction, results: Path) -> Outline:
    """The results of a reproduction's study.

    Raises:
        RunFolderError: not a study, another one, or nothing is finished.
    """
    outline = read_outline(results)
    of = outline.facts.get("reproduction")
    if of != reproduction.name:
        found = f"a study of {of!r}" if of else "an ordinary study"
        fix = f"anabranch report {results}" if not of else f"anabranch reproduce {of} --results {results}"
        raise RunFolderError(explain(str(results), found, f"results of '{reproduction.name}' are needed", fix))
    if not outline.runs:
        fix = f"anabranch reproduce {reproduction.name}"
        raise RunFolderError(explain(str(results), "no finished run", "verdicts are made of finished runs", fix))
    return outline


def _say(reproduction: Reproduction, outline: Outline, folder: Path) -> None:
    """Write the report into a folder, and print its summary."""
    page = write_report(reproduction, outline, folder)
    table = summary(page.judged)
    with make_display(sys.stdout) as display:
        display.note("")
        display.table(replace(table, title=f"{reproduction.name}: {len(outline.runs)} runs"))
        display.note(f"report: {folder / 'report.md'}")


def _introduction(
    reproduction: Reproduction, findings: tuple[Finding, ...], wanted: set[int]
) -> Callable[[Manifest, Path, int, Standing], list[str]]:
    """What is said before the first run."""

    def lines(manifest: Manifest, root: Path, at_once: int, standing: Standing) -> list[str]:
        study, compute = manifest.study, manifest.compute
        runs = len(wanted) * len(study.seeds)
        done = sum(not job.cold for job in standing.done)
        told = [
            reproduction.title,
            f"study folder: {root}   (stopped, it goes on with the same command)",
            f"findings: {', '.join(finding.id for finding in findings)}",
            f"{len(wanted)} arms x {len(study.seeds)} seeds ({', '.join(map(str, study.seeds))}): {runs} runs, "
            f"{done} of them finished already",
            f"{at_once} at a time, {compute.threads} thread each, {compute.dtype} on {compute.device}",
        ]
        if at_once > cores():
            told.append(f"that is more than the {cores()} cores of this machine: runs slow each other down")
        return told

    return lines
