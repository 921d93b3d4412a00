"""What YAML promises: there and back without loss, and one clear error for anything that is no recipe."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import RecipeError
from anabranch.presets import PRESETS
from anabranch.recipe.io import from_yaml, to_yaml
from anabranch.recipe.overrides import apply
from anabranch.recipe.show import described
from anabranch.recipe.text import inline, parse, parse_value, render

texts = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["2e-6", "1E5", "-3e+4", "null", "~", "yes", "on", "0x1f", "1_000", "012", "1:30", "2020-01-01", "=", "<<", "#x",
     "a: b", "- a", "!t", "&a", "*a", "[", "'", '"', " a ", "a\nb", "\x85", "%", ".inf", "nan", "...", "---", "",
     "a #b", "`"]
)  # fmt: skip
finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=300)
@given(json_values)
def test_what_is_typed_and_what_is_written_is_read_back_exactly(value):
    assert parse(render(value)) == value
    assert parse_value(inline(value)) == value
    assert type(parse_value(inline(value))) is type(value)
    assert "\n" not in inline(value)


def test_only_true_and_false_are_truth_values():
    """YAML 1.1 would read the key of a cycle as `True`."""
    assert parse("on: 1\noff: [yes, No, y, true, False]") == {"on": 1, "off": ["yes", "No", "y", True, False]}
    assert render({"on": 1, "off": "no"}) == "on: 1\noff: no\n"


@settings(deadline=None, max_examples=100)
@given(
    name=st.sampled_from(sorted(PRESETS)),
    lr=st.floats(1e-12, 1e6),
    instruction=texts,
    stops=st.lists(texts.filter(bool), max_size=3),
    options=st.dictionaries(texts, json_values, max_size=3),
    seconds=st.none() | st.floats(1e-9, 1e9),
)
def test_every_recipe_survives_yaml_and_its_explained_form(name, lr, instruction, stops, options, seconds):
    recipe = apply(
        PRESETS[name](),
        [
            f"optim.lr={inline(lr)}",
            f"prompt.instruction={inline(instruction)}",
            f"rollout.stop_strings={inline(stops)}",
            f"seconds={inline(seconds)}",
            f"data.options={inline(options)}",
        ],
    )
    assert recipe.prompt.instruction == instruction
    assert from_yaml(to_yaml(recipe)) == recipe
    assert from_yaml(described(recipe, explain=True)) == recipe


def test_keys_left_out_take_their_defaults():
    recipe = from_yaml("name: mine\noptim:\n  lr: 2e-6\ncold_start: {}\n")
    assert (recipe.name, recipe.optim.lr, recipe.optim.eps, recipe.cold_start.steps) == ("mine", 2e-6, 1e-8, 13)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the recipe: found nothing, but it must be a mapping"),
        ("- a\n", "the recipe: found a list"),
        ("name: [", r"the recipe: found line 1: .*, but it must be YAML"),
        ("name: a\nsteps: 1\nsteps: 2\n", "line 1: key 'steps' stands twice"),
        ("name: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("1: a\n", "the recipe: found the key 1, but keys are names"),
        ("steps: 3\n", "name: found nothing, but it must be given\n  fix: name=..."),
        ("name: a\ndata: {name: chain_sum}\n", r"data: found no kind.*\n  fix: data.kind=reasoning_gym"),
        ("name: a\noptim: {1: x}\n", r"optim\.1"),
        ("name: 2020-13-45\n", "must be YAML"),
    ],
)
def test_what_is_no_recipe_is_refused(text, message):
    with pytest.raises(RecipeError, match=message):
        from_yaml(text)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(RecipeError, match=r"none\.yaml: found no such file"):
        from_yaml(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="found a folder"):
        from_yaml(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="no UTF-8"):
        from_yaml(tmp_path / "bytes.yaml")
    (tmp_path / "bad.yaml").write_text("name: x\nstep: 3\n")
    with pytest.raises(RecipeError, match=r"^in .*bad\.yaml:\nstep: found an unknown key"):
        from_yaml(tmp_path / "bad.yaml")
