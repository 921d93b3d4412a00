"""The recipe: one frozen, strict tree that says everything a run depends on.

A part with several forms carries a `kind`. Unknown keys are errors. A recipe is checked as a whole when it is built
(`anabranch.recipe.checks`), before any model is loaded. No torch here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictFloat, StrictInt, ValidationError, model_validator

from anabranch.recipe.translate import translate

WORKED = ("chain_sum", "basic_arithmetic")
"""The reasoning-gym data sets for which worked examples can be made, so that a cold start is possible."""


class Part(BaseModel):
    """Base of every part of a recipe: frozen, and without room for unknown keys.

    Raises:
        RecipeError: an unknown key, a wrong type, a value out of range, or parts that do not fit together.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    if not TYPE_CHECKING:  # type checkers see the fields as arguments, not **values

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise translate(type(self), error) from None

        # nothing else is added: lets pydantic validate nested parts in place, so that errors name the full path
        __init__.__pydantic_base_init__ = True

        @classmethod
        def model_validate(cls, obj: Any, **options: Any) -> Self:
            """As pydantic's, with a `RecipeError` that names the place."""
            try:
                return super().model_validate(obj, **options)
            except ValidationError as error:
                raise translate(cls, error) from None

    def but(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked like any other. (`model_copy` does not check.)

        >>> Clip().but(high=0.28)
        Clip(low=0.2, high=0.28, dual=None)
        """
        return type(self)(**{**dict(self), **changes})


# ---------------------------------------------------------------------------------------------------------- model


class Model(Part):
    """Which model, and how it computes."""

    source: str = "smollm2-135m-instruct"
    """A built-in name (`smollm2-135m-instruct`), a local folder, or a Hugging Face id."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute dtype of forward and backward; master weights are float32 always. auto: measured, the faster one."""
    device: str = "auto"
    """auto: `cuda` where there is one, otherwise `cpu`."""
    threads: StrictInt = Field(0, ge=0, le=4096)
    """CPU threads for tensor work; 0: the fastest of torch's own choice, half, a quarter of it and 1, measured for a
    moment. Fixed at the first start and kept on resume."""


# ---------------------------------------------------------------------------------------------------------- data


class ReasoningGym(Part):
    """Problems made by `reasoning-gym`, judged by its own scorer."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    """Problems made by reasoning-gym."""
    name: str = "chain_sum"
    """Name of the data set within reasoning-gym."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Settings of that data set, for instance `min_terms`."""
    size: StrictInt = Field(1000, ge=1)
    """How many problems to make."""
    seed: StrictInt = Field(0, ge=0, lt=2**32)
    """Which problems: the same seed makes the same ones."""


class JsonLines(Part):
    """Problems from a JSONL file, judged by mathematical equality."""

    kind: Literal["jsonl"] = "jsonl"
    """Problems from a file, one JSON object a line."""
    path: str = Field(min_length=1)
    """The file, relative to the working directory."""
    question: str = "question"
    """Column of the question."""
    answer: str = "answer"
    """Column of the gold answer."""
    answer_after: str | None = None
    """Keep only what follows the last occurrence of this mark in the answer column (`####` in GSM8K's own files)."""
    limit: StrictInt | None = Field(None, ge=1)
    """Use only the first so many rows."""


class HubDataset(Part):
    """Problems from a Hugging Face data set by id (extra `datasets`), judged by mathematical equality."""

    kind: Literal["hub"] = "hub"
    """Problems from a Hugging Face data set."""
    id: str = Field(min_length=1)
    """Id of the data set, e.g. `openai/gsm8k`."""
    config: str | None = None
    """Configuration within the data set, e.g. `main`; None: its only one."""
    split: str = "train"
    """Which split."""
    revision: str | None = None
    """Commit or tag of the data set; None: the newest."""
    question: str = "question"
    """Column of the question."""
    answer: str = "answer"
    """Column of the gold answer."""
    answer_after: str | None = None
    """Keep only what follows the last occurrence of this mark in the answer column (`####` in GSM8K)."""
    limit: StrictInt | None = Field(None, ge=1)
    """Use only the first so many rows."""


Data = Annotated[ReasoningGym | JsonLines | HubDataset, Field(discriminator="kind")]


class Prompt(Part):
    """How a question becomes a chat prompt."""

    system: str | None = None
    """System message; None: the chat template's own default."""
    instruction: str = "Think step by step, then finish with a line of the form 'Answer: N'."
    """Added after the question, on a line of its own. Empty: nothing."""


class Answer(Part):
    """How a final answer is found in the model's text and compared with the gold answer."""

    extract: tuple[Literal["boxed", "answer_line", "hashes", "tag", "last_number"], ...] = Field(
        ("boxed", "answer_line", "hashes"), min_length=1
    )
    """Tried in this order; the first that finds something decides. `tag` reads `<answer>...</answer>`, also over
    several lines. `last_number` is lenient and off by default."""
    timeout: StrictFloat = Field(5.0, gt=0)
    """Seconds of wall clock for one verdict; then the worker is killed and the answer counts as wrong."""
    workers: StrictInt = Field(1, ge=1)
    """Processes that judge answers."""


# ------------------------------------------------------------------------------------------------------- sampling


class Uniform(Part):
    """Every problem once per epoch, in an order shuffled anew each epoch."""

    kind: Literal["uniform"] = "uniform"
    """How problems are drawn."""


class RolloutSettings(Part):
    """How many answers are sampled, and how."""

    prompts: StrictInt = Field(16, ge=1)
    """Problems a step."""
    per_problem: StrictInt = Field(8, ge=1)
    """Answers a problem (the group)."""
    temperature: StrictFloat = Field(1.0, gt=0)
    """Logits are divided by it before a token is drawn."""
    top_p: StrictFloat = Field(1.0, gt=0, le=1)
    """Draw from the smallest set of tokens with at least this probability; 1: from all."""
    top_k: StrictInt = Field(0, ge=0)
    """Draw from so many most probable tokens; 0: from all."""
    max_new_tokens: StrictInt = Field(64, ge=1)
    """An answer that is longer is cut here."""
    stop_strings: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """An answer ends with the token that completes one of these texts."""


class TorchEngine(Part):
    """The in-process engine: continuous batching, shared prompt prefixes, weights shared with the trainer."""

    kind: Literal["torch"] = "torch"
    """What generates the answers."""
    max_rows: StrictInt = Field(512, ge=1)
    """Most answers decoded at the same time."""
    kv_gb: StrictFloat = Field(2.0, gt=0)
    """Memory for the keys and values of prompts and answers in flight, in GB; as many answers are decoded at the same
    time as are sure to fit, and at least one."""


# ------------------------------------------------------------------------------------------------------ algorithm


class Clip(Part):
    """Clipping of the ratio: the objective is min(ratio * A, clip(ratio, 1 - low, 1 + high) * A).

    With `ratio: detached` the same two bounds are the caps of the token's weight.
    """

    low: StrictFloat | None = Field(0.2, gt=0)
    """None: no lower bound."""
    high: StrictFloat | None = Field(0.2, gt=0)
    """None: no upper bound."""
    dual: StrictFloat | None = Field(None, gt=1)
    """Dual clip: for A < 0 the objective is at least dual * A. None: off."""


class Kl(Part):
    """Penalty for leaving the reference model (the weights at the start of RL)."""

    kind: Literal["none", "reward_k1", "loss_k1", "loss_k2", "loss_k3"] = "none"
    """reward_k1: subtracted from the reward token by token. loss_*: added to the loss, with that estimator."""
    coef: StrictFloat = Field(0.0, ge=0)
    """Weight of the penalty."""


class Overlong(Part):
    """What happens to answers that were cut at the length limit."""

    kind: Literal["none", "filter", "soft", "stop_properly"] = "none"
    """filter: out of the loss, still in the statistics. soft: a length punishment added to the reward.
    stop_properly: the reward of a cut answer is multiplied by `coef`."""
    buffer: StrictInt | None = Field(None, ge=1)
    """soft: the punishment grows over the last so many tokens before the limit. None: a fifth of the limit."""
    coef: StrictFloat = Field(0.0, ge=0, le=1)
    """stop_properly: factor on the reward of a cut answer."""


class Algorithm(Part):
    """A point in the space of independent axes. Methods differ only in these values."""

    baseline: Literal["none", "group_mean", "leave_one_out", "batch_mean"] = "group_mean"
    """What is subtracted from the reward."""
    scale: Literal["none", "group_std", "batch_std_raw", "batch_std_centred", "token_std"] = "group_std"
    """What the centred reward is divided by; `token_std` weights every answer with its length."""
    std: Literal["unbiased", "population"] = "unbiased"
    """How every standard deviation is taken: divided by n - 1 or by n."""
    whiten: Literal["none", "trajectories", "tokens"] = "none"
    """Whitening after baseline and scale, over answers or over tokens of the whole batch."""
    ratio: Literal["token", "sequence", "detached"] = "token"
    """token: PPO. sequence: GSPO's geometric mean. detached: CISPO's clipped weight on a plain log-prob gradient."""
    clip: Clip = Clip()
    """How far the ratio may move from 1."""
    aggregate: Literal["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "token_sum_constant"] = "token_mean"
    """How token losses become one: mean over tokens; mean over answers of their token mean, sum or sum / `constant`."""
    constant: StrictInt | None = Field(None, ge=1)
    """token_sum_constant: the divisor of each answer's token sum. None: `rollout.max_new_tokens`."""
    kl: Kl = Kl()
    """Penalty for leaving the reference model."""
    overlong: Overlong = Overlong()
    """What happens to answers that were cut."""


# --------------------------------------------------------------------------------------------------------- reward


class RewardTerm(Part):
    """One term of the reward and its weight."""

    term: Literal["accuracy", "format"] = "accuracy"
    """accuracy: the verdict's value. format: 1 if a final answer was found, else 0."""
    weight: StrictFloat = 1.0
    """The reward is the sum of weight times term."""


# -------------------------------------------------------------------------------------------------------- training


Beta = Annotated[StrictFloat, Field(ge=0, lt=1)]


class Optim(Part):
    """AdamW on float32 master weights."""

    lr: StrictFloat = Field(1e-6, gt=0)
    """Learning rate, after warm-up."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """How much of the running mean of the gradient and of its square is kept each step."""
    eps: StrictFloat = Field(1e-8, gt=0)
    """Added to the root of the mean square."""
    weight_decay: StrictFloat = Field(0.0, ge=0)
    """Decoupled from the gradient, times the learning rate."""
    grad_clip: StrictFloat | None = Field(1.0, gt=0)
    """Largest gradient norm; None: no clipping."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Of the learning rate after warm-up. cosine: down to 0 at the last step (`resume --steps` stretches it)."""
    warmup: StrictInt = Field(0, ge=0)
    """Steps of linear warm-up."""


class Train(Part):
    """How a batch becomes optimizer steps."""

    minibatches: StrictInt = Field(1, ge=1)
    """Optimizer steps a rollout batch; whole groups are dealt out to them."""
    row_tokens: StrictInt = Field(2048, ge=16)
    """Longest packed row; one row is one forward and backward. The gradient does not depend on it. Longer rows are
    faster and need more memory: 0.35 MB a token with the built-in model in bfloat16."""


class ColdStart(Part):
    """Supervised steps on generated worked examples, before RL: they teach the format."""

    steps: StrictInt = Field(13, ge=1)
    """Optimizer steps."""
    batch: StrictInt = Field(16, ge=1)
    """Examples a step."""
    lr: StrictFloat = Field(2e-5, gt=0)
    """Learning rate, after warm-up."""
    warmup: StrictInt = Field(2, ge=0)
    """Steps of linear warm-up."""


class Sft(Part):
    """Supervised steps on worked examples from a JSONL file, after the cold start and before RL.

    `anabranch sft` makes these steps alone.
    """

    path: str = Field(min_length=1)
    """The file, relative to the working directory."""
    question: str = "question"
    """Column of the question."""
    solution: str = "solution"
    """Column of the answer to learn, worked out in full."""
    steps: StrictInt = Field(100, ge=1)
    """Optimizer steps; the file is read again, shuffled anew, as often as that takes."""
    batch: StrictInt = Field(16, ge=1)
    """Examples a step."""
    lr: StrictFloat = Field(2e-5, gt=0)
    """Learning rate, after warm-up."""
    warmup: StrictInt = Field(2, ge=0)
    """Steps of linear warm-up."""


class Evaluation(Part):
    """Held-out accuracy, at the temperature of training, on problems never trained on."""

    problems: StrictInt = Field(64, ge=1)
    """How many held-out problems."""
    samples: StrictInt = Field(2, ge=1)
    """Answers a problem."""
    every: StrictInt = Field(0, ge=0)
    """Also evaluate every so many RL steps; 0: only at the borders of stages."""
    data: Data | None = None
    """Held-out problems; None: reasoning-gym with another seed, training problems filtered out. Needed for files."""


class Save(Part):
    """Checkpoints."""

    every: StrictInt = Field(10, ge=1)
    """Steps between checkpoints; the last step is always saved."""
    keep: StrictInt = Field(2, ge=1)
    """How many checkpoints stay."""


class Probes(Part):
    """Checks at the start of a run; each one stops it with a clear message."""

    agreement: StrictFloat = Field(0.0, ge=0)
    """Largest mean absolute gap between engine and trainer log-probs; 0: 1e-3 in float32, 0.05 in bfloat16."""
    patience: StrictInt = Field(3, ge=1)
    """Stop after so many steps in a row from the start in which nothing could be learned."""


class Recipe(Part):
    """Everything a run depends on."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """What it is called; run folders are named after it."""
    seed: StrictInt = Field(0, ge=0, lt=2**32)
    """Everything random depends on it and on nothing else."""
    steps: StrictInt = Field(10, ge=0)
    """RL steps."""
    seconds: StrictFloat | None = Field(None, gt=0)
    """Stop RL after so much wall-clock time (checked between steps); None: no limit."""
    model: Model = Model()
    """Which model, and how it computes."""
    data: Data = ReasoningGym()
    """The problems to train on."""
    prompt: Prompt = Prompt()
    """How a question becomes a chat prompt."""
    answer: Answer = Answer()
    """How a final answer is found and compared."""
    sampling: Uniform = Uniform()
    """Which problems come next."""
    rollout: RolloutSettings = RolloutSettings()
    """How many answers are sampled, and how."""
    engine: TorchEngine = TorchEngine()
    """What generates the answers."""
    reward: tuple[RewardTerm, ...] = (RewardTerm(),)
    """The terms of the reward."""
    algorithm: Algorithm = Algorithm()
    """From rewards to a loss."""
    optim: Optim = Optim()
    """The optimizer."""
    train: Train = Train()
    """How a batch becomes optimizer steps."""
    cold_start: ColdStart | None = None
    """Supervised steps on generated examples before RL; None: none."""
    sft: Sft | None = None
    """Supervised steps on worked examples from a file before RL; None: none."""
    evaluation: Evaluation | None = None
    """Held-out accuracy before and after; None: none."""
    save: Save = Save()
    """Checkpoints."""
    probes: Probes = Probes()
    """Checks at the start of a run."""

    @model_validator(mode="after")
    def _whole(self) -> Recipe:
        from anabranch.recipe.checks import check  # here: checks reads the classes above

        check(self)
        return self
