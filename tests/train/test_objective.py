"""What the policy loss promises, in value and gradient. Numbers: checks L7 to L12, L15 and L16 of the Lite PPO spec."""

import math

import pytest
import torch

from anabranch.batching.credit import assign_credit
from anabranch.errors import ShapeError
from anabranch.recipe.tree import Algorithm, Clip, Kl, Overlong
from anabranch.train.objective import add_up, policy_objective
from tests.train.loss_batches import ADVANTAGE, NEW, RHO, SEQUENCE, evaluate, random_batch, seeded, weights


def on_L7(algorithm, keep=(True, True)):
    """Loss and gradient of the loss with respect to the current log-probs."""
    logprob_M = NEW.log().requires_grad_()
    loss, _ = policy_objective(
        algorithm,
        logprob_M=logprob_M,
        old_logprob_M=(NEW / RHO).log(),
        advantage_M=ADVANTAGE,
        weight_M=weights(algorithm.aggregate, SEQUENCE, torch.tensor(keep)),
        sequence_M=SEQUENCE,
    )
    (gradient_M,) = torch.autograd.grad(loss, logprob_M)
    return loss.item(), gradient_M.tolist()


@pytest.mark.parametrize(
    ("aggregate", "symmetric", "higher"),
    [
        ("seq_mean_token_mean", -0.083333, -0.123333),
        ("token_mean", 0.475, 0.455),
        ("seq_mean_token_sum", 0.95, 0.91),
        ("token_sum_constant", 0.2375, 0.2275),
    ],
)
def test_L7_losses_with_symmetric_and_higher_clip(aggregate, symmetric, higher):
    for high, expected in [(0.2, symmetric), (0.28, higher)]:
        loss, _ = on_L7(Algorithm(aggregate=aggregate, clip=Clip(low=0.2, high=high)))
        assert loss == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [("token_mean", [0.0, 0.0, 0.25, 0.325]), ("seq_mean_token_mean", [0.0, 0.0, 1 / 6, 1.3 / 6])],
)
def test_L8_gradients_of_the_clipped_loss(aggregate, expected):
    assert on_L7(Algorithm(aggregate=aggregate))[1] == pytest.approx(expected, abs=1e-5)


def test_L9_gspo_scales_and_clips_whole_answers():
    gspo = Algorithm(ratio="sequence", aggregate="seq_mean_token_mean")
    loss, gradient = on_L7(gspo)
    assert loss == pytest.approx(-0.166880, abs=1e-5)  # -(1.2 - 0.866239) / 2
    assert gradient == pytest.approx([0.0] + [0.144373] * 3, abs=1e-5)  # 0.866239 / 2 / 3
    loss, gradient = on_L7(gspo.model_copy(update={"clip": Clip(low=3e-4, high=4e-4)}))
    assert loss == pytest.approx(-0.000350, abs=1e-6)
    assert gradient == [0.0] * 4


def test_L10_cispo_keeps_the_gradient_of_every_token():
    loss, gradient = on_L7(Algorithm(ratio="detached", aggregate="token_mean", clip=Clip(low=None, high=0.28)))
    assert loss == pytest.approx(-0.127046, abs=1e-5)
    assert gradient == pytest.approx([-0.32, 0.125, 0.25, 0.32], abs=1e-5)


@pytest.mark.parametrize(("dual", "expected"), [(None, 5.0), (3.0, 3.0), (1.4, 1.4)])
def test_L11_dual_clip(dual, expected):
    loss, sums = policy_objective(
        Algorithm(clip=Clip(dual=dual)),
        logprob_M=torch.tensor([math.log(0.5)]),
        old_logprob_M=torch.tensor([math.log(0.1)]),
        advantage_M=torch.tensor([-1.0]),
        weight_M=torch.ones(1),
        sequence_M=torch.tensor([0]),
    )
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert sums["clip_dual"].item() == (dual is not None)


@pytest.mark.parametrize("aggregate", ["token_mean", "seq_mean_token_mean"])
def test_L12_filter_leaves_the_loss_of_the_kept_answers(aggregate):
    algorithm = Algorithm(aggregate=aggregate, overlong=Overlong(kind="filter"))
    loss, gradient = on_L7(algorithm, keep=(True, False))
    assert loss == pytest.approx(-1.2, abs=1e-5)
    assert gradient[1:] == [0.0] * 3


@pytest.mark.parametrize(("kind", "value"), [("loss_k1", 0.405465), ("loss_k2", 0.082201), ("loss_k3", 0.072132)])
def test_L15_kl_enters_the_loss_with_its_coefficient_and_the_weights_of_the_policy_loss(kind, value):
    x = math.log(1.5)
    slope = {"loss_k1": 1.0, "loss_k2": x, "loss_k3": 1 - 1 / 1.5}[kind]
    logprob_M = NEW.log().requires_grad_()
    weight_M = weights("seq_mean_token_mean", SEQUENCE, torch.tensor([True, True]))
    loss, sums = policy_objective(
        Algorithm(kl=Kl(kind=kind, coef=0.1)),
        logprob_M=logprob_M,
        old_logprob_M=NEW.log(),
        advantage_M=torch.zeros(4, dtype=torch.float64),
        weight_M=weight_M,
        sequence_M=SEQUENCE,
        ref_logprob_M=NEW.log() - x,
    )
    assert loss.item() == pytest.approx(0.1 * value, abs=1e-6)  # the weights of the two answers add up to 1
    assert sums["loss_kl"].item() == pytest.approx(0.1 * value, abs=1e-6)
    assert sums["kl_ref"].item() == pytest.approx(4 * value, abs=1e-5)
    (gradient_M,) = torch.autograd.grad(loss, logprob_M)
    torch.testing.assert_close(gradient_M, 0.1 * slope * weight_M)


def test_L16_two_micro_batches_with_global_denominators_give_the_loss_of_one():
    weight_M = weights("token_mean", SEQUENCE, torch.tensor([True, True]))
    losses, parts = zip(
        *[
            policy_objective(
                Algorithm(),
                logprob_M=NEW[part].log(),
                old_logprob_M=(NEW / RHO)[part].log(),
                advantage_M=ADVANTAGE[part],
                weight_M=weight_M[part],
                sequence_M=SEQUENCE[part],
            )
            for part in (slice(0, 1), slice(1, 4))
        ],
        strict=True,
    )
    assert sum(losses).item() == pytest.approx(0.475, abs=1e-6)
    sums = add_up(parts)
    assert [sums[name].item() for name in ("tokens", "clip_low", "clip_high")] == [4, 1, 1]
    assert sums["ratio_sum"].item() == pytest.approx(4.3)
    assert sums["ratio_max"].item() == pytest.approx(1.5)


@pytest.mark.parametrize("aggregate", ["token_mean", "seq_mean_token_mean"])
def test_L16_the_first_on_policy_loss_of_centred_advantages_is_zero(aggregate):
    algorithm = Algorithm(baseline="group_mean", scale="batch_std_raw", aggregate=aggregate)
    credit = assign_credit(
        algorithm,
        reward_B=torch.tensor([1.0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0]),
        group_B=torch.arange(3).repeat_interleave(4),
        sequence_M=torch.arange(12).repeat_interleave(5),
        truncated_B=torch.zeros(12, dtype=torch.bool),
        max_new_tokens=5,
    )
    logprob_M = torch.full((60,), -1.0)
    loss, _ = policy_objective(
        algorithm,
        logprob_M=logprob_M,
        old_logprob_M=logprob_M,
        advantage_M=credit.advantage_M,
        weight_M=credit.weight_M,
        sequence_M=torch.arange(12).repeat_interleave(5),
    )
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


# ---------------------------------------------------------------------------------------------- metrics, errors


def test_metrics_count_only_tokens_that_are_in_the_loss():
    _, sums = policy_objective(
        Algorithm(),
        logprob_M=NEW.log(),
        old_logprob_M=(NEW / RHO).log(),
        advantage_M=ADVANTAGE,
        weight_M=torch.tensor([0.0, 0.5, 0.25, 0.25], dtype=torch.float64),  # without token 0, which high clips
        sequence_M=SEQUENCE,
    )
    assert [sums[name].item() for name in ("tokens", "clip_low", "clip_high", "clip_dual")] == [3, 1, 0, 0]
    assert sums["ratio_sum"].item() == pytest.approx(2.8)
    assert sums["ratio_max"].item() == pytest.approx(1.3)
    assert sums["kl_old_k1"].item() == pytest.approx(-math.log(0.65))
    assert sums["kl_old_k3"].item() == pytest.approx(2.8 - 3 - math.log(0.65))  # sum of ratio - 1 - log ratio
    assert not any(value.requires_grad for value in sums.values())


def test_a_clipped_token_outside_the_loss_is_not_counted():
    _, sums = policy_objective(
        Algorithm(),
        logprob_M=NEW.log(),
        old_logprob_M=(NEW / RHO).log(),
        advantage_M=ADVANTAGE,
        weight_M=torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64),
        sequence_M=SEQUENCE,
    )
    assert [sums[name].item() for name in ("tokens", "clip_low", "clip_high")] == [1, 0, 1]


def test_reference_log_probs_carry_no_gradient():
    batch = random_batch(seeded(0), [3])
    batch["ref_logprob_M"].requires_grad_()
    loss, _ = policy_objective(Algorithm(kl=Kl(kind="loss_k2", coef=1.0)), weight_M=torch.ones(3), **batch)
    assert torch.autograd.grad(loss, batch["ref_logprob_M"], allow_unused=True) == (None,)


def test_old_log_probs_carry_no_gradient_even_if_they_are_the_current_ones():
    logprob_M = NEW.log().requires_grad_()
    loss, _ = policy_objective(
        Algorithm(),
        logprob_M=logprob_M,
        old_logprob_M=logprob_M,
        advantage_M=ADVANTAGE,
        weight_M=torch.full((4,), 0.25, dtype=torch.float64),
        sequence_M=SEQUENCE,
    )
    (gradient_M,) = torch.autograd.grad(loss, logprob_M)
    torch.testing.assert_close(gradient_M, -0.25 * ADVANTAGE)


@pytest.mark.parametrize("ratio", ["token", "sequence", "detached"])
def test_a_micro_batch_without_trained_tokens_adds_nothing(ratio):
    batch = random_batch(seeded(0), [0])
    loss, gradient_M, sums = evaluate(
        Algorithm(ratio=ratio, kl=Kl(kind="loss_k3", coef=1.0)), batch, torch.zeros(0, dtype=torch.float64)
    )
    assert loss.item() == 0.0
    assert gradient_M.shape == (0,)
    assert all(value.item() == 0 for value in sums.values())


def test_a_reference_is_needed_where_the_algorithm_says_so_and_only_there():
    batch = random_batch(seeded(0), [2])
    for kl in (Kl(), Kl(kind="reward_k1", coef=0.1)):
        with pytest.raises(ValueError, match="ref_logprob_M: found a tensor"):
            policy_objective(Algorithm(kl=kl), weight_M=torch.ones(2), **batch)
    batch["ref_logprob_M"] = None
    with pytest.raises(ValueError, match="ref_logprob_M: found nothing"):
        policy_objective(Algorithm(kl=Kl(kind="loss_k2", coef=0.1)), weight_M=torch.ones(2), **batch)


def test_weights_of_other_tokens_are_refused():
    batch = random_batch(seeded(0), [2])
    batch["ref_logprob_M"] = None
    with pytest.raises(ShapeError, match="weight_M: found 3 values, but logprob_M has 2"):
        policy_objective(Algorithm(), weight_M=torch.ones(3), **batch)


def test_nothing_to_add_up_is_refused():
    with pytest.raises(ValueError, match="add_up: found no part"):
        add_up([])
