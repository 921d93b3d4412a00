"""Start-of-run probes: a run that cannot learn stops early, with a clear message.

* `check_gold`: gold answers must score 1, empty ones 0 (before the first step).
* `compare_engine`: engine and trainer must agree on the log-probs of sampled tokens (at the first RL step of every
  process, so also after a resume).
* `stop_if_barren`: every reward the same, every answer cut, or no gradient, for several steps in a row from the start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from anabranch.batching.credit import Credit
from anabranch.batching.pack import engine_logprobs, flat_offsets, pack
from anabranch.errors import ProbeError, explain
from anabranch.records import Reason, Rollout, StopReason
from anabranch.tasks.base import Task, self_check
from anabranch.tracking.rollouts import RolloutRecord
from anabranch.train.session import Session
from anabranch.train.state import RunState
from anabranch.train.trainer import Update, score

GOLD_PROBLEMS = 16
"""How many problems `check_gold` looks at."""
AGREEMENT_ROLLOUTS = 16
"""How many answers `compare_engine` scores."""
LARGEST_GAP = {"float32": 1e-3, "bfloat16": 0.05}
"""Mean absolute gap in nats that is still rounding; measured: 2e-6 in float32, 0.025 in bfloat16 (SmolLM2-135M)."""


def check_gold(session: Session, held_task: Task) -> None:
    """Prove on a sample of problems that right answers are accepted; of held-out problems too, if from other data.

    Raises:
        DataError: they are not.
    """
    self_check(session.task, session.judge, GOLD_PROBLEMS)
    if session.held_judge is not session.judge:
        self_check(held_task, session.held_judge, GOLD_PROBLEMS)


def compare_engine(session: Session, rollouts: Sequence[Rollout], step: int) -> None:
    """Score a few answers with the trainer and compare with what the engine recorded; once a process.

    Only answers that step `step` began are compared: others have tokens, or keys and values, of older weights. Without
    any, the next step is asked.

    Raises:
        ProbeError: they disagree by more than rounding.
    """
    rollouts = [rollout for rollout in rollouts if rollout.step == step and rollout.graph.num_trained]
    if session.probed or not rollouts:
        return
    probe = rollouts[:: max(1, len(rollouts) // AGREEMENT_ROLLOUTS)][:AGREEMENT_ROLLOUTS]
    graphs = [rollout.graph for rollout in probe]
    rows = pack(graphs, list(range(len(graphs))), row_tokens=session.recipe.train.row_tokens)
    temperature = session.recipe.rollout.temperature
    num_slots = int(flat_offsets(graphs)[-1])
    logprob_N = score(session.model, rows, num_slots, temperature=temperature)
    gap = float((torch.from_numpy(engine_logprobs(rows, num_slots)) - logprob_N).abs().mean())
    limit = session.recipe.probes.agreement or LARGEST_GAP[session.recipe.model.dtype]
    if not gap <= limit:
        raise ProbeError(
            explain(
                "engine and trainer",
                f"a mean gap of {gap:.2g} nats between their log-probs of {len(logprob_N)} sampled tokens",
                f"it may be at most {limit:g} ({session.recipe.model.dtype}): training would follow the wrong gradient",
                "model.dtype=float32 shows whether it is rounding; probes.agreement sets the limit",
            )
        )
    session.probed = True


def barren_after(state: RunState, credit: Credit, updates: Sequence[Update]) -> int:
    """`RunState.barren` after a step: one more, or -1 for good once a step's rewards had a gradient.

    An entropy bonus, or a KL, may have one where the rewards have none: no token has an advantage then.
    """
    moved = bool(credit.advantage_M.any()) and any(update.grad_norm > 0 for update in updates)
    if state.barren < 0 or moved:
        return -1
    return state.barren + 1


def stop_if_barren(session: Session, state: RunState, answers: Sequence[RolloutRecord]) -> None:
    """Stop a run that has had nothing to learn from since RL began. Called when the step is on disk.

    Args:
        session: for `probes.patience`.
        state: after the step.
        answers: of the step.

    Raises:
        ProbeError: `probes.patience` barren steps in a row from the first one on.
    """
    if answers and state.barren >= session.recipe.probes.patience:
        found, fix = _diagnosis(answers)
        raise ProbeError(
            explain(
                f"the first {state.barren} RL steps",
                f"{found}, so the gradient of the rewards is zero",
                "a run must have something to learn from",
                f"{fix}; the answers are in {session.folder.paths.log('rollouts')}",
            )
        )


def _diagnosis(answers: Sequence[RolloutRecord]) -> tuple[str, str]:
    """What is wrong with the last of the barren steps, and what to try."""
    if all(answer["stop"] == StopReason.LENGTH for answer in answers):
        limit = max(answer["tokens"] for answer in answers)
        return f"every answer cut at {limit} tokens", "raise rollout.max_new_tokens, or ask for shorter answers"
    rewards = {answer["reward"] for answer in answers}
    if len(rewards) > 1:
        return "rewards that agree within every group", "a larger rollout.per_problem, or other problems"
    reasons = Counter(answer["verdict"] for answer in answers)
    found = f"every reward {rewards.pop():g} ({', '.join(f'{count} {name}' for name, count in reasons.most_common())})"
    if reasons.most_common(1)[0][0] == Reason.NO_ANSWER:
        return found, "a cold start (cold_start.steps=13), or another prompt.instruction or answer.extract"
    return found, "easier or harder problems (data.options), a cold start, or more answers a problem"
