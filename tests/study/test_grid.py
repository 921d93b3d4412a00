"""What a grid promises: the arms that were named, each with its own recipe, or one clear error."""

import pytest

from anabranch.errors import RecipeError
from anabranch.presets import load
from anabranch.recipe.overrides import apply
from anabranch.recipe.show import difference
from anabranch.study.grid import SIZES, arms, method_of, parse_seeds, split_values


def names(*varied, bundles=(), overrides=()):
    return [arm.name for arm in arms("quickstart", overrides, varied, bundles)]


def test_values_are_split_outside_brackets_and_quotes_only():
    assert split_values("0.2,0.28") == ["0.2", "0.28"]
    assert split_values("{kind: soft, buffer: 8}, [a, b],none") == ["{kind: soft, buffer: 8}", "[a, b]", "none"]
    assert split_values("\"a,b\",'c,d'") == ['"a,b"', "'c,d'"]


@pytest.mark.parametrize(
    ("text", "expected"), [("5", (0, 1, 2, 3, 4)), ("3,7,11", (3, 7, 11)), ("7,", (7,)), ("1", (0,))]
)
def test_seeds_are_a_number_or_a_list(text, expected):
    assert parse_seeds(text) == expected


@pytest.mark.parametrize(
    ("text", "says"), [("0", "0"), ("1,2,1", "seed 1 twice"), ("many", "'many'"), ("-1", "'-1'"), (",", "','")]
)
def test_seeds_that_make_no_sense_are_refused(text, says):
    with pytest.raises(RecipeError, match=f"--seeds: found {says}"):
        parse_seeds(text)


def test_a_grid_is_the_product_of_its_axes_the_last_one_fastest():
    found = arms("quickstart", ["steps=7"], ["algorithm.scale=none,group_std", "optim.lr=1e-5,2e-5"], [])
    assert [arm.name for arm in found] == [
        "scale=none, optim.lr=1e-5",
        "scale=none, optim.lr=2e-5",
        "scale=group_std, optim.lr=1e-5",
        "scale=group_std, optim.lr=2e-5",
    ]
    assert [(arm.recipe.algorithm.scale, arm.recipe.optim.lr, arm.recipe.steps) for arm in found] == [
        ("none", 1e-5, 7),
        ("none", 2e-5, 7),
        ("group_std", 1e-5, 7),
        ("group_std", 2e-5, 7),
    ]


def test_values_may_be_whole_parts():
    one, other = arms("quickstart", [], ["algorithm.kl={kind: none},{kind: loss_k3, coef: 0.04}"], [])
    assert (one.recipe.algorithm.kl.kind, other.recipe.algorithm.kl.coef) == ("none", 0.04)


def test_bundles_follow_the_grid_and_may_be_empty():
    found = arms("quickstart", [], ["optim.lr=1e-5,2e-5"], ["tuned:algorithm.scale=none;optim.lr=3e-5", "base:"])
    assert [arm.name for arm in found] == ["optim.lr=1e-5", "optim.lr=2e-5", "tuned", "base"]
    assert (found[2].recipe.algorithm.scale, found[2].recipe.optim.lr) == ("none", 3e-5)
    assert difference(found[3].recipe, load("quickstart")) == []


def test_overrides_of_an_arm_give_its_recipe_from_the_base():
    for arm in arms("quickstart", ["steps=7"], ["recipe=lite_ppo,gspo", "optim.lr=1e-5,2e-5"], []):
        assert apply(load("quickstart"), arm.overrides) == arm.recipe


def test_a_preset_gives_its_method_and_the_base_gives_everything_else():
    base = apply(load("quickstart"), ["rollout.per_problem=3", "optim.lr=7e-5"])
    overrides = ["rollout.per_problem=3", "optim.lr=7e-5"]
    lite, gspo = arms("quickstart", overrides, ["recipe=lite_ppo,gspo"], [])
    assert (lite.name, gspo.name) == ("lite_ppo", "gspo")
    assert gspo.recipe.algorithm == load("gspo").algorithm
    assert gspo.recipe.reward == load("gspo").reward
    assert gspo.recipe.train.minibatches == load("gspo").train.minibatches > 1
    changed = {path.split(".")[0] for path, *_ in difference(gspo.recipe, base)}
    assert changed <= {"algorithm", "train", "reward", "rollout"}
    assert gspo.recipe.train.row_tokens == base.train.row_tokens
    for size in SIZES["rollout"]:
        assert dict(gspo.recipe.rollout)[size] == dict(base.rollout)[size]


def test_common_changes_win_over_the_presets_and_axes_over_both():
    found = arms("quickstart", ["train.minibatches=2"], ["recipe=gspo,lite_ppo", "algorithm.clip.high=0.3,0.4"], [])
    assert [arm.recipe.train.minibatches for arm in found] == [2, 2, 2, 2]
    assert [arm.recipe.algorithm.clip.high for arm in found] == [0.3, 0.4, 0.3, 0.4]


def test_every_size_that_a_method_leaves_alone_exists():
    dump = load("quickstart").model_dump()
    assert all(set(sizes) <= set(dump[part]) for part, sizes in SIZES.items())
    assert not any(text.startswith(("rollout.prompts=", "train.row_tokens=")) for text in method_of("grpo"))


@pytest.mark.parametrize(
    ("varied", "bundles", "overrides", "says"),
    [
        ([], [], [], "the grid: found 0 arms"),
        (["algorithm.scale=none"], [], [], "the grid: found 1 arm,"),
        (["algorithm.scale"], [], [], "--vary: found 'algorithm.scale'"),
        (["algorithm.scale="], [], [], "--vary algorithm.scale: found no value"),
        (["algorithm.scale=none,,group_std"], [], [], "found an empty value"),
        (["algorithm.sclae=none,group_std"], [], [], "algorithm.sclae: found an unknown key"),
        (["algorithm.scale=none,grp_std"], [], [], "in arm 'scale=grp_std':\nalgorithm.scale: found grp_std"),
        (["recipe=lite_ppo,grppo"], [], [], "in arm 'grppo':\nthe recipe: found 'grppo'"),
        (["algorithm.scale=none,none"], [], [], "'scale=none': found two of that name"),
        (["optim.lr=1e-5,0.00001"], [], [], "'optim.lr=1e-5' and 'optim.lr=0.00001': found the same recipe"),
        (["optim.lr=1e-5", "optim.lr=2e-5"], [], [], "--vary optim.lr: found this axis twice"),
        (["optim.lr=1e-5,2e-5"], [], ["optim.lr=1"], "optim.lr=1: found a change that no arm would keep"),
        (["algorithm={scale: none},{}"], [], ["algorithm.std=population"], "a change that no arm would keep"),
        (["seed=1,2"], [], [], "--seeds 3,7,11"),
        (["optim.lr=1e-5,2e-5"], [], ["seed=3"], "seed=3: found a seed"),
        (["name=a,b"], [], [], "a name changes nothing"),
        ([], ["a:optim.lr=1e-5", "b"], [], "--arm: found 'b'"),
        ([], ["a:optim.lr=1e-5", "a:optim.lr=2e-5"], [], "'a': found two of that name"),
        (["algorithm.clip.high=0.2,0.28"], [], [], "differ in nothing that acts"),
    ],
)
def test_what_cannot_be_a_grid_is_refused_with_a_fix(varied, bundles, overrides, says):
    with pytest.raises(RecipeError) as caught:
        arms("quickstart", overrides, varied, bundles)
    assert says in str(caught.value)
    assert "\n  fix: " in str(caught.value)


def test_clip_matters_with_several_updates():
    assert names("algorithm.clip.high=0.2,0.28", overrides=["train.minibatches=4"]) == [
        "clip.high=0.2",
        "clip.high=0.28",
    ]


def test_folder_names_hold_nothing_that_a_shell_or_file_system_minds():
    (one, other) = arms("quickstart", [], ["algorithm.kl={kind: none},{kind: loss_k3, coef: 0.04}"], [])
    assert one.slug == "kl=_kind_none"
    assert other.slug == "kl=_kind_loss_k3_coef_0.04"
