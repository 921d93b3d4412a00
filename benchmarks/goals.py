"""The goals, one or more for each row of the report, and what is said about a measured value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from benchmarks.duel import number
from benchmarks.markdown import percent

NOT_MEASURED = "not measured"


class Unit(StrEnum):
    """How a goal's values are written."""

    TIMES = "times"
    SECONDS = "seconds"
    SHARE = "share"
    """Of a whole, in percent."""
    MORE = "more"
    """Than something else, in percent, with a sign."""

    def show(self, value: float) -> str:
        """`5.12x`, `6.3 s`, `71.2 %`, `+3.4 %`."""
        match self:
            case Unit.TIMES:
                return f"{number(value)}x"
            case Unit.SECONDS:
                return f"{number(value)} s"
            case Unit.SHARE:
                return percent(value)
            case Unit.MORE:
                return f"{100 * value:+.1f} %"


@dataclass(frozen=True)
class Outcome:
    """A line of the first table."""

    what: str
    goal: str
    measured: str
    verdict: str


@dataclass(frozen=True)
class Goal:
    """A bound on one number."""

    what: str
    """In words."""
    bound: float
    unit: Unit
    at_least: bool = True
    """Else: at most."""

    @property
    def text(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.unit.show(self.bound)}"

    def missing(self) -> Outcome:
        """There is no number."""
        return Outcome(self.what, self.text, NOT_MEASURED, NOT_MEASURED)

    def outcome(self, value: float, measured: str, unlike: str = "") -> Outcome:
        """What came of it.

        Args:
            value: that is compared with the bound.
            measured: how it is shown.
            unlike: what was measured otherwise than the goal says (of `unlike`); then there is no verdict.
        """
        verdict = f"no verdict: {unlike}" if unlike else self.verdict(value)
        return Outcome(self.what, self.text, measured, verdict)

    def verdict(self, value: float) -> str:
        """`reached`, or by how much it is not."""
        missing = self.bound - value if self.at_least else value - self.bound
        if missing <= 0:
            return "reached"
        side = "short of it" if self.at_least else "over it"
        if self.unit in (Unit.SHARE, Unit.MORE):
            return f"**not reached**: {100 * missing:.1f} points {side}"
        return f"**not reached**: {self.unit.show(missing)} {side} ({missing / self.bound:.0%})"


def unlike(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What differs from the sizes that a goal is about, such as `tokens is 4 and not 64`; empty if nothing does."""
    return ", ".join(
        f"{name} is {found.get(name)} and not {value}" for name, value in wanted.items() if found.get(name) != value
    )
