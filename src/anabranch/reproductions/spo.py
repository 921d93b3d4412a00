"""`anabranch reproduce spo`: the arms for "Single-stream Policy Optimization", arXiv:2509.13232.

What is claimed of them: `anabranch.reproductions.spo_findings`. All arms but `GRPO` and `BSPO` sample one answer to
each of 128 problems a step, those two 8 answers to each of 16; every arm makes 4 updates a step.
"""

from __future__ import annotations

from anabranch.presets.single_stream import spo
from anabranch.presets.small import sums
from anabranch.recipe.text import inline
from anabranch.reproductions.claims import Quick, Reproduction
from anabranch.reproductions.offline import SETTING
from anabranch.reproductions.spo_findings import FINDINGS

PROBLEMS = 900
"""A step of 128 is a seventh of them, as the paper's 2,048 are of its 14k."""
TERMS = (2, 8)
"""Numbers in a sum, few to many: the easiest are soon always right, the hardest are nearly always wrong. That is where
groups agree, and where a value of its own for every problem can matter."""
BATCH, GROUP = 128, 8
VALUE_SAMPLES = 8
"""n0 of the paper."""

_SINGLE = (f"rollout.prompts={BATCH}", "rollout.per_problem=1")
_GROUPS = (f"rollout.prompts={BATCH // GROUP}", f"rollout.per_problem={GROUP}")
_BY_VALUE = f"sampling={inline(spo().sampling.model_dump(mode='json'))}"


def _data() -> str:
    few, many = TERMS
    data = sums(few)
    return (
        f"data={inline(data.but(options={**data.options, 'max_terms': many}, size=PROBLEMS).model_dump(mode='json'))}"
    )


def _grpo() -> str:
    """Group mean and std; clip and aggregation are SPO's, so that they differ in where the advantage comes from."""
    clip = inline(spo().algorithm.clip.model_dump(mode="json"))
    return f"algorithm={{baseline: group_mean, scale: group_std, clip: {clip}, aggregate: token_mean}}"


SPO = Reproduction(
    name="spo",
    title="Single-stream Policy Optimization (SPO): values in place of groups, on a small model",
    source="Xu and Ding, Single-stream Policy Optimization, arXiv:2509.13232",
    setting=(
        "Model: a Llama of well under a million parameters that reads characters and was trained from scratch on "
        "worked sums of mixed quality. The paper has Qwen3-8B with a Python interpreter; there are no tools here.",
        f"Data: sums and differences of {TERMS[0]} to {TERMS[1]} numbers, easy and hard ones mixed; {PROBLEMS} are "
        f"made, the same for all seeds (fewer are left, since a problem that comes twice is kept once). The paper "
        f"has about 14,000 problems of mathematics. Held out are problems of the same generator, of each seed's own.",
        f"A step: {BATCH} answers and 4 updates in every arm (its ablations: 256 and 4; its main run: 2,048 and 8), a "
        "seventh of the problems as there. GRPO and BSPO take 8 answers a problem. Temperature 1, nothing is cut "
        "from the distribution.",
        "Model, data and the learning rate of 1e-4 were chosen in trials of GRPO and SPO with single seeds and up to "
        "40 steps, before anything was registered: small-aligned hardly learned, and with 3e-4 GRPO fell back to "
        "where it began. In the two trials with the settings that were chosen SPO ended above GRPO.",
        "Clip 0.2/0.28, dual clip 10, mean over tokens, no KL, AdamW, in every arm; GRPO divides by the group's std. "
        "The tracker is the preset spo's: where the paper is silent, the published code's (docs/spo.md), among it "
        "the D at which half is kept, 0.06. That belongs to a learning rate of 1e-6; here the policy moves faster.",
        f"Offline values: {VALUE_SAMPLES} answers to each problem before RL, smoothed as in the published code, "
        f"sampled as training samples. They are made once; all seeds start from the same file.",
        "Rewards are nearly 0 and 1: the data set's own scorer gives a part for a number in which the right one "
        "stands as a part of its digits, which were 3 % of the answers in a trial.",
        "Training accuracy is not comparable between arms that draw problems by value and arms that do not; claims "
        "are about held-out problems. The paper has one run a setting and gives no intervals.",
    ),
    base="small_sums",
    common=(
        "name=spo",
        "model={source: small-base, dtype: float32, device: cpu, threads: 1}",
        _data(),
        "optim={lr: 1e-4}",
        "train.minibatches=4",
        "steps=60",
        "evaluation={problems: 128, samples: 4, every: 10}",
        "probes.patience=1000",
        "save.keep=1",
    ),
    arms={
        "GRPO": (_grpo(), *_GROUPS),
        "SPO": ("recipe=spo", *_SINGLE, _BY_VALUE, SETTING),
        "no baseline": ("recipe=spo", *_SINGLE, _BY_VALUE, SETTING, "algorithm.baseline=none"),
        "no offline values": ("recipe=spo", *_SINGLE, _BY_VALUE),
        "no priority": ("recipe=spo", *_SINGLE, SETTING),
        "constant forgetting": ("recipe=spo", *_SINGLE, _BY_VALUE, SETTING, "algorithm.tracker.divergence=constant"),
        "BSPO": ("recipe=bspo", *_GROUPS, _BY_VALUE, SETTING),
    },
    findings=FINDINGS,
    quick=Quick(
        arms=("GRPO", "SPO", "no baseline", "no offline values", "no priority", "constant forgetting"),
        changes=("name=spo-quick", "steps=8", "evaluation={problems: 32, samples: 2, every: 2}"),
        time="10 minutes",
    ),
    seeds=6,
    time="70 minutes",
    value_samples=VALUE_SAMPLES,
)
