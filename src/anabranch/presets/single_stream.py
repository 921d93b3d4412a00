"""Methods without groups: a value kept for every problem is the baseline (SPO, arXiv:2509.13232). See docs/spo.md.

    anabranch values spo --out runs/values                       # optional: how often the model is right before RL
    anabranch train spo algorithm.tracker.values=runs/values/values.json

See `anabranch.presets.methods` for the notation; v is the value of a problem before the step.
"""

from __future__ import annotations

from anabranch.presets.papers import AIME_2024, at_scale
from anabranch.presets.published import published
from anabranch.recipe.tree import (
    Algorithm,
    Asynchronous,
    Clip,
    Evaluation,
    HubDataset,
    Optim,
    Prioritised,
    PythonTool,
    Recipe,
    RolloutSettings,
    Tracker,
)

ENGLISH = HubDataset(id="open-r1/DAPO-Math-17k-Processed", config="en", question="prompt", answer="solution")
"""The English part of DAPO's problems, about 14k."""


def _recipe(name: str, tracker: Tracker, rollout: RolloutSettings) -> Recipe:
    """What SPO and its form with repeats share."""
    recipe = at_scale(
        name,
        Algorithm(
            baseline="tracker",
            scale="none",
            whiten="trajectories",
            ratio="token",
            clip=Clip(low=0.2, high=0.28, dual=10.0),
            aggregate="token_mean",
            tracker=tracker,
        ),
        model="Qwen/Qwen3-8B",
        data=ENGLISH,
        rollout=rollout,
        optim=Optim(lr=1e-6, weight_decay=0.01),
        minibatches=8,
        steps=145,
        evaluation=Evaluation(problems=30, samples=32, every=10, data=AIME_2024),
    )
    return recipe.but(sampling=Prioritised(eps=0.05), environment=PythonTool())


@published("rollout.prompts=32", "rollout.per_problem=1", "train.minibatches=4", "environment=null")
def spo() -> Recipe:
    """SPO: one answer a problem; subtracted is the problem's own value, kept from step to step (arXiv:2509.13232).

    A = (r - v), minus its mean over the batch, divided by its std over it. v is a count of successes and failures
    that forgets: it keeps rho = 2^(-D / 0.06) of what it was, within [0.875, 0.96], and D is the mean |change of
    log-prob| of the problem's last answer. Problems are drawn by sqrt(v (1 - v)) + 0.05 without replacement. Clipped
    loss, dual clip 10, mean over all tokens.
    Axes: baseline tracker, whiten trajectories, token ratio, clip 0.2/0.28, token_mean, no KL, sampling prioritised.
    Of the published code, where the paper is silent: D and its 0.06, dual clip, token mean, a repeated problem's last
    answer counts alone. Of the paper: values are revised with the weights that sampled, not with those after the
    update (algorithm.tracker.when=after_update). v starts at 1/2 of one answer, which is its ablation, until
    algorithm.tracker.values names a file of `anabranch values` (n0 = 8).
    Scale: 2048 problems x 1 answer of up to 16384 tokens, 8 updates, lr 1e-6, weight decay 0.01, a Python
    interpreter for 8 turns. Steps: not stated, as its figures show. Its published code also wants the answer in the
    last 100 characters and no script behind the thinking; that is not here. A laptop takes 32 problems a step, since it
    has 60, and no tools, which its model cannot use.
    """
    return _recipe(
        "spo",
        Tracker(form="beta", duplicates="last"),
        RolloutSettings(prompts=2048, per_problem=1, max_new_tokens=16_384),
    )


@published("train.minibatches=4", "environment=null", "rollout.asynchronous=null")
def bspo() -> Recipe:
    """BSPO: SPO with G answers a problem, which share its value as their baseline (arXiv:2509.13232, appendix B).

    As `spo`; the tracker forgets once a step and takes in all G answers together: alpha = rho alpha + sum r.
    Axes: baseline tracker, whiten trajectories, token ratio, clip 0.2/0.28, token_mean, no KL, sampling prioritised.
    Not stated: G (8, as its GRPO has), and how the tracker takes in several answers. D is that of the last of them.
    Scale: 256 problems x 8 answers, half as many again in flight, answers that are not over go on after the update; all
    else as `spo`. How old they may be is not stated: one step.
    """
    return _recipe(
        "bspo",
        Tracker(form="beta", duplicates="joint"),
        RolloutSettings(
            prompts=256,
            per_problem=8,
            max_new_tokens=16_384,
            asynchronous=Asynchronous(oversample=0.5, max_staleness=1),
        ),
    )
