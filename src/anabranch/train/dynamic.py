"""Which problems a step learns from: those drawn; with dynamic sampling, those drawn whose answers differ in reward.

DAPO (arXiv:2503.14476) drops groups whose rewards are all the same, because they teach a group-relative method nothing,
and draws other problems until the step is full. Letters: G groups of a round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from anabranch.algo.groups import informative_groups
from anabranch.errors import StarvationError, explain
from anabranch.recipe.tree import Dynamic
from anabranch.records import Reason
from anabranch.sampling.uniform import UniformState, draw_others
from anabranch.train import tracked
from anabranch.train.clock import Clock
from anabranch.train.experience import Dropped, Experience, Group, experience_of_groups, gather, group_records
from anabranch.train.first_come import collect_first
from anabranch.train.session import Session
from anabranch.train.state import RunState, SamplerState

SUSPECT = 0.25
"""From this share on, a cause of starvation is named with what helps against it."""

Answer = Callable[[Sequence[int]], Experience]
"""Judged answers to the problems with these indices."""


@dataclass(frozen=True)
class Filled:
    """What the rounds of a step found."""

    kept: Sequence[Group]
    """Groups that differ, in the order they were drawn; fewer than asked for if the rounds or the problems ran out."""
    dropped: Dropped
    exhausted: bool
    """Every problem was drawn."""
    sampler: UniformState
    """After all that was drawn."""


def collect(session: Session, state: RunState, clock: Clock) -> tuple[Experience, SamplerState]:
    """Judged answers to the next problems, and the sampler after them.

    Raises:
        EngineError: see `collect_first`.
        StarvationError: dynamic sampling did not find enough groups that differ; what it found is in `rollouts.jsonl`.
    """
    recipe = session.recipe
    dynamic, prompts = recipe.rollout.dynamic, recipe.rollout.prompts

    if session.flight is not None:
        return collect_first(session, state, clock)

    def answer(indices: Sequence[int]) -> Experience:
        return gather(session, [session.task.problems[index] for index in indices], state.step, clock)

    if dynamic is None:
        indices, sampler = tracked.draw_problems(session, state, prompts)
        return tracked.with_values(session, state.values, answer(indices)), sampler
    assert isinstance(state.sampler, UniformState)  # a recipe with dynamic sampling draws uniformly
    filled = fill(dynamic, prompts, state.sampler, answer)
    if len(filled.kept) < prompts:
        _keep_for_the_reader(session, filled, state.step + 1)
        raise starvation(prompts, filled, recipe.rollout.max_new_tokens, session.folder.paths.log("rollouts"))
    return experience_of_groups(filled.kept, filled.dropped), filled.sampler


def fill(dynamic: Dynamic, prompts: int, sampler: UniformState, answer: Answer) -> Filled:
    """Draw problems, round after round, until `prompts` groups differ in reward or there is no going on.

    A problem is drawn once a step at most: its answers are the same every time.
    """
    kept: list[Group] = []
    agreeing: list[Group] = []
    taken: set[int] = set()
    rounds = 0
    while len(kept) < prompts and rounds < dynamic.rounds:
        indices, sampler = draw_others(sampler, dynamic.problems_for(prompts - len(kept)), taken)
        if not indices:
            break
        taken.update(indices)
        rounds += 1
        found = answer(indices)
        differs_G = informative_groups(found.reward_B, found.group_B).tolist()
        for group, differs in zip(found.groups, differs_G, strict=True):
            (kept if differs else agreeing).append(group)
    dropped = Dropped(agreeing, kept[prompts:], rounds)
    return Filled(kept[:prompts], dropped, len(taken) == sampler.num_problems, sampler)


def _keep_for_the_reader(session: Session, filled: Filled, step: int) -> None:
    """Write the answers of a step that will not be; a resume cuts them off."""
    for record in group_records(session, filled.kept, step):
        session.folder.rollouts.write(record)
    for record in group_records(session, filled.dropped.agreeing, step, "agrees"):
        session.folder.rollouts.write(record)
    session.folder.commit()


def starvation(prompts: int, filled: Filled, limit: int, log: Path) -> StarvationError:
    """The error of a step that stayed too small: what was drawn, and what to try, the likeliest first.

    Args:
        prompts: groups that were needed.
        filled: what was found.
        limit: `rollout.max_new_tokens`.
        log: where the answers are.
    """
    agreeing, rounds = filled.dropped.agreeing, filled.dropped.rounds
    groups = [*filled.kept, *agreeing]
    answers = sum(len(group.scores) for group in groups)
    right = sum(_correct(group) == len(group.scores) for group in agreeing)
    wrong = sum(_correct(group) == 0 for group in agreeing)
    silent = sum(score.verdict.reason is Reason.NO_ANSWER for group in groups for score in group.scores)
    cut = sum(rollout.truncated for group in groups for rollout in group.rollouts)
    found = (
        f"{len(filled.kept)} of {prompts} groups that differ, in {len(groups)} drawn over {rounds} rounds: "
        f"{wrong / len(groups):.0%} agree with no answer correct, {right / len(groups):.0%} with every answer correct, "
        f"{(len(agreeing) - wrong - right) / len(groups):.0%} otherwise; of {answers} answers {cut / answers:.0%} were "
        f"cut at {limit} tokens and {silent / answers:.0%} had no final answer"
    )
    suspects = [
        (silent / answers, "a cold start (cold_start.steps=13), or another prompt.instruction or answer.extract"),
        (cut / answers, f"rollout.max_new_tokens={2 * limit}"),
        (wrong / len(groups), "easier problems, a cold start, or more answers a problem (rollout.per_problem)"),
        (right / len(groups), "harder problems"),
    ]
    fixes = [fix for share, fix in sorted(suspects, key=lambda suspect: -suspect[0]) if share >= SUSPECT]
    fixes.append("more problems (every one was drawn)" if filled.exhausted else f"rollout.dynamic.rounds={2 * rounds}")
    need = f"a step takes {prompts} groups whose rewards are not all the same (rollout.prompts)"
    return StarvationError(explain("rollout.dynamic", found, need, f"{'; or '.join(fixes)}; the answers are in {log}"))


def _correct(group: Group) -> int:
    return sum(score.verdict.reason is Reason.CORRECT for score in group.scores)
