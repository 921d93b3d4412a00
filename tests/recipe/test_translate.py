"""What errors of a recipe promise: the dotted path, what was found, what is allowed, a fix that works when pasted."""

import pytest

from anabranch.errors import RecipeError
from anabranch.presets import load
from anabranch.recipe.overrides import apply
from anabranch.recipe.tree import Recipe

GRPO = load("grpo")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "rollout.per_prompt=4",
            "rollout.per_prompt: found an unknown key, but rollout has only: prompts, per_problem, temperature, top_p, "
            "top_k, max_new_tokens, stop_strings, asynchronous, dynamic\n  fix: rollout.per_problem=4",
        ),
        (
            "optm.lr=2e-6",
            "optm: found an unknown key, but the recipe has only: " + ", ".join(Recipe.model_fields) + "\n"
            "  fix: optim.lr=2e-06",
        ),
        ("optim.lr=-1", "optim.lr: found -1, but must be greater than 0\n  fix: optim.lr=1e-06"),
        ("optim.lr=fast", "optim.lr: found fast, but must be a number\n  fix: optim.lr=1e-06"),
        ("optim.betas.1=1.5", "optim.betas.1: found 1.5, but must be less than 1\n  fix: optim.betas.1=..."),
        ("steps=2.5", "steps: found 2.5, but must be a whole number\n  fix: steps=10"),
        ("steps=true", "steps: found true, but must be a whole number\n  fix: steps=10"),
        ("seconds=0", "seconds: found 0, but must be greater than 0, or null\n  fix: seconds=null"),
        (
            "algorithm.aggregate=tokenmean",
            "algorithm.aggregate: found tokenmean, but must be one of: token_mean, seq_mean_token_mean, "
            "seq_mean_token_sum, token_sum_constant\n  fix: algorithm.aggregate=token_mean",
        ),
        (
            "data.kind=jsnl",
            "data.kind: found jsnl, but must be one of: reasoning_gym, jsonl, hub, verifiers\n  fix: data.kind=jsonl",
        ),
        ("data.kind=jsonl", "data.path: found nothing, but it must be given\n  fix: data.path=..."),
        ("data.path=", 'data.path: found "", but must not be empty\n  fix: data.path=...'),
        (
            "data.question=q",
            "data.question: found an unknown key, but data with kind=reasoning_gym has only: kind, name, options, "
            "size, seed\n  fix: data.kind=jsonl data.question=q",
        ),
        (
            "cold_start=true",
            "cold_start: found true, but must be a group of keys: steps, batch, lr, warmup, or null\n"
            "  fix: cold_start.steps=13",
        ),
        (
            "reward.0.term=acc",
            "reward.0.term: found acc, but must be one of: accuracy, format, cosine_length\n"
            "  fix: reward.0.term=accuracy",
        ),
        (
            "rollout.stop_strings=[a, 3]",
            "rollout.stop_strings.1: found 3, but must be text\n  fix: rollout.stop_strings.1=...",
        ),
        (
            "reward=accuracy",
            "reward: found accuracy, but must be a list\n"
            "  fix: reward=[{term: accuracy, wrong: 0.0, weight: 1.0, schedule: {kind: constant}}]",
        ),
        (
            "reward.0.low=-1",
            "reward.0.low: found an unknown key, but reward.0 with term=accuracy or format has only: term, wrong, "
            "weight, schedule\n  fix: reward.0.term=cosine_length reward.0.low=-1",
        ),
        (
            "reward.1.weight=2",
            "reward.1: found no term, but more than one would fit: accuracy, format, cosine_length\n"
            "  fix: reward.1.term=accuracy",
        ),
        ("answer.extract=[]", "answer.extract: found [], but must not be empty\n  fix: answer.extract=[boxed, "),
        ("data.options.when=2020-01-01", "data.options.when: found datetime.date(2020, 1, 1), but must be plain data"),
        ("name=a/b", "name: found a/b, but must be made of letters, digits, '.', '-' and '_'"),
        ("data={1: x}", "data: found no kind, but one is needed: reasoning_gym, jsonl, hub, verifiers\n"),
    ],
)
def test_the_message_in_full(change, message):
    with pytest.raises(RecipeError) as caught:
        apply(GRPO, [change])
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "change",
    [
        "rollout.per_prompt=4",
        "optm.lr=2e-6",
        "optim.lr=-1",
        "seconds=0",
        "data.question=q",
        "algorithm.std=x",
        "reward.0.low=-1",
    ],
)
def test_the_fix_can_be_pasted(change):
    with pytest.raises(RecipeError) as caught:
        apply(GRPO, [change])
    fix = str(caught.value).rpartition("  fix: ")[2].split()
    assert isinstance(apply(GRPO, [*fix, "data.path=needed.jsonl"] if "data." in fix[0] else fix), Recipe)


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(RecipeError) as caught:
        apply(GRPO, ["optim.lr=" + "x" * 500])
    assert len(str(caught.value).splitlines()[0]) < 150
