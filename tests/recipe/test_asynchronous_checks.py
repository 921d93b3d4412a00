"""Asynchronous steps are refused where a setting could not act or a bound could not hold; what fits is accepted."""

import re

import pytest

from anabranch.errors import RecipeError
from anabranch.presets import load
from anabranch.recipe.checks import notes
from anabranch.recipe.overrides import apply
from anabranch.recipe.tree import Asynchronous

SPO, GRPO, DAPO = load("spo"), load("grpo"), load("dapo")
ON = "rollout.asynchronous"


@pytest.mark.parametrize(
    ("base", "changes", "where", "fix"),
    [
        (SPO, f"{ON}={{leftover: drop}}", f"{ON}.max_staleness: found 1", f"{ON}.max_staleness=0"),
        (
            SPO,
            f"{ON}={{leftover: drop, max_staleness: 0, keys: recompute}}",
            f"{ON}.keys: found recompute",
            "keys=keep",
        ),
        (SPO, f"{ON}={{max_staleness: 0}}", f"{ON}.max_staleness: found 0", f"{ON}.leftover=drop"),
        (SPO, f"{ON}={{oversample: 2.5}}", "take 3 more steps", f"{ON}.oversample=1.0, or {ON}.max_staleness=3"),
        (SPO, f"{ON}={{schedule: counted}}", f"{ON}.schedule: found counted", f"{ON}.schedule=clock"),
        (DAPO, f"{ON}={{}}", "rollout.dynamic: found with rollout.asynchronous", "rollout.dynamic=null"),
        (GRPO, f"{ON}={{}} rollout.prompts=16 data.size=20", "data.size: found 20", "data.size=24"),
        (SPO, f"{ON}={{oversample: 0}}", "greater than 0", ""),
    ],
)
def test_what_cannot_act_or_hold_is_refused_with_the_way_out(base, changes, where, fix):
    with pytest.raises(RecipeError, match=f"{re.escape(where)}(?s:.*){re.escape(fix)}"):
        apply(base, _split(changes))


def _split(changes: str) -> list[str]:
    """At spaces outside of braces."""
    return re.findall(r"(?:[^\s{]|\{[^}]*\})+", changes)


@pytest.mark.parametrize(
    "changes",
    [
        f"{ON}={{}}",
        f"{ON}={{leftover: drop, max_staleness: 0}}",
        f"{ON}={{oversample: 1.5, max_staleness: 2, keys: recompute}}",
        f"{ON}={{oversample: 0.01}}",
        f"{ON}={{schedule: counted}} environment={{kind: latency}}",
    ],
)
def test_what_fits_is_accepted_by_methods_with_and_without_groups(changes):
    for base in (SPO, GRPO):
        assert apply(base, _split(changes)).rollout.asynchronous is not None


def test_capacity_is_rounded_up_to_whole_problems():
    assert [Asynchronous(oversample=share).capacity(16) for share in (0.5, 0.01, 1.0, 2.5)] == [24, 17, 32, 56]


def test_what_may_surprise_is_said():
    spo = apply(SPO, [f"{ON}={{}}"])
    assert any("algorithm.mismatch.kind=tis" in note for note in notes(spo))
    assert not any("mismatch" in note for note in notes(apply(spo, ["algorithm.mismatch.kind=tis"])))
    assert any(
        "favours short ones" in note for note in notes(apply(SPO, [f"{ON}={{leftover: drop, max_staleness: 0}}"]))
    )
    assert any("schedule=counted" in note for note in notes(apply(spo, ["environment={kind: latency}"])))
