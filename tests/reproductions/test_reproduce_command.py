"""What `anabranch reproduce` promises as a command: one error before anything runs, and a study that goes on."""

import json
from dataclasses import replace
from types import MappingProxyType

import pytest
from typer.testing import CliRunner

from anabranch.cli.main import app
from anabranch.errors import RecipeError, RunFolderError
from anabranch.reproductions import command
from anabranch.reproductions.catalog import REPRODUCTIONS
from anabranch.reproductions.claims import Curves
from anabranch.reproductions.command import reproduce, rewrite, study_of
from anabranch.reproductions.ledger import marks
from anabranch.study.folder import read_manifest
from anabranch.study.outline import read_outline


def run(*arguments):
    return CliRunner().invoke(app, ["reproduce", *map(str, arguments)])


@pytest.fixture
def sums(tmp_path):
    """A file of sums of two digits: its first rows are trained on, and a second file is held out."""
    pairs = [(a, b) for a in range(10) for b in range(10)]
    for name, part in (("train", pairs[::3]), ("held_out", pairs[1::9])):
        rows = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a, b in part]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def tiny(small, sums, tiny_model, monkeypatch):
    """The sample on a random model, as a reproduction that `anabranch reproduce sample` finds."""
    held_out = f"{{kind: jsonl, path: {sums / 'held_out.jsonl'}}}"
    common = (
        "name=sample",
        f"model={{source: {tiny_model}, dtype: float32, device: cpu, threads: 1}}",
        f"data={{kind: jsonl, path: {sums / 'train.jsonl'}}}",
        "reward=[{term: accuracy, wrong: -1.0}, {term: format, weight: 0.5}]",
        "answer.extract=[last_number]",
        "rollout={prompts: 2, per_problem: 3, max_new_tokens: 5}",
        "optim={lr: 0.01}",
        "steps=2",
        f"evaluation={{problems: 2, samples: 1, every: 0, data: {held_out}}}",
        "probes.patience=99",
    )
    tiny = replace(small, common=common, quick=replace(small.quick, changes=("steps=1",), seeds=1))
    monkeypatch.setattr(command, "find", lambda name: {**REPRODUCTIONS, "sample": tiny}[name])
    return tiny


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["trick"],
            "the reproduction: found 'trick', but what can be reproduced is: tricks, spo\n  fix: anabranch reproduce t",
        ),
        (["tricks", "--only", "T1,T12"], "--only: found T12, but the findings of 'tricks' are T1, T2"),
        (["tricks", "--only", ""], "--only: found nothing"),
        (["tricks", "--seeds", "0"], "--seeds: found 0"),
        (["tricks", "--seeds", "2,2"], "--seeds: found seed 2 twice"),
        (["tricks", "--quick", "--ledger", "docs"], "--ledger: found with --quick"),
        (["tricks", "--ledger", "nowhere"], "nowhere/reproductions.md: found No such file"),
        (["tricks", "--results", "nowhere.json"], "nowhere.json: found No such file"),
    ],
)
def test_a_mistake_gives_one_message_and_nothing_is_begun(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == 2
    assert says in done.stderr
    assert "\n  fix: " in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_a_name_it_lists_what_there_is_and_how_long_it_takes():
    table = command.listing()
    assert [row[0] for row in table.rows] == list(REPRODUCTIONS)
    assert "3 hours" in table.rows[0][3] and "15 minutes" in table.rows[0][4]
    done = run()
    assert done.exit_code == 0
    assert "tricks" in done.stdout


def test_results_that_are_judged_again_run_nothing_and_go_with_no_choice_of_runs(tmp_path):
    done = run("tricks", "--results", tmp_path, "--quick")
    assert done.exit_code == 2
    assert "--results: found with --quick" in done.stderr


def test_a_part_first_then_the_whole_then_the_ledger(tiny, tmp_path, capsys):
    """F2 needs `a` and `c`. The same command without --only goes on with `b`; what is finished stays as it is."""
    root, docs = tmp_path / "study", tmp_path / "docs"
    docs.mkdir()
    begin, end = marks("sample")
    (docs / "reproductions.md").write_text(f"{begin}\n{end}\n")
    assert reproduce("sample", only="F2", seeds="1", out=root, at_once=2) == 0
    said = capsys.readouterr().out
    assert "findings: F2" in said and "2 arms x 1 seeds (0): 2 runs, 0 of them finished already" in said
    first = read_outline(root)
    assert sorted(arm for arm, _ in first.runs) == ["a", "c"]
    assert [arm.name for arm in first.arms] == ["a", "b", "c"]
    assert "no seed is finished in both arms" in (root / "report.md").read_text()
    facts = read_manifest(root).facts
    assert facts["registered"] == [claim.to_json() for claim in tiny.claims]
    assert facts["command"] == "anabranch reproduce sample --seeds 1"
    kept = {path.name: path.read_bytes() for path in (root / "results").iterdir()}

    assert reproduce("sample", seeds="1", out=root, at_once=1, ledger=docs) == 0
    said = capsys.readouterr().out
    assert "3 arms x 1 seeds (0): 3 runs, 2 of them finished already" in said
    assert {name: (root / "results" / name).read_bytes() for name in kept} == kept
    page = (docs / "reproductions" / "sample.md").read_text()
    assert "no verdict" in page  # one seed
    assert "**Verdict: no verdict**" in page
    assert "runs are missing" not in page
    assert "no verdict" in (docs / "reproductions.md").read_text()
    before = {path: path.read_bytes() for path in docs.rglob("*") if path.is_file()}
    rewrite("sample", root, docs)
    assert {path: path.read_bytes() for path in docs.rglob("*") if path.is_file()} == before

    with pytest.raises(RunFolderError, match="a study with seeds 0, not 0, 1"):
        reproduce("sample", seeds="2", out=root, at_once=1)


def test_a_finding_that_the_quick_part_leaves_out_cannot_be_asked_of_it(tiny, tmp_path, monkeypatch):
    seen = replace(tiny.findings[1], claims=(), curves=(Curves("accuracy", ("c",)),))
    monkeypatch.setattr(command, "find", lambda name: replace(tiny, findings=(seen,)))
    with pytest.raises(RecipeError, match="--only: found F2, but --quick has no arm of it"):
        reproduce("sample", quick=True, only="F2", out=tmp_path / "study", at_once=1)
    assert not (tmp_path / "study").exists()


def test_the_quick_part_is_a_study_of_its_own(tiny):
    quick, whole = (study_of(tiny, quick=quick, seeds=None) for quick in (True, False))
    assert [arm.name for arm in quick.arms] == ["a", "b"]
    assert command.default_folder(quick) != command.default_folder(whole)
    assert (quick.seeds, whole.seeds) == ((0,), (0, 1))


def test_arms_cannot_be_changed_after_they_were_written_down(tiny):
    assert isinstance(tiny.arms, MappingProxyType)
