"""What a ledger promises: the same bytes from the same results, nothing but what came out, and nothing else touched."""

import json
import sys
import xml.etree.ElementTree as ET
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from anabranch.errors import RunFolderError
from anabranch.reproductions.catalog import REPRODUCTIONS
from anabranch.reproductions.command import rewrite
from anabranch.reproductions.ledger import KEPT, compact, marks, write_ledger
from anabranch.reproductions.page import class_of, make_page
from anabranch.study.analysis import HELD_OUT
from anabranch.study.outline import read_outline
from anabranch.study.plan import FORMAT
from anabranch.study.results import Clipped

sys.path.insert(0, str(Path(__file__).parent))
from hand_made import outline_of

sys.path.remove(str(Path(__file__).parent))

DOCS = Path(__file__).parents[2] / "docs"
A = [(0.125, 0.375), (0.25, 0.5), (0.375, 0.625), (0.25, 0.5), (0.125, 0.375)]
B = [*((x + 0.125, y + 0.125) for x, y in A[:4]), A[4]]
CURVES = {"entropy": (0.30001, 0.2, 0.1), "reward": (1.0, 2.0, 3.0), "accuracy": (0.1, 0.123456, None)}


@pytest.fixture
def outline(small):
    clipped = Clipped(10, (("7", 4, 0), ("\n", 3, 0), ("A", 2, 2), (" ", 1, 0)))
    return outline_of(
        {"a": A, "b": B, "c": [*A[:3], None, None]},
        curves={arm: [CURVES] * 5 for arm in "ab"},
        facts={"reproduction": "sample", "registered": [claim.to_json() for claim in small.claims]},
        clipped={"a": {"high": clipped}},
    )


@pytest.fixture
def results(outline, tmp_path):
    """`results.json` as a study exports it."""
    study = {
        "format": FORMAT,
        "base": outline.base,
        "overrides": [],
        "seeds": list(outline.seeds),
        "arms": [{**asdict(arm), "recipe": {"name": arm.name}} for arm in outline.arms],
        "compute": dict(outline.compute),
        "held_out": [list(arm.held_out) for arm in outline.arms],
        "facts": dict(outline.facts),
    }
    path = tmp_path / "study" / "results.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"study": study, "runs": [run.to_json() for run in outline.runs.values()]}))
    return path


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    begin, end = marks("sample")
    (folder / "reproductions.md").write_text(f"# By hand\n\n{begin}\nold\n{end}\n\n<!-- other -->\nkept\n")
    return folder


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_page_says_what_came_out_and_what_was_not_shown(small, outline):
    page = make_page(small, outline, "sample").markdown
    assert "**Verdict: agrees** (agrees: 1)." in page
    assert "**Verdict: not shown** (not shown: 1)." in page  # no run of c has entropies
    assert "F2.1: no run has this number (mean entropy)." in page
    assert "+10.0 \\[" in page  # b - a: 12.5 points in four seeds, 0 in the fifth
    assert "**2 of 15 runs are missing (c seed 3, c seed 4)" in page
    assert "(F1.2 they are equal)" in page
    assert "equal within 3 points" in page
    assert "have not changed" in page
    assert "*Cannot be told here:* Why." in page
    assert "anabranch reproduce sample" in page
    assert "anabranch train small_sums name=a" in page
    # 10 clipped: 4 digits, 3 newlines, 2 letters that open a line, 1 space
    assert "| a | 10 | 20 % | 40 % | 0 % | 10 % | 30 % | 20 % | 0 % | 7 40 % newline 30 % A 20 % space 10 % |" in page
    assert "| b | 0 |" in page


def test_a_claim_that_was_changed_after_the_runs_is_named(small, outline):
    told = [{**claim.to_json(), "margin": 0.5} if claim.id == "F1.2" else claim.to_json() for claim in small.claims]
    changed = replace(outline, facts={**outline.facts, "registered": told})
    assert "**Changed since the study began: F1.2.**" in make_page(small, changed, "sample").markdown
    added = replace(outline, facts={**outline.facts, "registered": told[:1]})
    assert "**Changed since the study began: F1.2, F2.1.**" in make_page(small, added, "sample").markdown


def test_the_ledger_is_the_same_bytes_again_also_from_what_it_kept(small, results, docs):
    write_ledger(small, results, docs)
    first = content(docs)
    write_ledger(small, results, docs)
    assert content(docs) == first
    write_ledger(small, docs / "reproductions" / "sample" / "results.json", docs)
    assert content(docs) == first
    assert set(first) == {
        "reproductions.md",
        "reproductions/sample.md",
        "reproductions/sample/results.json",
        "reproductions/sample/F1-claims.svg",
        "reproductions/sample/F1-1-accuracy.svg",
        "reproductions/sample/F1-2-entropy.svg",
    }
    page = first["reproductions/sample.md"].decode()
    for name in first:
        if name.endswith(".svg"):
            assert ET.fromstring(first[name]).tag.endswith("svg")
            assert f"]({name.removeprefix('reproductions/')})" in page


def test_only_its_own_part_of_the_index_changes_and_old_pictures_go(small, results, docs):
    folder = docs / "reproductions" / "sample"
    folder.mkdir(parents=True)
    (folder / "F9-claims.svg").write_text("old")
    write_ledger(small, results, docs)
    index = (docs / "reproductions.md").read_text()
    assert index.startswith("# By hand\n\n<!-- sample: generated")
    assert index.endswith("<!-- sample: end -->\n\n<!-- other -->\nkept\n")
    assert "old" not in index
    assert "| F1 b is better | agrees | agrees: 1 | [details](reproductions/sample.md) |" in index
    assert "| F2 c is lower | not shown | not shown: 1 | [details](reproductions/sample.md) |" in index
    assert not (folder / "F9-claims.svg").exists()


@pytest.mark.parametrize("text", [None, "no marks", "{end}{begin}", "{begin}{begin}{end}"])
def test_an_index_without_a_place_for_it_is_refused_and_nothing_is_written(small, results, docs, text):
    begin, end = marks("sample")
    if text is None:
        (docs / "reproductions.md").unlink()
    else:
        (docs / "reproductions.md").write_text(text.format(begin=begin, end=end))
    before = content(docs)
    with pytest.raises(RunFolderError, match=r"reproductions\.md: found"):
        write_ledger(small, results, docs)
    assert content(docs) == before


def test_kept_results_have_what_is_read_with_three_digits_and_no_recipes(results):
    kept = json.loads(compact(json.loads(results.read_text())))
    assert kept["runs"][0]["curves"] == {"accuracy": [0.1, 0.123, None], "entropy": [0.3, 0.2, 0.1]}
    assert set(kept["study"]["arms"][0]) == {"name", "changes", "overrides"}
    assert compact(kept) == compact(json.loads(results.read_text()))


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_a_picture_only_needs_curves_that_are_kept(name):
    metrics = {picture.metric for finding in REPRODUCTIONS[name].findings for picture in finding.curves}
    assert metrics <= {*KEPT, HELD_OUT}  # evaluations are kept as they are


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_the_index_has_a_place_for_every_reproduction_and_the_committed_ledger_is_made_of_its_results(name, tmp_path):
    index = (DOCS / "reproductions.md").read_text()
    assert all(mark in index for mark in marks(name))
    committed = DOCS / "reproductions" / name / "results.json"
    if not committed.exists():
        assert "Not run yet" in index
        pytest.skip("not run yet")
    (tmp_path / "reproductions.md").write_text(index)
    write_ledger(REPRODUCTIONS[name], committed, tmp_path)
    for path, made in content(tmp_path).items():
        assert (DOCS / path).read_bytes() == made, path
    assert committed.stat().st_size < 2_000_000


def test_results_of_something_else_are_refused(results, docs):
    with pytest.raises(RunFolderError, match="found a study of 'sample', but results of 'tricks' are needed"):
        rewrite("tricks", results, docs)
    stored = json.loads(results.read_text())
    del stored["study"]["facts"]["reproduction"]
    results.write_text(json.dumps(stored))
    with pytest.raises(RunFolderError, match=r"an ordinary study.*\n  fix: anabranch report"):
        rewrite("tricks", results, docs)
    stored["study"]["facts"]["reproduction"] = "tricks"
    stored["runs"] = []
    results.write_text(json.dumps(stored))
    with pytest.raises(RunFolderError, match="no finished run"):
        rewrite("tricks", results, docs)


def test_results_are_kept_complete_enough_to_read(results, small, docs, outline):
    write_ledger(small, results, docs)
    kept = read_outline(docs / "reproductions" / "sample" / "results.json")
    assert {key: run.evaluations for key, run in kept.runs.items()} == {
        key: run.evaluations for key, run in outline.runs.items()
    }
    assert kept.runs["a", 0].clipped == outline.runs["a", 0].clipped


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, "digits") for text in "07"),
        *((text, "signs") for text in "+-=:"),
        *((text, "letters") for text in ("A", "ab")),
        *((text, "others") for text in ("</s>", ".", "")),
        (" ", "spaces"),
        ("\n", "new lines"),
    ],
)
def test_every_token_is_of_one_class(text, expected):
    assert class_of(text) == expected
