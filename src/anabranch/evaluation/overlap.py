"""Which evaluated problems were seen in training: the same problem, or nearly the same words.

A shingle is 8 words in a row (the whole text, if that is shorter). A phrase that stands in many training problems says
nothing (generated problems share a template), so common shingles are left out. An evaluated problem counts as near a
training problem if at least three quarters of what is left of it stand there.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from anabranch.records import Problem

WORDS = 8
"""Length of a shingle."""
COMMON_SHARE, COMMON_FLOOR = 0.01, 3
"""A shingle in more than this share of the training problems, and in more than so many, is common."""
NEAR = 0.75
"""Share of an evaluated problem's shingles in one training problem from which on they count as near."""

_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Overlap:
    """What evaluated problems share with training problems."""

    num_training: int
    same: tuple[str, ...]
    """Keys of evaluated problems that are training problems: equal question and answer."""
    near: tuple[tuple[str, str, float], ...]
    """(evaluated key, training key, share of shingles) for the others, the nearest training problem each."""


def shingles(text: str) -> frozenset[str]:
    """Runs of 8 words; case and white space do not matter, a symbol is a word."""
    words = _TOKEN.findall(text.lower())
    return frozenset(" ".join(words[start : start + WORDS]) for start in range(max(1, len(words) - WORDS + 1)))


def find_overlap(training: Sequence[Problem], evaluated: Sequence[Problem]) -> Overlap:
    """Compare every evaluated problem with all training problems; linear in the amount of text."""
    wanted = {problem.key: shingles(problem.question) for problem in evaluated}
    asked = frozenset().union(*wanted.values())
    holders: dict[str, list[str]] = defaultdict(list)
    for problem in training:
        for shingle in shingles(problem.question) & asked:
            holders[shingle].append(problem.key)
    limit = max(COMMON_FLOOR, COMMON_SHARE * len(training))
    known = {problem.key for problem in training}
    near = []
    for key, own in wanted.items():
        telling = [shingle for shingle in own if len(holders.get(shingle, ())) <= limit]
        shared = Counter(holder for shingle in telling for holder in holders.get(shingle, ()))
        if key in known or not shared:
            continue
        nearest, count = min(shared.items(), key=lambda item: (-item[1], item[0]))
        if count >= NEAR * len(telling):
            near.append((key, nearest, count / len(telling)))
    return Overlap(len(training), tuple(key for key in wanted if key in known), tuple(near))
