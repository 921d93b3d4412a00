"""Stages, optimizer, evaluation, checkpoints, probes: how a method is run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt

from anabranch.recipe.part import Part
from anabranch.recipe.problems import Data

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
    """Parts of a rollout batch, an optimizer step each; whole groups are dealt out to them."""
    epochs: StrictInt = Field(1, ge=1)
    """Passes over a rollout batch (PPO epochs), the parts in the same order each time: `minibatches` times so many
    optimizer steps. Ratios are to the log-probs from before the first of them."""
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


class Diagnostics(Part):
    """What a run looks at beside training. It takes time and changes nothing that is learned. See docs/breadth.md."""

    mass_balance: StrictInt = Field(0, ge=0)
    """At how many places of a step the mass balance is watched: the first forks of the first groups whose rewards
    differ. Each costs two forward passes over a prompt and what all its answers begin with, and 16 bytes a word of the
    vocabulary; 0: none."""
    pass_curve: StrictBool = False
    """Whether a step's record has the pass@k of its answers, for k up to `rollout.per_problem`, with intervals."""


class Probes(Part):
    """Checks at the start of a run; each one stops it with a clear message."""

    agreement: StrictFloat = Field(0.0, ge=0)
    """Largest mean absolute gap between engine and trainer log-probs; 0: 1e-3 in float32, 0.05 in bfloat16."""
    patience: StrictInt = Field(3, ge=1)
    """Stop after so many steps in a row from the start in which nothing could be learned."""
