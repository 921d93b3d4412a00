"""Write `benchmarks/RESULTS.md` from the files of `benchmarks/results`: `.venv/bin/python -m benchmarks.report`.

Every number is one of a file, or the median, extremes, sum, or ratio of such. `benchmarks/notes.md` holds what numbers
do not say: what stands there below a section's heading is put at the end of that section.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import bench_sections as bench
from benchmarks import duel_sections as duels
from benchmarks.duel import RESULTS, ROOT, number
from benchmarks.goals import NOT_MEASURED, Outcome
from benchmarks.markdown import counted, table
from benchmarks.waiting_section import waiting_outcomes, waiting_text

Results = Mapping[str, Mapping[str, Any]]
"""By name of the file, without `.json`."""

Text = Callable[[Mapping[str, Any]], Iterator[str]]
"""What is written about one file."""


@dataclass(frozen=True)
class Part:
    """What a section says about one file."""

    file: str
    """Its name, without `.json`."""
    make: str
    """The target of `make` that measures it."""
    texts: tuple[Text, ...]
    title: str = ""
    """Heading of its own; empty: none."""


@dataclass(frozen=True)
class Section:
    """A row of the goals, or what belongs to none."""

    heading: str
    outcomes: Callable[[Results], Iterable[Outcome]]
    parts: tuple[Part, ...]


def _growth(results: Results) -> Iterator[Outcome]:
    for axis, goal in bench.GROWTH.items():
        yield bench.growth_outcome(goal, axis, "time_against_linear", results.get("scale"))
    yield bench.growth_outcome(bench.FLAT["answers"], "answers", "memory_against_base", results.get("scale"))


def _memory(results: Results) -> Iterator[Outcome]:
    yield duels.memory_outcome(duels.MEMORY, results.get("step"))
    yield duels.memory_outcome(duels.MEMORY_UNTOUCHED, results.get("step_default_memory"))
    yield bench.growth_outcome(bench.FLAT["prompts"], "prompts", "memory_against_base", results.get("scale"))


def _step(results: Results) -> Iterator[Outcome]:
    yield duels.step_outcome(duels.STEP, results.get("step"))
    yield duels.step_outcome(duels.STEP_UNTOUCHED, results.get("step_default_memory"))


_DUEL = (duels.duel_text, duels.phases_text)
_UNTOUCHED = "TRL's environment variables left as they come"

SECTIONS = (
    Section(
        "GRPO step",
        _step,
        (
            Part("step", "bench-step", _DUEL),
            Part("step_default_memory", "bench-step-default-memory", _DUEL, _UNTOUCHED),
        ),
    ),
    Section(
        "Generation against vLLM",
        lambda results: (
            duels.generation_outcome(goal, results.get(f"generate_vllm_{answers}"), answers)
            for answers, goal in duels.VLLM.items()
        ),
        tuple(
            Part(f"generate_vllm_{answers}", "bench-generate", _DUEL, f"{answers} answers") for answers in duels.VLLM
        ),
    ),
    Section(
        "Generation against transformers",
        lambda results: (
            duels.generation_outcome(goal, results.get(f"generate_transformers_{answers}"), answers)
            for answers, goal in duels.TRANSFORMERS.items()
        ),
        tuple(Part(f"generate_transformers_{answers}", "bench-generate", _DUEL) for answers in duels.TRANSFORMERS),
    ),
    Section(
        "Forward and backward",
        lambda results: [bench.products_outcome(results.get("train"))],
        (Part("train", "bench-train", (bench.train_text,)),),
    ),
    Section(
        "Breadth",
        lambda results: (
            outcome for kind in bench.BREADTH for outcome in bench.breadth_outcomes(kind, results.get("scale"))
        ),
        (Part("scale", "bench-scale", (bench.breadth_text,)),),
    ),
    Section(
        "Waiting for tools",
        lambda results: waiting_outcomes(results.get("waiting")),
        (Part("waiting", "bench-waiting", (waiting_text,)),),
    ),
    Section(
        "Start-up",
        lambda results: [duels.start_outcome(results.get("startup"))],
        (
            Part("startup", "bench-startup", (duels.start_text,)),
            Part("startup_help", "bench-startup", (duels.start_text,), "anabranch --help"),
        ),
    ),
    Section(
        "Memory",
        _memory,
        (
            Part("step", "bench-step", (duels.memory_text,)),
            Part("step_default_memory", "bench-step-default-memory", (duels.memory_text,), _UNTOUCHED),
        ),
    ),
    Section("Growth", _growth, (Part("scale", "bench-scale", (bench.growth_text,)),)),
    Section(
        "The same answers into both trainers",
        lambda results: [],
        (Part("replay", "bench-replay", (duels.gradients_text, *_DUEL, duels.memory_text)),),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description="write RESULTS.md")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--notes", type=Path, default=ROOT / "benchmarks" / "notes.md", help="texts for the sections")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "RESULTS.md", help="the file to write")
    asked = parser.parse_args()
    results = read_results(asked.results)
    try:
        notes = read_notes(asked.notes.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(f"{asked.notes}: {error}") from None
    asked.out.write_text(written(results, notes), encoding="utf-8")
    print(f"{asked.out}: {len(results)} files of results")
    print("\n".join(f"  {outcome.what}: {outcome.measured}, {outcome.verdict}" for outcome in outcomes(results)))


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """All results of a folder, by name.

    Places of this machine (the repository, the home folder) are replaced by `.` and `~`, in the files too: results are
    read elsewhere.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        text = path.read_text(encoding="utf-8")
        clean = without_places(text)
        if clean != text:
            part = path.with_name(path.name + ".part")
            part.write_text(clean, encoding="utf-8")
            part.replace(path)
        found[path.stem] = json.loads(clean)
    return found


def without_places(text: str) -> str:
    """Text with the repository as `.` and the home folder as `~`."""
    for place, name in ((ROOT, "."), (Path.home(), "~")):
        text = re.sub(rf"(?<![\w./~-]){re.escape(str(place))}(?![\w.-])", name, text)
    return text


def read_notes(text: str) -> dict[str, str]:
    """What stands below each `## heading`, by heading.

    Raises:
        ValueError: a heading of no section.
    """
    _, *found = re.split(r"^## +(.+?) *$", text, flags=re.MULTILINE)
    notes = {heading: body.strip() for heading, body in zip(found[::2], found[1::2], strict=True)}
    odd = notes.keys() - {section.heading for section in SECTIONS}
    if odd:
        raise ValueError(f"no section has the heading {sorted(odd)[0]!r}")
    return notes


def outcomes(results: Results) -> list[Outcome]:
    """The goals, and what came of them."""
    return [outcome for section in SECTIONS for outcome in section.outcomes(results)]


def written(results: Results, notes: Mapping[str, str]) -> str:
    """The whole report."""
    blocks = [
        "# Results",
        "Written by `make bench-report` from the files of [results](results), which `make bench` measures. Ratios are "
        "the median of the ratios of single rounds, with the smallest and the largest in brackets. A goal is compared "
        "with the median.",
        outcome_table(outcomes(results)),
        "## Machine",
        *machine_text(results),
    ]
    for section in SECTIONS:
        blocks += [
            f"## {section.heading}",
            *section_text(section, results),
            *filter(None, [notes.get(section.heading)]),
        ]
    blocks += other_text(results)
    return "\n\n".join(blocks) + "\n"


def outcome_table(found: Iterable[Outcome]) -> str:
    return table(("what", "goal", "measured", ""), [(o.what, o.goal, o.measured, o.verdict) for o in found])


def section_text(section: Section, results: Results) -> Iterator[str]:
    """Outcomes, then every file; what is missing is named."""
    rows = list(section.outcomes(results))
    if rows:
        yield outcome_table(rows)
    for part in section.parts:
        if part.title:
            yield f"### {part.title}"
        if part.file in results:
            for text in part.texts:
                yield from text(results[part.file])
        else:
            yield f"{NOT_MEASURED[0].upper()}{NOT_MEASURED[1:]}: `make {part.make}` writes `{part.file}.json`."


def other_text(results: Results) -> Iterator[str]:
    """Files that no section is about."""
    known = {part.file for section in SECTIONS for part in section.parts}
    others = {name: found for name, found in results.items() if name not in known}
    if others:
        yield "## Further measurements"
    for name, found in others.items():
        yield f"### {name}"
        texts = (bench.numbers_text,) if "bench" in found else _DUEL
        for text in texts:
            yield from text(found)


# -------------------------------------------------------------------------------------------------------- machine


def machine_text(results: Results) -> Iterator[str]:
    """What was measured on, with what software, when, and what else ran."""
    if not results:
        yield "Nothing is measured."
        return
    machines = dict.fromkeys(_machine(found["machine"]) for found in results.values())
    yield "\n".join(f"* {text}" for text in machines)
    versions: dict[str, None] = {}
    for found in results.values():
        versions |= dict.fromkeys(_versions(found))
    yield "\n".join(f"* {text}" for text in versions)
    columns = (
        "file",
        "started (UTC)",
        "commit",
        "load average before",
        "busy cores before",
        "busy with others meanwhile",
    )
    yield table(columns, [(f"`{name}.json`", *_circumstances(found)) for name, found in results.items()])


def _machine(found: Mapping[str, Any]) -> str:
    flags = found["flags"] if "flags" in found else found["cpu_flags"]
    more = f", {found['memory_gb']} GB" if "memory_gb" in found else ""
    system = found["system"] if "system" in found else found["platform"]
    return f"{found['cpu']}, {counted(found['cores'], 'core')}{more}, {' '.join(flags)}; {system}"


def _versions(found: Mapping[str, Any]) -> Iterator[str]:
    if "bench" in found:
        yield _software("anabranch bench", found["machine"]["python"], found["machine"]["packages"])
        return
    for name, side in found["sides"].items():
        if side["ready"] is not None and side["ready"]["versions"] and "command" not in side["settings"]:
            yield _software(name, side["ready"]["python"], side["ready"]["versions"])


def _software(name: str, python: str, packages: Mapping[str, str | None]) -> str:
    return f"{name}: Python {python}, " + ", ".join(f"{key} {value}" for key, value in packages.items() if value)


def _circumstances(found: Mapping[str, Any]) -> tuple[str, ...]:
    load = " ".join(f"{value:.2f}" for value in found["machine"]["load_average"])
    if "bench" in found:
        return (found["machine"]["started"][:16], (found["machine"]["git_commit"] or "")[:12], load, "", "")
    others = number(found["summary"]["other_cores"]) if found["summary"] else ""
    return (found["started"][:16], found["commit"] or "", load, number(found["busy_cores_before"]), others)


if __name__ == "__main__":
    main()
