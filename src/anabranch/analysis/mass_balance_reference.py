"""What `anabranch simulate mass-balance` should come to: bands that hold for any seed.

They were measured by us, with PyTorch's AdamW and automatic differentiation or closed-form gradients in float32 and
float64, over 2 to 100 seeds for each N; the paper (arXiv:2510.01180, figure 3) shows curves without numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

import numpy as np

from anabranch.analysis.mass_balance import Outcome

Range = tuple[float, float]


@dataclass(frozen=True)
class Band:
    """Where a run of one N ends."""

    correct_mass: Range
    improved: Range
    """A share."""
    worst_sign: int
    """Of the change of the correct token that did worst: -1, 1, or 0 for either."""


@dataclass(frozen=True)
class Size:
    """A vocabulary with its correct tokens, how long it is run, and where that ends for some N."""

    vocabulary: int
    correct: int
    steps: int
    bands: Mapping[int, Band]
    close: frozenset[tuple[int, int]] = frozenset()
    """Neighbours whose Q_pos differ by less than seeds do: compared in the mean of several seeds, or not at all."""


SIZES: Mapping[str, Size] = MappingProxyType(
    {
        "ci": Size(
            12_800,
            1_000,
            300,
            MappingProxyType(
                {
                    4: Band((0.610, 0.626), (0.26, 0.37), -1),
                    16: Band((0.639, 0.6445), (0.61, 0.71), -1),
                    64: Band((0.655, 0.657), (0.86, 0.94), -1),
                    512: Band((0.670, 0.671), (0.995, 1.0), 0),
                    4_096: Band((0.6905, 0.6915), (0.999, 1.0), 1),
                }
            ),
        ),
        "full": Size(
            128_000,
            10_000,
            1_000,
            MappingProxyType(
                {
                    4: Band((0.600, 0.604), (0.10, 0.13), -1),
                    8: Band((0.601, 0.605), (0.20, 0.24), -1),
                    16: Band((0.606, 0.609), (0.30, 0.34), -1),
                    512: Band((0.633, 0.635), (0.60, 0.64), -1),
                    51_200: Band((0.646, 0.648), (0.999, 1.0), 1),
                }
            ),
            close=frozenset({(4, 8)}),
        ),
    }
)


def misses(band: Band, outcome: Outcome) -> list[str]:
    """Which figures of a run are outside their band, by name."""
    found = {
        "Q_pos": _within(outcome.correct_mass, band.correct_mass),
        "improved": _within(outcome.improved, band.improved),
        "worst": band.worst_sign == 0 or outcome.worst * band.worst_sign > 0,
        "worst of all steps": outcome.worst_of_all < 0,  # early on some correct token always loses
    }
    return [name for name, right in found.items() if not right]


def order_misses(size: Size, runs: Sequence[Sequence[Outcome]]) -> list[str]:
    """Where Q_pos or the share improved does not rise with N, in words.

    Args:
        size: says which neighbours are too close for single runs.
        runs: for each N, rising, its runs with all seeds. Of an N that the size has no band for nothing is said.
    """
    found = []
    known = [outcomes for outcomes in runs if outcomes[0].setting.draws in size.bands]
    for fewer, more in pairwise(known):
        names = fewer[0].setting.draws, more[0].setting.draws
        told = f"N = {names[1]:,} is not above N = {names[0]:,}"
        if names in size.close:
            if len(fewer) > 1 and _mean_mass(more) <= _mean_mass(fewer):
                found.append(f"mean Q_pos of {told}")
        elif min(each.correct_mass for each in more) <= max(each.correct_mass for each in fewer):
            found.append(f"Q_pos of {told}")
        most = max(each.improved for each in fewer)
        if min(each.improved for each in more) <= most < 1:
            found.append(f"share improved of {told}")
    return found


def _mean_mass(outcomes: Sequence[Outcome]) -> float:
    return float(np.mean([each.correct_mass for each in outcomes]))


def _within(value: float, band: Range) -> bool:
    return band[0] <= value <= band[1]
