"""What "Tricks or Traps" found, and what is claimed of the arms of `anabranch.reproductions.tricks`.

Written before any run. T1-T9 are the numbers of `lite_ppo`, section 4, of this project's specifications.
"""

from __future__ import annotations

from types import MappingProxyType

from anabranch.reproductions.claims import Claim, Curves, Expect, Finding

POINTS = 0.03
"""Within 3 points accuracies count as equal."""
NATS = 0.02
"""Within so many nats a token entropies count as equal."""
ACCURACY = "accuracy"
HIGHER, LOWER, EQUAL = Expect.HIGHER, Expect.LOWER, Expect.EQUAL
AT_LEAST, AT_MOST = Expect.AT_LEAST, Expect.AT_MOST

T1_PLACES = ("base-easy", "base-hard", "aligned-medium")
BASE_PLACES = ("base-easy", "base-hard")
T9_PLACES = MappingProxyType({"base-easy": ("GRPO",), "base-medium": ("GRPO", "DAPO"), "base-hard": ("GRPO", "DAPO")})
"""Lite PPO against which methods."""

T1 = Finding(
    id="T1",
    title="Group normalisation is stable; batch normalisation is not with rewards 0/1, and recovers with -1/1",
    paper="Group-level normalisation is stable for every reward setting; batch-level normalisation is unstable with "
    "rewards 0/1 and recovers with -1/1. Base models on easy and hard data, aligned ones on medium data.",
    here="'Stable' is read as: the final accuracy is not below that without normalisation by 3 points or more, and "
    "training accuracy falls less below its best. Batch normalisation with -1/1 is the same formula as with 0/1 (any "
    "(r - mean) / std is), so that the last two claims expect the contrary of the two before them.",
    claims=(
        *(
            Claim(f"T1.{n}", "group is not below none", f"{place} group", f"{place} none", AT_LEAST, margin=POINTS)
            for n, place in enumerate(T1_PLACES, start=1)
        ),
        *(
            Claim(
                f"T1.{n}",
                "group is not below none with rewards -1/1",
                f"{place} group",
                f"{place} none -1/1",
                AT_LEAST,
                margin=POINTS,
            )
            for n, place in enumerate(BASE_PLACES, start=4)
        ),
        *(
            Claim(f"T1.{n}", "batch falls further than group", f"{place} batch", f"{place} group", HIGHER, "fall")
            for n, place in enumerate(T1_PLACES, start=6)
        ),
        *(
            Claim(f"T1.{n}", "batch is better with -1/1 than with 0/1", f"{place} batch -1/1", f"{place} batch", HIGHER)
            for n, place in enumerate(BASE_PLACES, start=9)
        ),
        *(
            Claim(
                f"T1.{n}",
                "by arithmetic: batch with -1/1 equals batch with 0/1",
                f"{place} batch -1/1",
                f"{place} batch",
                EQUAL,
                margin=POINTS,
                of_paper=False,
            )
            for n, place in enumerate(BASE_PLACES, start=11)
        ),
    ),
    curves=(
        *(
            Curves(ACCURACY, tuple(f"{place} {name}" for name in ("none", "none -1/1", "batch", "batch -1/1", "group")))
            for place in BASE_PLACES
        ),
        Curves(ACCURACY, tuple(f"aligned-medium {name}" for name in ("none", "batch", "group"))),
    ),
)

T2 = Finding(
    id="T2",
    title="Where rewards are concentrated, dropping the std is better",
    paper="On easy data the std of rewards falls to a low value, small denominators blow up gradients, and training "
    "without the std is steadier and better. On hard data the std stays high, and both are equal.",
    here="Without the std advantages are smaller, and so are gradients; their norm is clipped at 1 and AdamW divides "
    "by their size. So spikes are compared as the largest norm over the median.",
    claims=(
        Claim("T2.1", "without the std is better on easy sums", "base-easy mean", "base-easy group", HIGHER),
        Claim("T2.2", "gradients spike less", "base-easy mean", "base-easy group", LOWER, "grad_spikes"),
        Claim("T2.3", "both are equal on hard sums", "base-hard mean", "base-hard group", EQUAL, margin=POINTS),
        Claim("T2.4", "the std is lower on easy sums", "base-easy group", "base-hard group", LOWER, "reward_std_late"),
    ),
    curves=(
        Curves(ACCURACY, ("base-easy group", "base-easy mean", "base-hard group", "base-hard mean")),
        Curves("reward_std", ("base-easy group", "base-hard group")),
        Curves("grad_norm", ("base-easy group", "base-easy mean")),
    ),
)

T3 = Finding(
    id="T3",
    title="Group mean with batch std is the most robust",
    paper="Subtracting the mean of the group and dividing by the std of the batch is better than dividing by the std "
    "of the group, for base models on easy and hard data.",
    here="The paper explains it by smaller gradients. By arithmetic that is not so in general: where most groups are "
    "all right, the std of the batch is the smaller one (see the largest advantages).",
    claims=(
        *(
            Claim(f"T3.{n}", "batch std is better than group std", f"{place} mixed", f"{place} group", HIGHER)
            for n, place in enumerate(BASE_PLACES, start=1)
        ),
        *(
            Claim(f"T3.{n}", "it falls less below its best", f"{place} mixed", f"{place} group", LOWER, "fall")
            for n, place in enumerate(BASE_PLACES, start=3)
        ),
    ),
    curves=(
        *(Curves(ACCURACY, (f"{place} group", f"{place} mixed")) for place in BASE_PLACES),
        Curves("advantage_max_abs", ("base-easy group", "base-easy mixed", "base-hard group", "base-hard mixed")),
        Curves("sigma_batch", ("base-easy mixed", "base-hard mixed")),
    ),
)

T4 = Finding(
    id="T4",
    title="A higher upper clip helps aligned models, not base models",
    paper="An upper clip of 0.28 instead of 0.20 helps aligned models (medium and easy data), whose entropy then falls "
    "more slowly. On base models it hardly changes the entropy and sometimes harms (medium data).",
    here="Four updates a batch, since with one no ratio leaves 1 and nothing is clipped. The paper makes one, a batch "
    "late, so that its ratios leave 1 by the delay.",
    claims=(
        Claim("T4.1", "base: no better", "base-medium clip 0.28", "base-medium clip 0.20", AT_MOST, margin=POINTS),
        Claim(
            "T4.2",
            "base: the same entropy",
            "base-medium clip 0.28",
            "base-medium clip 0.20",
            EQUAL,
            "entropy",
            margin=NATS,
        ),
        *(
            Claim(f"T4.{n}", "aligned: better", f"{place} clip 0.28", f"{place} clip 0.20", HIGHER)
            for n, place in enumerate(("aligned-medium", "aligned-easy"), start=3)
        ),
        *(
            Claim(
                f"T4.{n}",
                "aligned: entropy falls more slowly",
                f"{place} clip 0.28",
                f"{place} clip 0.20",
                HIGHER,
                "entropy_late",
            )
            for n, place in enumerate(("aligned-medium", "aligned-easy"), start=5)
        ),
    ),
    curves=tuple(
        Curves(metric, (f"{place} clip 0.20", f"{place} clip 0.28"))
        for place in ("base-medium", "aligned-medium", "aligned-easy")
        for metric in (ACCURACY, "entropy")
    ),
)

T5 = Finding(
    id="T5",
    title="With a higher upper clip fewer tokens are clipped, and others",
    paper="With 0.20 clipping mostly hits connectives (therefore, if, but) at the start of sentences; with 0.28 fewer "
    "tokens are clipped, mostly function words.",
    here="Tokens are characters. What the upper bound acted on is counted by character, and how often that was the "
    "first one of a line.",
    claims=tuple(
        Claim(f"T5.{n}", "fewer are clipped", f"{place} clip 0.28", f"{place} clip 0.20", LOWER, "clipped")
        for n, place in enumerate(("base-medium", "aligned-medium", "aligned-easy"), start=1)
    ),
    cannot="Whether connectives or function words are clipped: worked sums written in characters have none. Which "
    "characters are, and how many of them open a line, is shown without a verdict.",
    clipped=tuple(f"{p} clip {c}" for p in ("base-medium", "aligned-medium", "aligned-easy") for c in ("0.20", "0.28")),
)

T6 = Finding(
    id="T6",
    title="A small aligned model gains with the upper clip up to 0.32",
    paper="Medium data, upper clip 0.20, 0.24, 0.28, 0.32: the 4B model grows with it, best at 0.32; the 8B model has "
    "no trend, best at 0.28. The authors call it a scaling law.",
    here="One size of model, four updates a batch.",
    claims=(
        Claim("T6.1", "0.32 is better than 0.20", "aligned-medium clip 0.32", "aligned-medium clip 0.20", HIGHER),
        *(
            Claim(
                f"T6.{n}",
                f"{high} is not below {low}",
                f"aligned-medium clip {high}",
                f"aligned-medium clip {low}",
                AT_LEAST,
                margin=POINTS,
            )
            for n, (low, high) in enumerate((("0.20", "0.24"), ("0.24", "0.28"), ("0.28", "0.32")), start=2)
        ),
    ),
    cannot="That larger models have another best value, or none: there is one size here.",
    curves=tuple(
        Curves(metric, tuple(f"aligned-medium clip {high}" for high in ("0.20", "0.24", "0.28", "0.32")))
        for metric in (ACCURACY, "entropy")
    ),
)

T7 = Finding(
    id="T7",
    title="Token mean for base models, sequence mean for aligned ones",
    paper="The mean over tokens is better for base models (convergence, peak, robustness), on hard data above all; the "
    "mean over answers is better for aligned models.",
    here="Answers to one kind of sum differ little in length, unless they repeat or check themselves; the two means "
    "differ only by length.",
    claims=(
        *(
            Claim(f"T7.{n}", "base: token mean is better", f"{place} token", f"{place} group", HIGHER)
            for n, place in enumerate(("base-easy", "base-medium", "base-hard"), start=1)
        ),
        Claim("T7.4", "base: it falls less below its best", "base-hard token", "base-hard group", LOWER, "fall"),
        *(
            Claim(f"T7.{n}", "aligned: token mean is worse", f"{place} token", f"{place} group", LOWER)
            for n, place in enumerate(("aligned-easy", "aligned-medium"), start=5)
        ),
    ),
    curves=tuple(
        Curves(ACCURACY, (f"{place} group", f"{place} token"))
        for place in ("base-easy", "base-medium", "base-hard", "aligned-easy", "aligned-medium")
    ),
)

T8 = Finding(
    id="T8",
    title="Overlong filtering helps with short limits, not with long ones",
    paper="Leaving cut answers out of the loss helps at 8k tokens (base and aligned) and does little at 20k. Answers "
    "get shorter with it at 8k, longer at 20k, where most cut answers repeat themselves; filtering lowers that share.",
    here="Limits are chosen by the length of answers: one that cuts many, one that cuts hardly any but those that "
    "repeat themselves. Cut answers stay in the statistics of their group.",
    claims=(
        *(
            Claim(f"T8.{n}", "short: filtering is better", f"{place} short filtered", f"{place} short", HIGHER)
            for n, place in enumerate(("base-medium", "aligned-medium"), start=1)
        ),
        Claim("T8.3", "long: it does little", "base-medium long filtered", "base-medium long", EQUAL, margin=POINTS),
        Claim(
            "T8.4",
            "short: answers get shorter",
            "base-medium short filtered",
            "base-medium short",
            LOWER,
            "length_late",
        ),
        Claim(
            "T8.5", "long: answers get longer", "base-medium long filtered", "base-medium long", HIGHER, "length_late"
        ),
        Claim(
            "T8.6",
            "long: fewer cut answers repeat themselves",
            "base-medium long filtered",
            "base-medium long",
            LOWER,
            "repeat_ratio",
        ),
    ),
    curves=(
        Curves(ACCURACY, ("base-medium short", "base-medium short filtered")),
        Curves(ACCURACY, ("base-medium long", "base-medium long filtered")),
        Curves(
            "answer_length_mean",
            ("base-medium short", "base-medium short filtered", "base-medium long", "base-medium long filtered"),
        ),
        Curves("repeat_ratio", ("base-medium long", "base-medium long filtered")),
        Curves(
            "truncated",
            ("base-medium short", "base-medium short filtered", "base-medium long", "base-medium long filtered"),
        ),
    ),
)

T9 = Finding(
    id="T9",
    title="Two techniques suffice: Lite PPO is better than GRPO and DAPO",
    paper="Lite PPO (group mean, batch std, token mean) is better than GRPO and DAPO for base models on easy and hard "
    "data; these often collapse after their peak, Lite PPO keeps rising.",
    here="Methods are the presets at common sizes, answers a step and learning rate. GRPO has its KL (0.04); DAPO "
    "makes four updates a batch, and its dynamic sampling draws other problems for groups that agree: it samples more "
    "answers a step than the others (see the table of arms).",
    claims=tuple(
        Claim(f"T9.{n}", words, f"{place} Lite PPO", f"{place} {other}", expect, measure)
        for n, (place, other, (words, expect, measure)) in enumerate(
            (
                (place, other, told)
                for place, others in T9_PLACES.items()
                for other in others
                for told in (
                    ("Lite PPO is better", HIGHER, "final"),
                    ("it falls less below its best", LOWER, "fall"),
                )
            ),
            start=1,
        )
    ),
    cannot="DAPO on easy sums. In a trial before anything was registered, its dynamic sampling found fewer than 16 "
    "groups that differ after ten steps, when more than four of five problems were answered right every time, and "
    "ended the run. Medium sums stand in.",
    curves=tuple(Curves(ACCURACY, tuple(f"{p} {m}" for m in ("Lite PPO", *others))) for p, others in T9_PLACES.items()),
)

FINDINGS = (T1, T2, T3, T4, T5, T6, T7, T8, T9)
