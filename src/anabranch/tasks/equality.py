r"""Are two final answers mathematically equal?

Numbers first, exactly and in bounded time: `1,234` is `1234`, `0.5` is `1/2` is `\frac12`, `$7.` is `7`. What is not a
plain number on both sides goes to `math_verify`, as one LaTeX expression. Its own timeouts are switched off (they need
signals in the main thread): the wall clock is enforced from outside by killing the worker.

Known leniencies of `math_verify`: letters that can be units are dropped after a number (`5m` is 5), the case of symbols
plays no part, and an irrational number is compared to six decimals.

`math_verify` is given LaTeX only. Its rule for plain text hands the text to SymPy's `parse_expr`, which evaluates it;
its LaTeX grammar passes on nothing but the digits of number tokens.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import ClassVar

from anabranch.records import Problem, Reason, Verdict
from anabranch.tasks.base import Checker

MAX_LENGTH = 1_000
"""Characters of a final answer; a longer one is malformed."""
MAX_DIGITS = 400
"""Digits of a plain number, and largest decimal exponent: keeps exact arithmetic cheap."""

_UNIT_WORDS = """
    percent percents dollar dollars usd cent cents euro euros degree degrees deg
    mm cm km millimeters centimeters meters metres kilometers inch inches foot feet ft yard yards mile miles mi
    second seconds sec minute minutes min hour hours hr hrs day days week weeks month months year years
    kg grams kilograms pounds lbs ounces oz ml liters litres gallons mph kmh
"""
UNITS = frozenset(_UNIT_WORDS.split())
"""Words that may follow a number and are then left out. A closed list: `5 x` or `18 thousand` are other
numbers. No single letters: `5m` is more often a product."""

_SPACES = re.compile(r"\\[,;:!> ]|\\q?quad\b|~|\\displaystyle\b|\s+")
_WRAPPED = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"))
_TEXT_UNIT = re.compile(r"\\(?:text|mbox|mathrm|textbf)\{ *([A-Za-z]+)\.? *\}$")
_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_PLAIN = re.compile(rf"([-+]?)({_DECIMAL})(?:[eE]([-+]?\d{{1,6}}))?", re.ASCII)
_TIMES_TEN = re.compile(rf"([-+]?)({_DECIMAL})\\(?:times|cdot)10\^(?:\{{([-+]?\d{{1,6}})\}}|(\d))", re.ASCII)
_SLASH = re.compile(rf"([-+]?)({_DECIMAL})/({_DECIMAL})", re.ASCII)
_FRAC = re.compile(r"([-+]?)\\[dt]?frac(?:\{([-+]?[\d.,]+)\}|(\d))(?:\{([-+]?[\d.,]+)\}|(\d))", re.ASCII)


@dataclass(frozen=True)
class Number:
    """A plain number as it was written."""

    value: Fraction
    percent: bool = False
    """A percent sign followed: 50% is 50 with `percent`."""


@dataclass(frozen=True)
class MathChecker(Checker):
    """Judges by mathematical equality with the gold answer."""

    preload: ClassVar[tuple[str, ...]] = ("math_verify", "sympy", "anabranch.tasks.equality")

    def __call__(self, problem: Problem, text: str) -> Verdict:
        """CORRECT with 1, or 0 with NO_ANSWER, MALFORMED (too long) or WRONG."""
        answer = self.find(text)
        if answer is None:
            return Verdict(0.0, Reason.NO_ANSWER)
        if len(answer) > MAX_LENGTH:
            return Verdict(0.0, Reason.MALFORMED, answer, f"longer than {MAX_LENGTH} characters")
        if equal(problem.answer, answer):
            return Verdict(1.0, Reason.CORRECT, answer)
        return Verdict(0.0, Reason.WRONG, answer)

    def prepare(self) -> None:
        """Import `math_verify` and build its caches."""
        import math_verify

        # One warning a worker that its timeouts are off; they are, on purpose.
        logging.getLogger("math_verify").setLevel(logging.ERROR)
        math_verify.parse("$x^2$", _latex(), parsing_timeout=None)


def equal(gold: str, answer: str) -> bool:
    """Whether `answer` equals `gold`: as numbers, as the same text, or by `math_verify`. May hang: call it in a worker.

    If both are plain numbers the comparison is exact and final: 0.333 is not 1/3.
    """
    gold_number, answer_number = read_number(gold), read_number(answer)
    if gold_number is not None and answer_number is not None:
        return same_number(gold_number, answer_number)
    return tidy(gold) == tidy(answer) or _equal_latex(gold, answer)


def same_number(left: Number, right: Number) -> bool:
    """Exact equality; if only one has a percent sign, 50% equals both 50 and 0.5."""
    if left.percent == right.percent:
        return left.value == right.value
    percent, plain = (left, right) if left.percent else (right, left)
    return plain.value in (percent.value, percent.value / 100)


def tidy(text: str) -> str:
    """An answer without what does not matter: blanks, math delimiters, bold, a final period, unicode minus."""
    text = text.strip().replace("\u2212", "-").replace("{,}", ",")
    for _ in range(3):  # **$7$.** has three layers
        text = text.rstrip("\\").strip()
        text = text.removesuffix(".").removesuffix(",").removesuffix(";").strip()
        for opening, closing in _WRAPPED:
            inner = text[len(opening) : len(text) - len(closing)]
            if text.startswith(opening) and text.endswith(closing) and inner and opening not in inner:
                text = inner.strip()
    return _SPACES.sub(" ", text).strip()


def read_number(text: str) -> Number | None:
    """The plain number that a text is, with currency signs and known units left out; None if it is anything else.

    Bounded: more than `MAX_DIGITS` digits, or a decimal exponent beyond that, is None.
    """
    if len(text) > MAX_LENGTH:
        return None
    text, percent = _without_units(tidy(text).replace("\\$", "").replace("$", "").lstrip("£€ "))
    value = _fraction(text.replace(" ", "")) if " " not in text.strip("-+ ") else _fraction_with_blanks(text)
    return None if value is None else Number(value, percent)


def _without_units(text: str) -> tuple[str, bool]:
    """The text without a unit at its end, and whether that unit was a percentage."""
    text = text.strip()
    for sign in ("\\%", "%"):
        if text.endswith(sign):
            return text.removesuffix(sign).strip(), True
    for sign in ("^\\circ", "^{\\circ}", "°"):
        text = text.removesuffix(sign).strip()
    match = _TEXT_UNIT.search(text)
    head, word = (text[: match.start()], match.group(1)) if match else _last_word(text)
    if word.lower() in UNITS:
        return head.strip(), word.lower().startswith("percent")
    return text, False


def _last_word(text: str) -> tuple[str, str]:
    """A text split before the letters at its end."""
    head = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return head, text[len(head) :]


def _fraction_with_blanks(text: str) -> Fraction | None:
    r"""A number written with blanks around `/`, `\times` or inside `\frac`; blanks between digits do not join them."""
    parts = text.split(" ")
    if any(left[-1:].isdigit() and right[:1].isdigit() for left, right in pairwise(parts)):
        return None
    return _fraction("".join(parts))


def _fraction(text: str) -> Fraction | None:
    """The value of a decimal, a power-of-ten form, `a/b` or a LaTeX fraction, without blanks."""
    if match := _PLAIN.fullmatch(text):
        return _decimal(match[1], match[2], match[3])
    if match := _TIMES_TEN.fullmatch(text):
        return _decimal(match[1], match[2], match[3] or match[4])
    if match := _SLASH.fullmatch(text):
        return _ratio(match[1], match[2], match[3])
    if match := _FRAC.fullmatch(text):
        return _ratio(match[1], match[2] or match[3], match[4] or match[5])
    return None


def _decimal(sign: str, digits: str, exponent: str | None) -> Fraction | None:
    """sign, digits and decimal exponent as an exact value, None beyond the bounds."""
    digits = digits.replace(",", "")
    power = int(exponent or 0)
    if len(digits) > MAX_DIGITS or abs(power) > MAX_DIGITS:
        return None
    value = Fraction(digits.rstrip(".")) * Fraction(10) ** power
    return -value if sign == "-" else value


def _ratio(sign: str, above: str, below: str) -> Fraction | None:
    """above / below, None where one is no number or the division is by zero."""
    parts = [_PLAIN.fullmatch(part) for part in (above, below)]
    values = [_decimal(match[1], match[2], None) for match in parts if match]
    if len(values) < 2 or values[0] is None or not values[1]:
        return None
    return -values[0] / values[1] if sign == "-" else values[0] / values[1]


def _latex() -> list[object]:
    """What `math_verify` may look for: LaTeX, never plain text (see the module's docstring)."""
    from math_verify import LatexExtractionConfig

    return [LatexExtractionConfig()]


def _equal_latex(gold: str, answer: str) -> bool:
    """`math_verify` on both sides, each as one LaTeX expression."""
    import math_verify

    sides = [tidy(side) for side in (gold, answer)]
    # A second pair of $ would make it several expressions of which one is picked; __ has no use in an answer.
    if any(not side or "$" in side.replace("\\$", "") or "__" in side for side in sides):
        return False
    parsed = [
        math_verify.parse(f"${side}$", _latex(), fallback_mode="no_fallback", parsing_timeout=None) for side in sides
    ]
    return bool(all(parsed) and math_verify.verify(*parsed, timeout_seconds=None))
