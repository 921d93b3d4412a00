"""An optimizer step has the gradient of plain transformers on every answer alone, however rows are packed."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from anabranch.batching.credit import assign_credit
from anabranch.batching.pack import Row, flat_offsets, pack, packed_tokens
from anabranch.errors import TrainingError
from anabranch.modeling.attention import NAME
from anabranch.modeling.tiny import tiny_llama
from anabranch.recipe.tree import Algorithm, Optim
from anabranch.records import Segment, StreamGraph
from anabranch.train.objective import policy_objective
from anabranch.train.optimizer import MasterOptimizer
from anabranch.train.rl import teaches
from anabranch.train.trainer import Objective, accumulate, score, update
from tests.tiny_models import MODELS, fused_llama, streaming

TEMPERATURE = 0.8


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=MODELS, ids=lambda make: make.__name__)
def model(request):
    return streaming(request.param())


class Batch:
    """Answers of several lengths to prompts of several lengths, each trained token with a weight of its own."""

    def __init__(self, groups: list[tuple[int, list[int]]]) -> None:
        rng = np.random.default_rng(0)
        self.graphs: list[StreamGraph] = []
        self.groups: list[int] = []
        for group, (prompt_length, answer_lengths) in enumerate(groups):
            prompt = Segment(rng.integers(4, 64, prompt_length))
            for length in answer_lengths:
                answer = Segment(rng.integers(4, 64, length), (0,), np.ones(length, dtype=bool))
                self.graphs.append(StreamGraph((prompt, answer)))
                self.groups.append(group)
        self.num_slots = int(flat_offsets(self.graphs)[-1])
        self.weight_N = torch.from_numpy(rng.normal(size=self.num_slots)).float() / self.num_slots
        self.sequence_N = torch.repeat_interleave(
            torch.arange(len(self.graphs)), torch.tensor([graph.num_trained for graph in self.graphs])
        )

    def rows(self, row_tokens: int = 1024, keep: list[bool] | None = None):
        return pack(self.graphs, self.groups, keep, row_tokens=row_tokens)

    def objective(self, row, logprob_M: Tensor, entropy_M: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        weight_M = self.weight_N[torch.from_numpy(row.slot_M)]
        return -(weight_M * logprob_M).sum(), {"tokens": torch.tensor(float(len(weight_M)))}

    def plain(self, model, temperature: float = TEMPERATURE) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies [N], each answer alone as a flat sequence; transformers and log_softmax only."""
        model.set_attn_implementation("eager")
        logprobs, entropies = [], []
        for graph in self.graphs:
            first = len(graph.segments[0])
            ids = torch.from_numpy(np.concatenate([segment.tokens for segment in graph.segments])).long()
            logits_TV = model(ids[None], use_cache=False).logits[0, first - 1 : -1] / temperature
            logprob_TV = torch.log_softmax(logits_TV, -1)
            logprobs.append(logprob_TV.gather(1, ids[first:, None])[:, 0])
            entropies.append(-(logprob_TV.exp() * logprob_TV).sum(-1))
        model.set_attn_implementation(NAME)
        return torch.cat(logprobs), torch.cat(entropies)


@pytest.fixture
def batch():
    return Batch([(9, [5, 1, 12, 7]), (20, [3]), (4, [10, 10]), (1, [6, 2, 2])])


def take_gradients(model) -> dict[str, Tensor]:
    taken = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return taken


def gradients(model, batch: Batch, rows, objective=None) -> dict[str, Tensor]:
    accumulate(model, rows, objective or batch.objective, batch.num_slots, temperature=TEMPERATURE)
    return take_gradients(model)


def plain_gradients(model, batch: Batch, loss_of) -> dict[str, Tensor]:
    loss_of(*batch.plain(model)).backward()
    return take_gradients(model)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], relative: float = 1e-5) -> None:
    """Difference of every parameter's gradient, relative to the norm of the whole gradient."""
    whole = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= relative * whole, name


# --------------------------------------------------------------------------------------------------- the gradient


def test_the_gradient_is_that_of_every_answer_alone_in_plain_transformers(model, batch):
    found = gradients(model, batch, batch.rows())
    assert_same(found, plain_gradients(model, batch, lambda logprob_N, _: -(batch.weight_N * logprob_N).sum()))


@pytest.mark.parametrize("row_tokens", [1, 16, 40, 70])
def test_the_gradient_does_not_depend_on_the_size_of_a_row(model, batch, row_tokens):
    whole, parts = batch.rows(), batch.rows(row_tokens)
    assert len(whole) == 1 and len(parts) > 1
    assert_same(gradients(model, batch, parts), gradients(model, batch, whole))


def test_a_shared_prompt_costs_once_and_changes_nothing(model):
    batch = Batch([(30, [4] * 12)])
    together = batch.rows()
    assert packed_tokens(together) == 30 + 12 * 4
    apart = [row for answer in range(12) for row in batch.rows(keep=[index == answer for index in range(12)])]
    assert packed_tokens(apart) == 12 * (30 + 4)
    assert_same(gradients(model, batch, together), gradients(model, batch, apart))


def on_policy(algorithm: Algorithm, advantage_N: Tensor, weight_N: Tensor) -> Objective:
    """The policy loss of the first update."""

    def objective(row: Row, logprob_M: Tensor, entropy_M: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        slot_M = torch.from_numpy(row.slot_M)
        return policy_objective(
            algorithm,
            logprob_M=logprob_M,
            old_logprob_M=logprob_M.detach(),
            advantage_M=advantage_N[slot_M],
            weight_M=weight_N[slot_M],
            sequence_M=torch.from_numpy(row.rollout_M),
            entropy_M=entropy_M if algorithm.entropy_coef > 0 else None,
        )

    return objective


@pytest.mark.parametrize("aggregate", ["token_mean", "seq_mean_token_mean", "token_sum_constant"])
def test_answers_without_advantage_may_be_left_out_but_are_counted(model, batch, aggregate):
    """Groups 1 and 3 agree, so they teach nothing; the loss is still a mean over all answers."""
    algorithm = Algorithm(aggregate=aggregate, constant=12 if aggregate == "token_sum_constant" else None)
    reward_B = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0, 0, 0], dtype=torch.float64)
    credit = assign_credit(
        algorithm,
        reward_B=reward_B,
        group_B=torch.tensor(batch.groups),
        sequence_M=batch.sequence_N,
        truncated_B=torch.zeros(10, dtype=torch.bool),
        max_new_tokens=12,
    )
    advantage_N, weight_N = credit.advantage_M.float(), credit.weight_M.float()
    objective = on_policy(algorithm, advantage_N, weight_N)
    keep = teaches(credit, batch.sequence_N, 10, everywhere=False).tolist()
    assert keep == [True] * 4 + [False] + [True] * 2 + [False] * 3
    kept = gradients(model, batch, batch.rows(keep=keep), objective)
    assert_same(kept, gradients(model, batch, batch.rows(), objective), 1e-6)
    # at the first update the gradient is that of - sum weight * advantage * log-prob
    assert_same(kept, plain_gradients(model, batch, lambda logprob_N, _: -(weight_N * advantage_N * logprob_N).sum()))


@pytest.mark.parametrize("row_tokens", [40, 1024])
def test_the_gradient_of_an_entropy_bonus_is_that_of_plain_transformers(model, batch, row_tokens):
    """Every token pulls with a weight of its own; one prompt's last token is the source of several."""
    algorithm = Algorithm(entropy_coef=0.3)
    advantage_N = torch.linspace(-1, 1, batch.num_slots)
    objective = on_policy(algorithm, advantage_N, batch.weight_N)

    def plain(logprob_N, entropy_N):
        return -(batch.weight_N * (advantage_N * logprob_N + 0.3 * entropy_N)).sum()

    assert_same(gradients(model, batch, batch.rows(row_tokens), objective), plain_gradients(model, batch, plain))


def test_paths_and_their_join_give_one_gradient_however_rows_are_packed(model):
    """Two answers with a block of two paths each: the join is trained behind both paths."""
    rng = np.random.default_rng(1)

    def segment(size, parents, first_trained=True):
        trained = np.ones(size, dtype=bool)
        trained[0] = first_trained
        return Segment(rng.integers(4, 64, size), parents, trained)

    prompt = Segment(rng.integers(4, 64, 6))
    batch = Batch([(1, [1])])
    batch.graphs = [
        StreamGraph((prompt, segment(3, (0,)), segment(4, (1,)), segment(2, (1,)), segment(5, (2, 3), False)))
        for _ in range(2)
    ]
    batch.groups, batch.num_slots = [0, 0], 26
    batch.weight_N = torch.linspace(-1, 1, 26)
    assert len(batch.rows()) == 1 and len(batch.rows(20)) == 2
    assert_same(gradients(model, batch, batch.rows(20)), gradients(model, batch, batch.rows()))


# ------------------------------------------------------------------------------------------- what a step reports


def test_score_is_what_an_update_finds_before_it_steps(model, batch):
    rows = batch.rows(40)
    scored_N = score(model, rows, batch.num_slots, temperature=TEMPERATURE)
    optimizer = MasterOptimizer(model, Optim(lr=1e-2))
    done = update(model, optimizer, rows, batch.objective, batch.num_slots, lr=1e-2, temperature=TEMPERATURE)
    assert torch.equal(scored_N, done.logprob_N)
    after_N = score(model, rows, batch.num_slots, temperature=TEMPERATURE)
    assert (after_N - scored_N).abs().max() > 1e-2


def test_an_update_reports_what_plain_transformers_finds(model, batch):
    logprob_N, entropy_N = (values.detach() for values in batch.plain(model))
    expected = plain_gradients(model, batch, lambda logprob_N, _: -(batch.weight_N * logprob_N).sum())
    optimizer = MasterOptimizer(model, Optim())
    done = update(model, optimizer, batch.rows(40), batch.objective, batch.num_slots, lr=1e-6, temperature=TEMPERATURE)
    torch.testing.assert_close(done.logprob_N, logprob_N, rtol=0, atol=1e-5)
    assert done.entropy_sum == pytest.approx(float(entropy_N.sum()), rel=1e-5)
    assert done.loss == pytest.approx(float(-(batch.weight_N * logprob_N).sum()), rel=1e-4)
    assert done.grad_norm == pytest.approx(float(torch.cat([g.flatten() for g in expected.values()]).norm()), rel=1e-4)
    assert done.num_tokens == batch.num_slots == done.sums["tokens"]  # sums add up over rows


def test_slots_that_are_in_no_row_are_nan(batch):
    model = streaming(tiny_llama())
    keep = [index % 2 == 0 for index in range(len(batch.graphs))]
    found_N = score(model, batch.rows(keep=keep), batch.num_slots, temperature=TEMPERATURE)
    assert torch.equal(torch.isnan(found_N), batch.sequence_N % 2 == 1)


def test_scoring_leaves_no_gradient(batch):
    model = streaming(tiny_llama())
    assert not score(model, batch.rows(), batch.num_slots, temperature=1.0).requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


# ---------------------------------------------------------------------------------------------------- the weights


def test_two_mini_batches_are_two_steps_of_adamw_in_plain_torch(model, batch):
    optim = Optim(lr=1e-2, eps=1e-3, betas=(0.9, 0.95), weight_decay=0.0, grad_clip=None)
    plain = copy.deepcopy(model)
    first = [index < 5 for index in range(10)]
    parts = [first, [not kept for kept in first]]
    before_N = score(model, batch.rows(), batch.num_slots, temperature=TEMPERATURE)

    optimizer = MasterOptimizer(model, optim)
    done = [
        update(model, optimizer, batch.rows(40, keep), batch.objective, batch.num_slots, lr=1e-2, temperature=0.8)
        for keep in parts
    ]

    theirs = torch.optim.AdamW(plain.parameters(), lr=1e-2, eps=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for keep in parts:
        kept_N = torch.tensor(keep)[batch.sequence_N]
        theirs.zero_grad()
        (-(batch.weight_N * batch.plain(plain)[0])[kept_N].sum()).backward()
        theirs.step()
    for ours, reference in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, reference, rtol=0, atol=2e-6)

    seen_N = [~torch.isnan(one.logprob_N) for one in done]
    assert torch.equal(seen_N[0], ~seen_N[1])
    torch.testing.assert_close(done[0].logprob_N[seen_N[0]], before_N[seen_N[0]], rtol=0, atol=1e-5)
    assert (done[1].logprob_N - before_N)[seen_N[1]].abs().max() > 1e-3  # the second sees the first one's weights


def test_the_supervised_objective_is_the_loss_of_transformers_with_the_prompt_masked(model, batch):
    def supervised(row, logprob_M, entropy_M):  # as in train.supervised
        return -logprob_M.sum() / batch.num_slots, {}

    loss, *_ = accumulate(model, batch.rows(40), supervised, batch.num_slots, temperature=1.0)
    ours = take_gradients(model)

    model.set_attn_implementation("eager")
    longest = max(graph.num_tokens for graph in batch.graphs)
    ids = torch.zeros(len(batch.graphs), longest, dtype=torch.int64)
    labels = torch.full_like(ids, -100)
    for index, graph in enumerate(batch.graphs):
        first, size = len(graph.segments[0]), graph.num_tokens
        ids[index, :size] = torch.from_numpy(np.concatenate([segment.tokens for segment in graph.segments])).long()
        labels[index, first:size] = ids[index, first:size]
    theirs = model(ids, labels=labels, use_cache=False).loss  # padding stands after all that counts
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), rel=1e-5)
    assert_same(ours, take_gradients(model))


def test_a_gradient_that_is_not_finite_leaves_the_weights(batch):
    model = streaming(tiny_llama())
    optimizer = MasterOptimizer(model, Optim())
    before = copy.deepcopy(model.state_dict())
    batch.weight_N[3] = torch.inf
    with pytest.raises(TrainingError, match=r"gradient norm of (nan|inf)"):
        update(model, optimizer, batch.rows(), batch.objective, batch.num_slots, lr=1.0, temperature=1.0)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize("make", [tiny_llama, fused_llama], ids=lambda make: make.__name__)
def test_gradients_of_several_rows_add_up_in_float32_in_one_place(batch, make):
    """What `update` does before it steps: zeros in float32, into which every row's gradients are added."""
    rows = batch.rows(40)
    model = streaming(make().to(torch.bfloat16))
    optimizer = MasterOptimizer(model, Optim())
    parts = [gradients(model, batch, [row]) for row in rows]
    optimizer.zero_gradients()
    places = {name: parameter.grad for name, parameter in model.named_parameters()}
    found = gradients(model, batch, rows)
    for name, place in places.items():
        assert found[name] is place
        assert place.dtype == torch.float32
        expected = sum(part[name] for part in parts)
        if name == "model.embed_tokens.weight":  # added up token by token, where autograd rounds each row's to bfloat16
            torch.testing.assert_close(place, expected, rtol=0.01, atol=1e-3)
        else:
            torch.testing.assert_close(place, expected, rtol=1e-6, atol=1e-8)


def test_no_row_is_an_error_and_not_a_step(batch):
    model = streaming(tiny_llama())
    with pytest.raises(ValueError, match="no part"):
        update(model, MasterOptimizer(model, Optim()), [], batch.objective, 0, lr=1.0, temperature=1.0)
