"""Published methods that matter only where a rollout batch gives several updates: with one, every ratio is 1.

See `anabranch.presets.methods` for the notation. On a laptop all of them make four updates a batch.
"""

from __future__ import annotations

from anabranch.presets.papers import AIME_2024, DAPO_MATH, at_scale
from anabranch.presets.published import published
from anabranch.recipe.tree import (
    Algorithm,
    Clip,
    Dynamic,
    Evaluation,
    Kl,
    Mismatch,
    Optim,
    Overlong,
    Recipe,
    Reset,
    RolloutSettings,
)


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
    dynamic sampling and length punishment: rollout.dynamic={} algorithm.overlong.kind=soft.
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


@published("train.minibatches=4", "rollout.dynamic.overdraw=1.0")
def dapo() -> Recipe:
    """DAPO: a higher upper clip, groups that agree redrawn, token mean, long answers punished (arXiv:2503.14476).

    A = (r - group mean) / group std, where r falls by up to 1 over the last fifth before the length limit. Groups whose
    rewards are all equal are replaced by other problems, in up to 10 rounds. Clipped loss, mean over all tokens; for
    A < 0 the objective is at least 10 A (dual clip, of the authors' script).
    Axes: baseline group_mean, scale group_std, token ratio, clip 0.2/0.28, dual clip 10, token_mean, no KL, overlong
    soft, dynamic sampling.
    Scale, of the authors' script: 512 problems x 16 answers of up to 20480 tokens, the last 4096 punished; 16 updates,
    lr 1e-6, warm-up 10, weight decay 0.1; three times as many problems drawn as are missing. Its dynamic sampling asks
    whether the *verdicts* of a group differ, here the rewards do: a group without a right answer stays if the length
    punishment differs within it. Evaluation: 32 samples, of which the script draws with top-p 0.7; here that is done as
    in training. Steps: not stated; 200.
    """
    return at_scale(
        "dapo",
        Algorithm(
            baseline="group_mean",
            scale="group_std",
            ratio="token",
            clip=Clip(low=0.2, high=0.28, dual=10.0),
            aggregate="token_mean",
            overlong=Overlong(kind="soft"),  # the last fifth: 4096 of 20480
        ),
        model="Qwen/Qwen2.5-32B",
        data=DAPO_MATH,
        rollout=RolloutSettings(
            prompts=512, per_problem=16, max_new_tokens=20_480, dynamic=Dynamic(rounds=10, overdraw=3.0)
        ),
        optim=Optim(lr=1e-6, warmup=10, weight_decay=0.1),
        minibatches=16,
        steps=200,
        evaluation=Evaluation(problems=30, samples=32, every=5, data=AIME_2024),
    )


@published("train.minibatches=4", "algorithm.kl.reset.every=20")
def prorl_v2() -> Recipe:
    """ProRLv2: REINFORCE++ with a group baseline, a KL loss to a reference that is taken anew (blog; arXiv:2510.01180).

    A = (r - group mean), then minus its mean and divided by its std over the answers of the batch. An answer that is
    cut gets no reward; groups whose rewards are all equal are redrawn. Clipped loss times w = p_old / p_engine held
    within [0.5, 5], mean over all tokens; plus 1e-4 times half the squared log-ratio to the reference, which is held
    within +-10. Every 300 steps the reference becomes the policy; the optimizer keeps its moments.
    Axes: baseline group_mean, whiten trajectories, token ratio, clip 0.2/0.28, token_mean, KL loss_k2 1e-4, overlong
    stop_properly 0, mismatch tis 0.5/5, dynamic sampling.
    Not stated in the blog: the KL's weight, the bounds of w, when exactly the reference is reset (200 to 500 steps, or
    a KL spike or a stall of unstated size: algorithm.kl.reset.spike, algorithm.kl.reset.stall). The public scripts clip
    at 0.27 (algorithm.clip.high), whiten over tokens with the population's std (algorithm.whiten, algorithm.std) and
    drop tokens whose w is out of bounds (algorithm.mismatch.kind=icepop). The length term with its cycle is off:
    reward.1={term: cosine_length, schedule: {kind: cycle}}.
    Scale, of OpenRLHF's script: 512 problems x 16 answers of up to 8192 tokens, 8 updates, lr 1e-6, betas 0.9/0.95.
    There the learning rate falls to a tenth along a cosine, which cannot be said here (ours falls to 0): constant.
    Warm-up: its 3 % of 3000 steps.
    """
    return at_scale(
        "prorl_v2",
        Algorithm(
            baseline="group_mean",
            scale="none",
            whiten="trajectories",
            ratio="token",
            clip=Clip(low=0.2, high=0.28),
            aggregate="token_mean",
            kl=Kl(kind="loss_k2", coef=1e-4, input_limit=10.0, reset=Reset(every=300, moments="keep")),
            mismatch=Mismatch(kind="tis", low=0.5, high=5.0),
            overlong=Overlong(kind="stop_properly", coef=0.0),
        ),
        model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        data=DAPO_MATH,
        rollout=RolloutSettings(
            prompts=512, per_problem=16, max_new_tokens=8192, dynamic=Dynamic(rounds=10, overdraw=1.0)
        ),
        optim=Optim(lr=1e-6, warmup=90, betas=(0.9, 0.95)),
        minibatches=8,
        steps=3000,
        evaluation=Evaluation(problems=30, samples=4, every=5, data=AIME_2024),
    )
