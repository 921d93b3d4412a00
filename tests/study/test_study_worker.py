"""What one run of a study promises: the numbers of the same run alone, to the bit, wherever it was stopped."""

import errno
import json
from pathlib import Path

import pytest

from anabranch.errors import RunFolderError
from anabranch.study.folder import Manifest, StudyPaths, facts, write_json
from anabranch.study.plan import held_out_digests, jobs
from anabranch.study.results import Evaluated, RunResult, extract, is_finished
from anabranch.study.worker import branch_off, disk_is_full, work
from anabranch.tracking.checkpoints import complete
from anabranch.tracking.jsonl import read_jsonl
from anabranch.train import run as train

EVERY_STEP = ("save.every=1", "evaluation.every=1")


def prepare(asked, root):
    study = asked.study()
    digests = tuple(tuple(row) for row in held_out_digests(study))
    manifest = Manifest(study, study.arms[0].recipe.model, digests, facts(asked.command()))
    write_json(StudyPaths(root).manifest, manifest.to_json())
    return study, StudyPaths(root)


def same_run(one: Path, other: Path) -> None:
    for name in ("rollouts", "evaluations"):
        assert (one / f"{name}.jsonl").read_bytes() == (other / f"{name}.jsonl").read_bytes(), name
    last = [complete(run / "checkpoints")[-1] for run in (one, other)]
    assert last[0].name == last[1].name
    for name in ("model/model.safetensors", "optimizer.safetensors"):
        assert (last[0] / name).read_bytes() == (last[1] / name).read_bytes(), name


@pytest.fixture(scope="module")
def finished(asked_for, tmp_path_factory):
    """A study of two arms, one of them with a reference model, and one seed; every job done in this process."""
    root = tmp_path_factory.mktemp("study")
    asked = asked_for("algorithm.kl={kind: none},{kind: loss_k3, coef: 0.1}", seeds="3,", overrides=EVERY_STEP)
    study, paths = prepare(asked, root)
    for job in jobs(study):
        work(root, job.arm, job.seed, cold=job.cold)
    return study, paths


def test_a_run_that_goes_on_from_a_shared_cold_start_is_the_run_alone_to_the_bit(finished, tmp_path):
    study, paths = finished
    assert study.shared_cold_starts() == {0: 0, 1: 0}
    for job in jobs(study)[1:]:
        alone = tmp_path / f"alone-{job.arm}"
        train.start(study.recipe(job.arm, job.seed), alone)
        same_run(alone, paths.run(study, job))


def test_a_result_holds_the_curves_and_the_scores_of_its_run(finished):
    study, paths = finished
    job = jobs(study)[1]
    run = paths.run(study, job)
    stored = json.loads(paths.result(study, job).read_text())
    result = RunResult.from_json(stored)
    assert result == extract(run, study.arms[0].name, 3)
    assert json.loads(json.dumps(result.to_json())) == stored
    steps = [record for record in read_jsonl(run / "metrics.jsonl") if record["stage"] == "rl"]
    assert result.curves["reward"] == tuple(float(f"{record['reward']:.5g}") for record in steps)
    evaluations = list(read_jsonl(run / "evaluations.jsonl"))
    assert [record["stage"] for record in evaluations] == ["before", "cold_start", "rl", "rl"]
    assert result.evaluations == tuple(
        Evaluated(step, tuple(record["per_problem"]), 2) for step, record in enumerate(evaluations[1:])
    )
    assert result.cost["answers"] == sum(record["generated_rollouts"] for record in steps) == 32
    assert (result.steps, result.final.step) == (2, 2)
    assert paths.result(study, job).stat().st_size < 4000


def test_finished_is_told_from_stopped(finished, tmp_path):
    study, paths = finished
    recipe = study.recipe(0, 3)
    assert all(is_finished(paths.run(study, job)) for job in jobs(study))
    assert not is_finished(tmp_path / "nothing")
    branch_off(paths.run(study, jobs(study)[0]), tmp_path / "branch", recipe)
    assert not is_finished(tmp_path / "branch")
    train.start(recipe.but(steps=1), tmp_path / "short")
    assert is_finished(tmp_path / "short")


def test_a_branch_that_was_half_copied_is_made_anew(finished, tmp_path):
    study, paths = finished
    cold, recipe = paths.run(study, jobs(study)[0]), study.recipe(0, 3)
    half = tmp_path / ".partial-run"
    half.mkdir()
    (half / "metrics.jsonl").write_text("torn")
    branch_off(cold, tmp_path / "run", recipe)
    assert not half.exists()
    train.resume(tmp_path / "run", None)
    same_run(paths.run(study, jobs(study)[1]), tmp_path / "run")


def test_a_run_that_was_stopped_goes_on_and_one_whose_result_is_lost_is_read_again(finished, asked_for, tmp_path):
    reference, reference_paths = finished
    asked = asked_for("algorithm.kl={kind: none},{kind: loss_k3, coef: 0.1}", seeds="3,", overrides=EVERY_STEP)
    study, paths = prepare(asked, tmp_path)
    job = jobs(study)[2]
    run = paths.run(study, job)
    work(tmp_path, 0, 3, cold=True)
    branch_off(paths.run(study, jobs(study)[0]), run, study.recipe(1, 3).but(steps=1))
    train.resume(run, None)
    (run / "recipe.yaml").write_bytes((reference_paths.run(reference, job) / "recipe.yaml").read_bytes())
    assert not is_finished(run)  # as if it had been killed after its first step
    work(tmp_path, 1, 3, cold=False)
    same_run(reference_paths.run(reference, job), run)
    paths.result(study, job).unlink()
    before = (run / "metrics.jsonl").read_bytes()
    work(tmp_path, 1, 3, cold=False)
    assert paths.result(study, job).exists()
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_full_disk_is_told_from_other_errors():
    def raised(number):
        try:
            try:
                raise OSError(number, "no")
            except OSError as error:
                raise RunFolderError("it has to be written") from error
        except RunFolderError as error:
            return error

    assert disk_is_full(raised(errno.ENOSPC))
    assert disk_is_full(raised(errno.EDQUOT))
    assert not disk_is_full(raised(errno.EACCES))
    assert not disk_is_full(RunFolderError("no"))
