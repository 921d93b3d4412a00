"""What `anabranch ablate` and `anabranch report` promise as commands: one error before anything runs, and a study that
survives being killed."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from anabranch.cli.main import app
from anabranch.errors import RecipeError, RunFolderError
from anabranch.study import command
from anabranch.study.command import ablate, default_folder, introduction, settled
from anabranch.study.folder import Manifest, StudyPaths, facts, read_manifest, write_json
from anabranch.study.jobs import Standing
from anabranch.study.outline import read_outline
from anabranch.study.plan import Job, held_out_digests, jobs
from anabranch.study.progress import Progress, last_record
from anabranch.study.results import extract
from anabranch.train import run as train


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def arguments_of(asked, *more):
    varied = [part for value in asked.varied for part in ("--vary", value)]
    bundles = [part for value in asked.bundles for part in ("--arm", value)]
    return ["ablate", asked.recipe, *asked.overrides, *varied, *bundles, "--seeds", asked.seeds, *map(str, more)]


@pytest.mark.parametrize(
    ("varied", "more", "says"),
    [
        (["algorithm.sclae=none,group_std"], [], "algorithm.sclae: found an unknown key"),
        (["algorithm.scale=none,grp_std"], [], "in arm 'scale=grp_std'"),
        (["algorithm.scale=none"], [], "the grid: found 1 arm"),
        (["algorithm.scale=none,none"], [], "two of that name"),
        (["algorithm.scale=none,group_std"], ["--seeds", "0"], "--seeds: found 0"),
        (["algorithm.scale=none,group_std"], ["--seeds", "2,2"], "--seeds: found seed 2 twice"),
        (["algorithm.scale=none,group_std"], ["evaluation=null"], "evaluation in arm 'scale=none': found None"),
        (["algorithm.scale=none,group_std"], ["data.path=no.jsonl"], "no.jsonl"),
    ],
)
def test_a_mistake_gives_one_message_and_nothing_is_begun(asked_for, tmp_path, monkeypatch, varied, more, says):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments_of(asked_for(*varied), *more))
    assert done.exit_code == 2
    assert says in done.stderr
    assert "\n  fix: " in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_same_study_has_the_same_folder_and_another_one_another(asked_for):
    one, same, other = (
        default_folder(asked_for("algorithm.scale=none,group_std", seeds=seeds).study()) for seeds in ("2", "0,1", "3")
    )
    assert one == same != other
    assert one.parent == Path("studies") and one.name.startswith("quickstart-")


def write_manifest(asked, root):
    study = asked.study()
    digests = tuple(tuple(row) for row in held_out_digests(study))
    manifest = Manifest(study, study.arms[0].recipe.model, digests, facts(asked.command()))
    write_json(StudyPaths(root).manifest, manifest.to_json())
    return manifest


def test_another_grid_in_a_study_folder_is_refused_and_the_folder_stays(asked_for, tmp_path):
    write_manifest(asked_for("algorithm.scale=none,group_std"), tmp_path)
    before = (tmp_path / "study.json").read_bytes()
    with pytest.raises(RunFolderError, match="a study with seeds 0, 1, not 0, 1, 2"):
        ablate(asked_for("algorithm.scale=none,group_std", seeds="3"), tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]
    assert (tmp_path / "study.json").read_bytes() == before


def test_a_folder_with_other_files_is_left_alone(asked_for, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"other files \(thesis\.txt\)"):
        ablate(asked_for("algorithm.scale=none,group_std"), tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_disk_without_space_is_refused_before_anything_is_written(asked_for, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "LEAST_SPACE", 2**62)
    with pytest.raises(RunFolderError, match="MB free, but a study writes runs"):
        ablate(asked_for("algorithm.scale=none,group_std"), tmp_path / "study", 1)
    assert not (tmp_path / "study").exists()


def test_threads_are_divided_among_processes_unless_they_were_named(asked_for):
    free = asked_for("algorithm.scale=none,group_std", overrides=("model.threads=0",)).study()
    cores = len(os.sched_getaffinity(0))
    assert settled(free, 64).threads == 1
    assert settled(free, cores).threads == 1
    assert settled(asked_for("algorithm.scale=none,group_std").study(), 64).threads == 1
    with pytest.raises(RecipeError, match="all runs of a study compute in one way"):
        settled(asked_for("model.threads=1,2").study(), 1)


def test_what_is_said_before_the_first_run(asked_for, tmp_path):
    manifest = write_manifest(asked_for("recipe=lite_ppo,grpo"), tmp_path)
    todo = jobs(manifest.study)
    text = "\n".join(introduction(manifest, tmp_path, 3000, Standing(todo[2:], todo[:2])))
    assert "2 arms x 2 seeds (0, 1): 4 runs" in text
    assert "reference: lite_ppo" in text
    assert "3000 at a time, 1 threads each" in text and "more than the" in text
    assert "of each recipe only the method is taken" in text
    assert "2 arms share a cold start" in text
    assert "runs that are finished already: 1" in text


def test_the_display_says_where_runs_stand(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"step": 1, "stage": "rl"}\n{"step": 5, "stage": "rl", "accuracy": 0.25, "reward": 0.5}\n{"torn')
    waiting = [Job(f"b, seed {seed}", 1, seed, cold=False) for seed in range(8)]
    running, done = Job("a, seed 0", 0, 0, cold=False), Job("a, seed 1", 0, 1, cold=False)
    standing = Standing(waiting, [done], {running: 100.0}, {}, {done: 40.0})
    with (
        (tmp_path / "out").open("w") as stream,
        Progress(stream, lambda job: log, lambda job: 10, 2, clock=lambda: 110.0) as progress,
    ):
        # 8 that wait at 40 s and one that has 30 s to go, two at a time
        assert progress.left(standing) == (8 * 40 + 30) / 2
        console = Console(width=200)
        with console.capture() as shown:
            console.print(progress.table(standing))
    text = shown.get()
    assert "1 of 10 done, about 2:55 left" in text
    assert "a, seed 0" in text and "RL 5/10" in text and "accuracy 25.0%" in text and "10 s" in text
    assert "b, seed 5 and 2 more" in text
    assert last_record(tmp_path / "none.jsonl") is None


def test_a_report_of_a_study_without_finished_runs_is_refused(asked_for, tmp_path):
    write_manifest(asked_for("algorithm.scale=none,group_std"), tmp_path)
    done = run("report", tmp_path)
    assert done.exit_code == 2
    assert "no finished run" in done.stderr


# ------------------------------------------------------------------------------------------------ the real thing


@contextmanager
def started(asked, root, log):
    """A process of `anabranch ablate`; it does not outlive the block, not even if a test fails there."""
    code = "from anabranch.cli.main import main; main()"
    words = [sys.executable, "-c", code, *arguments_of(asked, "--out", root)]
    with log.open("a") as output:
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()  # what it started dies with it
        process.wait()


def wait_for(condition, process, log):
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.01)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_study_that_was_killed_goes_on_to_the_same_numbers_and_a_failed_arm_is_named(asked_for, tmp_path):
    """Killed while its first run is at work, which dies with it; the second life goes on with that run. The run of the
    other arm is damaged, and stays so."""
    asked = asked_for(
        "algorithm.scale=none,group_std",
        seeds="1",
        overrides=("cold_start=null", "steps=6", "save.every=1", "evaluation.every=3"),
    )
    root, log = tmp_path / "study", tmp_path / "log"
    manifest = write_manifest(asked, root)
    damaged = root / "runs" / "2-scale=group_std" / "seed-0"
    (damaged / "checkpoints" / "step-000001").mkdir(parents=True)
    (damaged / "recipe.yaml").write_text("steps: [")
    arm = root / "runs" / "1-scale=none" / "seed-0"
    with started(asked, root, log) as first:  # which is killed at the end of the block
        wait_for(lambda: (arm / "checkpoints" / "step-000002").exists(), first, log)
        worker = int((arm / "lock").read_text())
        assert alive(worker)
    assert first.returncode == -signal.SIGKILL
    end = time.monotonic() + 20
    while alive(worker):
        assert time.monotonic() < end
        time.sleep(0.02)

    with started(asked, root, log) as second:
        assert second.wait(timeout=100) == 1, log.read_text()
    said = log.read_text()
    assert "FAILED: scale=group_std, seed 0" in said and "recipe.yaml:\nthe recipe: found line 1" in said
    assert "1 of 2 failed; the same command tries them again" in said
    assert read_manifest(root) == manifest
    outline = read_outline(root)
    assert outline.missing() == [("scale=group_std", 0)]
    train.start(manifest.study.recipe(0, 0, manifest.compute), tmp_path / "alone")
    alone, here = extract(tmp_path / "alone", "scale=none", 0), outline.runs["scale=none", 0]
    assert (alone.curves, alone.evaluations) == (here.curves, here.evaluations)
    assert [evaluated.step for evaluated in here.evaluations] == [0, 3, 6]

    page = (root / "report.html").read_text()
    assert "1 run is missing: scale=group_std seed 0" in page
    assert json.loads((root / "report.json").read_text())["comparisons"][0]["verdict"] == "missing"
    again = run("report", root / "results.json", "--out", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again" / "report.html").read_text() == page
