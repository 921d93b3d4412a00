"""What the whole-recipe checks promise: a setting that could not matter, or could not work, is refused with a fix."""

import pytest
from pydantic import ValidationError

from anabranch.errors import RecipeError
from anabranch.presets import load
from anabranch.recipe.checks import notes
from anabranch.recipe.overrides import apply
from anabranch.recipe.tree import Algorithm, Clip, Kl, Model, Optim, Part, Recipe

GRPO = load("grpo")
QUICK = load("quickstart")


@pytest.mark.parametrize(
    ("base", "changes", "where", "fix"),
    [
        (QUICK, "rollout.per_problem=1", "rollout.per_problem: found 1", "rollout.per_problem=8"),
        (
            QUICK,
            "rollout.per_problem=1 algorithm.baseline=leave_one_out",
            "baseline 'leave_one_out' compares",
            "rollout.per_problem=8",
        ),
        (
            QUICK,
            "rollout.per_problem=1 algorithm.baseline=none algorithm.scale=group_std",
            "scale 'group_std' is the spread",
            "algorithm.scale=batch_std_raw",
        ),
        (
            QUICK,
            "rollout.per_problem=1 rollout.prompts=1 algorithm.baseline=batch_mean algorithm.scale=none",
            "algorithm.baseline compares the answers of a batch",
            "rollout.prompts=16",
        ),
        (
            QUICK,
            "algorithm.scale=batch_std_raw algorithm.whiten=tokens",
            "whitening over tokens divides by the spread of the whole batch again",
            "algorithm.scale=none",
        ),
        (QUICK, "algorithm.kl.coef=0.1", "algorithm.kl.coef: found 0.1", "algorithm.kl.kind=loss_k3"),
        (GRPO, "algorithm.kl.coef=0", "algorithm.kl.coef: found 0.0", "algorithm.kl.kind=none"),
        (QUICK, "algorithm.kl.input_limit=10", "algorithm.kl.input_limit: found 10", "algorithm.kl.input_limit=null"),
        (
            QUICK,
            "algorithm.kl.output_limit=10",
            "algorithm.kl.output_limit: found 10",
            "algorithm.kl.output_limit=null",
        ),
        (GRPO, "algorithm.kl.input_limit=20", "holds the log-ratio within +-20", "algorithm.kl.input_limit=null"),
        (
            GRPO,
            "algorithm.kl.kind=loss_k2 algorithm.kl.input_limit=10 algorithm.kl.output_limit=50",
            "the estimate never exceeds 50",
            "algorithm.kl.output_limit=null",
        ),
        (
            GRPO,
            "algorithm.kl.input_limit=2 algorithm.kl.output_limit=4.5",  # e^2 - 2 - 1
            "the estimate never exceeds 4.389",
            "algorithm.kl.output_limit=null",
        ),
        (
            GRPO,
            "algorithm.kl.kind=reward_k1 algorithm.kl.input_limit=10 algorithm.kl.output_limit=10",
            "the estimate never exceeds 10",
            "algorithm.kl.output_limit=null",
        ),
        (QUICK, "algorithm.mismatch.low=0.9", "algorithm.mismatch.low: found 0.9", "algorithm.mismatch.low=0.5"),
        (QUICK, "algorithm.mismatch.high=null", "algorithm.mismatch.high: found None", "algorithm.mismatch.kind=tis"),
        (
            QUICK,
            "algorithm.mismatch={kind: icepop, low: null, high: null}",
            "without a bound nothing is ever taken out",
            "algorithm.mismatch.kind=tis",
        ),
        (
            QUICK,
            "algorithm.overlong.coef=-0.5",
            "only kind stop_properly reads it",
            "algorithm.overlong.kind=stop_properly",
        ),
        (QUICK, "algorithm.overlong.buffer=8", "algorithm.overlong.buffer: found 8", "algorithm.overlong.buffer=null"),
        (
            QUICK,
            "rollout.max_new_tokens=32 algorithm.overlong.kind=soft algorithm.overlong.buffer=33",
            "at most 32 tokens",
            "algorithm.overlong.buffer=6",  # a fifth of 32
        ),
        (
            QUICK,
            "algorithm.overlong.kind=filter algorithm.overlong.coef=0.5",
            "only kind stop_properly reads it",
            "algorithm.overlong.coef=0",
        ),
        (
            QUICK,
            "algorithm.overlong.kind=stop_properly algorithm.overlong.coef=1",
            "a factor of 1",
            "algorithm.overlong.kind=none",
        ),
        (QUICK, "algorithm.constant=100", "aggregate is token_mean", "algorithm.constant=null"),
        (
            QUICK,
            "algorithm.ratio=detached algorithm.clip.dual=3",
            "algorithm.clip.dual: found 3",
            "algorithm.clip.dual=null",
        ),
        (QUICK, "algorithm.clip.low=1", "a ratio is never below 0", "algorithm.clip.low=null"),
        (
            QUICK,
            "algorithm.scale=none algorithm.std=population",
            "no standard deviation is taken",
            "algorithm.std=unbiased",
        ),
        (QUICK, "train.minibatches=17", "only 16 groups to deal out", "train.minibatches=16"),
        (QUICK, "data.size=15", "a step takes 16 different problems", "data.size=16"),
        (GRPO, "data.path=x.jsonl data.limit=7", "data.limit: found 7", "data.limit=8"),
        (QUICK, "cold_start=null data.path=a.jsonl", "evaluation.data: found None", "evaluation=null"),
        (
            QUICK,
            "cold_start=null data.path=a.jsonl evaluation.data.path=a.jsonl",
            "these are the training problems",
            "evaluation.data.path=TEST.jsonl",
        ),
        (
            QUICK,
            "cold_start=null data.id=a/b evaluation.data.id=a/b",
            "evaluation.data.split: found train",
            "evaluation.data.split=test",
        ),
        (
            GRPO,
            "evaluation.data={kind: reasoning_gym, name: basic_arithmetic, size: 80} data.options={}",
            "evaluation.data.seed",
            "evaluation.data.seed=1",
        ),
        (QUICK, "data.name=countdown data.options={}", "cold_start: found one on 'countdown'", "cold_start=null"),
        (QUICK, "reward.1.term=accuracy", "found 2 terms 'accuracy'", "one term"),
        (QUICK, "reward=[]", "reward: found no term", "reward=[{term: accuracy}]"),
        (QUICK, "reward.0.weight=0 reward.1={term: format, weight: 0}", "all weights 0", "reward.0.weight=1.0"),
        (GRPO, "steps=0", "nothing to do", "steps=10"),
        (
            QUICK,
            "rollout.per_problem=1 algorithm.baseline=batch_mean rollout.dynamic.rounds=3",
            "one answer cannot",
            "rollout.dynamic=null",
        ),
        (QUICK, "rollout.dynamic.rounds=1", "rollout.dynamic.rounds: found 1", "rollout.dynamic.overdraw=2.0"),
        (QUICK, "data.size=20 rollout.dynamic.overdraw=1.5", "asks 24 different problems", "data.size=24"),
        (
            QUICK,
            "reward.1={term: cosine_length, low: 0.5}",
            "reward.1.low: found 0.5",
            "reward.1.low=-0.5",  # half below high=0
        ),
        (
            QUICK,
            "steps=10 reward.1={term: format} reward.1.schedule.start=10",
            "reward.1.schedule: found a cycle that begins later",
            "reward.1.schedule.start=0",
        ),
        (
            QUICK,
            "steps=10 reward.0.schedule={kind: cycle, on: 4, off: 2}",
            "no term with a weight in force at RL step 4",
            "reward.0.schedule.kind=constant",
        ),
        (QUICK, "algorithm.kl.reset.every=5", "no reference model to reset", "algorithm.kl.reset=null"),
        (GRPO, "algorithm.kl.reset={}", "algorithm.kl.reset: found no cause", "algorithm.kl.reset.every=300"),
        (GRPO, "algorithm.kl.reset.stall=2", "algorithm.kl.reset.stall: found 2", "evaluation.every=10"),
        (
            GRPO,
            "algorithm.kl.reset.stall=2 evaluation.problems=8",
            "algorithm.kl.reset.stall: found 2",
            "evaluation.every=10",
        ),
    ],
)
def test_a_setting_that_cannot_work_or_would_be_ignored_is_refused_with_a_fix(base, changes, where, fix):
    overrides = [part for part in changes.replace(": ", ":~").replace(", ", ",~").split(" ") if part]
    with pytest.raises(RecipeError) as caught:
        apply(base, [text.replace("~", " ") for text in overrides])
    message = str(caught.value)
    assert where in message
    assert any(fix in line for line in message.splitlines() if line.startswith("  fix: "))


@pytest.mark.parametrize(
    "changes",
    [
        ["rollout.per_problem=1", "algorithm.baseline=batch_mean"],
        ["algorithm.ratio=detached", "algorithm.clip.low=null"],
        ["algorithm.ratio=detached", "algorithm.clip.low=0.5"],  # a lower cap of the weight is honoured
        ["rollout.max_new_tokens=32", "algorithm.overlong.kind=soft", "algorithm.overlong.buffer=32"],
        ["algorithm.overlong.kind=stop_properly", "algorithm.overlong.coef=0"],
        ["algorithm.overlong.kind=stop_properly", "algorithm.overlong.coef=-0.5"],
        ["algorithm.kl={kind: loss_k2, coef: 0.1, input_limit: 20.0, output_limit: 10.0}"],
        ["algorithm.kl={kind: loss_k3, coef: 0.1, input_limit: 10.0}"],
        ["algorithm.kl={kind: reward_k1, coef: 0.1, output_limit: 10.0}"],
        ["algorithm.mismatch={kind: tis, low: null, high: null}"],  # the bare importance weights
        ["algorithm.mismatch={kind: sequence_mask, low: 0.999, high: 1.002}"],
        ["algorithm.scale=none", "algorithm.whiten=tokens", "algorithm.std=population"],
        ["train.minibatches=16"],
        ["steps=0"],  # the cold start alone
        ["steps=0", "cold_start=null", "sft.path=a.jsonl"],  # the file alone
        ["sft.path=a.jsonl"],  # one after the other
        ["seconds=5", "rollout.top_k=100", "rollout.top_p=0.9", "rollout.temperature=0.7"],
        ["cold_start=null", "data.path=a.jsonl", "evaluation.data.path=b.jsonl"],
        ["data.path=a.jsonl", "evaluation.data.path=b.jsonl"],  # rows may bring a worked solution
        ["reward.1={term: format, weight: 0}"],  # weight 0 is a way to log a term
        ["rollout.dynamic={}"],
        ["rollout.dynamic={rounds: 1, overdraw: 1.5}", "train.minibatches=4"],
        ["steps=10", "reward.0.schedule={kind: cycle, on: 4, off: 2}", "reward.1={term: format}"],  # one or the other
        ["steps=0", "reward.0.schedule={kind: cycle, on: 4, off: 2}"],  # no RL step, no schedule
        ["algorithm.kl={kind: loss_k2, coef: 1e-4}", "algorithm.kl.reset.every=300"],
        ["algorithm.kl={kind: loss_k2, coef: 1e-4}", "algorithm.kl.reset.stall=1", "evaluation.every=5"],
    ],
)
def test_what_can_work_is_accepted(changes):
    assert isinstance(apply(QUICK, changes), Recipe)


def test_all_problems_are_reported_at_once():
    with pytest.raises(RecipeError) as caught:
        apply(QUICK, ["data.path=a.jsonl", "train.minibatches=99"])
    places = [line.partition(":")[0] for line in str(caught.value).splitlines() if not line.startswith(" ")]
    assert places == ["train.minibatches", "evaluation.data"]


def test_one_update_a_batch_is_allowed_and_noted():
    assert "algorithm.clip" in notes(QUICK)[0]
    assert notes(QUICK.but(train=QUICK.train.but(minibatches=2))) == []
    assert notes(QUICK.but(train=QUICK.train.but(epochs=2))) == []


@pytest.mark.parametrize(
    "build",
    [
        lambda: Recipe(name="x", rollout={"per_problem": 1}),
        lambda: Recipe(name="x", stepps=3),
        lambda: Recipe.model_validate({"name": "x", "stepps": 3}),
        lambda: Kl(coef=-1),
        lambda: Clip(lo=0.1),
        lambda: GRPO.but(steps=0),
        lambda: GRPO.algorithm.but(scale="std"),
        lambda: Recipe(name="x", stepps=object()),
        lambda: Recipe(name="x", reward=object()),
        lambda: Recipe(name="x", data=Kl()),
        lambda: Recipe(name="x", data={"kind": "reasoning_gym", "options": {"a": object()}}),
    ],
)
def test_python_users_get_a_recipe_error_too_and_no_pydantic_error(build):
    with pytest.raises(RecipeError) as caught:
        build()
    assert not isinstance(caught.value, ValidationError)
    assert "\n  fix: " in str(caught.value)


def test_but_changes_one_field_and_leaves_the_original_alone():
    changed = GRPO.but(steps=3, algorithm=GRPO.algorithm.but(clip=Clip(high=0.28)))
    assert (changed.steps, changed.algorithm.clip.high, changed.algorithm.clip.low) == (3, 0.28, 0.2)
    assert (GRPO.steps, GRPO.algorithm.clip.high) == (50, 0.2)


def test_a_recipe_cannot_be_changed_in_place():
    with pytest.raises(ValidationError, match="frozen"):
        GRPO.steps = 3


@pytest.mark.parametrize("value", [True, "8", 8.5, None, float("inf")])
def test_only_whole_numbers_count(value):
    with pytest.raises(RecipeError, match=r"^rollout\.prompts: found .*, but must be a"):
        Recipe(name="x", rollout={"prompts": value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1e-6"])
def test_only_finite_numbers_measure(value):
    with pytest.raises(RecipeError, match=r"^lr: found .*, but must be a"):
        Optim(lr=value)


def subclasses(part: type) -> list[type]:
    return [part, *(below for child in part.__subclasses__() for below in subclasses(child))]


@pytest.mark.parametrize("part", subclasses(Part), ids=lambda part: part.__name__)
def test_every_part_and_every_field_is_described(part):
    assert part.__doc__
    assert [name for name, field in part.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("part", [Model, Algorithm, Optim])
def test_parts_compare_by_value(part):
    assert part() == part()
