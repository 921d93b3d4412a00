"""Checkpoints: transformers reads them, damage is found, a full disk costs nothing, and a run can go on further."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from anabranch.errors import AnabranchError, CheckpointError, RunFolderError
from anabranch.modeling.load import load_model, load_tokenizer
from anabranch.recipe.io import from_yaml
from anabranch.recipe.tree import Optim
from anabranch.tracking.checkpoints import complete
from anabranch.tracking.display import PlainDisplay
from anabranch.tracking.jsonl import read_jsonl
from anabranch.train import checkpoint, reference, run
from anabranch.train.optimizer import MasterOptimizer
from anabranch.train.run import resume, start


@pytest.fixture(scope="module")
def short(make_recipe):
    """RL only, two steps, each with a checkpoint."""
    return make_recipe("cold_start=null", "evaluation=null", "save={every: 1, keep: 2}", "seed=3")


@pytest.fixture(scope="module")
def finished_once(short, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    start(short, run)
    return run


@pytest.fixture
def finished(finished_once, tmp_path) -> Path:
    """A finished run that a test may spoil."""
    return Path(shutil.copytree(finished_once, tmp_path / "run"))


@pytest.fixture(scope="module")
def four_steps(short, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("four") / "run"
    start(short.but(steps=4), run)
    return run


# ------------------------------------------------------------------------------------------------ what is in one


def test_plain_transformers_loads_the_float32_masters(tiny_model, tmp_path):
    model = load_model(tiny_model, torch.bfloat16, torch.device("cpu"))
    optimizer = MasterOptimizer(model, Optim(lr=0.01))
    tokenizer = load_tokenizer(tiny_model)
    ids = tokenizer("3+4=7", return_tensors="pt")["input_ids"]
    for _ in range(3):
        model(ids, labels=ids).loss.backward()
        optimizer.step(0.01)
    path = checkpoint.save(
        tmp_path, number=3, model=model, tokenizer=tokenizer, optimizer=optimizer, state={}, log_sizes={}, keep=1
    )

    masters = load_model(tiny_model, torch.float32, torch.device("cpu"), attention="sdpa")
    masters.load_state_dict(optimizer.master_state())
    loaded = AutoModelForCausalLM.from_pretrained(path / "model")
    read_ids = AutoTokenizer.from_pretrained(path / "model")("3+4=7", return_tensors="pt")["input_ids"]
    assert loaded.dtype == torch.float32
    assert torch.equal(read_ids, ids)
    with torch.no_grad():
        assert torch.equal(loaded(read_ids).logits, masters(ids).logits)
        assert not torch.equal(loaded(read_ids).logits, model(ids).logits.float())  # they are not the bfloat16 weights


def test_generation_settings_that_contradict_each_other_do_not_stop_a_checkpoint(tiny_model, tmp_path):
    model = load_model(tiny_model, torch.float32, torch.device("cpu"))
    model.generation_config.temperature = 0.6  # without do_sample: published models have it, transformers refuses it
    model.generation_config.eos_token_id = [2, 5]
    weights = MasterOptimizer(model, Optim()).master_state()
    checkpoint.save_model(tmp_path / "model", model, load_tokenizer(tiny_model), weights)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model").generation_config
    assert (again.temperature, again.eos_token_id) == (0.6, [2, 5])


def test_the_newest_checkpoints_stay_by_number_not_by_name(tiny_model, tmp_path):
    model = load_model(tiny_model, torch.float32, torch.device("cpu"))
    optimizer, tokenizer = MasterOptimizer(model, Optim()), load_tokenizer(tiny_model)
    for number in (1, 2, 999_999, 1_000_000):
        checkpoint.save(
            tmp_path,
            number=number,
            model=model,
            tokenizer=tokenizer,
            optimizer=optimizer,
            state={"number": number},
            log_sizes={},
            keep=2,
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1000000", "step-999999"]
    found = checkpoint.latest(tmp_path)
    assert found is not None and found.state == {"number": 1_000_000}


# ----------------------------------------------------------------------------------------------------- damage


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "damage", "found"),
    [
        ("model/model.safetensors", flip, "contents that do not match manifest.json"),
        ("model/config.json", cut, "contents that do not match manifest.json"),
        ("model/tokenizer.json", Path.unlink, "no such file"),
        ("optimizer.safetensors", cut, "contents that do not match manifest.json"),
        ("state.json", flip, "contents that do not match manifest.json"),
        ("manifest.json", cut, "no JSON"),
        ("manifest.json", Path.unlink, "no such file"),
    ],
)
def test_a_damaged_file_is_named_and_the_checkpoint_before_can_be_used(finished, name, damage, found):
    newest = finished / "checkpoints" / "step-000002"
    damage(newest / name)
    with pytest.raises(CheckpointError) as error:
        checkpoint.latest(newest.parent)
    assert str(error.value).startswith(f"{newest / name}: found {found}")
    assert f"\n  fix: remove {newest}: then the run resumes from the one before" in str(error.value)
    shutil.rmtree(newest)
    before = checkpoint.latest(newest.parent)
    assert before is not None and before.path.name == "step-000001"


def test_a_damaged_checkpoint_stops_a_resume_before_anything_is_cut(finished, finished_once, four_steps, same_run):
    newest = finished / "checkpoints" / "step-000002"
    flip(newest / "model" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        resume(finished, 4)
    for name in ("recipe.yaml", "metrics.jsonl", "rollouts.jsonl"):
        assert (finished / name).read_bytes() == (finished_once / name).read_bytes()
    shutil.rmtree(newest)
    resume(finished, 4)  # step 2 is done again
    same_run(four_steps, finished)


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_a_damaged_reference_model_is_found(tiny_model, tmp_path, damage):
    model = load_model(tiny_model, torch.float32, torch.device("cpu"))
    path = tmp_path / "reference.safetensors"
    frozen = reference.freeze(model, path)
    again = reference.load(model, path)
    assert all(torch.equal(a, b) for a, b in zip(frozen.parameters(), again.parameters(), strict=True))
    damage(path)
    with pytest.raises(CheckpointError, match=r"reference\.safetensors: found (contents|no such file)"):
        reference.load(model, path)


# ------------------------------------------------------------------------------------------------- going on


def test_a_run_continued_with_steps_is_the_same_as_one_planned_so_long(finished, four_steps, same_run):
    resume(finished, 4)
    assert from_yaml(finished / "recipe.yaml").steps == 4
    same_run(four_steps, finished)
    assert [path.name for path in complete(finished / "checkpoints")] == ["step-000003", "step-000004"]


def test_a_finished_run_says_how_to_go_on(finished):
    before = {name: (finished / name).read_bytes() for name in ("metrics.jsonl", "rollouts.jsonl", "recipe.yaml")}
    with pytest.raises(RunFolderError, match=r"nothing is left to do\n  fix: anabranch resume .* --steps \d+"):
        resume(finished, None)
    with pytest.raises(RunFolderError, match=r"--steps: found 1, but the run is set to 2"):
        resume(finished, 1)
    assert {name: (finished / name).read_bytes() for name in before} == before


def test_a_run_that_ran_out_of_time_goes_on_with_what_it_says(short, tmp_path, capsys):
    run = tmp_path / "run"
    start(short.but(steps=500, seconds=0.01), run)  # over after the first step
    options = re.search(r"anabranch resume \S+ (.*)", capsys.readouterr().out.splitlines()[-1])
    assert options is not None and re.fullmatch(r"--seconds [1-9]\d*", options[1])
    with pytest.raises(RunFolderError, match=r"nothing is left to do\n  fix: anabranch resume \S+ --seconds [1-9]\d*$"):
        resume(run, None)


def test_a_resumed_run_shows_its_time_left_from_what_it_spent_before(finished, monkeypatch):
    told = []

    class Listening(PlainDisplay):
        def stage(self, name: str, total: int, seconds: float | None = None, *, spent: float = 0.0) -> None:
            told.append(spent)
            super().stage(name, total, seconds, spent=spent)

    monkeypatch.setattr(run, "make_display", Listening)
    stored = json.loads((finished / "checkpoints" / "step-000002" / "state.json").read_text())["state"]
    resume(finished, 3)
    assert told == [stored["seconds"]]
    assert told[0] > 0


def test_a_supervised_run_can_go_on_with_rl_as_if_planned_so(make_recipe, sums, same_run, tmp_path):
    sft = make_recipe("cold_start=null", "steps=0", f"sft={{path: {sums / 'train.jsonl'}, steps: 2, batch: 4}}")
    start(sft, tmp_path / "later")
    resume(tmp_path / "later", 2)
    start(sft.but(steps=2), tmp_path / "planned")
    same_run(tmp_path / "planned", tmp_path / "later")
    last = list(read_jsonl(tmp_path / "later" / "evaluations.jsonl"))[-1]
    assert (last["stage"], last["change"]["since"]) == ("rl", "sft")


# ------------------------------------------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A real file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # a loaded model may still be mapped from a file in it


def fill(disk: Path, leave: int) -> Path:
    """Take all but `leave` bytes of a disk."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - leave))
    return ballast


def test_a_full_disk_is_one_error_wherever_it_strikes_and_nothing_is_lost(
    small_disk, finished_once, four_steps, same_run
):
    run = Path(shutil.copytree(finished_once, small_disk / "run"))
    struck = set()
    for leave in (0, 4096, 8192, 20480, 36864, 61440, 110592):
        ballast = fill(small_disk, leave)
        with pytest.raises(AnabranchError, match="No space left on device") as error:
            resume(run, 4)
        struck.add(str(error.value).split(": found")[0].removeprefix(f"{run}/"))
        ballast.unlink()
        found = checkpoint.latest(run / "checkpoints")  # verified against its hashes
        assert found is not None and found.state["total"] == 2
        assert [path.name for path in complete(run / "checkpoints")] == ["step-000001", "step-000002"]
    assert struck == {"recipe.yaml", "rollouts.jsonl", "checkpoints/step-000003"}
    resume(run, 4)
    same_run(four_steps, run)


def test_a_file_that_may_not_grow_is_one_error_and_nothing_is_lost(live, short, finished, four_steps, same_run):
    size = (finished / "checkpoints" / "step-000002" / "optimizer.safetensors").stat().st_size
    code = live(path=finished, steps=4, log=finished / "log", largest_file=size - 1)
    log = (finished / "log").read_text()
    assert code == 2, log
    assert log.count("CheckpointError") == 1 and "Traceback" not in log
    assert "step-000003: found File too large, but a checkpoint must be written whole (step-000002 is untouched)" in log
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["step-000001", "step-000002"]
    assert live(path=finished, log=finished / "log") == 0
    same_run(four_steps, finished)
