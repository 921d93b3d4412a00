"""Our side of the GRPO step and of the replay: the functions that a run uses, on the prompts of `benchmarks.step_task`.

Settings: `model`, `dtype` (auto, bfloat16, float32), `threads`, the sizes of `step_task.Size`, `overrides` (of the
recipe, see `anabranch.bench.workloads.HONOURED`), and `rollouts`, a file of answers that stand in for generation.

A run's arguments: `save_rollouts`, a file for the answers of this step; or `save_gradients`, a file for the gradients
just before the optimizer, and `added_to_std`, what every group's std is enlarged by before it divides. With
`save_gradients` the weights stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.step_task import PROBLEMS, Size, fingerprint, reward
from benchmarks.worker import serve

if TYPE_CHECKING:
    from anabranch.batching.credit import Credit
    from anabranch.records import Problem, Request, Rollout, Score
    from anabranch.train.experience import Experience
    from anabranch.train.lesson import Lesson
    from anabranch.train.session import Learner

ALIGNED = (
    "prompt.instruction=",  # the problem is the whole user message
    "optim.lr=1e-6",
    "optim.warmup=0",
)
"""What makes our recipe ask for what `peers.trl_step` asks for, beside GRPO without a KL term."""


def prepare(settings: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    from anabranch.bench.workloads import bench_recipe, forced_requests, load_learner, sample
    from anabranch.modeling.devices import return_free_memory
    from anabranch.records import Problem
    from anabranch.tasks.base import problem_key
    from anabranch.train.clock import Clock

    size = Size(settings["prompts"], settings["answers"], settings["tokens"])
    recipe = bench_recipe(
        model=settings["model"],
        dtype=settings["dtype"],
        threads=settings["threads"],
        prompts=size.prompts,
        answers=size.answers,
        tokens=size.tokens,
        overrides=[*ALIGNED, *settings.get("overrides", ())],
    )
    learner = load_learner(recipe)
    problems = [Problem(problem_key(text), text, "", "benchmark") for text in PROBLEMS[: size.prompts]]
    prompts = fingerprint([learner.asker.prompt_tokens(problem) for problem in problems])
    stored = settings.get("rollouts")
    replayed = None if stored is None else load_rollouts(Path(stored), forced_requests(learner.asker, problems, 0))
    steps = 0

    def run(arguments: dict[str, Any]) -> dict[str, Any]:
        nonlocal steps
        return_free_memory()
        clock = Clock()
        learner.engine.load_weights(steps)
        rollouts = replayed
        if rollouts is None:
            with clock.phase("generate"):
                rollouts = sample(learner.engine, forced_requests(learner.asker, problems, size.answers, steps))
        if "save_rollouts" in arguments:
            save_rollouts(Path(arguments["save_rollouts"]), rollouts)
        learner.engine.rest()
        return_free_memory()
        experience = scored(problems, rollouts)
        if "save_gradients" in arguments:
            save_gradients(learner, experience, Path(arguments["save_gradients"]), arguments.get("added_to_std", 0.0))
        else:
            teach(learner, experience, steps, clock)
            steps += 1
        return {
            "work": size.samples,
            "seconds": clock.elapsed,
            "phases": {name.removeprefix("time/"): value for name, value in clock.times().items()},
            "engine": dict(learner.engine.times),
            "dtype": learner.recipe.model.dtype,
            "prompts": prompts,
        }

    return run


def scored(problems: list[Problem], rollouts: list[Rollout]) -> Experience:
    """The answers with the rewards that both sides give."""
    from anabranch.train.experience import experience_of

    return experience_of(problems, rollouts, [_score(rollout) for rollout in rollouts])


def _score(rollout: Rollout) -> Score:
    from anabranch.records import Reason, Score, Verdict

    value = reward(rollout.graph.segments[-1].tokens.tolist())
    return Score(value, {"accuracy": value}, Verdict(value, Reason.PARTIAL))


def teach(learner: Learner, experience: Experience, step: int, clock: Any) -> None:
    """Credit, packing, forward, backward, optimizer, and the record of the step, as in `train.rl.rl_step`."""
    from anabranch.sampling import uniform
    from anabranch.train.measure import rl_record
    from anabranch.train.optimizer import learning_rate
    from anabranch.train.rl import learn, prepare
    from anabranch.train.state import RunState

    lr = learning_rate(learner.recipe.optim, step, learner.recipe.steps)
    lesson = prepare(learner, experience, clock)
    updates = learn(learner, lesson, lr, clock)
    state = RunState(
        stage=0, step=step, total=step, version=step, sampler=uniform.init(1, 0), barren=-1, seconds=0.0, data=""
    )
    rl_record(learner.recipe, state, experience, lesson, updates, lr, learner.engine.times, clock)


# --------------------------------------------------------------------------------------------------------- replay


def save_gradients(learner: Learner, experience: Experience, path: Path, added_to_std: float) -> None:
    """The gradient of the step's loss, by parameter name; the model's gradients and weights are left as they were."""
    from safetensors.torch import save_file

    from anabranch.train.clock import Clock
    from anabranch.train.rl import objective_of, prepare
    from anabranch.train.trainer import accumulate

    lesson = with_larger_std(prepare(learner, experience, Clock()), experience, added_to_std)
    accumulate(
        learner.model,
        [row for part in lesson.rows for row in part],
        objective_of(learner.recipe.algorithm, lesson, on_policy=True),
        len(lesson.credit.advantage_M),
        temperature=learner.recipe.rollout.temperature,
    )
    gradients = {name: p.grad.contiguous() for name, p in learner.model.named_parameters() if p.grad is not None}
    save_file(gradients, path)
    learner.optimizer.drop_gradients()


def with_larger_std(lesson: Lesson, experience: Experience, added: float) -> Lesson:
    """The lesson with advantages (reward - mean) / (std + added) instead of (reward - mean) / std."""
    from dataclasses import replace

    from anabranch.algo.advantage import group_std

    reward_B, group_B = experience.reward_B, experience.group_B
    std_B = group_std(reward_B, reward_B, group_B, group_B, "unbiased")
    factor_B = std_B / (std_B + added)
    credit: Credit = replace(lesson.credit, advantage_M=lesson.credit.advantage_M * factor_B[experience.sequence_N])
    return replace(lesson, credit=credit)


def save_rollouts(path: Path, rollouts: list[Rollout]) -> None:
    """Prompts and answers as JSON, group after group: what both trainers are given in a replay."""
    rows = [
        {"prompt": rollout.prompt_tokens.tolist(), "answer": rollout.graph.segments[-1].tokens.tolist()}
        for rollout in rollouts
    ]
    path.write_text(json.dumps({"rollouts": rows}), encoding="utf-8")


def load_rollouts(path: Path, requests: list[Request]) -> list[Rollout]:
    """Stored answers as an engine would have returned them, but that nobody remembers their log-probs.

    Args:
        path: what `save_rollouts` wrote.
        requests: one a problem, in the order of the file.
    """
    import numpy as np

    from anabranch.records import Rollout, Segment, StopReason, StreamGraph

    rows = json.loads(path.read_text(encoding="utf-8"))["rollouts"]
    per_problem = len(rows) // len(requests)
    found = []
    for index, row in enumerate(rows):
        request, size = requests[index // per_problem], len(row["answer"])
        if tuple(row["prompt"]) != request.prompt_tokens:
            raise ValueError(f"{path}: answer {index} is to another prompt than problem {index // per_problem}")
        answer = Segment(
            tokens=np.array(row["answer"]),
            parents=(0,),
            trained=np.ones(size, dtype=np.bool_),
            engine_logprob=np.zeros(size, dtype=np.float32),  # trained on-policy, so never read but by the metrics
            policy_version=np.zeros(size, dtype=np.int32),
        )
        graph = StreamGraph((Segment(np.array(row["prompt"])), answer))
        found.append(Rollout(request.problem_key, index % per_problem, graph, "", StopReason.LENGTH))
    return found


if __name__ == "__main__":
    serve(prepare)
