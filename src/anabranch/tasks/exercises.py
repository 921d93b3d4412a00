"""Exercises for models that are trained from scratch: sums without end, and answers to them of a chosen quality.

A model of a million characters' worth of experience should stand to RL as a large one does: it can do more than it
usually does. So its first text is of mixed quality: steps that go wrong, answers without steps, answers worked out
twice, a result repeated without end. Questions are written as reasoning-gym writes those of `basic_arithmetic` and
`chain_sum`, and answers as in `anabranch.tasks.worked`; the package itself is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from anabranch.recipe.tree import Prompt
from anabranch.tasks.worked import ANSWER, steps_of

QUESTION = "Calculate {}."
"""How reasoning-gym asks in `basic_arithmetic` (format_style simple)."""
CHAIN_QUESTION = "State the final answer to the following arithmetic problem: {} ="
"""How it asks in `chain_sum`."""
SLIPS = (-10, -2, -1, 1, 2, 10)
"""By how much the result of a step that goes wrong is off."""
LOOP_CHARACTERS = 160
"""Where the text of an answer that repeats itself is broken off."""


@dataclass(frozen=True)
class Manner:
    """How the answers of a text are written. The shares are of all answers; the rest is plain steps."""

    slip: float = 0.0
    """Chance that the result of a step is wrong; the steps after it go on from there."""
    direct: float = 0.0
    """Share of answers that name the right number at once, without steps."""
    check: float = 0.0
    """Share of answers that are worked out twice, the second time below a line `Check:`."""
    loop: float = 0.0
    """Share of answers that write the result of one of their lines again and again, without end."""


@dataclass(frozen=True)
class Kind:
    """Which sums: from `min_terms` to `max_terms` numbers from 0 to 10 ** `digits`, all equally often."""

    min_terms: int
    max_terms: int
    digits: int
    weight: float = 1.0
    """How often, among other kinds."""

    @property
    def label(self) -> str:
        """As a person reads it."""
        return f"{self.min_terms} to {self.max_terms} numbers up to {10**self.digits}"


@dataclass(frozen=True)
class Exercise:
    """A question, the right number, and an answer to learn from."""

    prompt: str
    """As the user's message reads: the question, in some with the default instruction below."""
    answer: str
    gold: int
    ends: bool
    """Whether the answer is complete. One that repeats itself never is."""


def exercises(kinds: tuple[Kind, ...], manner: Manner, seed: int) -> Iterator[Exercise]:
    """Exercises without end; the arguments alone decide them.

    Nine of ten questions stand alone in the form of `basic_arithmetic`; the others, half of them in the form of
    `chain_sum`, have the default instruction of a recipe below.

    Args:
        kinds: which sums; their weights need not add up to 1.
        manner: how answers are written.
        seed: another one, other exercises.
    """
    rng = Random(seed)
    weights = [kind.weight for kind in kinds]
    instruction = Prompt().instruction
    while True:
        terms, operators = _sum(rng, rng.choices(kinds, weights)[0])
        expression = " ".join([str(terms[0]), *(f"{o} {t}" for o, t in zip(operators, terms[1:], strict=True))])
        form = rng.random()
        question = (CHAIN_QUESTION if form < 0.05 else QUESTION).format(expression)
        gold = terms[0] + sum(t if o == "+" else -t for o, t in zip(operators, terms[1:], strict=True))
        answer, ends = _written(rng, terms, operators, gold, manner)
        yield Exercise(f"{question}\n{instruction}" if form < 0.1 else question, answer, gold, ends)


def _sum(rng: Random, kind: Kind) -> tuple[list[int], list[str]]:
    """Numbers, and the operators between them."""
    count = rng.randint(kind.min_terms, kind.max_terms)
    return [rng.randint(0, 10**kind.digits) for _ in range(count)], [rng.choice("+-") for _ in range(count - 1)]


def _written(rng: Random, terms: list[int], operators: list[str], gold: int, manner: Manner) -> tuple[str, bool]:
    """An answer in one of the manners, and whether it ends."""
    style = rng.random()
    if style < manner.direct:
        return ANSWER.format(gold), True

    def off() -> int:
        return rng.choice(SLIPS) if rng.random() < manner.slip else 0

    lines, total = steps_of(terms, operators, off)
    if style < manner.direct + manner.check:
        again, total = steps_of(terms, operators, off)
        lines = [*lines, "Check:", *again]
    elif lines and style < manner.direct + manner.check + manner.loop:
        kept = "\n".join(lines[: rng.randint(1, len(lines))])
        result = kept.rpartition(" = ")[2]
        return (kept + f" = {result}" * LOOP_CHARACTERS)[:LOOP_CHARACTERS], False
    return "\n".join([*lines, ANSWER.format(total)]), True
