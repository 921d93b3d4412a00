"""Every method preset computes its published formula: loss and gradient against `references`, on random batches.

The library's side goes the way that training goes: the rule about length on the reward, credit over the rollout batch
with the mini-batches of its optimizer steps, and the policy objective over several micro-batches, here in float64.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from anabranch.algo import value_tracker
from anabranch.algo.groups import informative_groups
from anabranch.algo.value_tracker import Prior
from anabranch.batching.credit import assign_credit
from anabranch.presets import PRESETS, load
from anabranch.presets.published import Method
from anabranch.recipe.overrides import apply
from anabranch.recipe.tree import Recipe
from anabranch.records import Reason, Rollout, Score, Segment, StopReason, StreamGraph, Verdict
from anabranch.rewards.overlong import apply_overlong
from anabranch.train.objective import kl_estimator, kl_in_loss, policy_objective, teaches_everywhere
from anabranch.train.rl import teaches

pytest.register_assert_rewrite("references")
sys.path.insert(0, str(Path(__file__).parent))
from references import REFERENCES, TRACKINGS, Answer  # noqa: E402

sys.path.remove(str(Path(__file__).parent))

METHODS = {name for name, preset in PRESETS.items() if isinstance(preset, Method)}
LIMIT = 10
"""Most tokens of an answer."""
MICRO_BATCHES = 3
EXAMPLES = 30


@dataclass(frozen=True)
class Batch:
    """A rollout batch, the current log-probs, and how its answers are dealt to micro-batches."""

    answers: tuple[Answer, ...]
    now: tuple[tuple[float, ...], ...]
    micro: tuple[int, ...]
    """By answer: which micro-batch of its optimizer step."""


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Ragged groups, answers of 1 to LIMIT tokens, rewards with ties, ratios from nearly 1 to far outside the clip."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    count = draw(st.integers(1, len(sizes)))
    total = sum(sizes)
    reward = st.sampled_from(draw(st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (1.0,), (0.0, 0.25, 0.7, 1.0)])))
    rewards = draw(st.lists(reward, min_size=total, max_size=total))
    lengths = draw(st.lists(st.integers(1, LIMIT), min_size=total, max_size=total))
    cut = draw(st.lists(st.booleans(), min_size=total, max_size=total))
    micro = draw(st.lists(st.integers(0, MICRO_BATCHES - 1), min_size=total, max_size=total))
    moved = draw(st.sampled_from([1e-4, 0.05, 0.5, 2.0]))
    first_on_policy = draw(st.booleans())
    apart, astray = draw(st.sampled_from([0.5, 3.0])), draw(st.sampled_from([0.1, 2.0]))
    random = np.random.default_rng(draw(st.integers(0, 2**20)))
    values = draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.9]), min_size=len(sizes), max_size=len(sizes)))
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]
    answers, now = [], []
    for index, group in enumerate(groups):
        length = LIMIT if cut[index] else lengths[index]
        update = group * count // len(sizes)  # whole groups, in the order in which they were drawn
        current = -random.exponential(1.0, length) - 0.01
        old = current - (0.0 if first_on_policy and update == 0 else moved) * random.standard_normal(length)
        answers.append(
            Answer(
                group=group,
                update=update,
                reward=rewards[index],
                truncated=cut[index],
                old=tuple(old.tolist()),
                engine=tuple((old + astray * random.standard_normal(length)).tolist()),
                ref=tuple((old + apart * random.standard_normal(length)).tolist()),
                value=values[group],
            )
        )
        now.append(tuple(current.tolist()))
    return Batch(tuple(answers), tuple(now), tuple(micro))


def by_the_reference(name: str, batch: Batch) -> tuple[list[float], list[list[float]]]:
    """Loss and gradient of each optimizer step."""
    now = [[torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in answer] for answer in batch.now]
    flat = [value for answer in now for value in answer]
    losses = REFERENCES[name](batch.answers, now, LIMIT)
    gradients = []
    for loss in losses:
        found = torch.autograd.grad(loss, flat, allow_unused=True) if loss.requires_grad else [None] * len(flat)
        gradients.append([0.0 if g is None else float(g) for g in found])
    return [float(loss.detach()) for loss in losses], gradients


def flat(values: tuple[tuple[float, ...], ...]) -> Tensor:
    return torch.tensor([value for answer in values for value in answer], dtype=torch.float64)


def judged(recipe: Recipe, answer: Answer) -> float:
    """The reward after the rule about length."""
    text = Segment(np.ones(len(answer.old)), parents=(0,), trained=np.ones(len(answer.old)))
    stop = StopReason.LENGTH if answer.truncated else StopReason.EOS
    rollout = Rollout("key", 0, StreamGraph((Segment(np.ones(2)), text)), "", stop)
    score = Score(answer.reward, {"accuracy": answer.reward}, Verdict(0.0, Reason.WRONG))
    return apply_overlong(recipe.algorithm.overlong, score, rollout, LIMIT).reward


def redrawn(recipe: Recipe, batch: Batch) -> list[bool]:
    """By answer: whether dynamic sampling has put another problem in the place of its group."""
    reward_B = torch.tensor([judged(recipe, answer) for answer in batch.answers], dtype=torch.float64)
    group_B = torch.tensor([answer.group for answer in batch.answers])
    dead_B = ~informative_groups(reward_B, group_B)[group_B]
    return [recipe.rollout.dynamic is not None and dead for dead in dead_B.tolist()]


def by_the_library(recipe: Recipe, batch: Batch) -> tuple[list[float], list[list[float]]]:
    """Loss and gradient of each optimizer step, its answers dealt to micro-batches.

    What dynamic sampling replaces is in no loss: those answers are left out from the start.
    """
    gone = redrawn(recipe, batch)
    answers = [answer for answer, away in zip(batch.answers, gone, strict=True) if not away]
    in_M = torch.tensor([not away for answer, away in zip(batch.answers, gone, strict=True) for _ in answer.old])
    updates = 1 + max(answer.update for answer in batch.answers)
    everything_M = flat(batch.now).requires_grad_()
    if not answers:
        return [0.0] * updates, [[0.0] * len(everything_M)] * updates
    losses = losses_of(
        recipe, answers, everything_M[in_M], [m for m, g in zip(batch.micro, gone, strict=True) if not g]
    )
    losses += [everything_M.sum() * 0] * (updates - len(losses))
    gradients = [torch.autograd.grad(loss, everything_M, retain_graph=True)[0].tolist() for loss in losses]
    return [float(loss.detach()) for loss in losses], gradients


def losses_of(recipe: Recipe, answers: list[Answer], now_M: Tensor, micro: list[int]) -> list[Tensor]:
    """The loss of each optimizer step of a rollout batch."""
    algorithm = recipe.algorithm
    group_B = torch.tensor([answer.group for answer in answers])
    sequence_M = torch.tensor([index for index, answer in enumerate(answers) for _ in answer.old])
    update_B, micro_B = torch.tensor([answer.update for answer in answers]), torch.tensor(micro)
    old_M, ref_M = flat(tuple(a.old for a in answers)), flat(tuple(a.ref for a in answers))
    engine_M = flat(tuple(a.engine for a in answers))
    in_reward = algorithm.kl.kind == "reward_k1"
    credit = assign_credit(
        algorithm,
        reward_B=torch.tensor([judged(recipe, answer) for answer in answers], dtype=torch.float64),
        group_B=group_B.unique(return_inverse=True)[1],
        sequence_M=sequence_M,
        truncated_B=torch.tensor([answer.truncated for answer in answers]),
        max_new_tokens=LIMIT,
        kl_penalty_M=kl_estimator(algorithm.kl)(old_M, ref_M) if in_reward else None,
        minibatch_B=update_B,
        value_B=torch.tensor([a.value for a in answers], dtype=torch.float64)
        if algorithm.baseline == "tracker"
        else None,
    )
    learns_B = teaches(credit, sequence_M, len(answers), everywhere=teaches_everywhere(algorithm))
    losses = []
    for update in range(int(update_B.max()) + 1):
        loss = now_M.sum() * 0
        for part in range(MICRO_BATCHES):
            here_M = (learns_B & (update_B == update) & (micro_B == part))[sequence_M]
            share, _ = policy_objective(
                algorithm,
                logprob_M=now_M[here_M],
                old_logprob_M=old_M[here_M],
                advantage_M=credit.advantage_M[here_M],
                weight_M=credit.weight_M[here_M],
                sequence_M=sequence_M[here_M],
                ref_logprob_M=ref_M[here_M] if kl_in_loss(algorithm) else None,
                engine_logprob_M=engine_M[here_M] if algorithm.mismatch.kind != "none" else None,
            )
            loss = loss + share
        losses.append(loss)
    return losses


def assert_equal(recipe: Recipe, name: str, batch: Batch) -> None:
    losses, gradients = by_the_library(recipe, batch)
    expected_losses, expected_gradients = by_the_reference(name, batch)
    assert losses == pytest.approx(expected_losses, rel=1e-9, abs=1e-12)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        assert gradient == pytest.approx(expected, rel=1e-9, abs=1e-12)


def one_group(
    rewards: tuple[float, ...],
    lengths: tuple[int, ...],
    cut: tuple[int, ...] = (),
    moved: float = 0.4,
    apart: float = 0.2,
) -> Batch:
    """A group with answers that are drawn by hand; log-ratios go up and down in turn."""
    answers, now = [], []
    for index, (reward, length) in enumerate(zip(rewards, lengths, strict=True)):
        current = tuple(-0.5 - 0.1 * t for t in range(length))
        old = tuple(value - moved * (-1) ** (t + index) for t, value in enumerate(current))
        near = tuple(value + 0.05 * (t - 1) for t, value in enumerate(old))
        answers.append(Answer(0, 0, reward, index in cut, old, near, tuple(value - apart for value in old)))
        now.append(current)
    return Batch(tuple(answers), tuple(now), (0,) * len(rewards))


def test_every_method_has_a_reference():
    assert set(REFERENCES) == METHODS


def test_presets_without_a_reference_are_the_algorithm_of_one_that_has():
    algorithms = [load(name).algorithm for name in METHODS]
    assert all(load(name).algorithm in algorithms for name in set(PRESETS) - METHODS)


@pytest.mark.parametrize("name", REFERENCES)
@settings(max_examples=EXAMPLES, deadline=None)
@given(batch=batches())
@example(batch=one_group((1.0, 1.0, 1.0), (2, 1, 3)))
@example(batch=one_group((1.0, 0.0), (LIMIT, 1), cut=(0,)))
@example(batch=one_group((0.0, 0.0), (LIMIT, LIMIT), cut=(0, 1), moved=5.0))
@example(batch=one_group((1.0, 0.0, 0.0), (3, 2, LIMIT - 1), moved=3.0, apart=12.0))
@example(batch=one_group((1.0,), (1,)))
def test_a_method_is_its_published_formula(name, batch):
    assert_equal(load(name), name, batch)


def test_the_references_tell_the_methods_apart():
    """One batch on which every pair of methods has different gradients: agreement above is not an accident."""
    batch = one_group((1.0, 0.0, 0.0, 0.5), (3, LIMIT, 1, 2), cut=(1,), moved=0.25)
    other = replace(batch, answers=tuple(replace(a, group=1, reward=1.0) for a in batch.answers[:3]), now=batch.now[:3])
    both = Batch((*batch.answers, *other.answers), (*batch.now, *other.now), (0,) * 7)
    gradients = {name: by_the_reference(name, both)[1] for name in REFERENCES}
    for name, gradient in gradients.items():
        for another, against in gradients.items():
            if {name, another} == set(TRACKINGS):  # the same loss from other values: see below
                continue
            assert name == another or gradient[0] != pytest.approx(against[0], rel=1e-3, abs=1e-6), (name, another)


OUTCOMES = st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0.0, 0.25, 1.0])), min_size=1, max_size=10)


@pytest.mark.parametrize("name", TRACKINGS)
@settings(max_examples=EXAMPLES, deadline=None)
@given(history=st.lists(OUTCOMES, min_size=1, max_size=4), distance=st.sampled_from([0.0, 0.004, 0.008, 0.02]))
def test_a_method_keeps_its_published_values(name, history, distance):
    tracker = load(name).algorithm.tracker
    assert tracker.form == "beta"
    prior = Prior(tracker.prior.value, tracker.prior.count)
    state, counts = value_tracker.init("beta", [], [], 1), {}
    for outcomes in history:
        distances = {problem: distance * problem for problem in range(5)}
        raw = value_tracker.forgetting(np.array([distances[p] for p, _ in outcomes]), tracker.d_half)
        state = value_tracker.update(
            state,
            [str(problem) for problem, _ in outcomes],
            [reward for _, reward in outcomes],
            np.clip(raw, tracker.rho_min, tracker.rho_max),
            prior=prior,
            duplicates=tracker.duplicates,
        )
        counts = TRACKINGS[name](counts, outcomes, distances)
    found = {int(key): pair for key, *pair in zip(state.keys, state.first_P, state.second_P, strict=True)}
    assert found.keys() == counts.keys()
    for problem, pair in counts.items():
        assert found[problem] == pytest.approx(pair, rel=1e-12)


def test_the_references_of_values_differ_where_a_problem_has_several_answers():
    several = [(0, 1.0), (0, 0.0)]
    assert TRACKINGS["spo"]({0: (2, 6)}, several, {0: 1.0}) == {0: (1.75, 6.25)}  # "spo" S15
    assert TRACKINGS["bspo"]({0: (2, 6)}, several, {0: 1.0}) == {0: (2.75, 6.25)}


OTHER_WAYS = (
    "algorithm.clip={low: 0.05, high: 0.05}",
    "algorithm.aggregate=seq_mean_token_sum",
    "algorithm.advantage_clip=0.1",
    "algorithm.overlong={kind: filter}",
    "algorithm.mismatch={kind: tis, low: 0.9, high: 1.0}",
)


@pytest.mark.parametrize("change", OTHER_WAYS)
@pytest.mark.parametrize("name", REFERENCES)
def test_a_method_with_one_axis_changed_is_not_its_formula_any_more(name, change):
    batch = one_group((1.0, 0.0, 0.0, 0.5), (3, LIMIT, 1, 2), cut=(1,), moved=0.4)
    with pytest.raises(AssertionError):
        assert_equal(apply(load(name), [change]), name, batch)


def test_L7_the_reference_of_ppo_has_the_loss_and_the_gradient_worked_by_hand():
    ratios = ((1.5,), (0.5, 1.0, 1.3))
    now = tuple(tuple(-1.0 for _ in answer) for answer in ratios)
    old = [tuple(-1.0 - math.log(rho) for rho in answer) for answer in ratios]
    answers = tuple(
        Answer(0, 0, reward, False, before, before, before) for reward, before in zip((1, -1), old, strict=True)
    )
    losses, gradients = by_the_reference("ppo_vanilla", Batch(answers, now, (0, 0)))
    assert losses == pytest.approx([-0.083333], abs=1e-6)
    assert gradients[0] == pytest.approx([0.0, 0.0, 1 / 6, 1.3 / 6])  # L8, sequence-level


def test_L14_the_reference_of_reinforce_pp_whitens_over_tokens():
    old = ((-1.0,), (-1.0, -1.0, -1.0))
    answers = tuple(Answer(0, 0, reward, False, x, x, x) for reward, x in zip((1.0, 0.0), old, strict=True))
    losses, gradients = by_the_reference("reinforce_pp", Batch(answers, old, (0, 0)))
    assert losses == pytest.approx([0.0], abs=1e-12)
    assert gradients[0] == pytest.approx([-1.5 / 4, 0.5 / 4, 0.5 / 4, 0.5 / 4])  # unbiased: 1.5 / -0.5
