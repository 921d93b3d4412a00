"""For every field of a recipe, other values of it, the state in which they must matter, and where one looks.

`FLIPS` must be complete: a field without an entry fails a test. A flip of a field that is written as
`Flip("rollout.top_k=5")` says: set this, and something changes. `given` are settings that hold before and after, to
bring a recipe into a state where the field must matter. The harness (`test_no_dead_option`) first makes every preset
small: `SMALL`.

Where one looks, cheapest first:

    DATA    the problems that `open_task` finds
    WORLD   the environment: what it says of itself, and what it answers to a few turns
    STEP    one RL step of a tiny model: its record, the weights after it, the answers; for every preset
    ENGINE  the same without answers remembered from other flips, and with a count of the engine's decoding steps
    RUN     a whole run: its files, records and checkpoints, or the error that ends it; with one preset, since all of
            them share what is outside of the algorithm
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Where(Enum):
    """Where a flip shows."""

    DATA = "data"
    WORLD = "world"
    STEP = "step"
    ENGINE = "engine"
    RUN = "run"


@dataclass(frozen=True)
class Flip:
    """Another value of a field."""

    change: str
    """KEY=VALUE."""
    given: tuple[str, ...] = ()
    where: Where = Where.STEP
    step: int = 1
    """STEP: which RL step it is, counted from 0."""


DATA, WORLD, STEP, ENGINE, RUN = Where.DATA, Where.WORLD, Where.STEP, Where.ENGINE, Where.RUN

LETTERS = "[A, C, E, G, I, K, M, O, Q, S, U, W, Y]"
"""Answers of a random model end with one of these, so that some are short and some are cut."""

SMALL = (
    "model={source: MODEL, dtype: float32, device: cpu, threads: 1}",
    "seed=13",
    "steps=4",
    "data={kind: jsonl, path: TRAIN}",
    "prompt.instruction=",
    "answer.extract=[last_number]",
    "reward=[{term: accuracy, weight: 0.5}, {term: format, weight: 0.5}]",
    "rollout.prompts=4",
    "rollout.per_problem=6",
    "rollout.max_new_tokens=6",
    f"rollout.stop_strings={LETTERS}",
    "optim={lr: 0.05}",
    "train={minibatches: 2}",
    "cold_start=null",
    "evaluation=null",
    "environment=null",
    "rollout.asynchronous=null",
)
"""On every preset. MODEL, TRAIN, HELD_OUT, OTHER_MODEL, VALUES: paths, put in by the harness."""

FEW = ("rollout.prompts=2", "rollout.per_problem=3", "rollout.dynamic=null", "steps=2", "train.minibatches=1")
"""On top of it where whole runs are made."""

AGREEING = ("reward=[{term: accuracy}]", "algorithm.overlong={}")
"""Most groups have the same rewards."""
BELOW_ZERO = ("reward=[{term: accuracy}, {term: format, weight: -0.5}]",)
"""Advantages of both signs without a baseline, too."""
CYCLE = "reward.1.schedule={kind: cycle, on: 1, off: 1}"
COSINE = "reward.2={term: cosine_length, weight: 0.5}"
KL = "algorithm.kl={kind: loss_k2, coef: 0.5}"
TIS = "algorithm.mismatch={kind: tis, low: 0.9, high: 1.1}"
TRACKABLE = ("algorithm.whiten=none", "rollout.dynamic=null", "algorithm.overlong={}", "algorithm.kl={}")
TRACKED = (*TRACKABLE, "algorithm.baseline=tracker", "steps=3", "data.limit=3")
"""Every problem is visited again, so that something is forgotten."""
SAMPLED = (*TRACKABLE, "sampling={kind: prioritised}", "steps=3")
PLAIN_GROUPS = ("rollout.asynchronous=null", "rollout.per_problem=6")
PLAIN_CLIP = "algorithm.clip={low: 0.2, high: 0.2}"
PLAIN = "algorithm.whiten=none"
SHORT_COLD = "cold_start={steps: 2, batch: 2, lr: 0.01, warmup: 0}"
SHORT_SFT = "sft={path: TRAIN, steps: 2, batch: 2, lr: 0.01, warmup: 0}"
HELD = "evaluation={problems: 2, samples: 1, every: 1, data: {kind: jsonl, path: HELD_OUT}}"
GYM = "data={kind: reasoning_gym, name: chain_sum, size: 4}"
HUB = "data={kind: hub, id: some/sums, config: main}"
RESET = (KL, "steps=3")
FIRST = (
    "rollout.dynamic=null",
    "rollout.asynchronous={oversample: 1.0, max_staleness: 2}",
    "rollout.max_new_tokens=40",
    "rollout.stop_strings=[A, M]",
    "algorithm.baseline=batch_mean",
    "algorithm.scale=none",
    "steps=4",
)
"""Steps that learn from what finishes first, answers short and long."""
WAITING = (*FIRST, "environment={kind: latency, stop: b, reply: c, mean: 400.0, std: 0.0}")
CODE, CALC, LATENCY = "environment={kind: python}", "environment={kind: calculator}", "environment={kind: latency}"

FOREIGN = (
    "data={kind: verifiers, taskset: anabranch-sums}",
    "environment={kind: verifiers, options: {taskset: {id: anabranch-sums}}}",
    "rollout.stop_strings=[]",
)
"""Tasks of the `verifiers` package; skipped without it."""
GAME = (
    "data={kind: verifiers, taskset: anabranch-guess, limit: 8}",
    "environment={kind: verifiers, options: {taskset: {id: anabranch-guess}}, lowest: -3.0, turns: 3}",
    "rollout.stop_strings=[]",
)


def each(*changes: str, given: tuple[str, ...] = (), where: Where = STEP) -> tuple[Flip, ...]:
    """Several values of one field in the same state."""
    return tuple(Flip(change, given, where) for change in changes)


FLIPS: Mapping[str, tuple[Flip, ...]] = {
    # ------------------------------------------------------------------------------------------------- the whole
    "Recipe.name": each("name=other", where=RUN),
    "Recipe.seed": each("seed=1"),
    "Recipe.steps": each("steps=1", where=RUN),
    "Recipe.seconds": each("seconds=1e-9", where=RUN),
    "Recipe.data": each(HUB, GYM, "data={kind: jsonl, path: HELD_OUT}", where=DATA)
    + each("data={kind: jsonl, path: TRAIN}", given=(GYM,), where=DATA),
    "Recipe.sampling": each("sampling={kind: prioritised}", given=TRACKABLE)
    + each("sampling={kind: uniform}", given=SAMPLED),
    "Prioritised.eps": each("sampling.eps=1.0", given=SAMPLED, where=RUN),
    "Prioritised.gamma": each("sampling.gamma=1.0", given=SAMPLED, where=RUN),
    "Prioritised.pool": each("sampling.pool=8", given=SAMPLED),
    "Recipe.environment": each(CODE, CALC, LATENCY, where=WORLD)
    + each("environment={kind: latency, stop: b, reply: c}", given=FIRST, where=RUN),
    "Recipe.reward": each("reward=[{term: accuracy}]", "reward=[{term: format}]", COSINE),
    "Recipe.cold_start": each(SHORT_COLD, where=RUN),
    "Recipe.sft": each(SHORT_SFT, where=RUN),
    "Recipe.evaluation": each(HELD, where=RUN),
    "Model.source": each("model.source=OTHER_MODEL", where=RUN),
    "Model.dtype": each("model.dtype=bfloat16", where=RUN),
    "Model.device": each("model.device=cuda:7", where=RUN),
    "Model.threads": each("model.threads=2", where=RUN),
    # -------------------------------------------------------------------------------------------------- problems
    "ReasoningGym.name": each("data.name=basic_arithmetic", given=(GYM,), where=DATA),
    "ReasoningGym.options": each("data.options={min_terms: 5, max_terms: 5}", given=(GYM,), where=DATA),
    "ReasoningGym.size": each("data.size=5", given=(GYM,), where=DATA),
    "ReasoningGym.seed": each("data.seed=77", given=(GYM,), where=DATA),
    "JsonLines.path": each("data.path=HELD_OUT", where=DATA),
    "JsonLines.question": each("data.question=solution", where=DATA),
    "JsonLines.answer": each("data.answer=solution", where=DATA),
    "JsonLines.answer_after": each("data.answer_after='='", given=("data.answer=solution",), where=DATA),
    "JsonLines.limit": each("data.limit=5", where=DATA),
    "HubDataset.id": each("data.id=other/sums", given=(HUB,), where=DATA),
    "HubDataset.config": each("data.config=null", given=(HUB,), where=DATA),
    "HubDataset.split": each("data.split=test", given=(HUB,), where=DATA),
    "HubDataset.revision": each("data.revision=v2", given=(HUB,), where=DATA),
    "HubDataset.question": each("data.question=solution", given=(HUB,), where=DATA),
    "HubDataset.answer": each("data.answer=solution", given=(HUB,), where=DATA),
    "HubDataset.answer_after": each("data.answer_after='='", given=(HUB, "data.answer=solution"), where=DATA),
    "HubDataset.limit": each("data.limit=5", given=(HUB,), where=DATA),
    "Prompt.system": each("prompt.system=x"),
    "Prompt.instruction": each("prompt.instruction=y"),
    "Answer.extract": each("answer.extract=[boxed]"),
    "Answer.timeout": each("answer.timeout=1.0", where=RUN),
    "Answer.workers": each("answer.workers=2", where=RUN),
    # --------------------------------------------------------------------------------------------------- answers
    "RolloutSettings.prompts": each("rollout.prompts=2"),
    "RolloutSettings.per_problem": each("rollout.per_problem=3"),
    "RolloutSettings.temperature": each("rollout.temperature=0.5"),
    "RolloutSettings.top_p": each("rollout.top_p=0.5"),
    "RolloutSettings.top_k": each("rollout.top_k=5"),
    "RolloutSettings.max_new_tokens": each("rollout.max_new_tokens=3"),
    "RolloutSettings.stop_strings": each("rollout.stop_strings=[]"),
    "RolloutSettings.asynchronous": each("rollout.asynchronous={}", where=RUN),
    "Asynchronous.oversample": each("rollout.asynchronous.oversample=0.5", given=FIRST, where=RUN),
    "Asynchronous.leftover": each(
        "rollout.asynchronous={oversample: 1.0, leftover: drop, max_staleness: 0}", given=FIRST, where=RUN
    ),
    "Asynchronous.max_staleness": each("rollout.asynchronous.max_staleness=1", given=FIRST, where=RUN),
    "Asynchronous.keys": each("rollout.asynchronous.keys=recompute", given=FIRST, where=RUN),
    "Asynchronous.schedule": each("rollout.asynchronous.schedule=counted", given=WAITING, where=RUN),
    "RolloutSettings.dynamic": each("rollout.dynamic=null", "rollout.dynamic={rounds: 3}", given=AGREEING),
    "Dynamic.rounds": each("rollout.dynamic.rounds=2", given=("rollout.dynamic={rounds: 10}", *AGREEING)),
    "Dynamic.overdraw": each("rollout.dynamic.overdraw=2.0", given=("rollout.dynamic={rounds: 10}",)),
    "TorchEngine.max_rows": each("engine.max_rows=1", where=ENGINE),
    "TorchEngine.kv_gb": each("engine.kv_gb=1e-9", where=ENGINE),
    # --------------------------------------------------------------------------------------------------- rewards
    "RewardTerm.term": each("reward.0.term=format", given=("reward=[{term: accuracy}]",)),
    "RewardTerm.wrong": each("reward.0.wrong=-1.0", "reward.0.wrong=0.5"),
    "RewardTerm.weight": each("reward.0.weight=3.0", "reward.1.weight=-0.5"),
    "RewardTerm.schedule": each(CYCLE),
    "CosineLength.weight": each("reward.2.weight=2.0", given=(COSINE,)),
    "CosineLength.low": each("reward.2.low=-1.0", given=(COSINE,)),
    "CosineLength.high": each("reward.2.high=0.5", given=(COSINE,)),
    "CosineLength.only_correct": each("reward.2.only_correct=true", given=(COSINE,)),
    "CosineLength.schedule": each("reward.2.schedule={kind: cycle, on: 1, off: 1}", given=(COSINE,)),
    "Cycle.on": each("reward.1.schedule.on=2", given=(CYCLE,)),
    "Cycle.off": (Flip("reward.1.schedule.off=2", (CYCLE,), step=2),),
    "Cycle.start": each("reward.1.schedule.start=1", given=(CYCLE,)),
    # ----------------------------------------------------------------------------------------------- the algorithm
    "Algorithm.baseline": each(
        *(f"algorithm.baseline={name}" for name in ("none", "group_mean", "leave_one_out", "batch_mean", "tracker")),
        given=(*TRACKABLE, "algorithm.tracker={}"),
    ),
    "Tracker.form": each("algorithm.tracker.form=ema", given=TRACKED, where=RUN),
    "Tracker.rho_min": each("algorithm.tracker.rho_min=0.1", given=TRACKED, where=RUN),
    "Tracker.rho_max": each("algorithm.tracker.rho_max=0.9", given=TRACKED, where=RUN),
    "Tracker.d_half": each("algorithm.tracker.d_half=10.0", given=TRACKED, where=RUN),
    "Tracker.divergence": each(
        *(f"algorithm.tracker.divergence={name}" for name in ("abs", "k1", "k2", "k3", "constant")),
        given=(*TRACKED, "algorithm.tracker.divergence=k2"),
        where=RUN,
    )
    + each("algorithm.tracker.divergence=k2", given=TRACKED, where=RUN),
    "Tracker.when": each("algorithm.tracker.when=after_update", given=TRACKED, where=RUN),
    "Tracker.duplicates": each("algorithm.tracker.duplicates=last", given=TRACKED, where=RUN),
    "Tracker.values": each("algorithm.tracker.values=VALUES", given=(*TRACKED, "reward=[{term: accuracy}]"), where=RUN),
    "Tracker.smoothing": each(
        "algorithm.tracker.smoothing=0.0",
        given=(*TRACKED, "reward=[{term: accuracy}]", "algorithm.tracker.values=VALUES"),
        where=RUN,
    ),
    "Prior.value": each("algorithm.tracker.prior.value=0.3", given=TRACKED, where=RUN),
    "Prior.count": each("algorithm.tracker.prior.count=9.0", given=TRACKED, where=RUN),
    "Algorithm.scale": each(
        *(
            f"algorithm.scale={name}"
            for name in ("none", "group_std", "batch_std_raw", "batch_std_centred", "token_std")
        ),
        given=(PLAIN,),
    ),
    "Algorithm.std": each("algorithm.std=population", given=(PLAIN, "algorithm.scale=group_std"))
    + each("algorithm.std=population", given=("algorithm.whiten=tokens",)),
    "Algorithm.whiten": each(*(f"algorithm.whiten={name}" for name in ("none", "trajectories", "tokens"))),
    "Algorithm.advantage_clip": each("algorithm.advantage_clip=0.1"),
    "Algorithm.ratio": each(
        *(f"algorithm.ratio={name}" for name in ("token", "sequence", "detached")), given=(PLAIN_CLIP,)
    ),
    "Algorithm.aggregate": each(
        *(
            f"algorithm.aggregate={name}"
            for name in ("token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "token_sum_constant")
        )
    ),
    "Algorithm.constant": each("algorithm.constant=3", given=("algorithm.aggregate=token_sum_constant",)),
    "Algorithm.entropy_coef": each("algorithm.entropy_coef=0.5"),
    "Clip.low": each("algorithm.clip.low=0.01", given=BELOW_ZERO)
    + each("algorithm.clip.low=null", given=(*BELOW_ZERO, "algorithm.clip.low=0.01")),
    "Clip.high": each("algorithm.clip.high=0.01")
    + each("algorithm.clip.high=null", given=("algorithm.clip.high=0.01",)),
    "Clip.dual": each("algorithm.clip.dual=1.001")
    + each("algorithm.clip.dual=null", given=("algorithm.clip.dual=1.001",)),
    "Kl.kind": each(
        *(f"algorithm.kl.kind={name}" for name in ("reward_k1", "loss_k1", "loss_k2", "loss_k3")), given=(KL,)
    )
    + each("algorithm.kl={}", given=(KL,)),
    "Kl.coef": each("algorithm.kl.coef=2.0", given=(KL,)),
    "Kl.input_limit": each("algorithm.kl.input_limit=0.05", given=(KL,)),
    "Kl.output_limit": each("algorithm.kl.output_limit=0.005", given=(KL,)),
    "Kl.reset": each("algorithm.kl.reset={every: 1}", given=RESET, where=RUN),
    "Reset.every": each("algorithm.kl.reset.every=2", given=(*RESET, "algorithm.kl.reset={every: 1}"), where=RUN),
    "Reset.spike": each(
        "algorithm.kl.reset.spike=1e-9", given=(*RESET, "algorithm.kl.reset={every: 99, spike: 99.0}"), where=RUN
    ),
    "Reset.stall": each(
        "algorithm.kl.reset.stall=1", given=(*RESET, HELD, "algorithm.kl.reset={every: 99, stall: 99}"), where=RUN
    ),
    "Reset.moments": each(
        "algorithm.kl.reset.moments=drop", given=(*RESET, "algorithm.kl.reset={every: 1}"), where=RUN
    ),
    "Mismatch.kind": each("algorithm.mismatch.kind=icepop", "algorithm.mismatch.kind=sequence_mask", given=(TIS,))
    + each("algorithm.mismatch={}", given=(TIS,)),
    "Mismatch.low": each("algorithm.mismatch.low=0.5", "algorithm.mismatch.low=null", given=(TIS,)),
    "Mismatch.high": each("algorithm.mismatch.high=5.0", "algorithm.mismatch.high=null", given=(TIS,)),
    "Overlong.kind": each(
        *(f"algorithm.overlong={{kind: {name}}}" for name in ("none", "filter", "soft", "stop_properly"))
    ),
    "Overlong.buffer": each("algorithm.overlong.buffer=4", given=("algorithm.overlong={kind: soft, buffer: 2}",)),
    "Overlong.coef": each(
        "algorithm.overlong.coef=0.5",
        "algorithm.overlong.coef=-0.5",
        given=("algorithm.overlong={kind: stop_properly}",),
    ),
    # -------------------------------------------------------------------------------------------------- training
    # ---------------------------------------------------------------------------------------------- environments
    "PythonTool.turns": each("environment.turns=4", given=(CODE,), where=WORLD),
    "PythonTool.timeout": each("environment.timeout=7.0", given=(CODE,), where=WORLD),
    "PythonTool.memory_mb": each("environment.memory_mb=512", given=(CODE,), where=WORLD),
    "PythonTool.output_chars": each("environment.output_chars=32", given=(CODE,), where=WORLD),
    "PythonTool.workers": each("environment.workers=1", given=(CODE,), where=WORLD),
    "Calculator.turns": each("environment.turns=4", given=(CALC,), where=WORLD),
    "Calculator.open": each("environment.open=", "environment.open=calc:", given=(CALC,), where=WORLD),
    "Calculator.close": each("environment.close='='", given=(CALC,), where=WORLD),
    "Calculator.reply": each("environment.reply=' {}'", given=(CALC,), where=WORLD),
    "Calculator.output_chars": each("environment.output_chars=16", given=(CALC,), where=WORLD),
    "Latency.turns": each("environment.turns=4", given=(LATENCY,), where=WORLD),
    "Latency.stop": each("environment.stop=", "environment.stop=;", given=(LATENCY,), where=WORLD),
    "Latency.reply": each("environment.reply=x", given=(LATENCY,), where=WORLD),
    "Latency.mean": each("environment.mean=90.0", given=(LATENCY,), where=WORLD),
    "Latency.std": each("environment.std=0.0", given=(LATENCY,), where=WORLD),
    "Latency.slow_share": each(
        "environment.slow_share=0.0", "environment.slow_share=1.0", given=(LATENCY,), where=WORLD
    ),
    "Latency.slow_mean": each("environment.slow_mean=500.0", given=(LATENCY,), where=WORLD),
    "Latency.slow_std": each("environment.slow_std=0.0", given=(LATENCY,), where=WORLD),
    "Latency.floor": each("environment.floor=99.0", given=(LATENCY,), where=WORLD),
    "Latency.scale": each("environment.scale=0.5", given=(LATENCY,), where=WORLD),
    "VerifiersTasks.taskset": each("data.taskset=Anabranch_Sums", given=FOREIGN, where=DATA),
    "VerifiersTasks.options": each("data.options={size: 5}", given=FOREIGN, where=DATA),
    "VerifiersTasks.skip": each("data.skip=1", given=(*FOREIGN, "rollout.prompts=2"), where=DATA),
    "VerifiersTasks.limit": each("data.limit=2", given=(*FOREIGN, "rollout.prompts=2"), where=DATA),
    "Verifiers.options": each("environment.options.second_try=true", given=GAME, where=WORLD),
    "Verifiers.role": each("environment.role=nobody", given=GAME, where=WORLD),
    "Verifiers.turns": each("environment.turns=2", given=GAME, where=WORLD),
    "Verifiers.seconds": each("environment.seconds=7.0", given=GAME, where=WORLD),
    "Verifiers.lowest": each("environment.lowest=-2.0", given=GAME, where=WORLD),
    "Verifiers.highest": each("environment.highest=2.0", given=GAME, where=WORLD),
    "Verifiers.output_chars": each("environment.output_chars=16", given=GAME, where=WORLD),
    "Optim.lr": each("optim.lr=0.01"),
    "Optim.betas": each("optim.betas=[0.5, 0.999]", "optim.betas=[0.9, 0.5]"),
    "Optim.eps": each("optim.eps=0.1"),
    "Optim.weight_decay": each("optim.weight_decay=0.5"),
    "Optim.grad_clip": each("optim.grad_clip=1e-4") + each("optim.grad_clip=null", given=("optim.grad_clip=1e-4",)),
    "Optim.schedule": each("optim.schedule=cosine"),
    "Optim.warmup": each("optim.warmup=4"),
    "Train.minibatches": each("train.minibatches=1", "train.minibatches=4"),
    "Train.epochs": each("train.epochs=2"),
    "Train.row_tokens": each("train.row_tokens=16"),
    "ColdStart.steps": each("cold_start.steps=1", given=(SHORT_COLD,), where=RUN),
    "ColdStart.batch": each("cold_start.batch=3", given=(SHORT_COLD,), where=RUN),
    "ColdStart.lr": each("cold_start.lr=0.02", given=(SHORT_COLD,), where=RUN),
    "ColdStart.warmup": each("cold_start.warmup=2", given=(SHORT_COLD,), where=RUN),
    "Sft.path": each("sft.path=HELD_OUT", given=(SHORT_SFT,), where=RUN),
    "Sft.question": each("sft.question=solution", given=(SHORT_SFT,), where=RUN),
    "Sft.solution": each("sft.solution=answer", given=(SHORT_SFT,), where=RUN),
    "Sft.steps": each("sft.steps=1", given=(SHORT_SFT,), where=RUN),
    "Sft.batch": each("sft.batch=3", given=(SHORT_SFT,), where=RUN),
    "Sft.lr": each("sft.lr=0.02", given=(SHORT_SFT,), where=RUN),
    "Sft.warmup": each("sft.warmup=2", given=(SHORT_SFT,), where=RUN),
    "Evaluation.problems": each("evaluation.problems=3", given=(HELD,), where=RUN),
    "Evaluation.samples": each("evaluation.samples=2", given=(HELD,), where=RUN),
    "Evaluation.every": each("evaluation.every=0", given=(HELD,), where=RUN),
    "Evaluation.data": each("evaluation.data={kind: jsonl, path: HELD_OUT, limit: 1}", given=(HELD,), where=RUN),
    "Save.every": each("save.every=1", where=RUN),
    "Save.keep": each("save.keep=1", given=("save.every=1",), where=RUN),
    "Diagnostics.mass_balance": each("diagnostics.mass_balance=1", "diagnostics.mass_balance=4", given=PLAIN_GROUPS),
    "Diagnostics.pass_curve": each("diagnostics.pass_curve=true", given=PLAIN_GROUPS),
    "Probes.agreement": each("probes.agreement=1e-12", where=RUN),
    "Probes.patience": each("probes.patience=1", given=("answer.extract=[tag]", "steps=3"), where=RUN),
}
"""By `Class.field`, for every part that a recipe can hold."""
