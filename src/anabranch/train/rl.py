"""One RL step, the part to read aloud:

draw problems -> sample answers, judging each as it finishes -> credit -> pack -> score -> update -> what is known of
each problem -> observe.

No line here asks which algorithm it is. Letters: B answers of the step, M trained tokens of a row, N of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from anabranch.batching.credit import Credit, assign_credit
from anabranch.batching.pack import Row, pack
from anabranch.modeling.devices import return_free_memory
from anabranch.recipe.tree import Algorithm
from anabranch.tracking.rollouts import RolloutRecord
from anabranch.train import balance, probes, resets, tracked
from anabranch.train.clipped import log_clipped
from anabranch.train.clock import Clock
from anabranch.train.dynamic import collect
from anabranch.train.experience import Experience, answer_records
from anabranch.train.lesson import Lesson, old_logprobs
from anabranch.train.measure import rl_record
from anabranch.train.objective import kl_estimator, kl_in_loss, policy_objective, teaches_everywhere
from anabranch.train.session import Learner, Session
from anabranch.train.state import RunState
from anabranch.train.trainer import Objective, Update, score, update


def rl_step(session: Session, state: RunState, lr: float) -> tuple[RunState, dict[str, object], list[RolloutRecord]]:
    """One step on the next problems; returns the new state, the step's record, and a record of every answer."""
    clock = Clock()
    experience, sampler = collect(session, state, clock)
    probes.compare_engine(session, experience.rollouts, state.step)
    session.engine.rest()
    return_free_memory()
    lesson = prepare(session, experience, clock)
    look = tracked.look_before(session, state.values, experience, lesson, clock)
    forks = balance.look_before(session, experience, clock)
    updates = learn(session, lesson, lr, clock)
    values, outcomes = tracked.revise(session, state.values, experience, lesson, updates, look, clock)
    log_clipped(session, state, lesson, updates)
    diagnosed = balance.after_step(session, experience, forks, clock)
    barren = probes.barren_after(state, lesson.credit, updates)
    record = rl_record(session.recipe, state, experience, lesson, updates, lr, {**session.engine.times}, clock)
    record.update({**outcomes, **diagnosed})
    after = replace(
        state,
        step=state.step + 1,
        total=state.total + 1,
        version=state.version + len(updates),
        sampler=sampler,
        barren=barren,
        reference=resets.after_step(state.reference, record),
        values=values,
    )
    session.engine.load_weights(after.version)
    return after, record, answer_records(session, experience, after.step)


def prepare(learner: Learner, experience: Experience, clock: Clock) -> Lesson:
    """Credit of every token, packed rows for each optimizer step, and the log-probs of other policies."""
    recipe = learner.recipe
    kl, count, num_slots = recipe.algorithm.kl, recipe.train.minibatches, len(experience.sequence_N)
    graphs = [rollout.graph for rollout in experience.rollouts]
    groups = [problem.key for problem in experience.problems]  # one prompt each
    num_groups = int(experience.group_B[-1]) + 1
    minibatch_B = experience.group_B * count // num_groups  # whole groups, in the order they were drawn

    def scored(model: object, rows: Sequence[Row]) -> Tensor:
        learner.display.phase("scoring")
        with clock.phase("score"):
            return score(model, rows, num_slots, temperature=recipe.rollout.temperature)

    old_N = ref_N = penalty_N = None
    if kl.kind == "reward_k1":  # every token's penalty is part of the reward: it must be known before credit
        everything = pack(graphs, groups, row_tokens=recipe.train.row_tokens)
        old_N, ref_N = scored(learner.model, everything), scored(learner.reference, everything)
        penalty_N = kl_estimator(kl)(old_N, ref_N).double()
    with clock.phase("pack"):
        credit = assign_credit(
            recipe.algorithm,
            reward_B=experience.reward_B,
            group_B=experience.group_B,
            sequence_M=experience.sequence_N,
            truncated_B=experience.truncated_B,
            max_new_tokens=recipe.rollout.max_new_tokens,
            kl_penalty_M=penalty_N,
            minibatch_B=minibatch_B,
            value_B=experience.value_B if recipe.algorithm.baseline == "tracker" else None,
        )
        everywhere = teaches_everywhere(recipe.algorithm)
        learns_B = teaches(credit, experience.sequence_N, len(graphs), everywhere=everywhere)
        rows = [
            pack(graphs, groups, (learns_B & (minibatch_B == index)).tolist(), row_tokens=recipe.train.row_tokens)
            for index in range(count)
        ]
    if kl_in_loss(recipe.algorithm):
        ref_N = scored(learner.reference, [row for part in rows for row in part])
    if count > 1 and old_N is None:
        old_N = scored(learner.model, [row for part in rows[1:] for row in part])
    return Lesson(credit, rows, old_N, ref_N)


def teaches(credit: Credit, sequence_N: Tensor, num_rollouts: int, *, everywhere: bool) -> Tensor:
    """bool [B]: answers whose gradient can differ from 0. The others are not packed, which changes no gradient.

    An answer in the loss teaches if a token of it has an advantage, or if the loss has a term on every token
    (`everywhere`, see `objective.teaches_everywhere`).
    """
    counts_N = credit.weight_M != 0
    if not everywhere:
        counts_N = counts_N & (credit.advantage_M != 0)
    return torch.bincount(sequence_N[counts_N], minlength=num_rollouts) > 0


def objective_of(algorithm: Algorithm, lesson: Lesson, *, on_policy: bool) -> Objective:
    """The policy loss of a row of the lesson.

    Args:
        algorithm: which loss.
        lesson: with log-probs of the reference if the KL is in the loss.
        on_policy: the weights that sampled are the current ones: old log-probs are the current, detached. Otherwise
            they are those of the lesson, which must have them.
    """
    advantage_N, weight_N = lesson.credit.advantage_M.float(), lesson.credit.weight_M.float()

    def objective(row: Row, logprob_M: Tensor, entropy_M: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        def here(value_N: Tensor) -> Tensor:
            return value_N[torch.from_numpy(row.slot_M)].to(logprob_M.device)

        engine_logprob_M = torch.from_numpy(row.layout.engine_logprob_T[row.target_M]).to(logprob_M.device)
        return policy_objective(
            algorithm,
            logprob_M=logprob_M,
            old_logprob_M=logprob_M.detach() if on_policy else here(lesson.old_N),  # type: ignore[arg-type]
            advantage_M=here(advantage_N),
            weight_M=here(weight_N),
            sequence_M=torch.from_numpy(row.rollout_M).to(logprob_M.device),
            ref_logprob_M=here(lesson.ref_N) if kl_in_loss(algorithm) and lesson.ref_N is not None else None,
            engine_logprob_M=engine_logprob_M if algorithm.mismatch.kind != "none" else None,
            entropy_M=entropy_M if algorithm.entropy_coef > 0 else None,
        )

    return objective


def learn(learner: Learner, lesson: Lesson, lr: float, clock: Clock) -> list[Update]:
    """One optimizer step for every mini-batch that has something to teach, in every pass over the batch."""
    updates: list[Update] = []
    parts = [rows for rows in lesson.rows if rows] * learner.recipe.train.epochs  # no rows: all its groups agree
    for number, rows in enumerate(parts, start=1):
        learner.display.phase(f"training {number}/{len(parts)}")
        old_N = old_logprobs(lesson, updates)
        done = update(
            learner.model,
            learner.optimizer,
            rows,
            objective_of(learner.recipe.algorithm, replace(lesson, old_N=old_N), on_policy=old_N is None),
            len(lesson.credit.advantage_M),
            lr=lr,
            temperature=learner.recipe.rollout.temperature,
            clock=clock,
        )
        updates.append(done)
    return updates
