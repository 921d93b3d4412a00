"""What a run folder promises: one writer, nothing overwritten, clear refusals."""

import json
import os
import subprocess
import sys

import pytest

from anabranch.errors import RunFolderError
from anabranch.tracking import files
from anabranch.tracking.jsonl import read_jsonl
from anabranch.tracking.run_folder import RunFolder, find_run, is_run

RECIPE = "name: tiny\nsteps: 2\n"


def contents(path):
    return {p.relative_to(path): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_a_new_run_has_its_layout(tmp_path):
    with RunFolder.create(tmp_path / "runs" / "a", RECIPE, "tiny") as run:
        assert run.recipe_yaml() == RECIPE
        run.commit()
    names = {p.name for p in (tmp_path / "runs" / "a").iterdir()}
    assert names == {
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "rollouts.jsonl",
        "evaluations.jsonl",
        "checkpoints",
        "lock",
    }


def test_the_environment_says_what_ran_but_no_environment_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "hunter2-secret")
    with RunFolder.create(tmp_path / "a", RECIPE, "tiny") as run:
        environment = json.loads(run.paths.environment.read_text())
    assert environment["recipe"] == "tiny"
    assert environment["packages"]["torch"]
    assert environment["cores"] >= 1
    assert environment["command"] == sys.argv
    assert "hunter2-secret" not in (tmp_path / "a" / "environment.json").read_text()


def test_the_commit_of_the_working_directory_is_recorded_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RunFolder.create("a", RECIPE, "tiny") as run:
        assert json.loads(run.paths.environment.read_text())["git_commit"] is None
    git = ["git", "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "m"], check=True)
    with RunFolder.create("b", RECIPE, "tiny") as run:
        assert len(json.loads(run.paths.environment.read_text())["git_commit"]) == 40


def test_a_run_is_not_overwritten_and_the_way_on_is_named(tmp_path):
    with RunFolder.create(tmp_path / "a", RECIPE, "tiny") as run:
        run.commit()
    before = contents(tmp_path / "a")
    with pytest.raises(RunFolderError, match=f"anabranch resume {tmp_path / 'a'}"):
        RunFolder.create(tmp_path / "a", "name: other\n", "other")
    assert contents(tmp_path / "a") == before
    RunFolder.open(tmp_path / "a").close()  # the refusal did not keep the lock


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunFolderError, match=r"other files \(thesis\.tex\)"):
        RunFolder.create(tmp_path, RECIPE, "tiny")
    assert contents(tmp_path) == {p.relative_to(tmp_path): b"precious" for p in [tmp_path / "thesis.tex"]}


def test_a_start_that_failed_half_way_can_be_repeated(tmp_path):
    obstacle = tmp_path / "a" / "recipe.yaml.part"
    obstacle.mkdir(parents=True)  # makes the last write fail
    with pytest.raises(RunFolderError, match=r"recipe\.yaml: found Is a directory"):
        RunFolder.create(tmp_path / "a", RECIPE, "tiny")
    assert not is_run(tmp_path / "a")
    obstacle.rmdir()
    RunFolder.create(tmp_path / "a", RECIPE, "tiny").close()
    assert is_run(tmp_path / "a")


@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_what_is_not_a_run_is_not_opened(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "empty":
        path.mkdir()
    if kind == "file":
        path.write_text("text")
    with pytest.raises(RunFolderError, match="start one with `anabranch train`"):
        RunFolder.open(path)
    with pytest.raises(RunFolderError):
        find_run(path)
    assert not (path / "lock").exists()


def test_a_second_process_is_told_who_uses_the_folder_and_changes_nothing(tmp_path):
    with RunFolder.create(tmp_path / "a", RECIPE, "tiny") as run:
        run.write_metrics({"step": 1, "stage": "rl", "reward": 0.5})
        run.commit()
        before = contents(tmp_path / "a")
        code = (
            "import sys\nfrom anabranch.errors import RunFolderError\n"
            "from anabranch.tracking.run_folder import RunFolder\n"
            "for action in (RunFolder.open, lambda path: RunFolder.create(path, 'name: b', 'b')):\n"
            "    try: action(sys.argv[1])\n"
            "    except RunFolderError as error: print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True, check=True
        )
        assert done.stdout.count(f"found in use by process {os.getpid()}, but one process writes to a run") == 2
        assert contents(tmp_path / "a") == before
    RunFolder.open(tmp_path / "a").close()


def test_a_second_take_in_the_same_process_is_refused_too(tmp_path):
    with RunFolder.create(tmp_path / "a", RECIPE, "tiny"), pytest.raises(RunFolderError, match="in use by process"):
        RunFolder.open(tmp_path / "a")


def test_a_killed_holder_frees_the_folder_even_if_a_forked_child_lives_on(tmp_path):
    code = (
        "import os, sys, time; from anabranch.tracking.run_folder import RunFolder\n"
        "run = RunFolder.create(sys.argv[1], 'name: a', 'a')\n"
        "if os.fork() == 0:\n"  # the child says when it runs: only then has it given up its copy of the lock
        "    print(os.getpid(), flush=True); os.close(1); time.sleep(60); os._exit(0)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        with pytest.raises(RunFolderError, match=f"in use by process {process.pid}"):
            RunFolder.open(tmp_path / "a")
        process.kill()
        process.wait()
        process.stdout.close()
        os.kill(child, 0)  # the child is there
        RunFolder.open(tmp_path / "a").close()
    finally:
        os.kill(child, 9)


def test_resume_cuts_all_logs_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "a"
    with RunFolder.create(path, RECIPE, "tiny") as run:
        run.write_metrics({"step": 1, "stage": "rl"})
        run.rollouts.write({"answer": "4"})
        sizes = run.commit()
        before = contents(path)
        run.write_metrics({"step": 2, "stage": "rl"})
        run.evaluations.write({"step": 2})
        run.commit()
    with (path / "rollouts.jsonl").open("ab") as file:
        file.write(b'{"answer": "torn')
    with RunFolder.open(path) as run:
        run.cut_logs(sizes)
        assert {k: v for k, v in contents(path).items() if k.suffix == ".jsonl"} == {
            k: v for k, v in before.items() if k.suffix == ".jsonl"
        }
        run.write_metrics({"step": 2, "stage": "rl"})
    assert [record["step"] for record in read_jsonl(path / "metrics.jsonl")] == [1, 2]


def test_the_log_of_clipped_tokens_is_made_by_its_first_record_and_cut_like_the_others(tmp_path):
    path = tmp_path / "a"
    with RunFolder.create(path, RECIPE, "tiny") as run:
        assert run.commit()["clipped_tokens"] == 0
        assert not (path / "clipped_tokens.jsonl").exists()
        run.clipped_tokens.write({"step": 1})
        sizes = run.commit()
        run.clipped_tokens.write({"step": 2})
    with RunFolder.open(path) as run:
        run.cut_logs(sizes)
        assert run.commit() == sizes  # its size counts although this process has not written to it
        run.clipped_tokens.write({"step": 3})
    assert [record["step"] for record in read_jsonl(path / "clipped_tokens.jsonl")] == [1, 3]


def test_a_checkpoint_from_before_there_was_a_log_of_clipped_tokens_is_taken(tmp_path):
    with RunFolder.create(tmp_path / "a", RECIPE, "tiny") as run:
        run.rollouts.write({"answer": "4"})
        sizes = run.commit()
    del sizes["clipped_tokens"]
    with RunFolder.open(tmp_path / "a") as run:
        run.cut_logs(sizes)
    assert len(list(read_jsonl(tmp_path / "a" / "rollouts.jsonl"))) == 1


def test_without_a_checkpoint_the_logs_start_anew(tmp_path):
    with RunFolder.create(tmp_path / "a", RECIPE, "tiny") as run:
        run.write_metrics({"step": 1, "stage": "rl"})
    with RunFolder.open(tmp_path / "a") as run:
        run.cut_logs(None)
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == b""


def test_a_cut_that_one_log_cannot_take_touches_none(tmp_path):
    with RunFolder.create(tmp_path / "a", RECIPE, "tiny") as run:
        run.write_metrics({"step": 1, "stage": "rl"})
        sizes = run.commit()
    before = contents(tmp_path / "a")
    with RunFolder.open(tmp_path / "a") as run, pytest.raises(RunFolderError, match="evaluations"):
        run.cut_logs({**sizes, "metrics": 0, "evaluations": 99})
    assert contents(tmp_path / "a") == before


def test_cutting_the_wrong_logs_or_too_late_is_our_bug(tmp_path):
    with RunFolder.create(tmp_path / "a", RECIPE, "tiny") as run:
        with pytest.raises(ValueError, match="sizes are for"):
            run.cut_logs({"metrics": 0})
        run.commit()
        with pytest.raises(ValueError, match="before the first write"):
            run.cut_logs(None)


def test_an_undocumented_metric_never_reaches_the_log(tmp_path):
    with (
        RunFolder.create(tmp_path / "a", RECIPE, "tiny") as run,
        pytest.raises(ValueError, match="not in the registry"),
    ):
        run.write_metrics({"step": 1, "stage": "rl", "vibes": 1.0})
    assert not (tmp_path / "a" / "metrics.jsonl").exists()


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match=r"found Not a directory, but it has to be written\n  fix: choose a path"):
        RunFolder.create(tmp_path / "file" / "run", RECIPE, "tiny")
    with pytest.raises(RunFolderError, match="found File exists"):
        RunFolder.create(tmp_path / "file", RECIPE, "tiny")


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    files.write_atomic(path, "old")
    (tmp_path / "recipe.yaml.part").mkdir()  # makes the write fail
    with pytest.raises(RunFolderError, match=r"recipe\.yaml: found Is a directory"):
        files.write_atomic(path, "new")
    assert path.read_text() == "old"


def test_reading_a_run_needs_no_lock(tmp_path):
    with RunFolder.create(tmp_path / "a", RECIPE, "tiny") as run:
        run.write_metrics({"step": 1, "stage": "rl"})
        run.commit()
        paths = find_run(tmp_path / "a")
        assert [record["step"] for record in read_jsonl(paths.log("metrics"))] == [1]
        assert json.loads(paths.environment.read_text())["recipe"] == "tiny"


def test_a_start_that_failed_at_once_can_be_taken_back(tmp_path):
    with RunFolder.create(tmp_path / "a", RECIPE, "tiny") as run:
        run.commit()  # the logs exist, and are empty
        run.withdraw()
    assert list(tmp_path.iterdir()) == []
    RunFolder.create(tmp_path / "a", RECIPE, "tiny").close()


@pytest.mark.parametrize("what", ["record", "checkpoint", "other"])
def test_a_run_in_which_something_happened_is_never_taken_back(tmp_path, what):
    with RunFolder.create(tmp_path / "a", RECIPE, "tiny") as run:
        if what == "record":
            run.write_metrics({"step": 1, "stage": "rl"})
            run.commit()
        else:
            (run.paths.checkpoints / "step-000001" if what == "checkpoint" else run.paths.root / "mine").mkdir()
        before = contents(tmp_path / "a")
        run.withdraw()
        assert contents(tmp_path / "a") == before
