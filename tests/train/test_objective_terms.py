"""What stands in the loss beside the clipped objective: the engine's correction, the entropy bonus, limits of the KL.

Numbers: checks 12 and 14 of the BroRL spec, L16 of the Lite PPO spec.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.modeling.logprob import chosen_logprobs
from anabranch.recipe.tree import Algorithm, Kl, Mismatch
from anabranch.train.objective import add_up, policy_objective
from tests.train.loss_batches import ADVANTAGE, NEW, SEQUENCE, dealt, random_batch, seeded

ENGINE = NEW.log() - torch.tensor([math.log(8), math.log(0.4), 0.0, 0.3], dtype=torch.float64)
"""So that w of the first, on-policy update is 8, 0.4, 1 and 1.349859."""


def on_policy(algorithm, **more):
    """Loss, gradient of the loss with respect to the current log-probs, and sums, in the first update of L7's batch."""
    logprob_M = NEW.log().requires_grad_()
    loss, sums = policy_objective(
        algorithm,
        logprob_M=logprob_M,
        old_logprob_M=logprob_M,
        advantage_M=ADVANTAGE,
        weight_M=torch.full((4,), 0.25, dtype=torch.float64),
        sequence_M=SEQUENCE,
        **more,
    )
    (gradient_M,) = torch.autograd.grad(loss, logprob_M)
    return loss.item(), gradient_M.tolist(), {name: value.item() for name, value in sums.items()}


@pytest.mark.parametrize(
    ("mismatch", "w", "bounded", "dropped"),
    [
        (Mismatch(kind="tis"), [5.0, 0.5, 1.0, 1.349859], 2, 0),
        (Mismatch(kind="tis", low=None, high=2.0), [2.0, 0.4, 1.0, 1.349859], 1, 0),
        (Mismatch(kind="icepop"), [0.0, 0.0, 1.0, 1.349859], 2, 1),  # answer a is its one token
        # geometric means: a 8; b exp((ln 0.4 + 0.3) / 3) = 0.814304
        (Mismatch(kind="sequence_mask", low=0.8, high=1.2), [0.0, 0.4, 1.0, 1.349859], 1, 1),
        (Mismatch(kind="sequence_mask", low=0.9, high=1.2), [0.0, 0.0, 0.0, 0.0], 4, 2),
    ],
)
def test_B14_in_the_first_update_the_loss_is_minus_w_times_the_advantage(mismatch, w, bounded, dropped):
    loss, gradient, sums = on_policy(Algorithm(mismatch=mismatch), engine_logprob_M=ENGINE)
    expected = [-0.25 * trust * advantage for trust, advantage in zip(w, ADVANTAGE.tolist(), strict=True)]
    assert gradient == pytest.approx(expected, abs=1e-6)
    assert loss == pytest.approx(sum(expected), abs=1e-6)
    assert sums["mismatch_log_abs"] == pytest.approx(math.log(8) - math.log(0.4) + 0.3)
    counts = [sums[f"mismatch_{name}"] for name in ("bounded", "dropped", "sequences")]
    assert counts == [bounded, dropped, 2]
    assert sums["tokens"] == 4  # nothing leaves the denominators


def full_batch(seed, lengths):
    """What a loss with everything in it is handed; token means."""
    generator = seeded(seed)
    batch = random_batch(generator, lengths)
    old_logprob_M = batch["old_logprob_M"]

    def normal():
        return torch.randn(len(old_logprob_M), generator=generator, dtype=torch.float64)

    return batch | {
        "weight_M": torch.full_like(old_logprob_M, 1 / len(old_logprob_M)),
        "engine_logprob_M": old_logprob_M - 0.3 * normal(),
        "entropy_M": normal().abs().requires_grad_(),
    }


@pytest.mark.parametrize("ratio", ["token", "sequence", "detached"])
def test_the_mismatch_weighs_the_policy_loss_and_nothing_else(ratio):
    """With weights w in place of the tokens' own, but the KL and the bonus as they were."""
    batch = full_batch(3, [2, 3, 1])
    plain = Algorithm(ratio=ratio)
    both = plain.but(
        kl=Kl(kind="loss_k2", coef=0.3), entropy_coef=0.2, mismatch=Mismatch(kind="tis", low=0.8, high=1.2)
    )
    found, _ = policy_objective(both, **batch)
    ref_M, engine_M, entropy_M, weight_M = (
        batch.pop(name) for name in ("ref_logprob_M", "engine_logprob_M", "entropy_M", "weight_M")
    )
    w_M = (batch["old_logprob_M"] - engine_M).exp().clamp(0.8, 1.2)
    policy, _ = policy_objective(plain, weight_M=weight_M * w_M, **batch)
    kl = (weight_M * (batch["logprob_M"] - ref_M).square() / 2).sum()
    expected = policy + 0.3 * kl - 0.2 * (weight_M * entropy_M).sum()
    inputs = batch["logprob_M"], entropy_M
    torch.testing.assert_close(found, expected)
    for one, other in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(one, other)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    home=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    mismatch=st.sampled_from(
        [
            Mismatch(kind="tis", low=0.9, high=1.1),
            Mismatch(kind="icepop", low=0.8, high=1.3),
            Mismatch(kind="sequence_mask", low=0.9, high=1.2),
        ]
    ),
    seed=st.integers(0, 10_000),
)
def test_L16_micro_batches_do_not_matter_to_corrections_and_bonuses_either(lengths, home, mismatch, seed):
    algorithm = Algorithm(entropy_coef=0.1, mismatch=mismatch, kl=Kl(kind="loss_k3", coef=0.2, output_limit=0.02))
    batch = full_batch(seed, lengths)
    loss, sums = policy_objective(algorithm, **batch)
    parts = [policy_objective(algorithm, **part) for part in dealt(batch, home)]
    torch.testing.assert_close(torch.stack([part for part, _ in parts]).sum(), loss)
    for name, value in add_up([part for _, part in parts]).items():
        torch.testing.assert_close(value, sums[name])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_entropy_bonus_has_the_value_and_gradient_of_a_dense_softmax(temperature):
    """Hidden states and head in, loss out, in float64; two targets share a row, as first tokens of siblings do."""
    generator = torch.Generator().manual_seed(4)
    hidden_RD, weight_VD = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((3, 5), (11, 5)))
    row_M, target_M = torch.tensor([0, 0, 1, 2]), torch.tensor([3, 10, 0, 7])
    weight_M = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    hidden_RD.requires_grad_()
    weight_VD.requires_grad_()

    logprob_M, entropy_R = chosen_logprobs(hidden_RD, weight_VD, None, row_M, target_M, temperature=temperature)
    found, sums = policy_objective(
        Algorithm(entropy_coef=0.5),
        logprob_M=logprob_M,
        old_logprob_M=logprob_M,
        advantage_M=ADVANTAGE,
        weight_M=weight_M,
        sequence_M=SEQUENCE,
        entropy_M=entropy_R[row_M],
    )
    all_MV = (hidden_RD @ weight_VD.T / temperature).log_softmax(-1)[row_M]
    chosen_M = all_MV.gather(1, target_M[:, None])[:, 0]
    entropy_M = -(all_MV.exp() * all_MV).sum(-1)
    bonus = 0.5 * (weight_M * entropy_M).sum()
    expected = -(weight_M * ADVANTAGE * (chosen_M - chosen_M.detach()).exp()).sum() - bonus
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)
    assert sums["loss_entropy"].item() == pytest.approx(-bonus.item(), abs=1e-12)
    ours, dense = (torch.autograd.grad(loss, (hidden_RD, weight_VD)) for loss in (found, expected))
    for one, other in zip(ours, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("limits", "value", "slope"),
    [({"input_limit": 10.0}, 50.0, 0.0), ({"output_limit": 10.0}, 10.0, 0.0), ({"input_limit": 20.0}, 112.5, 15.0)],
)
def test_B12_a_limit_of_the_kl_acts_in_the_loss(limits, value, slope):
    algorithm = Algorithm(kl=Kl(kind="loss_k2", coef=1.0, **limits))
    loss, gradient, sums = on_policy(algorithm, ref_logprob_M=NEW.log() - 15)
    policy_loss, policy_gradient, _ = on_policy(Algorithm())
    assert loss - policy_loss == pytest.approx(value)
    assert [a - b for a, b in zip(gradient, policy_gradient, strict=True)] == pytest.approx([slope / 4] * 4)
    assert sums["kl_ref"] == pytest.approx(4 * value)


def test_log_probs_of_the_engine_and_entropies_are_needed_where_the_algorithm_says_so_and_only_there():
    corrected = Algorithm(mismatch=Mismatch(kind="tis"))
    with pytest.raises(ValueError, match="engine_logprob_M: found nothing"):
        on_policy(corrected)
    with pytest.raises(ValueError, match="engine_logprob_M: found a tensor"):
        on_policy(Algorithm(), engine_logprob_M=ENGINE)
    with pytest.raises(ValueError, match="entropy_M: found nothing"):
        on_policy(Algorithm(entropy_coef=0.1))
    with pytest.raises(ValueError, match="entropy_M: found a tensor"):
        on_policy(Algorithm(), entropy_M=torch.ones(4))


def test_a_token_that_the_engine_did_not_record_is_refused():
    missing_M = ENGINE.clone()
    missing_M[2] = math.nan
    with pytest.raises(ValueError, match="engine_logprob_M: found nothing for 1 tokens"):
        on_policy(Algorithm(mismatch=Mismatch(kind="tis")), engine_logprob_M=missing_M)
