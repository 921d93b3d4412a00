"""A user's mistake gives one message (where, found, needed, fix) and exit code 2, no traceback, and costs nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from transformers import BertConfig, T5Config
from typer.testing import CliRunner

from anabranch.cli.main import app
from anabranch.modeling.load import load_tokenizer
from anabranch.recipe.io import to_yaml
from anabranch.train.run import start

MESSAGE = re.compile(
    r"(?P<kind>\w+Error): (?P<where>.+?): found (?P<found>.+?), but (?P<need>.+)\n  fix: (?P<fix>.+)\n"
)


@pytest.fixture(scope="module")
def recipe_file(make_recipe, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(to_yaml(make_recipe("cold_start=null", "evaluation=null", "steps=1")))
    return path


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """An empty working directory."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below, with the bytes of the files."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(place: Path, *arguments: object) -> dict[str, str]:
    """The four parts of the one message that a command gives; asserts that it changed nothing."""
    before = contents(place)
    done = command(*arguments)
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    message = MESSAGE.fullmatch(done.stderr)
    assert message is not None, done.stderr
    assert contents(place) == before
    return message.groupdict()


# ------------------------------------------------------------------------------------------------ the recipe


@pytest.mark.parametrize(
    ("arguments", "where", "found"),
    [
        (["qickstart"], "the recipe", "'qickstart'"),
        (["no/such/file.yaml"], "no/such/file.yaml", "no such file"),
        (["quickstart", "optim.lrr=1e-6"], "optim.lrr", "an unknown key"),
        (["quickstart", "rollout.per_problem=1"], "rollout.per_problem", "1"),
        (["quickstart", "cold_start=null", "data.name=chain_sums"], "data.name", "'chain_sums'"),
        (["quickstart", "data.options.min_term=2"], "data.options", "'min_term'"),
    ],
)
def test_a_recipe_that_cannot_work(place, arguments, where, found):
    parts = refused(place, "train", *arguments, "--out", "run")
    assert (parts["where"], parts["found"]) == (where, found)


# ---------------------------------------------------------------------------------------------------- the data


def row(**columns: object) -> str:
    return json.dumps(columns) + "\n"


GOOD = row(question="1+1=", answer="2")


@pytest.mark.parametrize(
    ("content", "where", "found"),
    [
        (None, "data.jsonl", "No such file or directory"),
        ("", "data.jsonl", "no problem"),
        ("\n\n", "data.jsonl", "no problem"),
        (GOOD * 2 + '{"question": "2+2=", "answer": "4"\n', "data.jsonl:3", '\'{"question": "2+2=", "answer": "4"\''),
        (GOOD + "\n[1, 2]\n", "data.jsonl:3", "a JSON list"),
        (GOOD + row(question="2+2="), "data.jsonl:2", "columns 'question'"),
        (GOOD + row(question="", answer="4"), "data.jsonl:2", "an empty 'question'"),
        (GOOD + row(question="2+2=", answer=None), "data.jsonl:2", "answer = None"),
        (GOOD + row(question="2+\ud800=", answer="4"), "data.jsonl:2", "half a surrogate pair in 'question'"),
    ],
)
def test_data_that_cannot_be_read_names_file_and_line(place, recipe_file, content, where, found):
    if content is not None:
        (place / "data.jsonl").write_text(content)
    parts = refused(place, "train", recipe_file, "data.path=data.jsonl", "--out", "run")
    assert parts["kind"] == "DataError"
    assert (parts["where"], parts["found"]) == (where, found)


def test_a_prompt_longer_than_the_context_is_named(place, recipe_file):
    rows = [row(question=f"{n}+1=", answer=str(n + 1)) for n in range(5)]
    rows[3] = row(question="What is " + "1+" * 150 + "1?", answer="151")  # 8 + 302 tokens with one token a character
    (place / "data.jsonl").write_text("".join(rows))
    parts = refused(place, "train", recipe_file, "data.path=data.jsonl", "--out", "run")
    assert parts["kind"] == "DataError"
    assert "1+1+1+1+" in parts["where"]
    assert parts["found"] == "a prompt of 312 tokens"  # 310, bos and a newline
    assert "the context of 256 leaves 250 beside rollout.max_new_tokens=6" in parts["need"]


def test_a_gold_answer_that_the_checker_cannot_accept_is_named(place, recipe_file):
    rows = [row(question=f"{n}+1=", answer="a banana" if n == 2 else str(n + 1)) for n in range(5)]
    (place / "data.jsonl").write_text("".join(rows))
    parts = refused(place, "train", recipe_file, "data.path=data.jsonl", "--out", "run")
    assert (parts["kind"], parts["where"]) == ("DataError", "self-check of 'data'")
    assert "1 of 5 problems failing" in parts["found"]
    assert "'2+1=', gold 'a banana'" in parts["found"]


# --------------------------------------------------------------------------------------------------- the model


@pytest.fixture
def encoder(tmp_path, tiny_model) -> Path:
    folder = tmp_path / "bert"
    BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16).save_pretrained(folder)
    load_tokenizer(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture
def encoder_decoder(tmp_path, tiny_model) -> Path:
    folder = tmp_path / "t5"
    T5Config(d_model=16, num_layers=1, num_heads=2, d_ff=16).save_pretrained(folder)
    load_tokenizer(tiny_model).save_pretrained(folder)
    return folder


def test_a_model_that_is_no_causal_language_model_is_refused(place, recipe_file, encoder, encoder_decoder):
    for folder, found in ((encoder, "a model of type bert"), (encoder_decoder, "an encoder-decoder model (t5)")):
        parts = refused(place, "train", recipe_file, f"model.source={folder}", "--out", "run")
        assert (parts["kind"], parts["found"]) == ("ModelError", found)
        assert parts["need"] == "a decoder-only causal language model is needed"


def test_a_tokenizer_with_more_tokens_than_the_model_is_named(place, recipe_file, tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.add_tokens(["plus"])  # and the embedding not resized
    folder = Path(shutil.copytree(tiny_model, place.parent / "grown"))
    tokenizer.save_pretrained(folder)
    (place / "data.jsonl").write_text("".join(row(question=f"{n} plus 1", answer=str(n + 1)) for n in range(5)))
    parts = refused(place, "train", recipe_file, f"model.source={folder}", "data.path=data.jsonl", "--out", "run")
    size = len(tokenizer) - 1
    assert (parts["kind"], parts["found"]) == ("ModelError", f"token {size} ('plus')")
    assert parts["need"] == f"the model has embeddings for {size} tokens"


def test_a_model_folder_that_is_none_is_refused(place, recipe_file):
    (place / "empty").mkdir()
    for source, found in (("./empty", "no config.json"), ("./nowhere", "no such folder")):
        parts = refused(place, "train", recipe_file, f"model.source={source}", "--out", "run")
        assert (parts["kind"], parts["found"]) == ("ModelError", found)


def test_after_a_mistake_the_same_command_works(place, recipe_file, encoder):
    refused(place, "train", recipe_file, f"model.source={encoder}", "--out", "run")
    done = command("train", recipe_file, "--out", "run")
    assert done.exit_code == 0, done.output
    assert "run written to run" in done.stdout


# ---------------------------------------------------------------------------------------------- the run folder


@pytest.fixture
def run(place, make_recipe) -> Path:
    """A run of one step."""
    start(make_recipe("cold_start=null", "evaluation=null", "steps=1"), place / "run")
    return Path("run")


@pytest.mark.parametrize("out", ["run", "other"])
def test_a_folder_that_holds_something_is_not_trained_into(place, run, recipe_file, out):
    (place / "other").mkdir()
    (place / "other" / "thesis.tex").write_text("years of work")
    parts = refused(place, "train", recipe_file, "--out", out)
    assert (parts["kind"], parts["where"]) == ("RunFolderError", out)
    if out == "run":
        assert parts["found"] == "a run"
        assert parts["fix"].startswith("anabranch resume run")
    else:
        assert parts["found"] == "other files (thesis.tex)"


@pytest.fixture
def holder(run) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of the run."""
    code = (
        "import sys; from pathlib import Path; from anabranch.tracking.lock import FolderLock\n"
        "lock = FolderLock(Path('run/lock')); print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.stdin.close()
    process.wait(timeout=30)
    process.stdout.close()


def test_a_second_process_on_the_same_run_is_refused(place, run, holder, recipe_file):
    for arguments in (["resume", run], ["train", recipe_file, "--out", run]):
        parts = refused(place, *arguments)
        assert (parts["kind"], parts["where"]) == ("RunFolderError", "run")
        assert parts["found"] == f"in use by process {holder.pid}"


def test_a_folder_that_cannot_be_looked_into_is_one_error(place, recipe_file):
    for arguments in (("train", recipe_file, "--out", "x" * 300), ("resume", "x" * 300), ("eval", "x" * 300)):
        parts = refused(place, *arguments)
        assert (parts["kind"], parts["found"]) == ("RunFolderError", "File name too long")


def test_a_folder_that_is_no_run_cannot_be_resumed(place):
    (place / "empty").mkdir()
    (place / "file").write_text("x")
    for name, found in (("empty", "no recipe.yaml"), ("file", "a file"), ("nowhere", "no such folder")):
        parts = refused(place, "resume", name)
        assert (parts["kind"], parts["where"], parts["found"]) == ("RunFolderError", name, found)


def test_worked_examples_that_changed_under_a_run_are_noticed(place, make_recipe):
    def write(mark: str) -> None:
        rows = (row(question=f"{n}+2=", solution=f"{mark}{n + 2}") for n in range(5))
        (place / "worked.jsonl").write_text("".join(rows))

    write("")
    start(make_recipe("cold_start=null", "steps=0", "sft={path: worked.jsonl, steps: 1}"), place / "run")
    write("=")
    done = command("resume", "run", "--steps", "1")
    assert (done.exit_code, "found other problems than at the start of the run" in done.stderr) == (2, True)


def test_a_run_folder_from_a_machine_with_another_device_is_one_error(place, run):
    copy = Path(shutil.copytree(run, place / "moved"))
    recipe = copy / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("device: cpu", "device: cuda:99"))
    done = command("resume", copy, "--steps", "3")
    assert (done.exit_code, done.stderr.startswith("RecipeError: model.device: found cuda:99")) == (2, True)


def test_data_that_changed_under_a_run_is_noticed(place, recipe_file):
    (place / "data.jsonl").write_text("".join(row(question=f"{n}+1=", answer=str(n + 1)) for n in range(5)))
    assert command("train", recipe_file, "data.path=data.jsonl", "--out", "run").exit_code == 0
    (place / "data.jsonl").write_text("".join(row(question=f"{n}+2=", answer=str(n + 2)) for n in range(5)))
    logs = {name: (place / "run" / name).read_bytes() for name in ("metrics.jsonl", "rollouts.jsonl")}
    done = command("resume", "run", "--steps", "2")
    assert done.exit_code == 2
    assert MESSAGE.fullmatch(done.stderr), done.stderr
    assert {name: (place / "run" / name).read_bytes() for name in logs} == logs
