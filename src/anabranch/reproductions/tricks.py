"""`anabranch reproduce tricks`: the arms for "Part I: Tricks or Traps? A Deep Dive into RL for LLM Reasoning".

arXiv:2508.08221. What is claimed of them: `anabranch.reproductions.tricks_findings`. An arm is called after its model
and data: `base-hard group` is small-base on hard sums with group normalisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from anabranch.presets.small import SETS
from anabranch.recipe.text import inline
from anabranch.reproductions.claims import Quick, Reproduction
from anabranch.reproductions.tricks_findings import FINDINGS

MINIBATCHES = 4
"""Updates a batch where clipping is the point: with one, every ratio is 1."""
SHORT, LONG = 56, 160
"""T8: tokens of an answer. A medium sum takes about 45, so that the short limit cuts answers that check
themselves or repeat themselves; the long one cuts hardly any but the latter."""
CLIPS = (0.20, 0.24, 0.28, 0.32)
"""T4 to T6: upper bounds of the clip."""
DAPO_ROUNDS = 30
"""T9: most rounds in which DAPO draws other problems. The preset's 10 would end a run in which most groups agree."""

_SCHEMES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "none": ("none", "none"),
        "batch": ("batch_mean", "batch_std_raw"),
        "group": ("group_mean", "group_std"),
        "mean": ("group_mean", "none"),
        "mixed": ("group_mean", "batch_std_raw"),
    }
)
"""Normalisation: baseline and scale."""


def _on(model: str, difficulty: str) -> tuple[str, ...]:
    return f"model.source=small-{model}", f"data={inline(SETS[difficulty].model_dump(mode='json'))}"


def _plain(scheme: str, aggregate: str = "seq_mean_token_mean") -> str:
    """The study's default: clip 0.2/0.2, no KL, nothing else; mean over answers of their token means."""
    baseline, scale = _SCHEMES[scheme]
    return f"algorithm={{baseline: {baseline}, scale: {scale}, aggregate: {aggregate}}}"


def _arms() -> dict[str, tuple[str, ...]]:
    arms: dict[str, tuple[str, ...]] = {}

    def add(model: str, difficulty: str, name: str, *changes: str) -> None:
        arms[f"{model}-{difficulty} {name}"] = (*_on(model, difficulty), *changes)

    for place in (("base", "easy"), ("base", "hard"), ("aligned", "medium")):  # T1
        for scheme in ("none", "batch", "group"):
            add(*place, scheme, _plain(scheme))
    for place in (("base", "easy"), ("base", "hard")):
        for scheme in ("none", "batch"):
            add(*place, f"{scheme} -1/1", _plain(scheme), "reward.0.wrong=-1.0")
        add(*place, "mean", _plain("mean"))  # T2
        add(*place, "mixed", _plain("mixed"))  # T3
    for place in (("base", "medium"), ("aligned", "medium"), ("aligned", "easy")):  # T4, T5, T6
        for high in CLIPS if place == ("aligned", "medium") else (CLIPS[0], CLIPS[2]):
            clip = f"algorithm.clip.high={high}"
            add(*place, f"clip {high:.2f}", _plain("group"), f"train.minibatches={MINIBATCHES}", clip)
    for place in (("base", "medium"), ("aligned", "easy")):  # T7: elsewhere T1 has them
        add(*place, "group", _plain("group"))
    for place in (("base", "easy"), ("base", "medium"), ("base", "hard"), ("aligned", "easy"), ("aligned", "medium")):
        add(*place, "token", _plain("group", "token_mean"))
    for place, word, limit in (  # T8
        (("base", "medium"), "short", SHORT),
        (("base", "medium"), "long", LONG),
        (("aligned", "medium"), "short", SHORT),
    ):
        cut = f"rollout.max_new_tokens={limit}"
        add(*place, word, _plain("group"), cut)
        add(*place, f"{word} filtered", _plain("group"), cut, "algorithm.overlong.kind=filter")
    for place in (("base", "easy"), ("base", "medium"), ("base", "hard")):  # T9
        add(*place, "Lite PPO", "recipe=lite_ppo")
        add(*place, "GRPO", "recipe=grpo")
        if place != ("base", "easy"):
            add(*place, "DAPO", "recipe=dapo", f"rollout.dynamic.rounds={DAPO_ROUNDS}")
    return arms


TRICKS = Reproduction(
    name="tricks",
    title='"Tricks or Traps" (Lite PPO): findings T1-T9 on small models',
    source="Liu et al., Part I: Tricks or Traps? A Deep Dive into RL for LLM Reasoning, arXiv:2508.08221",
    setting=(
        "Models: a Llama of well under a million parameters that reads characters and was trained from scratch on "
        "worked sums stands for the paper's base models (text of mixed quality: slips, answers without steps, endless "
        "loops), the same after more training on clean text for its aligned ones. The paper's are Qwen3-4B and 8B.",
        "Data: sums and differences of few (easy), more (medium) and many (hard) numbers; held-out problems from the "
        "same generator, never trained on. The paper trains on mathematics and evaluates on six benchmarks.",
        "Steps, answers a step and learning rate are those of the preset small_sums; the paper makes hundreds of "
        "steps of 1024 answers at lr 1e-6, one batch behind.",
        "Like the paper, unless a finding says otherwise: no critic, no KL, clip 0.2/0.2, one update a batch, mean "
        "over answers of their token means, rewards 0 and 1. Temperature is 1 and nothing is cut from the "
        "distribution; the paper has 0.99, top-p 0.99, top-k 100.",
        "Group, batch and mixed schemes take the unbiased std; batch std is of raw rewards.",
        "The paper has one run a setting. Where it shows a curve and no number, the claims below are how its words "
        "were read; margins of 3 points for 'equal' are ours.",
    ),
    base="small_sums",
    common=("name=tricks", "model.threads=1", "model.device=cpu", "probes.patience=1000", "save.keep=1"),
    arms=_arms(),
    findings=FINDINGS,
    quick=Quick(
        arms=(
            "base-easy none",
            "base-easy batch",
            "base-easy group",
            "base-easy batch -1/1",
            "base-easy mean",
            "base-easy mixed",
            "aligned-medium group",
            "aligned-medium clip 0.20",
            "aligned-medium clip 0.28",
            "aligned-medium clip 0.32",
            "base-easy token",
            "aligned-medium token",
            "base-medium short",
            "base-medium short filtered",
            "base-easy Lite PPO",
            "base-easy GRPO",
            "base-medium Lite PPO",
            "base-medium DAPO",
        ),
        changes=("name=tricks-quick", "steps=10", "evaluation={problems: 32, samples: 2}"),
    ),
)
