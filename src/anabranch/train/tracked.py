"""Tracked values in a run: which problems are drawn, what is expected of them, and what is learned about them.

SPO (arXiv:2509.13232): `anabranch.algo.value_tracker` has the recursion, this module what feeds it. Divergence needs
the log-probs of a problem's last answer under two policies. With `when: before_update` those are the policies that drew
the two answers; the log-probs under the newer one are found by training anyway (see `lesson.old_logprobs`), so that one
pass over last answers is all. With `after_update` both are policies after an update: two passes.

Letters: B answers of the step, K its problems, P all problems, M trained tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from anabranch.algo import value_tracker
from anabranch.algo.value_tracker import Known, Prior
from anabranch.batching.pack import flat_offsets, pack
from anabranch.evaluation.offline import OfflineValues
from anabranch.recipe.tree import Prioritised, Tracker
from anabranch.records import Float32, Segment, StreamGraph
from anabranch.sampling import prioritised, uniform
from anabranch.sampling.uniform import UniformState
from anabranch.train.clock import Clock
from anabranch.train.experience import Experience
from anabranch.train.lesson import Lesson, old_logprobs
from anabranch.train.outcomes import outcome_record
from anabranch.train.session import Session
from anabranch.train.state import RunState, SamplerState
from anabranch.train.trainer import Update, score
from anabranch.train.values import LastAnswer, Values

Float64 = NDArray[np.float64]

# -------------------------------------------------------------------------------------------------- before the answers


def begin(tracker: Tracker, offline: OfflineValues | None) -> Values:
    """What is known when RL begins: offline values, or nothing, so that every problem has the prior."""
    if offline is None:
        return Values(value_tracker.init(tracker.form, [], [], tracker.prior.count), {})
    value_P = value_tracker.smoothed(offline.right_P, offline.samples_P, tracker.smoothing)
    count = value_tracker.window(tracker.rho_min)
    return Values(value_tracker.init(tracker.form, offline.keys, value_P, count), {})


def draw_problems(session: Session, state: RunState, count: int) -> tuple[list[int], SamplerState]:
    """Indices of the problems of a step, and the sampler after it."""
    sampling = session.recipe.sampling
    if isinstance(state.sampler, UniformState) or not isinstance(sampling, Prioritised):
        assert isinstance(state.sampler, UniformState)
        drawn, sampler = uniform.draw(state.sampler, count)
        return drawn.tolist(), sampler
    drawn, after = prioritised.draw(state.sampler, _weights(session, state.values), count, sampling.pool)
    return drawn.tolist(), after


def _weights(session: Session, values: Values | None) -> Float64:
    """How much each problem is worth drawing, float64 [P]."""
    sampling = session.recipe.sampling
    assert isinstance(sampling, Prioritised) and values is not None
    known = _known(session, values, [problem.key for problem in session.task.problems])
    return prioritised.weights(known.value_K, known.count_K, eps=sampling.eps, gamma=sampling.gamma)


def _known(session: Session, values: Values, keys: Sequence[str]) -> Known:
    return value_tracker.look_up(values.tracker, keys, _prior(session))


def _prior(session: Session) -> Prior:
    prior = session.recipe.algorithm.tracker.prior
    return Prior(prior.value, prior.count)


def with_values(session: Session, values: Values | None, experience: Experience) -> Experience:
    """The experience with the values that its problems had before the step, if values are tracked."""
    if values is None:
        return experience
    keys = [problem.key for problem in experience.problems]
    return replace(experience, value_B=torch.from_numpy(_known(session, values, keys).value_K))


# ----------------------------------------------------------------------------------------------------- around learning


@dataclass(frozen=True)
class Look:
    """What was found by scoring answers before the weights changed."""

    last: Mapping[str, Float32] = field(default_factory=dict)
    """Log-probs of the last answers to problems that come again, by problem."""
    fresh: Mapping[str, Float32] = field(default_factory=dict)
    """Log-probs of those answers of the step that will be last answers and that training does not see, by problem."""


def look_before(session: Session, values: Values | None, experience: Experience, lesson: Lesson, clock: Clock) -> Look:
    """Score what must be scored with the weights of the step's start; nothing if the recipe needs none of it."""
    tracker = session.recipe.algorithm.tracker
    if values is None or tracker.divergence == "constant" or tracker.when != "before_update":
        return Look()
    seen = {int(answer) for rows in lesson.rows for row in rows for answer in row.rollout_M}
    newest = _newest(experience)
    unseen = {key: answer for key, answer in newest.items() if answer not in seen}
    return _look(session, values, experience, list(newest), unseen, clock)


def revise(
    session: Session,
    values: Values | None,
    experience: Experience,
    lesson: Lesson,
    updates: Sequence[Update],
    look: Look,
    clock: Clock,
) -> tuple[Values | None, dict[str, object]]:
    """What is known after the step, and the part of its record that is about values.

    Args:
        session: the weights are those after the updates.
        values: before the step; None: nothing is tracked, and nothing is done.
        experience: of the step, with values.
        lesson: what was learned from it.
        updates: how.
        look: from `look_before`.
        clock: takes the time of scoring.
    """
    if values is None:
        return None, {}
    tracker = session.recipe.algorithm.tracker
    newest = _newest(experience)
    names = list(newest)
    known = _known(session, values, names)
    last: dict[str, LastAnswer] = {}
    divergence_K = None
    if tracker.divergence == "constant":
        raw_K = np.full(len(names), tracker.rho_min)
    else:
        if tracker.when == "after_update":
            look = _look(session, values, experience, names, newest, clock)
        last = _last_answers(experience, newest, look, old_logprobs(lesson, updates))
        divergence_K = _divergence(tracker.divergence, values, look, names)
        raw_K = value_tracker.forgetting(divergence_K, tracker.d_half)
    rho_K = np.clip(raw_K, tracker.rho_min, tracker.rho_max)
    rho = dict(zip(names, rho_K.tolist(), strict=True))
    keys = [problem.key for problem in experience.problems]
    after = value_tracker.update(
        values.tracker,
        keys,
        experience.reward_B.numpy(),
        [rho[key] for key in keys],
        prior=_prior(session),
        duplicates=tracker.duplicates,
    )
    everything = _known(session, values, [problem.key for problem in session.task.problems])
    record = outcome_record(tracker, experience, known, everything, raw_K, divergence_K)
    if isinstance(session.recipe.sampling, Prioritised):
        record["draw_spread"] = prioritised.effective(_weights(session, values))
    return Values(after, {**values.last, **last}), record


def _newest(experience: Experience) -> dict[str, int]:
    """The last of the step's answers to each problem, in the order in which the problems were drawn."""
    return {problem.key: answer for answer, problem in enumerate(experience.problems)}


def _look(
    session: Session,
    values: Values,
    experience: Experience,
    names: Sequence[str],
    fresh: Mapping[str, int],
    clock: Clock,
) -> Look:
    """Score the last answers to `names`, where there are, and the step's answers `fresh`, with the weights of now."""
    prompts = {problem.key: session.asker.prompt_tokens(problem) for problem in experience.problems}
    again = [key for key in names if key in values.last]
    graphs = [_graph(prompts[key], values.last[key]) for key in again]
    graphs += [experience.rollouts[answer].graph for answer in fresh.values()]
    found = _scored(session, graphs, [*again, *fresh], clock)
    return Look(dict(zip(again, found[: len(again)], strict=True)), dict(zip(fresh, found[len(again) :], strict=True)))


def _scored(session: Session, graphs: Sequence[StreamGraph], groups: Sequence[str], clock: Clock) -> list[Float32]:
    """Log-probs of the trained tokens of each graph, float32 [M]; graphs of one group share their prompt."""
    if not graphs:
        return []
    session.display.phase("scoring")
    recipe = session.recipe
    offsets = flat_offsets(graphs)
    with clock.phase("score"):
        rows = pack(graphs, groups, row_tokens=recipe.train.row_tokens)
        logprob_N = score(session.model, rows, int(offsets[-1]), temperature=recipe.rollout.temperature)
    return np.split(logprob_N.numpy(), offsets[1:-1])


def _graph(prompt: Sequence[int], answer: LastAnswer) -> StreamGraph:
    return StreamGraph((Segment(np.array(prompt)), Segment(answer.tokens, parents=(0,), trained=answer.trained)))


def _last_answers(
    experience: Experience, newest: Mapping[str, int], look: Look, old_N: torch.Tensor | None
) -> dict[str, LastAnswer]:
    """What is kept of the step's answers: `look` has the log-probs of some, training found those of the others."""
    graphs = [rollout.graph for rollout in experience.rollouts]
    offsets = flat_offsets(graphs)
    found = {}
    for key, answer in newest.items():
        below = graphs[answer].segments[1:]
        if any(segment.parents != (place,) for place, segment in enumerate(below)):
            raise ValueError(f"the answer to {key} forks: only answers that go straight on can be kept")
        if key in look.fresh:
            logprob = look.fresh[key]
        else:
            assert old_N is not None  # an answer that was in no update was scored before them
            logprob = old_N[offsets[answer] : offsets[answer + 1]].numpy()
        tokens, trained = (np.concatenate(parts) for parts in zip(*((s.tokens, s.trained) for s in below), strict=True))
        found[key] = LastAnswer(tokens, trained, logprob.copy())  # a copy: the step's own array is not kept
    return found


def _divergence(estimator: str, values: Values, look: Look, names: Sequence[str]) -> Float64:
    """D of each problem, float64 [K]; 0 for one that has no last answer."""
    again = [number for number, key in enumerate(names) if key in look.last]
    nothing = np.zeros(0, np.float32)
    return value_tracker.divergence(
        estimator,
        np.concatenate([nothing, *(values.last[names[number]].logprob for number in again)]),
        np.concatenate([nothing, *(look.last[names[number]] for number in again)]),
        np.repeat(np.array(again, np.int64), [len(look.last[names[number]]) for number in again]),
        len(names),
    )
