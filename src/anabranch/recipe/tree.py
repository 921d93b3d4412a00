"""The recipe: one frozen, strict tree that says everything a run depends on.

A part with several forms carries a `kind`. Unknown keys are errors. A recipe is checked as a whole when it is built
(`anabranch.recipe.checks`), before any model is loaded. No torch here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Part(BaseModel):
    """Base of every part of a recipe: frozen, and without room for unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)


# ---------------------------------------------------------------------------------------------------------- model


class Model(Part):
    """Which model, and how it computes."""

    source: str = "smollm2-135m-instruct"
    """A built-in name (`smollm2-135m-instruct`), a local folder, or a Hugging Face id."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute dtype of forward and backward; master weights are float32 always. auto: measured, the faster one."""
    device: str = "auto"
    """auto: `cuda` where there is one, otherwise `cpu`."""
    threads: int = Field(0, ge=0)
    """CPU threads for tensor work; 0: torch's own choice. Fixed at the first start and kept on resume."""


# ---------------------------------------------------------------------------------------------------------- data


class ReasoningGym(Part):
    """Problems made by `reasoning-gym`, judged by its own scorer."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    name: str = "chain_sum"
    """Name of the data set within reasoning-gym."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Settings of that data set, for instance `min_terms`."""
    size: int = Field(1000, ge=1)
    """How many training problems to make."""
    seed: int = 0


class JsonLines(Part):
    """Problems from a JSONL file, judged by mathematical equality."""

    kind: Literal["jsonl"] = "jsonl"
    path: str
    question: str = "question"
    """Column of the question."""
    answer: str = "answer"
    """Column of the gold answer."""
    answer_after: str | None = None
    """Keep only what follows the last occurrence of this mark in the answer column (`####` in GSM8K's own files)."""
    limit: int | None = Field(None, ge=1)
    """Use only the first so many rows."""


class HubDataset(Part):
    """Problems from a Hugging Face data set by id (extra `datasets`), judged by mathematical equality."""

    kind: Literal["hub"] = "hub"
    id: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    question: str = "question"
    answer: str = "answer"
    answer_after: str | None = None
    limit: int | None = Field(None, ge=1)


Data = Annotated[ReasoningGym | JsonLines | HubDataset, Field(discriminator="kind")]


class Prompt(Part):
    """How a question becomes a chat prompt."""

    system: str | None = None
    """System message; None: the chat template's own default."""
    instruction: str = "Think step by step, then finish with a line of the form 'Answer: N'."
    """Added after the question, on a line of its own. Empty: nothing."""


class Answer(Part):
    """How a final answer is found in the model's text and compared with the gold answer."""

    extract: tuple[Literal["boxed", "answer_line", "hashes", "last_number"], ...] = ("boxed", "answer_line", "hashes")
    """Tried in this order; the first that finds something decides. `last_number` is lenient and off by default."""
    timeout: float = Field(5.0, gt=0)
    """Seconds of wall clock for one verdict; then the worker is killed and the answer counts as wrong."""
    workers: int = Field(1, ge=1)


# ------------------------------------------------------------------------------------------------------- sampling


class Uniform(Part):
    """Every problem once per epoch, in an order shuffled anew each epoch."""

    kind: Literal["uniform"] = "uniform"


class RolloutSettings(Part):
    """How many answers are sampled, and how."""

    prompts: int = Field(16, ge=1)
    """Problems a step."""
    per_problem: int = Field(8, ge=1)
    """Answers a problem (the group)."""
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    max_new_tokens: int = Field(64, ge=1)
    stop_strings: tuple[str, ...] = ()


class TorchEngine(Part):
    """The in-process engine: continuous batching, shared prompt prefixes, weights shared with the trainer."""

    kind: Literal["torch"] = "torch"
    max_rows: int = Field(128, ge=1)
    """Answers decoded at the same time."""


# ------------------------------------------------------------------------------------------------------ algorithm


class Clip(Part):
    """Clipping of the ratio: the objective is min(ratio * A, clip(ratio, 1 - low, 1 + high) * A)."""

    low: float | None = Field(0.2, gt=0)
    """None: no lower bound."""
    high: float | None = Field(0.2, gt=0)
    """None: no upper bound."""
    dual: float | None = Field(None, gt=1)
    """Dual clip: for A < 0 the objective is at least dual * A. None: off."""


class Kl(Part):
    """Penalty for leaving the reference model (the weights at the start of RL)."""

    kind: Literal["none", "reward_k1", "loss_k1", "loss_k2", "loss_k3"] = "none"
    coef: float = Field(0.0, ge=0)


class Overlong(Part):
    """What happens to answers that were cut at the length limit."""

    kind: Literal["none", "filter", "soft", "stop_properly"] = "none"
    """filter: out of the loss, still in the statistics. soft: a length punishment added to the reward.
    stop_properly: the reward of a cut answer is multiplied by `coef`."""
    buffer: int | None = Field(None, ge=1)
    """soft: the punishment grows over the last so many tokens before the limit. None: a fifth of the limit."""
    coef: float = Field(0.0, ge=0, le=1)
    """stop_properly: factor on the reward of a cut answer."""


class Algorithm(Part):
    """A point in the space of independent axes. Methods differ only in these values."""

    baseline: Literal["none", "group_mean", "leave_one_out", "batch_mean"] = "group_mean"
    """What is subtracted from the reward."""
    scale: Literal["none", "group_std", "batch_std_raw", "batch_std_centred", "token_std"] = "group_std"
    """What the centred reward is divided by; `token_std` weights every answer with its length."""
    std: Literal["unbiased", "population"] = "unbiased"
    whiten: Literal["none", "trajectories", "tokens"] = "none"
    """Whitening after baseline and scale, over answers or over tokens of the whole batch."""
    ratio: Literal["token", "sequence", "detached"] = "token"
    """token: PPO. sequence: GSPO's geometric mean. detached: CISPO's clipped weight on a plain log-prob gradient."""
    clip: Clip = Clip()
    aggregate: Literal[
        "token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "token_sum_constant"
    ] = "token_mean"
    constant: int | None = Field(None, ge=1)
    """token_sum_constant: the divisor of each answer's token sum. None: `rollout.max_new_tokens`."""
    kl: Kl = Kl()
    overlong: Overlong = Overlong()


# --------------------------------------------------------------------------------------------------------- reward


class RewardTerm(Part):
    """One term of the reward and its weight."""

    term: Literal["accuracy", "format"] = "accuracy"
    """accuracy: the verdict's value. format: 1 if a final answer was found, else 0."""
    weight: float = 1.0


# -------------------------------------------------------------------------------------------------------- training


class Optim(Part):
    """AdamW on float32 master weights."""

    lr: float = Field(1e-6, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    grad_clip: float | None = Field(1.0, gt=0)
    """Largest gradient norm; None: no clipping."""
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = Field(0, ge=0)
    """Steps of linear warm-up."""


class Train(Part):
    """How a batch becomes optimizer steps."""

    minibatches: int = Field(1, ge=1)
    """Optimizer steps a rollout batch; whole groups are dealt out to them."""
    row_tokens: int = Field(1024, ge=16)
    """Longest packed row; one row is one forward and backward. The gradient does not depend on it."""


class ColdStart(Part):
    """Supervised steps on generated worked examples, before RL: they teach the format."""

    steps: int = Field(13, ge=1)
    batch: int = Field(16, ge=1)
    lr: float = Field(2e-5, gt=0)
    warmup: int = Field(2, ge=0)


class Evaluation(Part):
    """Held-out accuracy, at the temperature of training, on problems never trained on."""

    problems: int = Field(64, ge=1)
    samples: int = Field(2, ge=1)
    every: int = Field(0, ge=0)
    """Also evaluate every so many steps; 0: only at the borders of stages."""
    data: Data | None = None
    """Held-out problems; None: reasoning-gym with another seed, training problems filtered out. Needed for files."""


class Save(Part):
    """Checkpoints."""

    every: int = Field(10, ge=1)
    """Steps between checkpoints; the last step is always saved."""
    keep: int = Field(2, ge=1)
    """How many checkpoints stay."""


class Probes(Part):
    """Checks at the start of a run; each one stops it with a clear message."""

    agreement: float = Field(0.0, ge=0)
    """Largest mean absolute gap between engine and trainer log-probs; 0: 1e-3 in float32, 0.05 in bfloat16."""
    patience: int = Field(3, ge=1)
    """Stop after so many steps in a row from the start in which nothing could be learned."""


class Recipe(Part):
    """Everything a run depends on."""

    name: str
    seed: int = 0
    steps: int = Field(10, ge=0)
    """RL steps."""
    seconds: float | None = Field(None, gt=0)
    """Stop RL after so much wall-clock time (checked between steps); None: no limit."""
    model: Model = Model()
    data: Data = ReasoningGym()
    prompt: Prompt = Prompt()
    answer: Answer = Answer()
    sampling: Uniform = Uniform()
    rollout: RolloutSettings = RolloutSettings()
    engine: TorchEngine = TorchEngine()
    reward: tuple[RewardTerm, ...] = (RewardTerm(),)
    algorithm: Algorithm = Algorithm()
    optim: Optim = Optim()
    train: Train = Train()
    cold_start: ColdStart | None = None
    evaluation: Evaluation | None = None
    save: Save = Save()
    probes: Probes = Probes()

    @model_validator(mode="after")
    def _whole(self) -> Recipe:
        from anabranch.recipe.checks import check  # here: checks reads the classes above

        check(self)
        return self
