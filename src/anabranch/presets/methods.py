"""Published methods as points on the axes of `anabranch.recipe.tree.Algorithm`.

    anabranch train lite_ppo
    anabranch train grpo data.path=gsm8k.jsonl steps=200
    anabranch show  lite_ppo --against grpo        # only what differs

In the formulas: r a reward, A an advantage, rho the ratio of new to old token probability, L_i the length of answer i;
a mean or std is over a group (the answers to one problem) or over the batch. Every method writes down all axes on which
it makes a choice. Sizes are a laptop's, see `anabranch.presets.laptop`; they are not the papers'.
"""

from __future__ import annotations

from anabranch.presets.laptop import laptop
from anabranch.recipe.tree import Algorithm, Clip, Kl, Recipe


def ppo_vanilla() -> Recipe:
    """PPO's clipped loss without a critic: A is the bare reward (arXiv:1707.06347 without its value network).

    The mean over answers of each answer's mean over tokens of -min(rho A, clip(rho, 0.8, 1.2) A), with A = r.
    Axes: baseline none, scale none, token ratio, clip 0.2/0.2, seq_mean_token_mean, no KL.
    """
    return laptop(
        "ppo_vanilla",
        Algorithm(
            baseline="none",
            scale="none",
            ratio="token",
            clip=Clip(low=0.2, high=0.2),
            aggregate="seq_mean_token_mean",
        ),
    )


def reinforce_pp() -> Recipe:
    """REINFORCE++: a KL penalty inside the reward, then whitening over all tokens of the batch (arXiv:2501.03262).

    Every token earns -0.01 (old log-prob - reference log-prob), the last one also r. A is what is earned from there on,
    minus its mean over all tokens of the batch, divided by its std over them. Clipped loss, mean over all tokens.
    Axes: baseline none, scale none, whiten tokens, token ratio, clip 0.2/0.2, token_mean, KL reward_k1 0.01.
    """
    return laptop(
        "reinforce_pp",
        Algorithm(
            baseline="none",
            scale="none",
            whiten="tokens",
            ratio="token",
            clip=Clip(low=0.2, high=0.2),
            aggregate="token_mean",
            kl=Kl(kind="reward_k1", coef=0.01),
        ),
    )


def grpo() -> Recipe:
    """GRPO: a reward is compared with the other answers to the same problem (arXiv:2402.03300).

    A = (r - group mean) / group std. Clipped loss, each answer's mean over tokens, mean over answers; the k3 estimate
    of the distance to the reference model is added with weight 0.04 (many later implementations set it to 0).
    Axes: baseline group_mean, scale group_std, token ratio, clip 0.2/0.2, seq_mean_token_mean, KL loss_k3 0.04.
    """
    return laptop(
        "grpo",
        Algorithm(
            baseline="group_mean",
            scale="group_std",
            ratio="token",
            clip=Clip(low=0.2, high=0.2),
            aggregate="seq_mean_token_mean",
            kl=Kl(kind="loss_k3", coef=0.04),
        ),
    )


def dr_grpo() -> Recipe:
    """Dr. GRPO: GRPO without its two biases, the std and the answer's own length (arXiv:2503.20783).

    A = r - group mean. Clipped loss, each answer's sum over tokens divided by the largest length, mean over answers.
    Axes: baseline group_mean, scale none, token ratio, clip 0.2/0.2, token_sum_constant, no KL.
    """
    return laptop(
        "dr_grpo",
        Algorithm(
            baseline="group_mean",
            scale="none",
            ratio="token",
            clip=Clip(low=0.2, high=0.2),
            aggregate="token_sum_constant",
        ),
    )


def gspo() -> Recipe:
    """GSPO: one ratio for a whole answer, clipped tightly (arXiv:2507.18071).

    The ratio is s_i = exp(mean over tokens of log rho), clipped to [1 - 3e-4, 1 + 4e-4]; A = (r - group mean) / group
    std; mean over answers. Four updates a rollout batch: with one, every ratio is 1.
    Axes: baseline group_mean, scale group_std, sequence ratio, clip 3e-4/4e-4, seq_mean_token_mean, no KL.
    """
    return laptop(
        "gspo",
        Algorithm(
            baseline="group_mean",
            scale="group_std",
            ratio="sequence",
            clip=Clip(low=3e-4, high=4e-4),
            aggregate="seq_mean_token_mean",
        ),
        minibatches=4,
    )


def cispo() -> Recipe:
    """CISPO: the capped ratio is a constant weight, so no token ever loses its gradient (MiniMax-M1, arXiv:2506.13585).

    The mean over all tokens of -w A log-prob with w = min(rho, 5) held constant; A = (r - group mean) / group std. The
    paper does not state its cap; 5 is what later work used. Four updates a rollout batch: with one, every weight is 1.
    Axes: baseline group_mean, scale group_std, detached ratio, upper cap only, token_mean, no KL.
    """
    return laptop(
        "cispo",
        Algorithm(
            baseline="group_mean",
            scale="group_std",
            ratio="detached",
            clip=Clip(low=None, high=4.0),  # the cap is 1 + high
            aggregate="token_mean",
        ),
        minibatches=4,
    )


def lite_ppo() -> Recipe:
    """Lite PPO: group mean, batch std, token mean, and nothing else ("Tricks or Traps", arXiv:2508.08221).

    A = (r - group mean) / std of all raw rewards of the batch. Clipped loss, mean over all tokens of the batch.
    Axes: baseline group_mean, scale batch_std_raw, token ratio, clip 0.2/0.2, token_mean, no KL.
    """
    return laptop(
        "lite_ppo",
        Algorithm(
            baseline="group_mean",
            scale="batch_std_raw",
            ratio="token",
            clip=Clip(low=0.2, high=0.2),
            aggregate="token_mean",
        ),
    )
