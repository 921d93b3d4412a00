"""What readers of checkpoints are promised: only whole ones, the newest, with files as they were written."""

import json

import pytest

from anabranch.errors import CheckpointError
from anabranch.tracking.checkpoints import complete, fingerprint, model_of, newest, verify


def make(folder, number):
    path = folder / f"step-{number:06d}"
    (path / "model").mkdir(parents=True)
    (path / "model" / "weights").write_text(f"weights {number}")
    (path / "optimizer").write_text("moments")
    names = ("model/weights", "optimizer")
    (path / "manifest.json").write_text(json.dumps({name: fingerprint(path / name) for name in names}))
    return path


def test_the_newest_whole_checkpoint_is_taken_in_the_order_of_steps(tmp_path):
    made = [make(tmp_path, number) for number in (9, 10, 2)]
    make(tmp_path, 11).rename(tmp_path / ".partial-step-000011")  # being written when the run was killed
    assert complete(tmp_path) == [made[2], made[0], made[1]]
    assert newest(tmp_path) == made[1]
    assert model_of(made[1]) == made[1] / "model"


def test_without_a_checkpoint_the_error_says_how_to_get_one(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint.*\n  fix: anabranch resume"):
        newest(tmp_path / "checkpoints")


def test_a_changed_or_missing_file_is_found(tmp_path):
    path = make(tmp_path, 1)
    verify(path)
    (path / "optimizer").write_text("Moments")
    verify(path, "model/")
    with pytest.raises(CheckpointError, match="optimizer: found contents that do not match"):
        verify(path)
    (path / "model" / "weights").unlink()
    with pytest.raises(CheckpointError, match="weights: found no such file"):
        model_of(path)
    (path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json: found no such file"):
        model_of(path)
