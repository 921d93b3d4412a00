"""What is measured: prompts and answers of exact lengths, the same in every process, and steps that skip nothing."""

from __future__ import annotations

import pytest

from anabranch.bench.workloads import (
    bench_recipe,
    forced_requests,
    group_rewards,
    load_answerer,
    load_learner,
    made_up_answers,
    on_policy_step,
    sample,
    word_problems,
)
from anabranch.errors import DataError, RecipeError
from anabranch.recipe.tree import Recipe
from anabranch.records import StopReason
from anabranch.tracking.metrics import validate


def tiny_recipe(model: str, **sizes: int) -> Recipe:
    quiet = ["prompt.instruction=", "model.device=cpu"]
    return bench_recipe(model=model, dtype="float32", threads=1, overrides=quiet, **sizes)


@pytest.fixture(scope="module")
def answerer(tiny_model):
    return load_answerer(tiny_recipe(tiny_model, prompts=3, answers=4, tokens=7))


@pytest.mark.parametrize("length", [60, 61, 62, 63, 150])
def test_prompts_have_exactly_the_wanted_length_and_differ(answerer, length):
    problems = word_problems(answerer.asker, 5, length)
    prompts = [answerer.asker.prompt_tokens(problem) for problem in problems]
    assert [len(prompt) for prompt in prompts] == [length] * 5
    assert len(set(prompts)) == 5


def test_prompts_are_the_same_in_every_process(answerer):
    (problem,) = word_problems(answerer.asker, 1, 60)
    assert problem.question == "1. Nora loses 99 maps77777777777777777. How many are left?"


def test_a_length_that_no_prompt_can_have_is_refused_with_the_shortest(answerer):
    with pytest.raises(DataError, match=r"found 20, but the shortest prompt has \d+\n  fix: --prompt-tokens \d+"):
        word_problems(answerer.asker, 1, 20)


def test_answers_have_exactly_the_forced_length_though_the_model_may_draw_its_end_token(answerer):
    problems = word_problems(answerer.asker, 3, 60)
    rollouts = sample(answerer.engine, forced_requests(answerer.asker, problems, 40))
    assert [rollout.num_answer_tokens for rollout in rollouts] == [7] * 120
    assert {rollout.stop for rollout in rollouts} == {StopReason.LENGTH}
    eos = answerer.tokenizer.eos_token_id
    assert any(eos in rollout.graph.segments[-1].tokens[:-1] for rollout in rollouts)  # 840 draws of about 1 in 100
    assert [(rollout.problem_key, rollout.sample) for rollout in rollouts] == [
        (problem.key, number) for problem in problems for number in range(40)
    ]


def test_made_up_answers_have_the_form_of_sampled_ones(answerer):
    requests = forced_requests(answerer.asker, word_problems(answerer.asker, 2, 60), 3)
    drawn, made_up = sample(answerer.engine, requests), made_up_answers(requests, 100)
    for one, other in zip(drawn, made_up, strict=True):
        assert (one.problem_key, one.sample, one.stop) == (other.problem_key, other.sample, other.stop)
        assert one.graph.segments[0] == other.graph.segments[0]
        assert one.graph.num_trained == other.graph.num_trained == 7


@pytest.mark.parametrize("size", [2, 3, 8])
def test_rewards_never_agree_within_a_group_not_even_of_equal_answers(size):
    different = group_rewards([[number, 5] for number in range(size)])
    assert sorted(different) == [0.5] * (size // 2) + [1.0] * (size - size // 2)
    assert sorted(group_rewards([[5, 5]] * size)) == sorted(different)


def test_a_step_is_a_steps_record_and_trains_on_every_answer(tiny_model):
    learner = load_learner(tiny_recipe(tiny_model, prompts=3, answers=4, tokens=7))
    before = next(iter(learner.model.parameters())).clone()
    problems = word_problems(learner.asker, 3, 60)
    records = [on_policy_step(learner, problems, step) for step in range(2)]
    for record in records:
        validate(record)
        assert record["generated_rollouts"] == record["trained_rollouts"] == 12
        assert record["sampled_tokens"] == record["trained_tokens"] == 12 * 7
        assert record["prompt_tokens"] == 3 * 60
        assert record["engine_gap_max"] < 1e-3  # the log-probs that were recorded are those of the current weights
        assert "time/score" not in record  # on-policy: no extra forward
    assert not before.equal(next(iter(learner.model.parameters())))
    assert records[0]["entropy"] != records[1]["entropy"]  # other answers


@pytest.mark.parametrize(
    "override",
    [
        "data.path=x.jsonl",
        "rollout.max_new_tokens=3",
        "rollout.stop_strings=[x]",
        "algorithm.kl={kind: loss_k3, coef: 0.1}",
        "algorithm.baseline=tracker",
    ],
)
def test_a_setting_that_would_not_be_honoured_is_refused(tiny_model, override):
    with pytest.raises(RecipeError, match=r"rollout.temperature|no reference model|could be kept"):
        bench_recipe(model=tiny_model, overrides=[override])


def test_a_single_answer_needs_no_other_to_be_compared_with(tiny_model):
    learner = load_learner(tiny_recipe(tiny_model, prompts=1, answers=1, tokens=3))
    record = on_policy_step(learner, word_problems(learner.asker, 1, 60), 0)
    assert record["trained_rollouts"] == 1
