"""Exact arithmetic on text that nobody has read: no `eval`, and bounds that let every expression end within a few
milliseconds.

    expression = product {("+" | "-") product}
    product    = signed {("*" | "/") signed}
    signed     = ("-" | "+") signed | power
    power      = atom ["^" signed]              so -2^2 = -4 and 2^3^2 = 2^9; "**" is read as "^"
    atom       = number | "(" expression ")"    a number is 12, 1.5 or .5
"""

from __future__ import annotations

import re
from fractions import Fraction

LONGEST = 500
"""Characters of an expression."""
DEEPEST = 50
"""Parentheses, signs and powers inside each other."""
MOST_BITS = 1024
"""Of a numerator or denominator, also on the way to the result: a little more than 300 digits."""
CHARACTERS = frozenset("0123456789.+-*/^() ")
"""All that an expression may hold, tabs and the signs below apart."""

_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "\t": " "})
_TOKEN = re.compile(r" *(?:((?:\d+\.?\d*|\.\d+))|(\*\*|[-+*/^()]))", re.ASCII)


class ExpressionError(ValueError):
    """An expression has no value here. The text says why, in fixed words: nothing of the expression is in it."""


def value(expression: str) -> Fraction:
    """The value of an expression.

    >>> value("12*(3+4)")
    Fraction(84, 1)

    Raises:
        ExpressionError: it is none, or too long, too deep or too large; or it divides by zero.
    """
    if len(expression) > LONGEST:
        raise ExpressionError("the expression is too long")
    reader = _Reader(_tokens(expression.translate(_SIGNS).strip(" ")))
    found = reader.expression()
    if reader.next is not None:
        raise ExpressionError("not an expression")
    return found


def written(number: Fraction) -> str:
    """A number as a person writes it: `84`, `0.25` where that is exact, otherwise `1/3`.

    >>> written(Fraction(-5, 4)), written(Fraction(4, 6))
    ('-1.25', '2/3')
    """
    rest, places = number.denominator, 0
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest //= prime
            count += 1
        places = max(places, count)
    if rest != 1:
        return f"{number.numerator}/{number.denominator}"
    digits = str(abs(number.numerator) * 10**places // number.denominator).rjust(places + 1, "0")
    whole, decimals = digits[: len(digits) - places], digits[len(digits) - places :]
    return ("-" if number < 0 else "") + whole + (f".{decimals}" if decimals else "")


def _tokens(text: str) -> list[str]:
    found, end = [], 0
    while end < len(text):
        match = _TOKEN.match(text, end)
        if match is None:
            raise ExpressionError("not an expression")
        found.append("^" if match[2] == "**" else match[1] or match[2])
        end = match.end()
    return found


def _bounded(number: Fraction) -> Fraction:
    if max(number.numerator.bit_length(), number.denominator.bit_length()) > MOST_BITS:
        raise ExpressionError("the number is too large")
    return number


class _Reader:
    """Recursive descent, one method a rule. Depth is counted, and so is the size of every number."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0

    @property
    def next(self) -> str | None:
        """The token that comes; None at the end."""
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def expression(self) -> Fraction:
        """A sum."""
        total = self._product()
        while self.next in ("+", "-"):
            adds = self._take() == "+"
            term = self._product()
            total = _bounded(total + term if adds else total - term)
        return total

    def _product(self) -> Fraction:
        total = self._signed()
        while self.next in ("*", "/"):
            if self._take() == "*":
                total = _bounded(total * self._signed())
            else:
                total = _bounded(_inverse(self._signed()) * total)
        return total

    def _signed(self) -> Fraction:
        self._depth += 1
        if self._depth > DEEPEST:
            raise ExpressionError("the expression is too deep")
        if self.next in ("+", "-"):
            found = -self._signed() if self._take() == "-" else self._signed()
        else:
            found = self._power()
        self._depth -= 1
        return found

    def _power(self) -> Fraction:
        base = self._atom()
        if self.next != "^":
            return base
        self._take()
        exponent = self._signed()
        if exponent.denominator != 1:
            raise ExpressionError("an exponent must be a whole number")
        return _raised(base, exponent.numerator)

    def _atom(self) -> Fraction:
        token = self._take()
        if token == "(":
            found = self.expression()
            if self._take() != ")":
                raise ExpressionError("a parenthesis is not closed")
            return found
        if token is None or token in "+-*/^)":
            raise ExpressionError("not an expression")
        return _bounded(Fraction(token))

    def _take(self) -> str | None:
        token = self.next
        self._at += 1
        return token


def _inverse(number: Fraction) -> Fraction:
    if number == 0:
        raise ExpressionError("division by zero")
    return 1 / number


def _raised(base: Fraction, exponent: int) -> Fraction:
    if exponent < 0:
        return _raised(_inverse(base), -exponent)
    if base in (0, 1, -1):
        return base ** (min(exponent, 2) if base != -1 else exponent % 2)
    if exponent * max(base.numerator.bit_length() - 1, base.denominator.bit_length() - 1) > MOST_BITS:
        raise ExpressionError("the number is too large")
    return _bounded(base**exponent)
