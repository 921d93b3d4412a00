"""What recipes at the scale of a paper share: public data, the prompt of the R1 line of work, one large device.

Ids and columns are those of the data sets' pages on Hugging Face. Where a paper's own data set is not public, or its
sampling cannot be said here (a share of the easiest problems, say), the recipe that uses a stand-in says so.
"""

from __future__ import annotations

from anabranch.recipe.tree import (
    Algorithm,
    Answer,
    Evaluation,
    HubDataset,
    Optim,
    Prompt,
    Recipe,
    RolloutSettings,
    Save,
    TorchEngine,
    Train,
)

DEEPMATH = HubDataset(id="zwhe99/DeepMath-103K", question="question", answer="final_answer")
"""103k problems with a difficulty (arXiv:2504.11456)."""
DAPO_MATH = HubDataset(id="open-r1/DAPO-Math-17k-Processed", config="all", question="prompt", answer="solution")
"""DAPO's 17k problems, each once: `BytedTsinghua-SIA/DAPO-Math-17k` repeats them and wraps them in a prompt."""
MATH_12K = HubDataset(id="hiyouga/math12k", question="problem", answer="answer")
"""MATH but for the 500 problems of MATH-500, answers taken out of their boxes."""
MATH_500 = HubDataset(id="HuggingFaceH4/MATH-500", split="test", question="problem", answer="answer")
AIME_2024 = HubDataset(id="HuggingFaceH4/aime_2024", question="problem", answer="answer")

BOXED = Prompt(system="Reason step by step, and put the final answer inside \\boxed{}.", instruction="")
ENGINE = TorchEngine(kv_gb=40.0)
"""No paper's number: what one device with 80 GB has beside a model of a few billion parameters."""
ROW_TOKENS = 16_384
"""Likewise. The gradient does not depend on it."""


def at_scale(
    name: str,
    algorithm: Algorithm,
    *,
    model: str,
    data: HubDataset,
    rollout: RolloutSettings,
    optim: Optim,
    steps: int,
    evaluation: Evaluation,
    minibatches: int = 1,
    save_every: int = 20,
    seed: int = 0,
) -> Recipe:
    """A recipe at a paper's scale: answers in a box, judged by mathematical equality, reward 1 or 0."""
    return Recipe(
        name=name,
        seed=seed,
        steps=steps,
        model={"source": model},
        data=data,
        prompt=BOXED,
        answer=Answer(extract=("boxed",)),
        rollout=rollout,
        engine=ENGINE,
        algorithm=algorithm,
        optim=optim,
        train=Train(minibatches=minibatches, row_tokens=ROW_TOKENS),
        evaluation=evaluation,
        save=Save(every=save_every),
    )


def study(name: str, algorithm: Algorithm) -> Recipe:
    """An algorithm in the common setting of "Tricks or Traps" (arXiv:2508.08221).

    Its "medium" data are the 5,000 easiest problems of DeepMath-103K, without an unstated share of those whose answer
    is True or False; a recipe cannot choose by difficulty, so all of it is used. Of the two answer lengths that the
    paper names, 8192 and 8000, the first. Samples an evaluation: not stated; 8, as a digest has it. The paper samples
    one batch ahead of training; here sampling and training take turns.
    """
    return at_scale(
        name,
        algorithm,
        model="Qwen/Qwen3-4B-Base",
        data=DEEPMATH,
        rollout=RolloutSettings(
            prompts=128, per_problem=8, temperature=0.99, top_p=0.99, top_k=100, max_new_tokens=8192
        ),
        optim=Optim(lr=1e-6, warmup=50),
        steps=500,
        evaluation=Evaluation(problems=500, samples=8, every=1, data=MATH_500),
        seed=42,
    )
