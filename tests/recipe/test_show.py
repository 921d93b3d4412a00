"""What showing and comparing recipes promises."""

from anabranch.presets import PRESETS, load
from anabranch.recipe.overrides import apply
from anabranch.recipe.show import ABSENT, described, difference, flatten, table


def test_flat_paths_are_override_keys():
    """Every flat setting, typed as an override onto another recipe, carries it over in full."""
    from anabranch.recipe.text import inline

    quick = load("quickstart")
    overrides = [f"{path}={inline(value)}" for path, value in flatten(quick).items()]
    assert apply(load("gspo"), overrides) == quick


def test_lite_ppo_differs_from_grpo_in_four_settings():
    assert difference(load("lite_ppo"), load("grpo")) == [
        ("algorithm.scale", "batch_std_raw", "group_std"),
        ("algorithm.aggregate", "token_mean", "seq_mean_token_mean"),
        ("algorithm.kl.kind", "none", "loss_k3"),
        ("algorithm.kl.coef", 0.0, 0.04),
    ]


def test_the_table_is_aligned():
    assert table(load("lite_ppo"), load("grpo")) == (
        "                     lite_ppo       grpo\n"
        "algorithm.scale      batch_std_raw  group_std\n"
        "algorithm.aggregate  token_mean     seq_mean_token_mean\n"
        "algorithm.kl.kind    none           loss_k3\n"
        "algorithm.kl.coef    0.0            0.04"
    )


def test_a_recipe_does_not_differ_from_itself_under_another_name():
    grpo = load("grpo")
    assert difference(grpo, grpo.but(name="other")) == []
    assert table(grpo, grpo.but(name="other")) == "grpo and other differ in nothing but the name."


def test_what_only_one_side_has_is_marked():
    grpo = load("grpo")
    rows = difference(grpo, apply(grpo, ["sft.path=s.jsonl", "sft.steps=5", "data.path=a.jsonl"]))
    assert ("sft", None, ABSENT) in rows
    assert ("sft.steps", ABSENT, 5) in rows
    assert ("data.kind", "reasoning_gym", "jsonl") in rows
    assert ("data.size", 80, ABSENT) in rows
    tops = [path.partition(".")[0] for path, _, _ in rows]
    assert tops == sorted(tops)  # in the order of the tree, where data stands before sft


def test_explained_keys_carry_their_meaning_in_the_words_of_yaml():
    text = described(load("grpo"), explain=True)
    assert "  # Learning rate, after warm-up.\n  lr: 1.0e-05\n" in text
    assert "# Held-out accuracy before and after; null: none.\nevaluation: null\n" in text
    assert "\n- # accuracy: the verdict's value." in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_note_about_a_single_update_stands_above_the_yaml():
    for name in PRESETS:
        recipe = load(name)
        single = recipe.train.minibatches * recipe.train.epochs == 1
        assert described(recipe).startswith("# note: train.minibatches=1") == single
