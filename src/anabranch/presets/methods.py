"""Published methods as points on the axes of `anabranch.recipe.tree.Algorithm`, at the scale of their papers.

    anabranch train lite_ppo                            # on a laptop
    anabranch train grpo data.path=gsm8k.jsonl steps=200
    anabranch show  lite_ppo --against grpo             # only what differs
    anabranch show  lite_ppo --against lite_ppo@paper   # what a laptop changes

In the formulas: r a reward, A an advantage, rho the ratio of new to old token probability, L_i the length of answer i;
a mean or std is over a group (the answers to one problem) or over the batch. Every method writes down all axes on which
it makes a choice, and says which of its sizes its paper does not state. On a laptop methods differ only in `algorithm`,
in dynamic sampling and in `train.minibatches`. Methods whose ratio is the point: `anabranch.presets.many_updates`.
"""

from __future__ import annotations

from anabranch.presets.papers import MATH_12K, MATH_500, at_scale, study
from anabranch.presets.published import published
from anabranch.recipe.tree import Algorithm, Clip, Evaluation, Kl, Optim, Recipe, RolloutSettings


@published()
def ppo_vanilla() -> Recipe:
    """PPO's clipped loss without a critic: A is the bare reward (arXiv:1707.06347 without its value network).

    The mean over answers of each answer's mean over tokens of -min(rho A, clip(rho, 0.8, 1.2) A), with A = r.
    Axes: baseline none, scale none, token ratio, clip 0.2/0.2, seq_mean_token_mean, no KL.
    Scale: the baseline of "Tricks or Traps" (arXiv:2508.08221), see `papers.study`.
    """
    return study(
        "ppo_vanilla",
        Algorithm(
            baseline="none",
            scale="none",
            ratio="token",
            clip=Clip(low=0.2, high=0.2),
            aggregate="seq_mean_token_mean",
        ),
    )


@published()
def reinforce_pp() -> Recipe:
    """REINFORCE++: a KL penalty inside the reward, then whitening over all tokens of the batch (arXiv:2501.03262).

    Every token earns -0.01 (old log-prob - reference log-prob), the last one also r. A is what is earned from there on,
    minus its mean over all tokens of the batch, divided by its std over them. Clipped loss, mean over all tokens.
    Axes: baseline none, scale none, whiten tokens, token ratio, clip 0.2/0.2, token_mean, KL reward_k1 0.01.
    Scale: its paper trains mostly against reward models; here that of "Tricks or Traps", see `papers.study`.
    """
    return study(
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


@published()
def grpo() -> Recipe:
    """GRPO: a reward is compared with the other answers to the same problem (arXiv:2402.03300).

    A = (r - group mean) / group std. Clipped loss, each answer's mean over tokens, mean over answers; the k3 estimate
    of the distance to the reference model is added with weight 0.04 (many later implementations set it to 0).
    Axes: baseline group_mean, scale group_std, token ratio, clip 0.2/0.2, seq_mean_token_mean, KL loss_k3 0.04.
    Scale: 16 problems x 64 answers of up to 1024 tokens, one update each, lr 1e-6. Not stated: temperature (1), warm-up
    (none), steps (one pass over the data). Its 144k questions on GSM8K and MATH are not public: MATH stands in. Its
    rewards come from a reward model: here they are verdicts.
    """
    return at_scale(
        "grpo",
        Algorithm(
            baseline="group_mean",
            scale="group_std",
            ratio="token",
            clip=Clip(low=0.2, high=0.2),
            aggregate="seq_mean_token_mean",
            kl=Kl(kind="loss_k3", coef=0.04),
        ),
        model="deepseek-ai/deepseek-math-7b-instruct",
        data=MATH_12K,
        rollout=RolloutSettings(prompts=16, per_problem=64, max_new_tokens=1024),
        optim=Optim(lr=1e-6),
        steps=750,
        evaluation=Evaluation(problems=500, samples=1, every=50, data=MATH_500),
    )


@published()
def dr_grpo() -> Recipe:
    """Dr. GRPO: GRPO without its two biases, the std and the answer's own length (arXiv:2503.20783).

    A = r - group mean. Clipped loss, each answer's sum over tokens divided by the largest length, mean over answers.
    Axes: baseline group_mean, scale none, token ratio, clip 0.2/0.2, token_sum_constant, no KL.
    Scale, of the authors' script: 128 problems x 8 answers of up to 3000 tokens, 8 updates, lr 1e-6, temperature 1, 20
    passes over MATH. It evaluates greedily; here that is done at the temperature of training.
    """
    return at_scale(
        "dr_grpo",
        Algorithm(
            baseline="group_mean",
            scale="none",
            ratio="token",
            clip=Clip(low=0.2, high=0.2),
            aggregate="token_sum_constant",
        ),
        model="Qwen/Qwen2.5-Math-1.5B",
        data=MATH_12K,
        rollout=RolloutSettings(prompts=128, per_problem=8, max_new_tokens=3000),
        optim=Optim(lr=1e-6),
        minibatches=8,
        steps=1875,
        evaluation=Evaluation(problems=500, samples=1, every=16, data=MATH_500),
    )


@published()
def lite_ppo() -> Recipe:
    """Lite PPO: group mean, batch std, token mean, and nothing else ("Tricks or Traps", arXiv:2508.08221).

    A = (r - group mean) / std of all raw rewards of the batch. Clipped loss, mean over all tokens of the batch.
    Axes: baseline group_mean, scale batch_std_raw, token ratio, clip 0.2/0.2, token_mean, no KL.
    Scale: `papers.study`.
    """
    return study(
        "lite_ppo",
        Algorithm(
            baseline="group_mean",
            scale="batch_std_raw",
            ratio="token",
            clip=Clip(low=0.2, high=0.2),
            aggregate="token_mean",
        ),
    )
