"""Dynamic sampling: which groups a step keeps, what it does with the others, and how it gives up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from anabranch.batching.credit import assign_credit
from anabranch.presets import load
from anabranch.recipe.tree import Dynamic
from anabranch.records import Problem, Reason, Rollout, Score, Segment, StopReason, StreamGraph, Verdict
from anabranch.sampling import uniform
from anabranch.train.dynamic import Filled, fill, starvation
from anabranch.train.experience import Experience, experience_of, experience_of_groups

P1, P2, P3 = (1.0, 0.0, 0.0, 1.0), (1.0, 1.0, 1.0, 0.0), (0.0, 0.0, 0.0, 0.0)
"""The groups of "lite_ppo" section 8."""
TEN_TOKENS = StreamGraph(
    (Segment([1, 2]), Segment([3] * 10, parents=(0,), trained=[True] * 10, engine_logprob=[-1.0] * 10))
)
REASONS = {1.0: Reason.CORRECT, 0.0: Reason.WRONG, -1.0: Reason.NO_ANSWER}


LOG = Path("run") / "rollouts.jsonl"


def rewarded(index: int, rewards: Sequence[float], stop: StopReason = StopReason.EOS) -> Experience:
    """One problem, answered with these rewards; -1 stands for a reward of 0 without a final answer."""
    rollout = Rollout(str(index), 0, TEN_TOKENS, "", stop)
    scores = [Score(max(r, 0.0), {}, Verdict(max(r, 0.0), REASONS.get(r, Reason.PARTIAL))) for r in rewards]
    return experience_of([Problem(str(index), "q", "a", "test")], [rollout] * len(rewards), scores)


def script(groups: Mapping[int, Sequence[float]] | Callable[[int], Sequence[float]]) -> Callable:
    """Answers that give these rewards, and a list of what was asked, round by round."""
    asked: list[list[int]] = []

    def answer(indices: Sequence[int]) -> Experience:
        asked.append(list(indices))
        rewards = groups if callable(groups) else groups.__getitem__
        return experience_of_groups([rewarded(index, rewards(index)).groups[0] for index in indices])

    answer.asked = asked  # type: ignore[attr-defined]
    return answer


def in_order(count: int) -> uniform.UniformState:
    """A sampler over so many problems, and what it draws first."""
    return uniform.init(count, seed=3)


def keys(groups: Sequence) -> list[int]:
    return [int(group.problem.key) for group in groups]


def test_L13_groups_that_agree_are_dropped_and_the_others_are_kept_in_order():
    sampler = in_order(3)
    order = uniform.order(3, 3, 0).tolist()
    answer = script(dict(zip(order, (P1, P3, P2), strict=True)))
    filled = fill(Dynamic(), 2, sampler, answer)
    assert keys(filled.kept) == [order[0], order[2]]
    assert keys(filled.dropped.agreeing) == [order[1]]
    assert answer.asked == [order[:2], order[2:]]  # the second round asks for the one group that is missing
    assert filled.dropped.rounds == 2


@pytest.mark.parametrize(("groups", "tokens", "sigma"), [((P1, P2, P3), 120, 0.514929), ((P1, P2), 80, 0.517549)])
def test_L13_lite_ppo_counts_a_group_that_agrees_and_dynamic_sampling_does_not(groups, tokens, sigma):
    """With and without: the denominator of the token mean, and the std of the batch."""
    if len(groups) == 3:
        experience = experience_of_groups([rewarded(i, rewards).groups[0] for i, rewards in enumerate(groups)])
    else:
        order = uniform.order(3, 3, 0).tolist()
        filled = fill(Dynamic(), 2, in_order(3), script(dict(zip(order, (P1, P2, P3), strict=True))))
        experience = experience_of_groups(filled.kept, filled.dropped)
    credit = assign_credit(
        load("lite_ppo").algorithm,
        reward_B=experience.reward_B,
        group_B=experience.group_B,
        sequence_M=experience.sequence_N,
        truncated_B=experience.truncated_B,
        max_new_tokens=10,
    )
    assert len(credit.weight_M) == tokens
    assert set(credit.weight_M.tolist()) == {1 / tokens}
    assert credit.stats["sigma_batch"] == pytest.approx(sigma, abs=1e-6)


@pytest.mark.parametrize(
    ("p", "answers", "groups", "kept"),
    [
        (0.02, 16, 3000, 0.2762),  # 1 - 0.98^16 - 0.02^16
        (0.02, 512, 300, 0.99997),
        (0.001, 16, 3000, 0.0159),
        (0.001, 512, 400, 0.4009),
    ],
)
def test_B11_the_share_of_groups_that_is_kept(p, answers, groups, kept):
    dice = np.random.default_rng(11)
    one_round = Dynamic(rounds=1, overdraw=float(groups))
    right, wrong = rewarded(0, (1.0, 0.0)).scores
    (rollout,) = rewarded(0, (1.0,)).rollouts

    def answer(indices: Sequence[int]) -> Experience:
        """As an engine that is right with probability p; nobody looks at the tokens."""
        return Experience(
            problems=[Problem(str(index), "q", "a", "test") for index in indices for _ in range(answers)],
            rollouts=[rollout] * (len(indices) * answers),
            scores=[right if hit else wrong for hit in dice.random(len(indices) * answers) < p],
            group_B=torch.arange(len(indices)).repeat_interleave(answers),
            sequence_N=torch.zeros(0, dtype=torch.int64),
        )

    filled = fill(one_round, 1, in_order(groups), answer)
    differ = len(filled.kept) + len(filled.dropped.surplus)
    assert differ + len(filled.dropped.agreeing) == groups
    assert 1 - (1 - p) ** answers - p**answers == pytest.approx(kept, abs=5e-5)
    assert differ / groups == pytest.approx(kept, abs=3 * (kept * (1 - kept) / groups) ** 0.5)


def test_the_total_reward_decides_and_it_must_be_exactly_equal():
    order = uniform.order(4, 3, 0).tolist()
    nearly = (0.3, 0.1 + 0.2)  # differ in the last bit
    groups = dict(zip(order, [(0.5, 0.5), nearly, (1.0, 1.0), P1[:2]], strict=True))
    filled = fill(Dynamic(), 2, in_order(4), script(groups))
    assert keys(filled.kept) == [order[1], order[3]]


def test_what_is_over_is_dropped_in_the_order_it_was_drawn():
    answer = script(lambda index: P1)
    filled = fill(Dynamic(overdraw=1.5), 4, in_order(20), answer)
    order = uniform.order(20, 3, 0).tolist()
    assert keys(filled.kept) == order[:4]
    assert keys(filled.dropped.surplus) == order[4:6]  # ceil(1.5 * 4) were drawn
    assert filled.sampler.offset == 6


@pytest.mark.parametrize(("overdraw", "missing", "drawn"), [(1.0, 3, 3), (1.5, 3, 5), (1.1, 10, 11), (1.1, 1, 2)])
def test_so_many_problems_are_drawn_for_those_that_are_missing(overdraw, missing, drawn):
    assert Dynamic(overdraw=overdraw).problems_for(missing) == drawn


def test_a_problem_comes_once_a_step_even_where_an_epoch_ends():
    """Five of eight were drawn before: the step takes the last three, and of the next epoch only others."""
    _, sampler = uniform.draw(in_order(8), 5)
    ends, begins = uniform.order(8, 3, 0).tolist()[5:], uniform.order(8, 3, 1).tolist()
    answer = script(lambda index: P3 if index in ends else P1)
    filled = fill(Dynamic(), 3, sampler, answer)
    asked = [index for indices in answer.asked for index in indices]
    assert asked == [*ends, *[index for index in begins if index not in ends][:3]]
    assert filled.sampler.epoch == 1


def test_a_step_that_finds_too_little_stops_after_its_rounds():
    answer = script(lambda index: P1 if index == 0 else P3)
    filled = fill(Dynamic(rounds=3), 4, in_order(100), answer)
    assert (len(answer.asked), filled.dropped.rounds, filled.exhausted) == (3, 3, False)
    assert len(filled.kept) < 4


def test_a_step_that_has_drawn_every_problem_stops():
    answer = script(lambda index: P1 if index < 2 else P3)
    filled = fill(Dynamic(), 3, in_order(5), answer)
    asked = [index for indices in answer.asked for index in indices]
    assert sorted(asked) == [0, 1, 2, 3, 4]
    assert filled.exhausted
    assert "; or more problems (every one was drawn)" in str(starvation(3, filled, 64, LOG))


def starved(groups: Sequence[Experience], rounds: int = 2) -> Filled:
    """What a step found whose groups were these."""
    remaining = iter(groups)
    prompts = len(groups) // rounds

    def answer(indices: Sequence[int]) -> Experience:
        return experience_of_groups([next(remaining).groups[0] for _ in indices])

    return fill(Dynamic(rounds=rounds), prompts, in_order(1000), answer)


@pytest.mark.parametrize(
    ("groups", "found", "fixes"),
    [
        (
            [rewarded(n, (0.0, 0.0)) for n in range(8)],
            "0 of 4 groups that differ, in 8 drawn over 2 rounds: 100% agree with no answer correct, 0% with every "
            "answer correct, 0% otherwise; of 16 answers 0% were cut at 64 tokens and 0% had no final answer",
            ["easier problems"],
        ),
        (
            [rewarded(n, (1.0, 1.0)) for n in range(8)],
            "0% agree with no answer correct, 100% with every answer correct, 0% otherwise",
            ["harder problems"],
        ),
        (
            [rewarded(n, (-1.0, -1.0)) for n in range(7)] + [rewarded(7, (0.0, 0.0))],
            "100% agree with no answer correct, 0% with every answer correct, 0% otherwise; of 16 answers 0% were cut "
            "at 64 tokens and 88% had no final answer",  # 14 of 16
            ["easier problems", "a cold start"],
        ),
        (
            [rewarded(n, (1.0, 1.0), StopReason.LENGTH) for n in range(6)]
            + [rewarded(n, (0.0, 0.0), StopReason.LENGTH) for n in range(2)],
            "25% agree with no answer correct, 75% with every answer correct, 0% otherwise; of 16 answers 100% "
            "were cut",
            ["rollout.max_new_tokens=128", "harder problems", "easier problems"],
        ),
    ],
)
def test_starvation_names_the_suspects_with_numbers(groups, found, fixes):
    message = str(starvation(4, starved(groups), 64, LOG))
    assert message.startswith("rollout.dynamic: found ")
    assert found in message
    assert "but a step takes 4 groups whose rewards are not all the same (rollout.prompts)" in message
    advice = message.rpartition("  fix: ")[2].removesuffix(f"; the answers are in {LOG}").split("; or ")
    assert [fix[: len(start)] for fix, start in zip(advice, fixes, strict=False)] == fixes
    assert advice[len(fixes) :] == ["rollout.dynamic.rounds=4"]
