"""What "Single-stream Policy Optimization" found, and what is claimed of the arms of `anabranch.reproductions.spo`.

Written before any run of the study. In `spo` among this project's specifications: S1 is of section 10.3, S2 and S3 of
10.4, S4 and S5 of 10.5, repeats of 7.
"""

from __future__ import annotations

from anabranch.reproductions.claims import Claim, Curves, Expect, Finding
from anabranch.study.analysis import HELD_OUT

POINTS = 0.03
"""Within 3 points accuracies count as equal."""
HIGHER, LOWER, EQUAL = Expect.HIGHER, Expect.LOWER, Expect.EQUAL

S1 = Finding(
    id="S1",
    title="SPO is better than GRPO at the same number of answers and updates",
    paper="Means over five benchmarks (table 1): majority of 32 answers 63.8 against 60.4, mean of 32 56.0 against "
    "55.7 (two of five are lower); pass@k is higher for every k shown (figure 2), by about 2.4 points.",
    here="Accuracy is the mean over 4 answers; pass@4 counts held-out problems with a right answer. Curves of "
    "accuracy are not in the paper's comparison, so the claim on the way there is ours.",
    claims=(
        Claim("S1.1", "SPO is better at the end", "SPO", "GRPO", HIGHER),
        Claim("S1.2", "it solves more problems in some answer", "SPO", "GRPO", HIGHER, "solved"),
        Claim("S1.3", "by its motivation: SPO is better on the way", "SPO", "GRPO", HIGHER, "way", of_paper=False),
    ),
    cannot="The majority of many answers, where its difference is largest. Anything about speed: GRPO's groups are "
    "sampled here without tools, and nobody waits (see docs/spo.md on waiting).",
    curves=(Curves(HELD_OUT, ("GRPO", "SPO", "BSPO")),),
)

S2 = Finding(
    id="S2",
    title="Many of GRPO's answers teach nothing, few of SPO's",
    paper="Of GRPO's answers 60 %, later more than 80 %, are in groups that agree. Of SPO's, few have an advantage "
    "within 0.02 of zero before it is standardised; their share grows slowly and stays far below (section 5.3).",
    here="Counted is |reward - baseline| <= 0.02 in both. With offline values such an advantage takes 8 visits or "
    "more that agree (values start within [0.06, 0.94], and a visit keeps 0.875 of the old answers or more): a "
    "problem is seen nine times on average, so this claim could hardly fail. How large GRPO's share is, it does not "
    "foresee.",
    claims=(
        Claim("S2.1", "SPO has fewer", "SPO", "GRPO", LOWER, "dead"),
        Claim("S2.2", "also late", "SPO", "GRPO", LOWER, "dead_late"),
    ),
    curves=(Curves("centred_small", ("GRPO", "SPO", "BSPO")),),
)

S3 = Finding(
    id="S3",
    title="A value for every problem takes nearly half of the variance",
    paper="Variance of advantages before they are standardised (section 5.3): that of rewards without a baseline is "
    "the higher one of two SPO curves, the baseline cuts it by nearly 50 %. GRPO's, over groups that differ, is the "
    "largest and the most erratic.",
    here="What a baseline can take is the variance between problems: here it was 27 % of the whole before RL, by 8 "
    "answers to each of 871 problems. The figure does not say whether the curve without baseline is a run of its "
    "own; S3.1 takes it so, S3.2 compares within each step. The variance of GRPO's groups of 8 that differ lies "
    "between 0.11 and 0.25 by arithmetic; which side of the rewards' variance that is depends on how often answers "
    "are right.",
    claims=(
        Claim("S3.1", "SPO's is lower than without a baseline", "SPO", "no baseline", LOWER, "variance"),
        Claim("S3.2", "it is lower than that of its rewards", "SPO", "no baseline", LOWER, "variance_kept"),
        Claim("S3.3", "GRPO's is higher than without a baseline", "GRPO", "no baseline", HIGHER, "variance"),
        Claim("S3.4", "GRPO's is higher than SPO's", "GRPO", "SPO", HIGHER, "variance"),
        Claim("S3.5", "GRPO's is more erratic", "GRPO", "SPO", HIGHER, "variance_spread"),
    ),
    curves=(Curves("centred_variance", ("GRPO", "SPO", "no baseline", "no offline values")),),
)

S4 = Finding(
    id="S4",
    title="The baseline is essential, and offline values help",
    paper="Without the baseline accuracy drops severely. Without offline values it dips early and ends lower "
    "(appendix E).",
    here="Without the baseline values still steer which problems are drawn. Without offline values every problem "
    "starts at 1/2, worth one answer, as in the published code; the paper does not say how. 'Dips early' is read as: "
    "accuracy is lower over the first quarter of the steps.",
    claims=(
        Claim("S4.1", "no baseline is worse", "no baseline", "SPO", LOWER),
        Claim("S4.2", "no offline values are worse early", "no offline values", "SPO", LOWER, "early"),
        Claim("S4.3", "and at the end", "no offline values", "SPO", LOWER),
    ),
    cannot="How severe is severe: the paper shows curves without numbers. A fixed value of the first model (A*-PO), "
    "which it finds worse, is not here.",
    curves=(
        Curves(HELD_OUT, ("SPO", "no baseline", "no offline values")),
        Curves("calibration_error", ("SPO", "no offline values", "constant forgetting")),
    ),
)

S5 = Finding(
    id="S5",
    title="What the paper leaves out: priority, forgetting by divergence, repeats",
    paper="No ablation of the draw by value, of the bounds of forgetting or of its scale is reported (appendix E), "
    "and no result of SPO with several answers a problem (appendix B).",
    here="All claims are ours. Forgetting is expected to matter little, because rho stays at its bounds for most "
    "problems (see the picture). BSPO draws a sixth of a step's problems and answers each 8 times.",
    claims=(
        Claim("S5.1", "drawn uniformly it is worse", "no priority", "SPO", LOWER, of_paper=False),
        Claim(
            "S5.2", "constant forgetting is as good", "constant forgetting", "SPO", EQUAL, margin=POINTS, of_paper=False
        ),
        Claim("S5.3", "BSPO is as good", "BSPO", "SPO", EQUAL, margin=POINTS, of_paper=False),
    ),
    curves=(
        Curves(HELD_OUT, ("SPO", "no priority", "constant forgetting", "BSPO")),
        Curves("rho", ("SPO", "no offline values", "BSPO")),
        Curves("rho_low", ("SPO", "no offline values", "BSPO")),
    ),
)

FINDINGS = (S1, S2, S3, S4, S5)
