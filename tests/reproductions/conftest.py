"""A reproduction of three arms and two findings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from anabranch.reproductions.claims import Claim, Curves, Expect, Finding, Quick, Reproduction


@pytest.fixture(autouse=True)
def _torch_as_it_was(torch_as_it_was: None) -> Iterator[None]:
    """Every test here, without asking."""
    yield


@pytest.fixture
def small() -> Reproduction:
    """Arms `a`, `b` and `c`; F1 has a claim of the paper and one of arithmetic, F2 one on `c`."""
    return Reproduction(
        name="sample",
        title="A sample",
        source="Nobody, Nothing",
        setting=("Everything is small.",),
        base="small_sums",
        common=("name=sample",),
        arms={"a": (), "b": ("optim.lr=1e-3",), "c": ("algorithm.scale=none",)},
        findings=(
            Finding(
                id="F1",
                title="b is better",
                paper="It was.",
                here="It may be.",
                claims=(
                    Claim("F1.1", "b is better than a", "b", "a", Expect.HIGHER),
                    Claim("F1.2", "they are equal", "b", "a", Expect.EQUAL, margin=0.03, of_paper=False),
                ),
                cannot="Why.",
                curves=(Curves("accuracy", ("a", "b")), Curves("entropy", ("a",))),
                clipped=("a", "b"),
            ),
            Finding(
                id="F2",
                title="c is lower",
                paper="It was.",
                here="It may be.",
                claims=(Claim("F2.1", "c has less entropy", "c", "a", Expect.LOWER, "entropy"),),
            ),
        ),
        quick=Quick(arms=("a", "b"), changes=("steps=2",)),
        seeds=2,
    )
