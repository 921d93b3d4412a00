"""What `KEY=VALUE` promises."""

import pytest

from anabranch.errors import RecipeError
from anabranch.presets import load
from anabranch.recipe.overrides import apply
from anabranch.recipe.show import difference
from anabranch.recipe.tree import (
    ColdStart,
    CosineLength,
    Cycle,
    HubDataset,
    JsonLines,
    ReasoningGym,
    Recipe,
    RewardTerm,
)

GRPO = load("grpo")
JSONL = apply(GRPO, ["data.path=a.jsonl", "data.question=q", "data.limit=50"])


def test_exactly_the_named_settings_change():
    changed = apply(GRPO, ["optim.lr=2e-6", "steps=50000", "rollout.stop_strings=[stop, 'a: b']", "model.device=cpu"])
    assert {path: new for path, _, new in difference(GRPO, changed)} == {
        "optim.lr": 2e-6,
        "steps": 50000,
        "rollout.stop_strings": ("stop", "a: b"),
        "model.device": "cpu",
    }


def test_no_override_no_change():
    assert apply(GRPO, []) == GRPO


@pytest.mark.parametrize(
    ("text", "value"), [("2e-6", 2e-6), ("1", 1.0), ("0.5", 0.5), ("1.5e3", 1500.0), ("1E+2", 100.0)]
)
def test_numbers_as_people_type_them(text, value):
    assert apply(GRPO, [f"optim.lr={text}"]).optim.lr == value


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("####", "####"),  # not a comment
        ("Finish with: Answer", "Finish with: Answer"),  # not a mapping
        ("a=b", "a=b"),
        ("'12'", "12"),
        ('"two\\nlines"', "two\nlines"),
        ("", ""),
        ("'null'", "null"),
    ],
)
def test_texts_as_people_type_them(typed, text):
    assert apply(GRPO, [f"prompt.instruction={typed}"]).prompt.instruction == text


def test_later_ones_win():
    assert apply(GRPO, ["steps=1", "steps=2"]).steps == 2
    assert apply(GRPO, ["cold_start.steps=5", "cold_start=null"]).cold_start is None
    assert apply(GRPO, ["cold_start.steps=5", "cold_start={batch: 4}"]).cold_start == ColdStart(batch=4)
    assert apply(GRPO, ["cold_start={batch: 4}", "cold_start.steps=5"]).cold_start == ColdStart(batch=4, steps=5)


def test_an_absent_part_is_built_from_its_defaults():
    assert apply(GRPO, ["cold_start.steps=5"]).cold_start == ColdStart(steps=5)
    assert apply(GRPO, ["cold_start={}"]).cold_start == ColdStart()


def test_a_present_part_keeps_what_is_not_named():
    quick = load("quickstart")
    assert apply(quick, ["cold_start.steps=5"]).cold_start == quick.cold_start.but(steps=5)


def test_a_key_that_only_one_other_form_has_chooses_that_form():
    assert apply(GRPO, ["data.path=a.jsonl", "steps=2"]).data == JsonLines(path="a.jsonl")
    assert apply(GRPO, ["data.id=openai/gsm8k", "data.config=main"]).data == HubDataset(
        id="openai/gsm8k", config="main"
    )
    assert apply(GRPO, ["evaluation.data.path=a.jsonl"]).evaluation.data == JsonLines(path="a.jsonl")
    assert apply(GRPO, ["data={path: a.jsonl}"]).data == JsonLines(path="a.jsonl")


def test_changing_the_form_drops_what_has_no_room_and_keeps_the_rest():
    assert apply(JSONL, ["data.kind=hub", "data.id=x/y"]).data == HubDataset(id="x/y", question="q", limit=50)
    assert apply(JSONL, ["data.kind=reasoning_gym"]).data == ReasoningGym()


def test_the_order_of_kind_and_keys_does_not_matter():
    assert apply(GRPO, ["data.path=b.jsonl", "data.kind=jsonl"]) == apply(
        GRPO, ["data.kind=jsonl", "data.path=b.jsonl"]
    )


def test_a_key_that_was_given_is_never_dropped():
    with pytest.raises(RecipeError, match=r"data\.size: found an unknown key"):
        apply(GRPO, ["data.kind=jsonl", "data.path=a.jsonl", "data.size=5"])
    with pytest.raises(RecipeError, match=r"data\.path: found an unknown key"):
        apply(GRPO, ["data.path=a.jsonl", "data.size=5"])  # no form has both


def test_an_undecided_form_is_asked_for():
    with pytest.raises(
        RecipeError, match=r"evaluation\.data: found no kind.*jsonl, hub\n  fix: evaluation\.data\.kind=jsonl"
    ):
        apply(GRPO, ["evaluation.data.question=q"])


def test_a_file_without_held_out_data_is_not_covered_up():
    with pytest.raises(RecipeError, match=r"evaluation\.data: found None"):
        apply(load("quickstart"), ["data.path=a.jsonl", "cold_start=null"])


def test_items_of_a_list_are_changed_and_added_by_index():
    changed = apply(GRPO, ["reward.1.term=format", "reward.0.weight=2", "reward.1.weight=0.5", "optim.betas.1=0.95"])
    assert changed.reward == (RewardTerm(weight=2.0), RewardTerm(term="format", weight=0.5))
    assert changed.optim.betas == (0.9, 0.95)


def test_a_term_of_the_reward_becomes_another_one_only_by_name():
    changed = apply(GRPO, ["reward.1={term: cosine_length, low: -1}", "reward.1.schedule.on=3", "reward.1.weight=0.5"])
    assert changed.reward[1] == CosineLength(low=-1.0, weight=0.5, schedule=Cycle(on=3))
    assert apply(changed, ["reward.1.term=format"]).reward[1] == RewardTerm(
        term="format", weight=0.5, schedule=Cycle(on=3)
    )


def test_free_options_are_changed_one_by_one():
    data = apply(GRPO, ["data.options.max_digits=3", "data.options.allow_negation=true"]).data
    assert data.options == {
        "min_terms": 2,
        "max_terms": 2,
        "min_digits": 1,
        "max_digits": 3,
        "operators": ["+"],
        "allow_parentheses": False,
        "allow_negation": True,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps", "override 'steps': found no KEY=VALUE"),
        ("=3", "override '=3': found no KEY=VALUE"),
        ("optim..lr=3", r"override 'optim\.\.lr=3': found no KEY=VALUE"),
        ("steps=[1", r"steps: found '\[1' \(line 1: expected"),
        ("rollout.stop_strings=[!!python/object:os.system x]", "could not determine a constructor"),
        ("rollout.stop_strings={a: 1, a: 2}", "key 'a' stands twice"),
        ("optim.lr.x=3", r"optim\.lr\.x: found a key below a single value.*\n  fix: optim\.lr=3"),
        ("reward.5.weight=1", r"reward\.5: found no such item, but the list takes 0 to 1"),
        ("reward.x.weight=1", r"reward\.x: found no such item"),
        ("reward.-1.weight=1", r"reward\.-1: found no such item"),
        ("nothing.here=1", "nothing: found an unknown key"),
        ("data.options.a.b.c=1", None),
    ],
)
def test_bad_overrides_are_refused_and_good_ones_are_not(text, message):
    if message is None:
        assert apply(GRPO, [text]).data.options["a"] == {"b": {"c": 1}}
        return
    with pytest.raises(RecipeError, match=message):
        apply(GRPO, [text])


def test_the_original_is_left_alone():
    before = GRPO.model_dump()
    apply(GRPO, ["data.options.max_digits=3", "reward.1.term=format"])
    assert GRPO.model_dump() == before
    assert isinstance(GRPO, Recipe)
