"""The record of one RL step, from what the step did. Names and meanings: docs/metrics.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from anabranch.algo.groups import group_sizes, informative_groups, sum_by
from anabranch.batching.pack import engine_logprobs, packed_tokens
from anabranch.recipe.tree import Recipe
from anabranch.records import Reason
from anabranch.rewards.repetition import loops
from anabranch.rewards.total import weights_at
from anabranch.tracking.memory import peak_rss_mb
from anabranch.train.clock import Clock
from anabranch.train.objective import kl_estimator
from anabranch.train.state import RunState
from anabranch.train.trainer import Update

if TYPE_CHECKING:
    from anabranch.train.experience import Experience
    from anabranch.train.lesson import Lesson

Record = dict[str, object]


def rl_record(
    recipe: Recipe,
    state: RunState,
    experience: Experience,
    lesson: Lesson,
    updates: Sequence[Update],
    lr: float,
    engine_times: Mapping[str, float],
    clock: Clock,
) -> Record:
    """One line of `metrics.jsonl`. Numbers that nothing was measured for are left out."""
    everything = experience.everything
    sampled = sum(rollout.graph.num_trained for rollout in everything.rollouts)
    record: Record = {
        "step": state.step + 1,
        "stage": "rl",
        "policy_version": state.version,
        "lr": lr,
        **_rewards(everything, lesson),
        **{f"reward_weight/{name}": weight for name, weight in weights_at(recipe.reward, state.step).items()},
        **_advantages(lesson),
        **_answers(everything),
        **_accounting(experience, everything, lesson),
        **_dynamic(experience, everything),
        **_order(experience),
        **(_turns(everything) if recipe.environment is not None else {}),
        "sampled_tokens": sampled,
        **_reference(recipe, state),
        **_policy(recipe, lesson, updates),
        **engine_gap(lesson, updates),
        **{f"time/{name}": seconds for name, seconds in engine_times.items()},
        **clock.times(),
        "time/step": clock.elapsed,
        "tokens_per_second": sampled / clock.elapsed,
        "rollouts_per_second": len(everything.rollouts) / clock.elapsed,
        "memory_peak_mb": peak_rss_mb(),
    }
    return record


def _rewards(experience: Experience, lesson: Lesson) -> Record:
    scores, size = experience.scores, len(experience.scores)
    reasons = Counter(score.verdict.reason for score in scores)
    correct_B = torch.tensor([score.verdict.reason is Reason.CORRECT for score in scores])
    reward_B, group_B = experience.reward_B, experience.group_B
    stats = lesson.credit.stats
    return {
        "reward": float(reward_B.mean()),
        **{f"reward/{name}": float(np.mean([score.parts[name] for score in scores])) for name in scores[0].parts},
        "accuracy": float(correct_B.double().mean()),
        **{f"verdict/{reason}": reasons[reason] / size for reason in Reason},
        "reward_std": stats["sigma_group"],
        "sigma_batch": stats["sigma_batch"],
        **_dead_groups(reward_B, group_B, correct_B),
    }


def _dead_groups(reward_B: Tensor, group_B: Tensor, correct_B: Tensor) -> Record:
    """Groups that agree; nothing where every group is a single answer, which cannot but agree."""
    sizes_G = group_sizes(group_B)
    if int(sizes_G.max()) == 1:
        return {}
    dead_G = ~informative_groups(reward_B, group_B)
    num_correct_G = sum_by(group_B, correct_B.double(), len(dead_G))

    def share(which_G: Tensor) -> float:
        return float(which_G.double().mean())

    return {
        "dead_groups": share(dead_G),
        "dead_groups_right": share(dead_G & (num_correct_G == sizes_G)),
        "dead_groups_wrong": share(dead_G & (num_correct_G == 0)),
    }


def _advantages(lesson: Lesson) -> Record:
    advantage_B = lesson.credit.advantage_B
    record: Record = {
        "advantage_mean": float(advantage_B.mean()),
        "advantage_std": float(advantage_B.std()) if len(advantage_B) > 1 else 0.0,
        "advantage_min": float(advantage_B.min()),
        "advantage_max": float(advantage_B.max()),
        "advantage_max_abs": lesson.credit.stats["advantage_abs_max"],
        "zero_advantage": lesson.credit.stats["zero_advantage_share"],
        "centred_small": lesson.credit.stats["centred_small_share"],
    }
    if "centred_variance" in lesson.credit.stats:
        record["centred_variance"] = lesson.credit.stats["centred_variance"]
    if "advantage_clipped_share" in lesson.credit.stats:
        record["advantage_clipped"] = lesson.credit.stats["advantage_clipped_share"]
    return record


def _answers(experience: Experience) -> Record:
    lengths = [rollout.num_answer_tokens for rollout in experience.rollouts]
    cut = [rollout for rollout in experience.rollouts if rollout.truncated]
    record: Record = {
        "answer_length_mean": float(np.mean(lengths)),
        "answer_length_min": min(lengths),
        "answer_length_max": max(lengths),
        "truncated": float(experience.truncated_B.double().mean()),
    }
    if cut:
        record["repeat_ratio"] = sum(loops(rollout) for rollout in cut) / len(cut)
    return record


def _accounting(experience: Experience, everything: Experience, lesson: Lesson) -> Record:
    rows = [row for part in lesson.rows for row in part]
    trained = len({int(answer) for row in rows for answer in row.rollout_M})
    filtered = int((~lesson.credit.keep_B).sum())
    return {
        "generated_rollouts": len(everything.rollouts),
        "trained_rollouts": trained,
        "filtered_rollouts": filtered,
        "skipped_rollouts": len(experience.rollouts) - trained - filtered,
        "trained_tokens": sum(len(row.target_M) for row in rows),
        "packed_tokens": packed_tokens(rows),
        "prompt_tokens": sum(len(group.rollouts[0].prompt_tokens) for group in everything.groups),
    }


def _dynamic(experience: Experience, everything: Experience) -> Record:
    """What dynamic sampling did, if there is any."""
    if experience.dropped is None:
        return {}
    kept, drawn = len(experience.groups), len(everything.groups)
    return {
        "dropped_rollouts": len(everything.rollouts) - len(experience.rollouts),
        "groups_drawn": drawn,
        "groups_kept": kept / drawn,
        "groups_surplus": len(experience.dropped.surplus),
        "sampling_rounds": experience.dropped.rounds,
    }


def _order(experience: Experience) -> Record:
    """How old the answers of the step are, and what it left, if it does not wait for all of its own."""
    order = experience.order
    if order is None:
        return {}
    version_M = np.concatenate(
        [
            segment.policy_version[segment.trained]
            for rollout in experience.rollouts
            for segment in rollout.graph.segments
        ]
    )
    return {
        "staleness": float(order.staleness_B.double().mean()),
        "staleness_max": int(order.staleness_B.max()),
        "stale_tokens": float((version_M < order.version).mean()) if len(version_M) else 0.0,
        "left_in_flight": order.left,
        "given_up": order.given_up,
    }


def _turns(experience: Experience) -> Record:
    """How answers went about their environment."""
    rollouts = experience.rollouts
    outcomes = Counter(outcome for rollout in rollouts for outcome in rollout.outcomes)
    observed = sum(rollout.num_answer_tokens - rollout.graph.num_trained for rollout in rollouts)
    return {
        "turns": float(np.mean([rollout.turns for rollout in rollouts])),
        "turns_max": max(rollout.turns for rollout in rollouts),
        "observed_tokens": observed / sum(rollout.num_answer_tokens for rollout in rollouts),
        **{f"calls/{outcome}": count for outcome, count in sorted(outcomes.items())},
    }


def _reference(recipe: Recipe, state: RunState) -> Record:
    """How old the reference is, if it is ever reset."""
    if recipe.algorithm.kl.reset is None:
        return {}
    age = state.step - state.reference.step
    record: Record = {"reference_age": age}
    if age == 0 and state.reference.cause is not None:
        record["reference_reset"] = state.reference.cause
    return record


def _policy(recipe: Recipe, lesson: Lesson, updates: Sequence[Update]) -> Record:
    """Means over the trained tokens of all updates; nothing if there was none."""
    record: Record = {}
    if updates:
        tokens = sum(update.sums["tokens"] for update in updates)

        def share(name: str) -> float:
            return sum(update.sums[name] for update in updates) / tokens

        record = {
            "loss": float(np.mean([update.loss for update in updates])),
            "grad_norm": float(np.mean([update.grad_norm for update in updates])),
            "entropy": sum(update.entropy_sum for update in updates) / sum(update.num_tokens for update in updates),
            "clip_low": share("clip_low"),
            "clip_high": share("clip_high"),
            "ratio_mean": share("ratio_sum"),
            "ratio_max": max(update.sums["ratio_max"] for update in updates),
            "kl_old_k1": share("kl_old_k1"),
            "kl_old_k3": share("kl_old_k3"),
        }
        if recipe.algorithm.clip.dual is not None:
            record["clip_dual"] = share("clip_dual")
        if "kl_ref" in updates[0].sums:
            record["kl_ref"] = share("kl_ref")
        for name in ("loss_kl", "loss_entropy"):
            if name in updates[0].sums:
                record[name] = float(np.mean([update.sums[name] for update in updates]))
        if "mismatch_bounded" in updates[0].sums:
            answers = sum(update.sums["mismatch_sequences"] for update in updates)
            record["mismatch_gap"] = share("mismatch_log_abs")
            record["mismatch_bounded"] = share("mismatch_bounded")
            record["mismatch_dropped"] = sum(update.sums["mismatch_dropped"] for update in updates) / answers
    if recipe.algorithm.kl.kind == "reward_k1" and lesson.old_N is not None and lesson.ref_N is not None:
        record["kl_ref"] = float(kl_estimator(recipe.algorithm.kl)(lesson.old_N, lesson.ref_N).mean())
    return record


def engine_gap(lesson: Lesson, updates: Sequence[Update]) -> Record:
    """How far the log-probs of engine and trainer lie apart on tokens that the trainer scored with the same weights.

    Those are the tokens of the first update. Without an update there is nothing to compare.
    """
    if not updates:
        return {}
    logprob_N = updates[0].logprob_N
    rows = [row for part in lesson.rows for row in part]
    gap_N = (torch.from_numpy(engine_logprobs(rows, len(logprob_N))) - logprob_N).abs()
    gap_N = gap_N[~gap_N.isnan()]
    return {"engine_gap_mean": float(gap_N.mean()), "engine_gap_max": float(gap_N.max())}
