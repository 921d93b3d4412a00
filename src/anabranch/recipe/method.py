"""How answers are sampled and turned into a loss: the axes on which methods differ. Rewards: `recipe.reward`."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, StrictFloat, StrictInt

from anabranch.recipe.part import Part

# ------------------------------------------------------------------------------------------------------- sampling


class Uniform(Part):
    """Every problem once per epoch, in an order shuffled anew each epoch."""

    kind: Literal["uniform"] = "uniform"
    """How problems are drawn."""


class Prioritised(Part):
    """Problems that are sometimes right and sometimes wrong come more often (SPO): drawn by the weight
    sqrt(v (1 - v)) / N^gamma + eps without replacement, anew each step.

    v is how often a problem is answered right and N how many answers that is worth, see `algorithm.tracker`. If a step
    takes more problems than there are, every one is drawn, and the rest by weight again.
    """

    kind: Literal["prioritised"] = "prioritised"
    """How problems are drawn."""
    eps: StrictFloat = Field(0.05, ge=0)
    """Added to every weight, so that problems which are always right or always wrong are tried again."""
    gamma: StrictFloat = Field(0.0, ge=0, le=1)
    """How much a problem that is known from few answers is favoured. 0: not at all."""
    pool: StrictInt | None = Field(None, ge=1)
    """Each step draws from so many problems only, chosen at random anew. None: from all."""


Sampler = Annotated[Uniform | Prioritised, Field(discriminator="kind")]


class Dynamic(Part):
    """Dynamic sampling (DAPO): groups whose rewards are all exactly equal are dropped, and other problems drawn, until
    a step has `rollout.prompts` groups that differ.

    All problems of a step are different. Groups beyond the ones needed are dropped too, those drawn last.
    """

    rounds: StrictInt = Field(10, ge=1)
    """Most rounds of sampling a step, the first one included; then the run stops and says why."""
    overdraw: StrictFloat = Field(1.0, ge=1)
    """Problems drawn for each group that is missing, rounded up: more than 1 saves rounds and drops good groups."""

    def problems_for(self, missing: int) -> int:
        """How many problems a round draws when so many groups are missing."""
        return math.ceil(missing * self.overdraw - 1e-9)  # 10 * 1.1 is a little more than 11


class Asynchronous(Part):
    """Rollouts finish one by one, and a step starts as soon as it has enough of them.

    More are in flight than a step takes: (1 + oversample) x `rollout.prompts` problems. Methods that compare the
    answers to a problem take them group by group, when the last of a group has come; the others take answers one by
    one. docs/asynchronous.md has the rule by which a step picks its rollouts, and what it costs.
    """

    oversample: StrictFloat = Field(0.5, gt=0)
    """How much more is in flight than a step takes, as a share of it, rounded up to whole problems."""
    leftover: Literal["continue", "drop"] = "continue"
    """What becomes of the rest when a step has enough. continue: it goes on after the update (partial rollouts), its
    tokens carrying the version of the weights that drew each. drop: it is given up, finished ones too."""
    max_staleness: StrictInt = Field(1, ge=0)
    """A rollout is learned from at most so many steps after the one in which it was begun; a step waits for those that
    would grow older. leftover drop: 0."""
    keys: Literal["keep", "recompute"] = "keep"
    """Keys and values of what is in flight when weights change. keep: as they are. recompute: computed anew."""
    schedule: Literal["clock", "counted"] = "clock"
    """When what an environment says is taken. clock: as soon as it is there. counted: a fixed number of tokens after it
    was asked, so that a run depends on no clock, and resumes to the same bits."""

    def capacity(self, prompts: int) -> int:
        """How many problems are in flight at the start of a step that takes `prompts` of them."""
        return prompts + math.ceil(self.oversample * prompts)


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
    asynchronous: Asynchronous | None = None
    """Learn from the rollouts that finish first; None: every step waits for all of its own."""
    dynamic: Dynamic | None = None
    """Draw other problems in place of those whose answers all get the same reward; None: train on what was drawn."""


class TorchEngine(Part):
    """The in-process engine: continuous batching, shared prompt prefixes, weights shared with the trainer."""

    kind: Literal["torch"] = "torch"
    """What generates the answers."""
    max_rows: StrictInt = Field(512, ge=1)
    """Most answers in flight at the same time, those that wait for their environment among them."""
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


class Reset(Part):
    """When the current weights become the reference model (ProRL, ProRLv2): at the first of these causes."""

    every: StrictInt | None = Field(None, ge=1)
    """So many RL steps after the reference was taken (ProRLv2: 200 to 500). None: never for this cause."""
    spike: StrictFloat | None = Field(None, gt=0)
    """After a step whose `kl_ref` is above this. None: never for this cause."""
    stall: StrictInt | None = Field(None, ge=1)
    """After so many evaluations in a row (`evaluation.every`) without a new best held-out accuracy. None: never for
    this cause."""
    moments: Literal["keep", "drop"] = "keep"
    """What becomes of the optimizer's moments. keep: ProRLv2. drop: back to zero, ProRL."""


class Kl(Part):
    """Penalty for leaving the reference model (the weights at the start of RL, or of its last reset)."""

    kind: Literal["none", "reward_k1", "loss_k1", "loss_k2", "loss_k3"] = "none"
    """reward_k1: subtracted from the reward token by token. loss_*: added to the loss, with that estimator."""
    coef: StrictFloat = Field(0.0, ge=0)
    """Weight of the penalty."""
    input_limit: StrictFloat | None = Field(None, gt=0)
    """The log-ratio to the reference is held within +- this before it is estimated; beyond it a KL loss has no
    gradient (ProRLv2: 10). None: as it is, but for loss_k3, which always holds it within +-20."""
    output_limit: StrictFloat | None = Field(None, gt=0)
    """The estimate is held within +- this; beyond it a KL loss has no gradient (OpenRLHF: 10). None: as it is."""
    reset: Reset | None = None
    """When the reference is taken anew; None: never."""


class Mismatch(Part):
    """Correction for an engine whose probabilities are not quite the trainer's.

    w = exp(log-prob of the trainer before the first update - log-prob recorded by the engine), a constant, multiplies
    the policy loss of a token (not its KL, not its entropy bonus). Denominators stay as they are.
    """

    kind: Literal["none", "tis", "icepop", "sequence_mask"] = "none"
    """tis: w held within the bounds (truncated importance sampling). icepop: w within the bounds, else 0.
    sequence_mask: w, but 0 for answers the geometric mean of whose w is not within the bounds."""
    low: StrictFloat | None = Field(0.5, gt=0, le=1)
    """Lower bound (ProRLv2: 0.5; sequence_mask 0.999). None: none."""
    high: StrictFloat | None = Field(5.0, ge=1)
    """Upper bound (ProRLv2: 5; sequence_mask 1.002). None: none."""


class Prior(Part):
    """What is believed of a problem before its first visit, where there are no offline values."""

    value: StrictFloat = Field(0.5, ge=0, le=1)
    """Expected reward."""
    count: StrictFloat = Field(1.0, gt=0)
    """How many answers that belief is worth. Value 0.5 and count 1 are one half success and one half failure."""


class Tracker(Part):
    """The value of every problem, its expected reward, as a running estimate that forgets (SPO, arXiv:2509.13232).

    Kept where `algorithm.baseline` is `tracker` or `sampling.kind` is `prioritised`. A visit keeps the share rho of the
    old answers and adds the new ones; rho = 2^(-D / d_half), held within [rho_min, rho_max], where D is how far the
    policy has moved since the problem's last answer was drawn. docs/spo.md tells paper and published code apart.
    """

    form: Literal["beta", "ema"] = "beta"
    """What is kept of a problem. beta: counts of successes and failures, for rewards in [0, 1]. ema: a running mean and
    what it is worth, for any rewards; the same baseline up to rounding where both can be had."""
    rho_min: StrictFloat = Field(0.875, gt=0, lt=1)
    """Least share that is kept. Offline values count as 1 / (1 - rho_min) answers."""
    rho_max: StrictFloat = Field(0.96, gt=0, le=1)
    """Largest share that is kept."""
    d_half: StrictFloat = Field(0.06, gt=0)
    """D at which half would be kept. 0.06 belongs to divergence abs."""
    divergence: Literal["abs", "k1", "k2", "k3", "constant"] = "abs"
    """D from the log-probs of a problem's last answer, then and now, mean over its tokens. abs: |then - now|, the
    published code. k1, k2, k3: estimates of KL(then || now). constant: rho is rho_min, nothing is scored."""
    when: Literal["before_update", "after_update"] = "before_update"
    """Which weights D compares. before_update: those that drew the last answer and those of this step's start; one
    extra pass over last answers. after_update: those after that step's updates and after this one's; two extra passes
    (the published code)."""
    duplicates: Literal["joint", "last"] = "joint"
    """A problem with several answers in a step. joint: it forgets once and takes in all of them. last: only the last
    answer is taken in (the published code)."""
    prior: Prior = Prior()
    """Of problems before their first visit."""
    values: str | None = Field(None, min_length=1)
    """Offline values in place of the prior: the file that `anabranch values` wrote, relative to the working directory.
    None: every problem starts from the prior."""
    smoothing: StrictFloat = Field(0.5, ge=0)
    """Offline values: (right + smoothing) / (samples + 2 smoothing). 0.5: the published code. 0: the paper."""


class Overlong(Part):
    """What happens to answers that were cut at the length limit."""

    kind: Literal["none", "filter", "soft", "stop_properly"] = "none"
    """filter: out of the loss, still in the statistics. soft: a length punishment added to the reward.
    stop_properly: the reward of a cut answer is multiplied by `coef`, or is `coef` where that is below 0."""
    buffer: StrictInt | None = Field(None, ge=1)
    """soft: the punishment grows over the last so many tokens before the limit. None: a fifth of the limit."""
    coef: StrictFloat = Field(0.0, le=1)
    """stop_properly: factor on the reward of a cut answer; below 0: its reward, whatever the answer (ProRLv2)."""


class Algorithm(Part):
    """A point in the space of independent axes. Methods differ only in these values."""

    baseline: Literal["none", "group_mean", "leave_one_out", "batch_mean", "tracker"] = "group_mean"
    """What is subtracted from the reward. tracker: the value of the problem as it was before the step."""
    tracker: Tracker = Tracker()
    """How the value of every problem is tracked."""
    scale: Literal["none", "group_std", "batch_std_raw", "batch_std_centred", "token_std"] = "group_std"
    """What the centred reward is divided by; `token_std` weights every answer with its length."""
    std: Literal["unbiased", "population"] = "unbiased"
    """How every standard deviation is taken: divided by n - 1 or by n."""
    whiten: Literal["none", "trajectories", "tokens"] = "none"
    """Whitening after baseline and scale, over answers or over tokens of the whole batch."""
    advantage_clip: StrictFloat | None = Field(None, gt=0)
    """The advantage of a token is held within +- this, after all that makes it. None: as it is."""
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
    entropy_coef: StrictFloat = Field(0.0, ge=0)
    """Entropy bonus: so many times the mean entropy of the trained tokens, weighted as the policy loss, is subtracted
    from the loss. 0: none."""
    mismatch: Mismatch = Mismatch()
    """Correction for an engine whose probabilities are not quite the trainer's."""
    overlong: Overlong = Overlong()
    """What happens to answers that were cut."""

    @property
    def compares_groups(self) -> bool:
        """Whether the answers to a problem are compared with each other, so that all of them are needed at once."""
        return self.baseline in ("group_mean", "leave_one_out") or self.scale == "group_std"
