"""Published methods that matter only where a rollout batch gives several updates: with one, every ratio is 1.

See `anabranch.presets.methods` for the notation. On a laptop all of them make four updates a batch.
"""

from __future__ import annotations

from anabranch.presets.papers import AIME_2024, DAPO_MATH, at_scale
from anabranch.presets.published import published
from anabranch.recipe.tree import Algorithm, Clip, Evaluation, Optim, Recipe, RolloutSettings


@published("train.minibatches=4")
def gspo() -> Recipe:
    """GSPO: one ratio for a whole answer, clipped tightly (arXiv:2507.18071).

    The ratio is s_i = exp(mean over tokens of log rho), clipped to [1 - 3e-4, 1 + 4e-4]; A = (r - group mean) / group
    std; mean over answers.
    Axes: baseline group_mean, scale group_std, sequence ratio, clip 3e-4/4e-4, seq_mean_token_mean, no KL.
    Scale: four updates a rollout batch, the 30B mixture of experts. Not stated: data and all other sizes; as DAPO's,
    with answers of up to 8192 tokens.
    """
    return at_scale(
        "gspo",
        Algorithm(
            baseline="group_mean",
            scale="group_std",
            ratio="sequence",
            clip=Clip(low=3e-4, high=4e-4),
            aggregate="seq_mean_token_mean",
        ),
        model="Qwen/Qwen3-30B-A3B-Base",
        data=DAPO_MATH,
        rollout=RolloutSettings(prompts=512, per_problem=16, max_new_tokens=8192),
        optim=Optim(lr=1e-6, warmup=10),
        minibatches=4,
        steps=200,
        evaluation=Evaluation(problems=30, samples=32, every=5, data=AIME_2024),
    )


@published("train.minibatches=4")
def cispo() -> Recipe:
    """CISPO: the capped ratio is a constant weight, so no token ever loses its gradient (MiniMax-M1, arXiv:2506.13585).

    The mean over all tokens of -w A log-prob with w = min(rho, 5) held constant; A = (r - group mean) / group std. The
    paper does not state its cap; 5 is what later work used.
    Axes: baseline group_mean, scale group_std, detached ratio, upper cap only, token_mean, no KL.
    Scale: of the paper's comparison with DAPO: the same model and data, 16 updates a rollout batch; AdamW's betas and
    eps are those of the paper's main run. Not stated: all other sizes; as DAPO's. The main run also takes over DAPO's
    dynamic sampling and length punishment.
    """
    return at_scale(
        "cispo",
        Algorithm(
            baseline="group_mean",
            scale="group_std",
            ratio="detached",
            clip=Clip(low=None, high=4.0),  # the cap is 1 + high
            aggregate="token_mean",
        ),
        model="Qwen/Qwen2.5-32B",
        data=DAPO_MATH,
        rollout=RolloutSettings(prompts=512, per_problem=16, max_new_tokens=20_480),
        optim=Optim(lr=1e-6, warmup=10, betas=(0.9, 0.95), eps=1e-15),
        minibatches=16,
        steps=200,
        evaluation=Evaluation(problems=30, samples=32, every=5, data=AIME_2024),
    )
