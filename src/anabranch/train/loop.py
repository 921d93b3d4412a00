"""The loop: stage after stage, step after step, with evaluations and checkpoints where they are due.

A run killed at any instant resumes from its last checkpoint and repeats what came after it to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from anabranch.errors import RunFolderError, explain
from anabranch.modeling.devices import return_free_memory
from anabranch.recipe.tree import Asynchronous, Optim, Prioritised, Recipe
from anabranch.sampling import prioritised, uniform
from anabranch.tasks.base import derived_seed
from anabranch.train import checkpoint, probes, reference, resets, tracked
from anabranch.train.clock import Clock
from anabranch.train.flight import Flight
from anabranch.train.held_out import evaluate
from anabranch.train.optimizer import learning_rate
from anabranch.train.rl import rl_step
from anabranch.train.session import Session
from anabranch.train.state import RunState, reference_step
from anabranch.train.supervised import Example, supervised_step

StepFunction = Callable[[Session, RunState, float], tuple[RunState, dict[str, Any], Sequence[Any]]]
"""(session, state, learning rate) -> (state after the step, its metrics record, records of its answers)."""


@dataclass(frozen=True)
class Stage:
    """A number of steps of one kind."""

    name: str
    steps: int
    pool: int
    """How many problems or examples the stage draws from."""
    optim: Optim
    step: StepFunction
    seconds: float | None = None
    """Ends earlier, between steps, when so much wall-clock time has passed."""
    needs_reference: bool = False

    def over(self, state: RunState) -> bool:
        """Whether the stage has no step left."""
        return state.step >= self.steps or (self.seconds is not None and state.seconds >= self.seconds)


def plan(session: Session, cold_examples: Sequence[Example], file_examples: Sequence[Example]) -> list[Stage]:
    """The stages of a run in order: cold start, supervised file, RL; those that the recipe has."""
    recipe = session.recipe
    stages = []
    for name, part, examples in (("cold_start", recipe.cold_start, cold_examples), ("sft", recipe.sft, file_examples)):
        if part is not None:
            optim = recipe.optim.model_copy(update={"lr": part.lr, "warmup": part.warmup, "schedule": "constant"})
            step = partial(supervised_step, examples=examples, stage=name, batch=part.batch)
            stages.append(Stage(name, part.steps, len(examples), optim, step))
    if recipe.steps:
        kl = recipe.algorithm.kl.kind != "none"
        stages.append(Stage("rl", recipe.steps, len(session.task.problems), recipe.optim, rl_step, recipe.seconds, kl))
    return stages


def start_of(session: Session, stages: Sequence[Stage], number: int, before: RunState | None) -> RunState:
    """The state in which a stage begins."""
    stage, recipe = stages[number], session.recipe
    in_rl = stage.name == "rl"
    init = prioritised.init if in_rl and isinstance(recipe.sampling, Prioritised) else uniform.init
    return RunState(
        stage=number,
        step=0,
        total=before.total if before else 0,
        version=before.version if before else 0,
        sampler=init(stage.pool, derived_seed(stage.name, recipe.seed)),
        barren=0,
        seconds=0.0,
        data=session.data_hash,
        values=tracked.begin(recipe.algorithm.tracker, session.offline) if in_rl and recipe.tracks else None,
    )


def run(session: Session, stages: Sequence[Stage], state: RunState | None) -> RunState:
    """Run what is left of the stages.

    Args:
        session: everything the stages share; weights and moments belong to `state`.
        stages: of `plan`.
        state: of the checkpoint that was restored; None at the very start.

    Returns:
        The last state, which is also in the last checkpoint.

    Raises:
        RunFolderError: nothing is left to do.
    """
    if state is None:
        state = start_of(session, stages, 0, None)
        if session.held_out:
            evaluate(session, state, "before")
    elif stages[state.stage].over(state):
        if state.stage == len(stages) - 1:
            raise RunFolderError(
                explain(
                    str(session.folder.paths.root),
                    f"the last stage done ({state.step} steps, {state.seconds:.0f} s)",
                    "nothing is left to do",
                    f"anabranch resume {session.folder.paths.root} {further(session.recipe, state)}",
                )
            )
        # It was the last stage when it was saved: RL steps were asked for since.
        state = start_of(session, stages, state.stage + 1, state)
    while True:
        stage = stages[state.stage]
        _enter(session, stage, state)
        while not stage.over(state):
            state = _step(session, stage, state)
            state = _evaluate_if_due(session, stage, state)
            state = _reset_reference_if_due(session, stage, state)
            if state.total % session.recipe.save.every == 0 and not stage.over(state):
                save(session, state)
        last = state.stage == len(stages) - 1
        if not last:
            state = start_of(session, stages, state.stage + 1, state)
        save(session, state)
        if last:
            return state


def further(recipe: Recipe, state: RunState) -> str:
    """The options with which a finished run goes on: more steps, more time, or both."""
    out_of_time = recipe.seconds is not None and state.seconds >= recipe.seconds
    steps = f"--steps {recipe.steps + 10}" if not out_of_time or state.step >= recipe.steps else ""
    seconds = f"--seconds {max(1, round(2 * state.seconds))}" if out_of_time else ""
    return " ".join(part for part in (steps, seconds) if part)


def _enter(session: Session, stage: Stage, state: RunState) -> None:
    """A stage begins with fresh moments, RL with a frozen reference; a resumed one finds both as they were."""
    session.display.stage(stage.name, stage.steps, stage.seconds, spent=state.seconds)
    session.engine.load_weights(state.version)
    reference_file = reference.file_of(session.folder.paths.root, state.reference.step)
    if state.step == 0:
        session.optimizer.forget()
    if stage.name == "rl" and session.recipe.rollout.asynchronous is not None:
        session.flight = _flight(session, session.recipe.rollout.asynchronous)
    if stage.needs_reference:
        make = reference.freeze if state.step == 0 else reference.load
        session.reference = make(session.model, reference_file)


def _flight(session: Session, settings: Asynchronous) -> Flight:
    """Rollouts in flight: those of the checkpoint, or none."""
    episodes = session.answerer.open(recompute=settings.keys == "recompute", schedule=settings.schedule)
    flight = Flight(session.recipe, episodes, session.judge)
    if session.in_flight is not None:
        flight.restore(session.in_flight, {problem.key: problem for problem in session.task.problems})
        session.in_flight = None
    return flight


def _step(session: Session, stage: Stage, state: RunState) -> RunState:
    return_free_memory()
    clock = Clock()
    lr = learning_rate(stage.optim, state.step, stage.steps)
    after, record, answers = stage.step(session, state, lr)
    record.update(session.pending_times)
    session.pending_times.clear()
    session.folder.write_metrics(record)
    for answer in answers:
        session.folder.rollouts.write(answer)
    session.folder.commit()
    session.display.step(record)
    probes.stop_if_barren(session, after, answers)
    return replace(after, seconds=state.seconds + clock.elapsed)


def _evaluate_if_due(session: Session, stage: Stage, state: RunState) -> RunState:
    """Every so many RL steps, and at the end of every stage."""
    settings = session.recipe.evaluation
    if settings is None:
        return state
    regular = stage.name == "rl" and settings.every > 0 and state.step % settings.every == 0
    if not regular and not stage.over(state):
        return state
    accuracy = evaluate(session, state, stage.name)["estimates"]["pass@1"]["value"]
    return replace(state, reference=resets.after_evaluation(state.reference, accuracy)) if regular else state


def _reset_reference_if_due(session: Session, stage: Stage, state: RunState) -> RunState:
    """Where the recipe's schedule says so, the current weights become the reference.

    A kill at any instant is survived: the file of the old reference stays until no checkpoint names it.
    """
    reset = session.recipe.algorithm.kl.reset
    cause = resets.due(reset, state.reference, state.step) if stage.name == "rl" else None
    if reset is None or cause is None:
        return state
    session.display.note(f"RL step {state.step}: the current weights become the reference ({cause})")
    session.reference = None  # before the next one is made: memory for one is enough
    session.reference = reference.freeze(session.model, reference.file_of(session.folder.paths.root, state.step))
    if reset.moments == "drop":
        session.optimizer.forget()
    return replace(state, reference=resets.after_reset(state.reference, state.step, cause))


def save(session: Session, state: RunState) -> None:
    """Write a checkpoint of everything: weights, moments, state, log sizes.

    Raises:
        CheckpointError: it could not be written; older checkpoints are untouched.
    """
    session.display.phase("saving")
    clock = Clock()
    checkpoint.save(
        session.folder.paths.checkpoints,
        number=state.total,
        model=session.model,
        tokenizer=session.tokenizer,
        optimizer=session.optimizer,
        state=state.to_json(),
        log_sizes=session.folder.commit(),
        keep=session.recipe.save.keep,
        values=state.values,
        in_flight=None if session.flight is None else session.flight.export(),
    )
    if session.reference is not None:
        needed = {state.reference.step, *map(reference_step, checkpoint.states(session.folder.paths.checkpoints))}
        reference.remove_others(session.folder.paths.root, needed)
    session.pending_times["time/save"] = session.pending_times.get("time/save", 0.0) + clock.elapsed
