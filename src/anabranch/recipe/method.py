"""How answers are sampled, rewarded and turned into a loss: the axes on which methods differ."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictFloat, StrictInt

from anabranch.recipe.part import Part

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


# --------------------------------------------------------------------------------------------------------- reward


class RewardTerm(Part):
    """One term of the reward and its weight."""

    term: Literal["accuracy", "format"] = "accuracy"
    """accuracy: the verdict's value. format: 1 if a final answer was found, else 0."""
    weight: StrictFloat = 1.0
    """The reward is the sum of weight times term."""


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
