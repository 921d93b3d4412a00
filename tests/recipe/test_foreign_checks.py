"""Problems and environments of the `verifiers` package belong together."""

import pytest

from anabranch.errors import RecipeError
from anabranch.presets import load
from anabranch.recipe.overrides import apply

TOGETHER = (
    "data={kind: verifiers, taskset: sums, options: {size: 9}}",
    "environment={kind: verifiers, options: {taskset: {id: sums, size: 9}}}",
    "prompt.instruction=",
    "rollout.stop_strings=[]",
    "cold_start=null",
    "evaluation=null",
)


def refusal(*changes: str) -> str:
    with pytest.raises(RecipeError) as caught:
        apply(load("quickstart"), [*TOGETHER, *changes])
    return str(caught.value)


def test_problems_and_their_environment_pass():
    assert apply(load("quickstart"), list(TOGETHER)).environment.turns == 8


def test_the_problems_need_their_environment():
    assert "environment: found None, but only their environment judges these problems" in refusal("environment=null")
    assert "environment: found calculator" in refusal("environment={kind: calculator}")


def test_the_environment_needs_its_problems():
    assert "data.kind: found jsonl, but" in refusal("data={kind: jsonl, path: a.jsonl}")
    held_out = "evaluation={data: {kind: jsonl, path: a.jsonl}}"
    assert "evaluation.data.kind: found jsonl, but" in refusal(held_out)


def test_both_name_the_same_taskset():
    assert "data.taskset: found games, but the environment is of taskset 'sums'" in refusal("data.taskset=games")
    assert "data.taskset" in refusal("environment.options.taskset.id=games")
    apply(load("quickstart"), [*TOGETHER, "data.taskset=owner/Sums@1.0"])  # the same module


def test_the_environment_names_its_taskset():
    for options in ("{}", "{taskset: {}}", "{taskset: sums}", "{taskset: {id: 3}}"):
        assert "environment.options.taskset.id=NAME" in refusal(f"environment.options={options}")


@pytest.mark.parametrize(
    ("training", "held_out", "fits"),
    [
        ("{skip: 0, limit: 100}", "{skip: 100}", True),
        ("{skip: 0, limit: 100}", "{skip: 99}", False),
        ("{skip: 50, limit: 100}", "{limit: 50}", True),
        ("{skip: 50, limit: 100}", "{limit: 51}", False),
        ("{skip: 50}", "{limit: 50}", True),
        ("{skip: 50}", "{skip: 60, limit: 5}", False),
    ],
)
def test_held_out_tasks_are_not_among_the_training_tasks(training, held_out, fits):
    start = "{kind: verifiers, taskset: sums, options: {size: 9}, "
    changes = [f"data={start}{training[1:]}", f"evaluation={{data: {start}{held_out[1:]}}}"]
    if fits:
        apply(load("quickstart"), [*TOGETHER, *changes])
    else:
        assert "evaluation.data.skip" in refusal(*changes)


def test_a_turn_ends_with_the_models_own_token():
    assert "rollout.stop_strings" in refusal("rollout.stop_strings=[x]")


def test_the_range_of_rewards_is_one():
    assert "environment.lowest: found 1.0, but it must lie below environment.highest=1" in refusal(
        "environment.lowest=1.0"
    )
