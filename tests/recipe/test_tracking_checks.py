"""Tracked values are refused where nobody reads them, and where rewards would not fit; what fits is accepted."""

import re

import pytest

from anabranch.errors import RecipeError
from anabranch.presets import load
from anabranch.recipe.overrides import apply
from anabranch.recipe.tree import Recipe

SPO, GRPO = load("spo"), load("grpo")
EMA = ("sampling={kind: uniform}", "algorithm.tracker.form=ema")


@pytest.mark.parametrize(
    ("base", "changes", "where", "fix"),
    [
        (GRPO, "algorithm.tracker.rho_min=0.5", "algorithm.tracker.rho_min: found 0.5", "algorithm.baseline=tracker"),
        (GRPO, "algorithm.tracker.prior.value=0.1", "algorithm.tracker.prior: found a prior", "algorithm.tracker={}"),
        (SPO, "algorithm.tracker.rho_max=0.5", "algorithm.tracker.rho_min: found 0.875", "rho_min=0.875"),
        (
            SPO,
            "algorithm.tracker.divergence=constant algorithm.tracker.d_half=0.1",
            "algorithm.tracker.d_half: found 0.1",
            "algorithm.tracker.d_half=0.06",
        ),
        (
            SPO,
            "algorithm.tracker.divergence=constant algorithm.tracker.when=after_update",
            "algorithm.tracker.when: found after_update",
            "algorithm.tracker.divergence=abs",
        ),
        (SPO, "algorithm.tracker.smoothing=0", "only offline values are smoothed", "algorithm.tracker.smoothing=0.5"),
        (
            SPO,
            "algorithm.tracker.values=v.json algorithm.tracker.prior.count=3",
            "the prior is never asked",
            "algorithm.tracker.prior={}",
        ),
        (SPO, "algorithm.tracker.values=v.json cold_start={}", "cold_start comes before that", "cold_start=null"),
        (
            SPO,
            "algorithm.tracker.values=v.json reward=[{term: format}]",
            "shares of right answers",
            "reward=[{term: accuracy}]",
        ),
        (SPO, "reward.0.wrong=-1.0", "reward.0.wrong: found rewards from -1 to 1", "reward.0.wrong=0.0"),
        (SPO, "reward.1={term: format, weight: 0.5}", "reward.0.weight: found rewards from 0 to 1.5", "add up to 1"),
        (SPO, "reward.1={term: format, weight: -0.5}", "reward.1.weight: found rewards from -0.5", "reward.1.weight=0"),
        (SPO, "reward.1={term: cosine_length}", "reward.1.low: found rewards from -0.5 to 1", "reward.1.low=0.0"),
        (SPO, "algorithm.overlong.kind=soft", "algorithm.overlong.kind: found soft", "kind=filter"),
        (
            SPO,
            "algorithm.overlong={kind: stop_properly, coef: -0.5}",
            "algorithm.overlong.coef: found -0.5",
            "algorithm.overlong.coef=0",
        ),
        (SPO, "algorithm.kl={kind: reward_k1, coef: 0.1}", "algorithm.kl.kind: found reward_k1", "algorithm.kl={}"),
        (
            SPO,
            "sampling={kind: uniform} reward.0.wrong=-1.0",
            "a tracker of form beta takes rewards in [0, 1]",
            "algorithm.tracker.form=ema",
        ),
        (SPO, "algorithm.tracker.form=ema reward.0.wrong=-1.0", "sampling by value takes", "reward.0.wrong=0.0"),
        (SPO, "rollout.dynamic={} rollout.per_problem=8", "none is drawn again", "rollout.dynamic=null"),
        (GRPO, "sampling.kind=prioritised rollout.dynamic={}", "none is drawn again", "rollout.dynamic=null"),
        (SPO, "sampling.pool=8", "sampling.pool: found 8", "sampling.pool=64"),
        (SPO, "sampling.pool=80", "there are 80 problems at most", "sampling.pool=null"),
    ],
)
def test_what_cannot_work_is_refused_with_its_fix(base, changes, where, fix):
    with pytest.raises(RecipeError) as caught:
        apply(base, re.split(r" (?=[\w.]+=)", changes))
    assert where in str(caught.value)
    assert fix in str(caught.value).partition("\n  fix: ")[2]
    assert str(caught.value).count("\n  fix: ") == 1  # one mistake, one message


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        (GRPO, ["algorithm.baseline=tracker"]),
        (GRPO, ["sampling.kind=prioritised", "algorithm.tracker.rho_min=0.5"]),  # for the draw alone
        (SPO, ["sampling={kind: uniform}"]),
        (SPO, ["algorithm.baseline=none"]),  # the paper's ablation
        (SPO, ["algorithm.tracker.divergence=constant"]),
        (SPO, ["algorithm.tracker.values=v.json", "algorithm.tracker.smoothing=0.0"]),
        (SPO, ["algorithm.tracker.values=v.json", "reward.1={term: format, weight: 0.0}"]),
        (SPO, ["reward=[{term: accuracy, weight: 0.9}, {term: format, weight: 0.1}]"]),
        (SPO, ["reward=[{term: accuracy, wrong: 0.5}]"]),
        (SPO, ["reward.0.weight=0.7", "reward.1={term: cosine_length, weight: 0.3, low: 0.0, high: 1.0}"]),
        (SPO, ["algorithm.overlong={kind: stop_properly, coef: 0.5}"]),
        (SPO, ["algorithm.overlong.kind=filter"]),
        (SPO, [*EMA, "reward.0.wrong=-1.0"]),
        (SPO, [*EMA, "algorithm.overlong.kind=soft"]),
        (SPO, [*EMA, "algorithm.kl={kind: reward_k1, coef: 0.1}"]),
        (SPO, ["sampling.pool=40", "sampling.gamma=0.5"]),
    ],
)
def test_what_can_work_is_accepted(base, changes):
    assert isinstance(apply(base, changes), Recipe)
