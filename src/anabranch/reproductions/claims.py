"""What a reproduction is made of: arms, findings, and claims about them, all written down before anything runs.

Plain data. What they are judged by: `anabranch.reproductions.judging`; the content: one module for each paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from anabranch.errors import RecipeError, explain


class Expect(StrEnum):
    """Where the difference of an arm to its reference is expected."""

    HIGHER = "higher"
    LOWER = "lower"
    EQUAL = "equal"
    """Closer to each other than the margin."""
    AT_LEAST = "at least"
    """Not lower by the margin or more."""
    AT_MOST = "at most"
    """Not higher by the margin or more."""


@dataclass(frozen=True)
class Claim:
    """One comparison, with what is expected of it."""

    id: str
    """`T2.1`: the first claim of finding T2."""
    words: str
    """What is claimed, in a sentence."""
    arm: str
    reference: str
    """Keys of two arms."""
    expect: Expect
    measure: str = "final"
    """Of `anabranch.reproductions.measures.MEASURES`."""
    margin: float = 0.0
    """In units of the measure; only where `expect` reads it."""
    of_paper: bool = True
    """False: expected for another reason, which `words` names; it has no part in the verdict on the finding."""

    @property
    def region(self) -> tuple[float, float]:
        """The open interval in which the difference arm minus reference is expected."""
        return {
            Expect.HIGHER: (0.0, math.inf),
            Expect.LOWER: (-math.inf, 0.0),
            Expect.EQUAL: (-self.margin, self.margin),
            Expect.AT_LEAST: (-self.margin, math.inf),
            Expect.AT_MOST: (-math.inf, self.margin),
        }[self.expect]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Curves:
    """A picture of the curves of several arms."""

    metric: str
    """A metric of RL steps, or `held_out`."""
    arms: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """What a paper found, and what of it is tried here."""

    id: str
    title: str
    paper: str
    """The finding and its conditions, in the words of the specification."""
    here: str
    """What is different here."""
    claims: tuple[Claim, ...]
    cannot: str = ""
    """What cannot be told here, whatever comes out."""
    curves: tuple[Curves, ...] = ()
    clipped: tuple[str, ...] = ()
    """Arms for which it is shown which tokens the upper clip bound acted on."""

    @property
    def arms(self) -> tuple[str, ...]:
        """All arms that it needs, in the order in which they are first named."""
        named = [key for claim in self.claims for key in (claim.reference, claim.arm)]
        named += [key for picture in self.curves for key in picture.arms]
        return tuple(dict.fromkeys([*named, *self.clipped]))


@dataclass(frozen=True)
class Quick:
    """A part of a reproduction that takes minutes. It shows that the machinery runs, and little else."""

    arms: tuple[str, ...]
    changes: tuple[str, ...]
    """To all arms, as overrides: fewer steps, fewer answers."""
    seeds: int = 3
    time: str = "15 minutes"


@dataclass(frozen=True)
class Reproduction:
    """Everything about one paper."""

    name: str
    title: str
    """What is reproduced, on one line."""
    source: str
    """The paper."""
    setting: tuple[str, ...]
    """How the setting here differs from the paper's, a sentence each."""
    base: str
    """The preset that all arms are changes of."""
    common: tuple[str, ...]
    """Changes that all arms share."""
    arms: Mapping[str, tuple[str, ...]]
    """By key: what makes the arm, as overrides; `recipe=NAME` takes a preset's method, as in `anabranch ablate`."""
    findings: tuple[Finding, ...]
    quick: Quick
    seeds: int = 5
    time: str = "3 hours"
    """Of the whole, on two cores."""
    value_samples: int | None = None
    """Answers a problem for offline values that some arms start from, see `reproductions.offline`. None: none do."""

    def __post_init__(self) -> None:
        known = {finding.id for finding in self.findings}
        assert len(known) == len(self.findings), "every finding has an id of its own"
        object.__setattr__(self, "arms", MappingProxyType(dict(self.arms)))

    @property
    def claims(self) -> Iterator[Claim]:
        """Of all findings, in order."""
        return (claim for finding in self.findings for claim in finding.claims)

    def chosen(self, ids: str | None) -> tuple[Finding, ...]:
        """The findings that a list such as `T1,T3` names; all without one.

        Raises:
            RecipeError: an unknown finding, or none at all.
        """
        if ids is None:
            return self.findings
        by_id = {finding.id.lower(): finding for finding in self.findings}
        asked = [part.strip() for part in ids.split(",") if part.strip()]
        for part in asked or ["nothing"]:
            if part.lower() not in by_id:
                need = f"the findings of '{self.name}' are {', '.join(finding.id for finding in self.findings)}"
                raise RecipeError(explain("--only", part, need, f"--only {self.findings[0].id}"))
        return tuple(by_id[part.lower()] for part in dict.fromkeys(asked))
