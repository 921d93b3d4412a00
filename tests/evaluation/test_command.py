"""`anabranch eval` on a real run of a tiny model: the run's own numbers come out again, mistakes get one message."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from anabranch.cli import commands
from anabranch.errors import CheckpointError, DataError, RunFolderError
from anabranch.evaluation import held_out
from anabranch.evaluation.command import evaluate
from anabranch.recipe.io import from_yaml
from anabranch.recipe.tree import (
    Answer,
    Evaluation,
    JsonLines,
    Model,
    Optim,
    Prompt,
    ReasoningGym,
    Recipe,
    RolloutSettings,
    Save,
    TorchEngine,
)
from anabranch.tracking.checkpoints import newest
from anabranch.train.run import start

SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


@pytest.fixture(scope="module", autouse=True)
def _as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    """Batches of 2 problems with 4 samples each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_out, "ANSWERS_A_BATCH", 8)
        yield


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    """Two steps that move the weights far; six held-out problems in three batches."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    recipe = Recipe(
        name="tiny",
        seed=3,
        steps=2,
        model=Model(source=tiny_model, dtype="float32", device="cpu", threads=1),
        data=ReasoningGym(options=SUMS, size=40),
        prompt=Prompt(instruction=""),
        answer=Answer(extract=("last_number",)),
        rollout=RolloutSettings(prompts=4, per_problem=4, max_new_tokens=16),
        engine=TorchEngine(max_rows=4),
        reward=({"term": "format"},),
        optim=Optim(lr=1e-2),
        evaluation=Evaluation(problems=6, samples=4),
        save=Save(every=1),
    )
    start(recipe, folder)
    return folder


def recipe_of(run):
    return from_yaml(run / "recipe.yaml")


def last_of(run):
    return newest(run / "checkpoints")


def evaluate_run(run):
    """`anabranch eval RUN`."""
    commands.evaluate(str(run), None, None, None, [], None)


def result_in(folder):
    return json.loads((folder / "result.json").read_text())


def last_evaluation(run):
    return json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])


def write_sums(path: Path, rows):
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    return JsonLines(path=str(path))


def test_evaluating_a_run_gives_its_final_numbers_again(run, tmp_path, capsys):
    evaluate(recipe_of(run), last_of(run), tmp_path / "eval")
    result, final = result_in(tmp_path / "eval"), last_evaluation(run)
    first = json.loads((run / "evaluations.jsonl").read_text().splitlines()[0])
    assert final["stage"] == "rl" and first["stage"] == "before"
    assert list(result["per_problem"].values()) == final["per_problem"] != first["per_problem"]
    assert {name: result["estimates"][name] for name in final["estimates"]} == final["estimates"]
    shown = capsys.readouterr().out
    assert "checkpoints/step-000002/model" in shown
    assert "accuracy" in shown and "95 % interval over problems" in shown and "maj@4" in shown
    assert result["overlap"]["same"] == [] and result["gold_refused"] == []

    evaluate(recipe_of(run), last_of(run), tmp_path / "eval")  # once more: nothing is answered, nothing changes
    assert result_in(tmp_path / "eval") == result
    assert "24 of 24 answers are here already" in capsys.readouterr().out


def test_training_changed_the_answers_that_are_compared(run, tiny_model, tmp_path):
    base = recipe_of(run)
    training = base.data.but(seed=9)  # other problems: a bare model has no training problems to keep apart
    evaluate(base.but(evaluation=Evaluation(problems=4, samples=4, data=training)), None, tmp_path / "before")
    evaluate(
        base.but(evaluation=Evaluation(problems=4, samples=4, data=training)),
        last_of(run),
        tmp_path / "after",
    )
    texts = [
        [json.loads(line)["text"] for line in (tmp_path / name / "answers.jsonl").read_text().splitlines()]
        for name in ("before", "after")
    ]
    assert texts[0] != texts[1]
    assert result_in(tmp_path / "before")["model"] == tiny_model
    assert result_in(tmp_path / "before")["overlap"] is None


def test_another_model_in_the_same_folder_is_refused(run, tmp_path):
    base = recipe_of(run)
    older = tmp_path / "older"
    shutil.copytree(run, older)
    evaluate(base, last_of(older), tmp_path / "eval")
    before = (tmp_path / "eval" / "answers.jsonl").read_bytes()
    shutil.rmtree(older / "checkpoints" / "step-000002")
    with pytest.raises(RunFolderError, match=r"the weights of .*step-000002/model there, of .*step-000001/model here"):
        evaluate(base, last_of(older), tmp_path / "eval")
    with pytest.raises(RunFolderError, match="seed 3 there, 4 here"):
        evaluate(base.but(seed=4), last_of(run), tmp_path / "eval")
    assert (tmp_path / "eval" / "answers.jsonl").read_bytes() == before


def test_evaluations_of_different_steps_have_folders_of_their_own(run, tmp_path):
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    evaluate_run(copied)
    shutil.rmtree(copied / "checkpoints" / "step-000002")  # as if it had been asked before the second step
    evaluate_run(copied)
    assert [result_in(copied / f"eval-held-out-step-00000{step}")["model"] for step in (2, 1)] == [
        f"{copied}/checkpoints/step-00000{step}/model" for step in (2, 1)
    ]
    assert len(list(copied.glob("eval-*"))) == 2


def test_problems_from_training_and_gold_that_cannot_be_right_are_reported(run, tmp_path, capsys):
    base = recipe_of(run)
    train = write_sums(tmp_path / "train.jsonl", [("1 + 1 =", "2"), ("2 + 2 =", "4")])
    test = write_sums(tmp_path / "test.jsonl", [("1 + 1 =", "2"), ("5 + 2 =", "7"), ("who?", "a duck")])
    recipe = base.but(data=train, rollout=base.rollout.but(prompts=2), evaluation=Evaluation(samples=1, data=test))
    evaluate(recipe, last_of(run), tmp_path / "eval")
    result = result_in(tmp_path / "eval")
    asked = [json.loads(line) for line in (tmp_path / "eval" / "answers.jsonl").read_text().splitlines()]
    assert result["overlap"]["same"] == [asked[0]["key"]] and asked[0]["question"] == "1 + 1 ="
    assert result["gold_refused"] == [asked[2]["key"]]  # no number in it, so `last_number` finds nothing
    shown = capsys.readouterr().out
    assert "WARNING: 1 problems are among the 2 training problems" in shown
    assert "WARNING: 1 of 3 problems cannot be solved" in shown

    Path(train.path).unlink()  # the training file is gone: still an evaluation, and it says what it could not compare
    evaluate(recipe, last_of(run), tmp_path / "again")
    assert "not compared with the training problems" in capsys.readouterr().out
    assert result_in(tmp_path / "again")["estimates"] == result["estimates"]


def test_data_without_one_right_gold_answer_is_refused(run, tmp_path):
    data = write_sums(tmp_path / "test.jsonl", [("who?", "a duck"), ("where?", "at the market")])
    with pytest.raises(DataError, match=r"no gold answer that is accepted .*a duck.*\n  fix: .*evaluation.data.answer"):
        evaluate(recipe_of(run).but(evaluation=Evaluation(data=data)), last_of(run), tmp_path / "eval")


def test_a_run_without_a_checkpoint_and_a_damaged_one_are_refused(run, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    with (copied / "checkpoints" / "step-000002" / "model" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(CheckpointError, match=r"model.safetensors: found contents that do not match"):
        evaluate_run(copied)
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(CheckpointError, match=r"no checkpoint.*\n  fix: anabranch resume"):
        evaluate_run(copied)
    assert list(copied.glob("eval-*")) == []


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(run, tmp_path):
    data = write_sums(tmp_path / "test.jsonl", [("1 + 1 =", "2"), ("9" * 300 + " + 1 =", "2")])
    with pytest.raises(DataError, match=r"a prompt of 30\d tokens.*\n.*rollout.max_new_tokens"):
        evaluate(recipe_of(run).but(evaluation=Evaluation(data=data)), last_of(run), tmp_path / "eval")
