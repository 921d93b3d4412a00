"""What the policy loss promises, in value and gradient. Numbers: checks L7 to L12, L15 and L16 of the Lite PPO spec."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.algo.aggregate import AGGREGATES, count, token_weights
from anabranch.batching.credit import assign_credit
from anabranch.errors import ShapeError
from anabranch.recipe.tree import Algorithm, Clip, Kl, Overlong
from anabranch.train.objective import add_up, policy_objective

# L7: answer a is one token with ratio 1.5 and advantage +1; answer b three tokens, 0.5, 1.0, 1.3, with advantage -1.
NEW = torch.tensor([0.3, 0.2, 0.5, 0.65], dtype=torch.float64)  # the probabilities of L10
RHO = torch.tensor([1.5, 0.5, 1.0, 1.3], dtype=torch.float64)
ADVANTAGE = torch.tensor([1.0, -1.0, -1.0, -1.0], dtype=torch.float64)
SEQUENCE = torch.tensor([0, 1, 1, 1])


def weights(aggregate, sequence_M, keep_B, constant=4):
    return token_weights(AGGREGATES[aggregate], sequence_M, keep_B, count(sequence_M, keep_B, constant), torch.float64)


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


# ------------------------------------------------------------------- against the formulas, token by token

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


def random_batch(seed, lengths):
    """Random log-probs and advantages; the tokens of the answers are shuffled."""
    generator = torch.Generator().manual_seed(seed)
    size = sum(lengths)
    sequence = torch.tensor([index for index, length in enumerate(lengths) for _ in range(length)], dtype=torch.int64)

    def normal():
        return torch.randn(size, generator=generator, dtype=torch.float64)

    logprob_M = -normal().abs() - 0.1
    return {
        "logprob_M": logprob_M.requires_grad_(),
        "old_logprob_M": logprob_M.detach() - 0.4 * normal(),
        "advantage_M": torch.randint(-2, 3, (size,), generator=generator).double() / 2,
        "sequence_M": sequence[torch.randperm(size, generator=generator)],
        "ref_logprob_M": logprob_M.detach() - 0.3 * normal(),
    }


def evaluate(algorithm, batch, weight_M):
    loss, sums = policy_objective(algorithm, weight_M=weight_M, **batch)
    (gradient_M,) = torch.autograd.grad(loss, batch["logprob_M"])
    return loss.detach(), gradient_M, sums


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
    batch = random_batch(seed, lengths)
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
    batch = random_batch(0, [1, 2, 3])
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
    batch = random_batch(seed, lengths)
    weight_M = weights(aggregate, batch["sequence_M"], torch.ones(len(lengths), dtype=torch.bool))
    loss, gradient_M, sums = evaluate(algorithm, batch, weight_M)
    home_M = torch.tensor(home)[batch["sequence_M"]]
    results = []
    for micro in set(home_M.tolist()):
        here_M = home_M == micro
        part = {name: value[here_M] for name, value in batch.items()}
        _, part["sequence_M"] = part["sequence_M"].unique(return_inverse=True)  # ids local to the micro-batch
        results.append(policy_objective(algorithm, weight_M=weight_M[here_M], **part))
    total = torch.stack([part_loss for part_loss, _ in results]).sum()
    (added_gradient_M,) = torch.autograd.grad(total, batch["logprob_M"])
    torch.testing.assert_close(total.detach(), loss)
    torch.testing.assert_close(added_gradient_M, gradient_M)
    added = add_up([part for _, part in results])
    assert added.keys() == sums.keys()
    for name, value in sums.items():
        torch.testing.assert_close(added[name], value)


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
    batch = random_batch(0, [3])
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
    batch = random_batch(0, [0])
    loss, gradient_M, sums = evaluate(
        Algorithm(ratio=ratio, kl=Kl(kind="loss_k3", coef=1.0)), batch, torch.zeros(0, dtype=torch.float64)
    )
    assert loss.item() == 0.0
    assert gradient_M.shape == (0,)
    assert all(value.item() == 0 for value in sums.values())


def test_a_reference_is_needed_where_the_algorithm_says_so_and_only_there():
    batch = random_batch(0, [2])
    for kl in (Kl(), Kl(kind="reward_k1", coef=0.1)):
        with pytest.raises(ValueError, match="ref_logprob_M: found a tensor"):
            policy_objective(Algorithm(kl=kl), weight_M=torch.ones(2), **batch)
    batch["ref_logprob_M"] = None
    with pytest.raises(ValueError, match="ref_logprob_M: found nothing"):
        policy_objective(Algorithm(kl=Kl(kind="loss_k2", coef=0.1)), weight_M=torch.ones(2), **batch)


def test_weights_of_other_tokens_are_refused():
    batch = random_batch(0, [2])
    batch["ref_logprob_M"] = None
    with pytest.raises(ShapeError, match="weight_M: found 3 values, but logprob_M has 2"):
        policy_objective(Algorithm(), weight_M=torch.ones(3), **batch)


def test_nothing_to_add_up_is_refused():
    with pytest.raises(ValueError, match="add_up: found no part"):
        add_up([])
