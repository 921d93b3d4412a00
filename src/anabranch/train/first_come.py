"""A step that learns from the rollouts that finish first (`rollout.asynchronous`). Letters: B answers of the step."""

from __future__ import annotations

from dataclasses import replace

import torch

from anabranch.train import tracked
from anabranch.train.clock import Clock
from anabranch.train.experience import Experience, Order, experience_of, scored
from anabranch.train.session import Session
from anabranch.train.state import RunState, SamplerState


def collect_first(session: Session, state: RunState, clock: Clock) -> tuple[Experience, SamplerState]:
    """Begin as many problems as there is room for, and go on until the step has enough.

    Raises:
        EngineError: see `Flight.advance`.
    """
    flight, display = session.flight, session.display
    assert flight is not None
    indices, sampler = tracked.draw_problems(session, state, flight.room)
    problems = [session.task.problems[index] for index in indices]
    flight.begin(problems, session.asker.requests(problems, session.recipe.rollout.per_problem, state.step))
    waited = flight.waited
    display.phase("generating")
    while (numbers := flight.enough(state.step)) is None:
        display.phase(f"generating: {flight.advance()} answers are over")
    clock.add("wait", flight.waited - waited)
    taken = flight.take(numbers)
    display.phase("judging")
    with clock.phase("judge"):
        answers = [
            (unit.problem, unit.rollouts[name], unit.verdicts[name].result())
            for unit in taken.units
            for name in unit.names
        ]
    rollouts = [rollout for _, rollout, _ in answers]
    scores = scored(session.recipe, rollouts, [verdict for _, _, verdict in answers], state.step)
    experience = experience_of([unit.problem for unit in taken.units], rollouts, scores)
    order = Order(
        staleness_B=torch.tensor([state.step - rollout.step for rollout in rollouts]),
        given_up=taken.given_up,
        left=taken.left,
        version=state.version,
    )
    return tracked.with_values(session, state.values, replace(experience, order=order)), sampler
