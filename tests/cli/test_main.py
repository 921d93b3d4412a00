"""What the command line promises: it answers at once, a mistake gives one message, and what was asked is passed on."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anabranch import __version__
from anabranch.cli import commands
from anabranch.cli.main import app
from anabranch.errors import RecipeError
from anabranch.presets import PAPERS, PRESETS, load
from anabranch.recipe.io import from_yaml, to_yaml
from anabranch.recipe.tree import HubDataset, JsonLines, ReasoningGym, Sft

HEAVY = ("torch", "transformers", "reasoning_gym", "math_verify")


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def process(code: str, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


@pytest.mark.parametrize(
    ("arguments", "too_much"),
    [
        (["--help"], (*HEAVY, "pydantic", "yaml")),
        (["train", "--help"], HEAVY),
        (["--version"], (*HEAVY, "pydantic", "yaml")),
        (["show", "grpo", "--explain"], HEAVY),
        (["show", "grpo", "optim.lr=1", "--against", "lite_ppo"], HEAVY),
        (["recipes"], HEAVY),
    ],
)
def test_nothing_heavy_is_imported_to_answer(arguments, too_much):
    code = (
        "import sys\n"
        "from anabranch.cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n"
        f"    print('EXIT', end.code, 'HEAVY', [name for name in {too_much!r} if name in sys.modules])\n"
    )
    done = process(code, *arguments)
    assert done.stdout.endswith("EXIT 0 HEAVY []\n"), done.stdout[-500:] + done.stderr


def test_help_names_every_command():
    text = run("--help").output
    for command in ("train", "resume", "sft", "eval", "show", "recipes", "doctor", "--version"):
        assert command in text


def test_version():
    assert run("--version").output == f"anabranch {__version__}\n"


def test_recipes_lists_every_preset_with_its_first_line():
    lines = run("recipes").output.splitlines()
    assert [line.split()[0] for line in lines] == [*PRESETS, *PAPERS]
    assert "GRPO: a reward is compared with the other answers" in lines[list(PRESETS).index("grpo")]


def test_show_prints_a_recipe_file_that_can_be_trained_from(tmp_path):
    done = run("show", "grpo", "optim.lr=2e-6", "name=mine")
    assert done.exit_code == 0
    (tmp_path / "mine.yaml").write_text(done.output)
    assert load(str(tmp_path / "mine.yaml")) == load("grpo").but(name="mine", optim=load("grpo").optim.but(lr=2e-6))
    assert from_yaml(run("show", "grpo", "--explain").output) == load("grpo")


def test_show_against_prints_exactly_the_rows_that_differ():
    assert run("show", "lite_ppo", "--against", "grpo").output.splitlines() == [
        "                     lite_ppo       grpo",
        "algorithm.scale      batch_std_raw  group_std",
        "algorithm.aggregate  token_mean     seq_mean_token_mean",
        "algorithm.kl.kind    none           loss_k3",
        "algorithm.kl.coef    0.0            0.04",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "grppo"], "RecipeError: the recipe: found 'grppo', but presets are"),
        (["show", "grpo", "optim.lrr=1"], "optim.lrr: found an unknown key"),
        (["show", "grpo", "--against", "no.yaml"], "no.yaml: found no such file"),
        (["train", "grpo", "rollout.per_problem=1"], "rollout.per_problem: found 1"),
        (["train", "grpo", "--steps", "0"], "steps: found 0"),
        (["train", "grpo", "--seconds", "0"], "seconds: found 0"),
        (["sft", "grpo"], "sft.path: found nothing"),
        (["sft", "grpo", "sft.path=a.jsonl", "steps=7"], "steps: found 7, but these are RL steps"),
        (["eval", "some/model"], "--data: found nothing"),
        (["eval", "some/model", "--data", "a.jsonl", "evaluation.sample=3"], "evaluation.sample: found an unknown key"),
    ],
)
def test_a_mistake_gives_one_message_with_a_fix_and_exit_code_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "\n  fix: " in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []  # nothing was started


def test_a_mistake_has_no_traceback_in_a_real_process():
    done = process("from anabranch.cli.main import main; main()", "train", "grpo", "steps=many")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "RecipeError: steps: found many, but must be a whole number\n  fix: steps=10\n"


def test_a_wrong_option_is_a_usage_error():
    done = run("show", "grpo", "--agianst", "lite_ppo")
    assert done.exit_code == 2
    assert "No such option" in done.stderr


def test_ctrl_c_leaves_one_line(monkeypatch):
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "recipes", interrupt)
    done = run("recipes")
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
    def crash() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(commands, "recipes", crash)
    assert isinstance(run("recipes").exception, ZeroDivisionError)


def test_a_reader_that_leaves_early_causes_no_noise():
    code = (
        "import sys; from anabranch.cli import commands; from anabranch.cli.main import main\n"
        "commands.recipes = lambda: print('line\\n' * 100000)\n"
        "main()"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, "recipes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None and writer.stderr is not None
    assert writer.stdout.readline() == b"line\n"
    writer.stdout.close()
    noise = writer.stderr.read()
    writer.stderr.close()
    writer.wait(timeout=30)
    assert noise == b""


def test_run_folders_are_counted_up(tmp_path):
    assert commands.free_folder(tmp_path, "grpo-0") == tmp_path / "grpo-0"
    (tmp_path / "grpo-0").mkdir()
    assert commands.free_folder(tmp_path, "grpo-0") == tmp_path / "grpo-0-2"
    (tmp_path / "grpo-0-2").mkdir()
    assert commands.free_folder(tmp_path, "grpo-0") == tmp_path / "grpo-0-3"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("test.jsonl", JsonLines(path="test.jsonl")),
        ("hub:openai/gsm8k", HubDataset(id="openai/gsm8k")),
        ("countdown", ReasoningGym(name="countdown")),
    ],
)
def test_evaluation_data_is_told_apart(data, expected):
    recipe = commands.evaluation_recipe(load("grpo"), data, samples=4, problems=10, overrides=[])
    assert recipe.evaluation is not None
    assert (recipe.evaluation.data, recipe.evaluation.samples, recipe.evaluation.problems) == (expected, 4, 10)


@pytest.mark.parametrize(
    ("target", "data", "checkpoint", "folder"),
    [
        ("runs/a", None, "step-000014", "runs/a/eval-held-out-step-000014"),
        ("runs/a", "some/test.jsonl", "step-000014", "runs/a/eval-test-step-000014"),
        ("HuggingFaceTB/SmolLM2-135M", "hub:openai/gsm8k", None, "runs/eval-SmolLM2-135M-gsm8k"),
    ],
)
def test_the_folder_of_an_evaluation_names_model_step_and_problems(target, data, checkpoint, folder):
    given = Path(target, "checkpoints", checkpoint) if checkpoint else None
    assert commands.evaluation_folder(target, data, given) == Path(folder)


def test_evaluation_keeps_what_the_run_said_unless_asked_otherwise():
    quick = load("quickstart")
    assert commands.evaluation_recipe(quick, None, None, None, []) == quick
    more = commands.evaluation_recipe(quick, None, 8, None, ["rollout.max_new_tokens=99"])
    assert more.evaluation == quick.evaluation.but(samples=8)
    assert more.rollout.max_new_tokens == 99


def test_evaluation_of_a_run_on_a_file_without_held_out_data_asks_for_some():
    trained = load("grpo").but(data=JsonLines(path="a.jsonl"))
    with pytest.raises(RecipeError, match=r"evaluation\.data: found None"):
        commands.evaluation_recipe(trained, None, None, None, [])


def test_sft_leaves_out_what_is_not_supervised_on_the_file():
    recipe = commands.sft_recipe(load("quickstart"), ["sft.path=a.jsonl", "sft.steps=7"])
    assert (recipe.steps, recipe.cold_start, recipe.sft) == (0, None, Sft(path="a.jsonl", steps=7))


def test_a_recipe_file_is_a_recipe_everywhere(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(to_yaml(load("gspo").but(name="mine")))
    assert "differ in nothing but the name" in run("show", str(path), "--against", "gspo").output


def test_the_installed_command_is_this_one():
    script = Path(sys.executable).parent / "anabranch"
    if not script.exists():
        pytest.skip("the package is not installed beside this Python")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60, check=True, env=os.environ)
    assert re.fullmatch(r"anabranch \d+\.\d+\.\d+\n", done.stdout)
