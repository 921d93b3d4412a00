"""What the presets promise: methods are points on axes, all else is shared, and each can be loaded by name."""

import inspect

import pytest

from anabranch.errors import RecipeError
from anabranch.evaluation.held_out import held_out_problems
from anabranch.presets import PAPERS, PRESETS, load
from anabranch.presets.laptop import LAPTOP
from anabranch.presets.published import Method
from anabranch.presets.small import SETS, small
from anabranch.recipe.io import from_yaml, to_yaml
from anabranch.recipe.overrides import apply
from anabranch.recipe.show import difference
from anabranch.recipe.text import inline
from anabranch.rewards.overlong import DEFAULT_BUFFER
from anabranch.tasks.base import open_task

METHODS = [name for name, preset in PRESETS.items() if isinstance(preset, Method)]
SEVERAL_UPDATES = ("gspo", "cispo", "dapo", "prorl_v2", "spo", "bspo")

# "lite_ppo" section 6: baseline, scale, whitening, ratio, (low, high), aggregation, (KL, coefficient)
TABLE = {
    "ppo_vanilla": ("none", "none", "none", "token", (0.2, 0.2), "seq_mean_token_mean", ("none", 0.0)),
    "reinforce_pp": ("none", "none", "tokens", "token", (0.2, 0.2), "token_mean", ("reward_k1", 0.01)),
    "grpo": ("group_mean", "group_std", "none", "token", (0.2, 0.2), "seq_mean_token_mean", ("loss_k3", 0.04)),
    "dr_grpo": ("group_mean", "none", "none", "token", (0.2, 0.2), "token_sum_constant", ("none", 0.0)),
    "gspo": ("group_mean", "group_std", "none", "sequence", (3e-4, 4e-4), "seq_mean_token_mean", ("none", 0.0)),
    "cispo": ("group_mean", "group_std", "none", "detached", (None, 4.0), "token_mean", ("none", 0.0)),
    "lite_ppo": ("group_mean", "batch_std_raw", "none", "token", (0.2, 0.2), "token_mean", ("none", 0.0)),
    "dapo": ("group_mean", "group_std", "none", "token", (0.2, 0.28), "token_mean", ("none", 0.0)),
    # "brorl" sections 14 and 15, the recommended defaults
    "prorl_v2": ("group_mean", "none", "trajectories", "token", (0.2, 0.28), "token_mean", ("loss_k2", 1e-4)),
    # "spo" sections 4, 5 and 13
    "spo": ("tracker", "none", "trajectories", "token", (0.2, 0.28), "token_mean", ("none", 0.0)),
    "bspo": ("tracker", "none", "trajectories", "token", (0.2, 0.28), "token_mean", ("none", 0.0)),
}
# (dual clip, overlong, mismatch, dynamic sampling), where a method has one of them
EXTRAS = {
    "dapo": (10.0, "soft", "none", True),
    "prorl_v2": (None, "stop_properly", "tis", True),
    "spo": (10.0, "none", "none", False),
    "bspo": (10.0, "none", "none", False),
}
SINGLE = {"spo": ("sampling", "rollout.prompts", "rollout.per_problem"), "bspo": ("sampling",)}
"""What else such a method is: other problems, and one answer to each."""


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_the_rows_of_the_composition_table(name):
    a = load(name).algorithm
    row = (a.baseline, a.scale, a.whiten, a.ratio, (a.clip.low, a.clip.high), a.aggregate, (a.kl.kind, a.kl.coef))
    assert row == TABLE[name]
    extras = (a.clip.dual, a.overlong.kind, a.mismatch.kind, load(name).rollout.dynamic is not None)
    assert extras == EXTRAS.get(name, (None, "none", "none", False))
    assert (a.std, a.entropy_coef, a.advantage_clip) == ("unbiased", 0.0, None)


@pytest.mark.parametrize("name", METHODS)
def test_methods_differ_only_in_the_algorithm_dynamic_sampling_and_the_updates_per_batch(name):
    paths = [path for path, _, _ in difference(load(name), load("lite_ppo"))]
    own = ("algorithm.", "rollout.dynamic", "train.minibatches", *SINGLE.get(name, ()))
    assert all(path.startswith(own) for path in paths)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_the_scale_of_its_paper(name):
    paper = load(f"{name}@paper")
    assert paper == PAPERS[f"{name}@paper"]()
    assert paper.name == f"{name}-paper"
    assert from_yaml(to_yaml(paper)) == paper
    assert from_yaml(to_yaml(load(name))) == load(name)
    assert paper.data.kind == paper.evaluation.data.kind == "hub"
    assert paper.rollout.prompts * paper.rollout.per_problem >= 1024
    assert paper.rollout.max_new_tokens >= 1024
    assert paper.optim.lr == 1e-6
    assert paper.model.source.count("/") == 1
    assert "Scale" in inspect.getdoc(PRESETS[name])


@pytest.mark.parametrize("name", METHODS)
def test_a_laptop_changes_its_overlay_and_nothing_else(name):
    keys = [change.partition("=")[0] for change in PRESETS[name].changes]
    for path, _, _ in difference(load(name), load(f"{name}@paper")):
        assert any(path == key or path.startswith(f"{key}.") for key in keys), path
        assert not path.startswith("algorithm.") or path == "algorithm.kl.reset.every"  # a number of steps
    assert apply(load(f"{name}@paper"), PRESETS[name].changes).but(name=name) == load(name)


def test_every_change_of_the_laptop_changes_some_method():
    changed = {path for name in METHODS for path, _, _ in difference(load(name), load(f"{name}@paper"))}
    for key in (change.partition("=")[0] for change in LAPTOP):
        assert any(path == key or path.startswith(f"{key}.") for path in changed), key


def test_the_setting_of_the_study_is_that_of_its_paper():
    paper = load("lite_ppo@paper")  # "lite_ppo" section 2
    rollout, optim = paper.rollout, paper.optim
    assert (rollout.prompts, rollout.per_problem, rollout.max_new_tokens) == (128, 8, 8192)
    assert (rollout.temperature, rollout.top_p, rollout.top_k) == (0.99, 0.99, 100)
    assert (optim.lr, optim.weight_decay, optim.warmup, optim.schedule) == (1e-6, 0.0, 50, "constant")
    assert (paper.steps, paper.save.every, paper.evaluation.every, paper.seed) == (500, 20, 1, 42)
    assert (paper.train.minibatches, [(term.term, term.weight) for term in paper.reward]) == (1, [("accuracy", 1.0)])
    for other in ("ppo_vanilla@paper", "reinforce_pp@paper"):
        assert all(path.startswith("algorithm.") for path, _, _ in difference(load(other), paper))


def test_dapo_has_the_sizes_of_its_script():
    paper = load("dapo@paper")  # "lite_ppo" section 6
    assert (paper.rollout.prompts, paper.rollout.per_problem, paper.train.minibatches) == (512, 16, 16)
    assert (paper.rollout.max_new_tokens, paper.rollout.dynamic.rounds) == (20480, 10)
    assert paper.rollout.max_new_tokens // DEFAULT_BUFFER == 4096
    assert (paper.optim.lr, paper.optim.warmup, paper.optim.weight_decay) == (1e-6, 10, 0.1)


def test_prorl_v2_has_the_recommended_defaults():
    paper = load("prorl_v2@paper")  # "brorl" section 15
    a, rollout = paper.algorithm, paper.rollout
    assert (rollout.prompts, rollout.per_problem, paper.train.minibatches, rollout.temperature) == (512, 16, 8, 1.0)
    assert (a.kl.input_limit, a.kl.reset.every, a.kl.reset.moments) == (10.0, 300, "keep")
    assert (a.mismatch.low, a.mismatch.high, a.overlong.coef) == (0.5, 5.0, 0.0)
    assert (paper.optim.betas, paper.optim.weight_decay, paper.optim.grad_clip) == ((0.9, 0.95), 0.0, 1.0)


def test_spo_has_the_sizes_of_its_paper():
    paper, repeated = load("spo@paper"), load("bspo@paper")  # "spo" sections 3.2, 5, 6, 10.1 and 13
    tracker, rollout = paper.algorithm.tracker, paper.rollout
    assert (tracker.rho_min, tracker.rho_max, tracker.d_half, tracker.divergence) == (0.875, 0.96, 0.06, "abs")
    assert (paper.sampling.kind, paper.sampling.eps, paper.sampling.gamma) == ("prioritised", 0.05, 0.0)
    assert (rollout.prompts, rollout.per_problem, rollout.max_new_tokens, rollout.temperature) == (2048, 1, 16_384, 1)
    assert (paper.optim.weight_decay, paper.optim.betas, paper.optim.grad_clip) == (0.01, (0.9, 0.999), 1.0)
    assert (repeated.rollout.prompts, repeated.rollout.per_problem) == (256, 8)
    assert paper.data.config == "en"
    tool = paper.environment
    assert (tool.kind, tool.turns, tool.timeout, tool.memory_mb, tool.output_chars) == ("python", 8, 30.0, 1024, 256)
    ahead = repeated.rollout.asynchronous
    assert (paper.rollout.asynchronous, ahead.oversample, ahead.leftover) == (None, 0.5, "continue")
    differs = {path for path, _, _ in difference(paper, repeated) if not path.startswith("rollout.asynchronous")}
    assert differs == {"rollout.prompts", "rollout.per_problem", "algorithm.tracker.duplicates"}


def test_S15_2048_answers_are_8_updates_in_one_pass():
    for name in ("spo@paper", "bspo@paper"):
        paper = load(name)
        answers = paper.rollout.prompts * paper.rollout.per_problem
        assert (answers, answers // paper.train.minibatches) == (2048, 256)
        assert (paper.train.minibatches, paper.train.epochs) == (8, 1)


def test_only_methods_have_the_scale_of_a_paper():
    with pytest.raises(RecipeError, match=r"found 'quickstart@paper'.*\n  fix: quickstart"):
        load("quickstart@paper")
    with pytest.raises(RecipeError, match=r"found 'lite_ppo@papers'.*\n  fix: lite_ppo@paper"):
        load("lite_ppo@papers")


@pytest.mark.parametrize("name", METHODS)
def test_methods_take_a_file_on_the_command_line_without_anything_else(name):
    assert apply(load(name), ["data.path=gsm8k.jsonl", "steps=2"]).data.kind == "jsonl"


@pytest.mark.parametrize("name", METHODS)
def test_methods_whose_ratio_is_the_point_make_several_updates_a_batch(name):
    assert load(name).train.minibatches == (4 if name in SEVERAL_UPDATES else 1)
    assert load(f"{name}@paper").train.minibatches >= (4 if name in SEVERAL_UPDATES else 1)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_carries_its_name_and_a_description(name):
    assert load(name).name == name
    doc = inspect.getdoc(PRESETS[name])
    assert doc
    assert name not in METHODS or ("arXiv:" in doc and "Axes:" in doc)


def test_the_quickstart_is_lite_ppo_on_sums_of_two_numbers_after_a_thin_cold_start():
    quick = load("quickstart")
    assert quick.algorithm == load("lite_ppo").algorithm
    assert (quick.data.options["min_terms"], quick.data.options["max_terms"]) == (2, 2)
    assert quick.data.options["operators"] == ["+"]
    assert quick.evaluation is not None
    assert quick.cold_start is not None


def test_small_sums_are_lite_ppo_on_a_small_model_and_every_set_can_take_its_place():
    recipe = load("small_sums")
    assert recipe.algorithm == load("lite_ppo").algorithm
    assert recipe.model.source == "small-base"
    assert recipe.data == SETS["medium"]
    for data in SETS.values():
        changed = apply(recipe, [f"data={inline(data.model_dump(mode='json'))}"])
        assert changed.data == data
        assert data.size >= recipe.rollout.prompts * 2
    assert [data.options["max_terms"] for data in SETS.values()] == sorted(
        d.options["max_terms"] for d in SETS.values()
    )


@pytest.mark.parametrize("difficulty", SETS)
def test_every_set_leaves_enough_small_sums_unseen(difficulty):
    pytest.importorskip("reasoning_gym")
    recipe = load("small_sums").but(data=SETS[difficulty])
    task = open_task(recipe.data, recipe.answer)
    _, unseen = held_out_problems(recipe, task)
    assert len(unseen) == recipe.evaluation.problems
    assert not {problem.key for problem in unseen} & {problem.key for problem in task.problems}
    assert len(task.problems) >= 4 * recipe.rollout.prompts


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_at_the_small_sizes_and_keeps_its_axes(method):
    recipe = small(load(method), f"name={method}")
    assert recipe.algorithm == load(method).algorithm
    changed = [path for path, _, _ in difference(recipe, load("small_sums"))]
    own = ("name", "algorithm.", "rollout.dynamic", "train.minibatches", "sampling")
    assert all(path.startswith(own) for path in changed)


@pytest.mark.parametrize("name", PRESETS)
def test_the_data_set_knows_the_options(name):
    reasoning_gym = pytest.importorskip("reasoning_gym")
    data = load(name).data
    problems = reasoning_gym.create_dataset(data.name, seed=data.seed, size=4, **data.options)
    assert len(problems) == 4


def test_the_quickstart_leaves_sums_unseen():
    reasoning_gym = pytest.importorskip("reasoning_gym")
    data = load("quickstart").data
    sums = {
        p["question"] for p in reasoning_gym.create_dataset(data.name, seed=data.seed, size=data.size, **data.options)
    }
    assert 200 - len(sums) >= load("quickstart").evaluation.problems  # 10 x 10 operands, + or -


def test_a_name_with_a_slip_is_corrected():
    with pytest.raises(RecipeError, match=r"found 'lite_pp0'.*\n  fix: lite_ppo"):
        load("lite_pp0")
    with pytest.raises(RecipeError, match="fix: see `anabranch recipes`"):
        load("zzz")


def test_a_file_is_loaded_by_its_path(tmp_path, monkeypatch):
    mine = load("grpo").but(name="mine", steps=3)
    (tmp_path / "mine.yaml").write_text(to_yaml(mine))
    monkeypatch.chdir(tmp_path)
    assert load("mine.yaml") == mine
    assert load(str(tmp_path / "mine.yaml")) == mine
    (tmp_path / "noending").write_text(to_yaml(mine))
    assert load("noending") == mine
    with pytest.raises(RecipeError, match=r"other\.yaml: found no such file"):
        load("other.yaml")


def test_a_preset_wins_over_a_folder_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "grpo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load("grpo").name == "grpo"
