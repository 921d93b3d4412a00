"""The policy loss against its formula token by token, against differences, and dealt to micro-batches.

Numbers: section 6 and check L16 of the Lite PPO spec.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.algo.aggregate import AGGREGATES
from anabranch.recipe.tree import Algorithm, Clip, Kl
from anabranch.train.objective import add_up, policy_objective
from tests.train.loss_batches import dealt, evaluate, random_batch, seeded, weights

CLIPS = [
    Clip(low=0.2, high=0.2),
    Clip(low=0.2, high=0.28),
    Clip(low=None, high=0.28),
    Clip(low=0.2, high=None),
    Clip(low=None, high=None),
    Clip(low=0.2, high=0.2, dual=1.5),
]


def slow_reference(algorithm, logprob, old, advantage, sequence, keep, ref, constant):
    """Loss and gradient in plain Python from the composition table (section 6 of the spec), derivatives by hand."""
    low = -math.inf if algorithm.clip.low is None else 1 - algorithm.clip.low
    high = math.inf if algorithm.clip.high is None else 1 + algorithm.clip.high
    tokens_of = {answer: [t for t, owner in enumerate(sequence) if owner == answer] for answer in range(len(keep))}
    answers = [answer for answer in range(len(keep)) if keep[answer]]
    all_tokens = sum(len(tokens_of[answer]) for answer in answers)
    loss, gradient = 0.0, [0.0] * len(logprob)
    for answer in answers:
        mine = tokens_of[answer]
        for t in mine:
            weight = {
                "token_mean": 1 / all_tokens,
                "seq_mean_token_mean": 1 / len(answers) / len(mine),
                "seq_mean_token_sum": 1 / len(answers),
                "token_sum_constant": 1 / len(answers) / constant,
            }[algorithm.aggregate]
            a = advantage[t]
            shared = mine if algorithm.ratio == "sequence" else [t]
            rho = math.exp(sum(logprob[s] - old[s] for s in shared) / len(shared))
            bounded = min(max(rho, low), high)
            if algorithm.ratio == "detached":
                loss -= weight * bounded * a * logprob[t]
                gradient[t] -= weight * bounded * a
            else:
                candidates = [(rho * a, rho * a), (bounded * a, rho * a if low < rho < high else 0.0)]
                value, slope = min(candidates)
                if algorithm.clip.dual is not None and a < 0 and value < algorithm.clip.dual * a:
                    value, slope = algorithm.clip.dual * a, 0.0
                loss -= weight * value
                for s in shared:
                    gradient[s] -= weight * slope / len(shared)
            if algorithm.kl.kind != "none":
                x = logprob[t] - ref[t]
                value, slope = {
                    "loss_k1": (x, 1.0),
                    "loss_k2": (x * x / 2, x),
                    "loss_k3": (math.exp(-x) + x - 1, 1 - math.exp(-x)),
                }[algorithm.kl.kind]
                loss += algorithm.kl.coef * weight * value
                gradient[t] += algorithm.kl.coef * weight * slope
    return loss, gradient


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    kept=st.lists(st.booleans(), min_size=5, max_size=5),
    clip=st.sampled_from(CLIPS),
    kl=st.sampled_from([Kl(), *(Kl(kind=kind, coef=0.3) for kind in ("loss_k1", "loss_k2", "loss_k3"))]),
    seed=st.integers(0, 10_000),
)
@pytest.mark.parametrize("aggregate", list(AGGREGATES))
@pytest.mark.parametrize("ratio", ["token", "sequence", "detached"])
def test_every_combination_equals_its_formula_token_by_token(ratio, aggregate, lengths, kept, clip, kl, seed):
    clip = clip.model_copy(update={"dual": None}) if ratio == "detached" else clip
    algorithm = Algorithm(ratio=ratio, aggregate=aggregate, clip=clip, kl=kl)
    batch = random_batch(seeded(seed), lengths)
    keep_B = torch.tensor(kept[: len(lengths)])
    expected_loss, expected_gradient = slow_reference(
        algorithm,
        batch["logprob_M"].tolist(),
        batch["old_logprob_M"].tolist(),
        batch["advantage_M"].tolist(),
        batch["sequence_M"].tolist(),
        keep_B.tolist(),
        batch["ref_logprob_M"].tolist(),
        constant=7,
    )
    if kl.kind == "none":
        batch["ref_logprob_M"] = None
    loss, gradient_M, _ = evaluate(algorithm, batch, weights(aggregate, batch["sequence_M"], keep_B, constant=7))
    assert loss.item() == pytest.approx(expected_loss, abs=1e-10)
    assert gradient_M.tolist() == pytest.approx(expected_gradient, abs=1e-10)


@pytest.mark.parametrize("kl", ["none", "loss_k1", "loss_k2", "loss_k3"])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_the_loss_has_the_gradient_that_differences_show(ratio, clip, kl):
    # Ratios of the answers' tokens and of whole answers stay away from 0.8, 1.2, 1.28 and 1.5.
    batch = random_batch(seeded(0), [1, 2, 3])
    steps = {0: [0.6], 1: [0.05, 0.1], 2: [-0.5, -0.6, 0.03]}
    gaps = [steps[owner].pop() for owner in batch["sequence_M"].tolist()]
    batch["old_logprob_M"] = batch["logprob_M"].detach() - torch.tensor(gaps, dtype=torch.float64)
    weight_M = weights("seq_mean_token_mean", batch["sequence_M"], torch.ones(3, dtype=torch.bool))
    algorithm = Algorithm(ratio=ratio, clip=clip, kl=Kl(kind=kl, coef=0.5))
    if kl == "none":
        batch["ref_logprob_M"] = None
    logprob_M = batch.pop("logprob_M")
    assert torch.autograd.gradcheck(
        lambda value_M: policy_objective(algorithm, logprob_M=value_M, weight_M=weight_M, **batch)[0], (logprob_M,)
    )


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    home=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    ratio=st.sampled_from(["token", "sequence", "detached"]),
    aggregate=st.sampled_from(list(AGGREGATES)),
    seed=st.integers(0, 10_000),
)
def test_L16_how_answers_are_dealt_to_micro_batches_does_not_matter(lengths, home, ratio, aggregate, seed):
    algorithm = Algorithm(ratio=ratio, aggregate=aggregate, kl=Kl(kind="loss_k2", coef=0.2))
    batch = random_batch(seeded(seed), lengths)
    weight_M = weights(aggregate, batch["sequence_M"], torch.ones(len(lengths), dtype=torch.bool))
    loss, gradient_M, sums = evaluate(algorithm, batch, weight_M)
    results = [policy_objective(algorithm, **part) for part in dealt(batch | {"weight_M": weight_M}, home)]
    total = torch.stack([part_loss for part_loss, _ in results]).sum()
    (added_gradient_M,) = torch.autograd.grad(total, batch["logprob_M"])
    torch.testing.assert_close(total.detach(), loss)
    torch.testing.assert_close(added_gradient_M, gradient_M)
    added = add_up([part for _, part in results])
    assert added.keys() == sums.keys()
    for name, value in sums.items():
        torch.testing.assert_close(added[name], value)
