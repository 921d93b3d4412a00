"""The example in one file and the library are two ways to write the same three RL steps: token for token."""

import importlib.util
import random
from pathlib import Path

import pytest
import torch

from anabranch.engines.draw import uniforms
from anabranch.engines.torch_engine import TorchEngine
from anabranch.modeling.attention import NAME
from anabranch.modeling.load import load_model, load_tokenizer
from anabranch.modeling.tiny import character_tokenizer, tiny_llama
from anabranch.presets import load
from anabranch.recipe.io import to_yaml
from anabranch.recipe.tree import Answer, Model, Optim, Prompt, Recipe, RolloutSettings
from anabranch.records import Problem
from anabranch.tasks.base import Task, problem_key
from anabranch.tasks.equality import MathChecker
from anabranch.tasks.judge import Judge
from anabranch.tracking.display import PlainDisplay
from anabranch.tracking.run_folder import RunFolder
from anabranch.train.clock import Clock
from anabranch.train.experience import gather
from anabranch.train.optimizer import MasterOptimizer
from anabranch.train.rl import learn, prepare
from anabranch.train.session import Session

pytestmark = pytest.mark.usefixtures("one_thread")

FILE = Path(__file__).parents[2] / "examples" / "one_file.py"
SETTINGS = {"samples": 8, "max_new_tokens": 12, "lr": 1e-3, "seed": 5}
STEPS = 3
CHECKER = MathChecker(("last_number",))


def load_example():
    spec = importlib.util.spec_from_file_location("one_file", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


one_file = load_example()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model that knows few characters, so that some of its last numbers are right."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = character_tokenizer("012+-= abc")
    tiny_llama(vocab_size=len(tokenizer), seed=2).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def steps():
    """Three steps of four problems with answers 0, 1 or 2; one problem comes back in the last step."""
    asked = [(f"{first}+{second}=", str((first + second) % 3)) for first in range(3) for second in range(4)][:11]
    problems = [Problem(problem_key(*pair), *pair, "sums") for pair in asked]
    return [problems[0:4], problems[4:8], [*problems[8:11], problems[0]]]


@pytest.fixture(scope="module")
def library(folder, steps, tmp_path_factory):
    """(experience, update, weights after it) of every step, by the library."""
    recipe = Recipe(
        name="one_file",
        seed=SETTINGS["seed"],
        steps=STEPS,
        model=Model(source=str(folder), dtype="float32", device="cpu", threads=1),
        prompt=Prompt(instruction=one_file.INSTRUCTION),
        answer=Answer(extract=("last_number",)),
        rollout=RolloutSettings(prompts=4, per_problem=8, max_new_tokens=12),
        algorithm=load("lite_ppo").algorithm,
        optim=Optim(lr=SETTINGS["lr"]),
    )
    tokenizer = load_tokenizer(str(folder))
    model = load_model(str(folder), torch.float32, torch.device("cpu"), attention=NAME)
    found = []
    path = tmp_path_factory.mktemp("runs") / "run"
    with (
        RunFolder.create(path, to_yaml(recipe), recipe.name) as run,
        Judge(CHECKER) as judge,
        (path / "out.txt").open("w") as out,
    ):
        session = Session(
            recipe=recipe,
            folder=run,
            display=PlainDisplay(out),
            task=Task("sums", tuple(problem for step in steps for problem in step), CHECKER),
            data_hash="",
            held_out=(),
            judge=judge,
            held_judge=judge,
            tokenizer=tokenizer,
            model=model,
            optimizer=MasterOptimizer(model, recipe.optim),
            engine=TorchEngine(model, tokenizer),
        )
        for number, problems in enumerate(steps):
            experience = gather(session, problems, number, Clock())
            (update,) = learn(session, prepare(session, experience, Clock()), recipe.optim.lr, Clock())
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            found.append((experience, update, weights))
    return found


@pytest.fixture(scope="module")
def example(folder, steps):
    """(report, weights after it) of every step, by the example, with the model code of `transformers` alone."""
    tokenizer = load_tokenizer(str(folder))
    model = load_model(str(folder), torch.float32, torch.device("cpu"))
    found = []

    def keep(step, report):
        found.append((report, {name: tensor.clone() for name, tensor in model.state_dict().items()}))

    asked = [[one_file.Problem(problem.key, problem.question, problem.answer) for problem in step] for step in steps]
    one_file.train(model, tokenizer, asked, one_file.Settings(**SETTINGS), keep)
    return found


def test_the_three_steps_have_something_to_learn_from(library):
    for experience, update, _ in library:
        assert 0 < float(experience.reward_B.mean()) < 1
        assert update.grad_norm > 1  # so that clipping is compared as well


@pytest.mark.parametrize("step", range(STEPS))
def test_the_same_tokens_are_sampled_and_rewarded(library, example, step):
    experience, (report, _) = library[step][0], example[step]
    assert [answer.prompt for answer in report.answers] == [r.prompt_tokens.tolist() for r in experience.rollouts]
    assert [answer.tokens for answer in report.answers] == [
        rollout.graph.segments[1].tokens.tolist() for rollout in experience.rollouts
    ]
    assert [answer.text for answer in report.answers] == [rollout.text for rollout in experience.rollouts]
    assert report.rewards == experience.reward_B.tolist()


@pytest.mark.parametrize("step", range(STEPS))
def test_loss_and_gradient_norm_agree(library, example, step):
    update, (report, _) = library[step][1], example[step]
    assert report.loss == pytest.approx(update.loss, rel=1e-5)
    assert report.grad_norm == pytest.approx(update.grad_norm, rel=1e-5)


@pytest.mark.parametrize("step", range(STEPS))
def test_weights_agree_after_every_step(library, example, step):
    expected, found = library[step][2], example[step][1]
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_weights_moved_a_hundred_times_further_than_they_may_differ(folder, library):
    start = load_model(str(folder), torch.float32, torch.device("cpu")).state_dict()
    end = library[-1][2]
    assert max(float((end[name] - start[name]).abs().max()) for name in start) > 1e-3


def test_random_numbers_are_those_of_the_engine():
    found = one_file.uniforms(7, 3, "some key", 2, 100)
    assert found.tolist() == uniforms(7, 3, "some key", 2, 100).tolist()


def test_advantages_by_hand():
    # groups (1, 0) and (1, 1): means 1/2 and 1, centred (1/2, -1/2, 0, 0); batch 1, 0, 1, 1: mean 3/4, squares 3 * 1/16
    # + 9/16 = 3/4, variance (3/4) / 3 = 1/4, std 1/2
    assert one_file.advantages([1.0, 0.0, 1.0, 1.0], 2).tolist() == [1.0, -1.0, 0.0, 0.0]
    assert one_file.advantages([1.0, 1.0, 1.0, 1.0], 2).tolist() == [0.0] * 4


def test_a_step_in_which_every_answer_agrees_changes_nothing(folder):
    tokenizer = load_tokenizer(str(folder))
    model = load_model(str(folder), torch.float32, torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    problem = one_file.Problem("k", "1+1=", "123456789")
    (report,) = one_file.train(model, tokenizer, [[problem]], one_file.Settings(**SETTINGS))
    assert set(report.rewards) == {0.0} and report.loss == 0.0 and report.grad_norm == 0.0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_problems_of_a_step_are_different_sums_that_are_right():
    problems = one_file.sums(random.Random(0), 162)  # all there are: 9 * 9 * 2
    assert len({problem.key for problem in problems}) == 162
    for problem in problems:
        first, sign, second = problem.key.split()
        assert int(problem.answer) == (int(first) + int(second) if sign == "+" else int(first) - int(second))
        assert one_file.reward(problem, f"Let me see. Answer: {problem.answer}.") == 1.0
        assert one_file.reward(problem, f"{problem.answer} or {int(problem.answer) + 1}") == 0.0
    assert one_file.reward(problems[0], "no idea") == 0.0


def test_it_runs_by_itself_and_prints_a_line_a_step(folder, capsys):
    one_file.main([str(folder), "--steps", "2", "--problems", "2", "--samples", "2", "--max-new-tokens", "4"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 1/2", "step 2/2"]
    assert all("reward" in line and "loss" in line and "grad" in line for line in lines)


def test_it_stays_short_and_needs_nothing_of_the_library():
    text = FILE.read_text()
    assert text.count("\n") < 250
    assert "import anabranch" not in text and "from anabranch" not in text
