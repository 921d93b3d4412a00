"""Gates before scorers of reasoning-gym that must not see every text.

Two families of its scorers evaluate the answer: with Python's `eval`, or with SymPy's `parse_expr`, which evaluates as
well. Model text never gets there: a gate lets through what is harmless by construction and refuses the rest. A third
family has scorers that accept wrong answers; a policy in training finds such holes within hours.

`GATES` names every gated data set, `EVALUATES_OWN_TEXT` those whose modules evaluate only text they made themselves. A
test holds that each scorer of the installed package that could evaluate text is in one of the two.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from anabranch.records import Reason

MAX_EXPRESSION = 1_000
"""Characters of an expression that SymPy may parse."""


@dataclass(frozen=True)
class Refusal:
    """Why an answer does not reach the scorer; it is worth 0."""

    reason: Reason
    detail: str


Gate = Callable[[str, str, Mapping[str, Any]], Refusal | None]
"""`gate(answer, gold, metadata)`: None lets the answer through."""

_TOKEN = re.compile(r"(\s+)|(\d+(?:\.\d*)?|\.\d+)|([A-Za-z][A-Za-z_0-9]*)|(\*\*|[-+*/^()])", re.ASCII)
_INERT = re.compile(r"[\w\s,-]*", re.ASCII)
_FUNCTION_WORDS = "exp log ln sqrt sin cos tan sec csc cot sinh cosh tanh asin acos atan asinh acosh atanh Abs pi E C"
_FUNCTIONS = frozenset(_FUNCTION_WORDS.split())


def literal(answer: str, gold: str, metadata: Mapping[str, Any]) -> Refusal | None:
    """For scorers that `eval` what is not the gold answer: the gold answer, or nested lists of strings and integers.

    `ast.literal_eval` only reads displays, it calls nothing. Other text would be worth 0 there: it is wrong if it is
    plain words and numbers, malformed otherwise.
    """
    if answer.strip() == gold.strip() or answer in metadata.get("valid_answers", ()):
        return None
    try:
        value = ast.literal_eval(answer)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = None
    if isinstance(value, list | tuple) and _nested(value):
        return None
    reason = Reason.WRONG if _INERT.fullmatch(answer) else Reason.MALFORMED
    return Refusal(reason, "neither the gold answer nor a Python list of strings and integers")


def _nested(value: object) -> bool:
    """Whether a value is lists of lists of ... strings and integers."""
    if isinstance(value, list | tuple):
        return all(_nested(item) for item in value)
    return type(value) in (int, str)


def expression(names: Callable[[Mapping[str, Any]], frozenset[str]]) -> Gate:
    """For scorers that parse with SymPy: numbers, + - * / ** ^ ( ) and the given names, nothing else."""

    def gate(answer: str, gold: str, metadata: Mapping[str, Any]) -> Refusal | None:
        return _only_tokens(answer, names(metadata), powers=True)

    return gate


def _only_tokens(answer: str, names: frozenset[str], *, powers: bool) -> Refusal | None:
    """Refuse an expression with anything but numbers, operators and the given names.

    Without `powers`: whole numbers, + - * / and parentheses only.
    """
    if len(answer) > MAX_EXPRESSION:
        return Refusal(Reason.MALFORMED, f"longer than {MAX_EXPRESSION} characters")
    position = 0
    while position < len(answer):
        match = _TOKEN.match(answer, position)
        token = match.group() if match else answer[position]
        allowed = match is not None and (match[3] is None or token in names)
        if not allowed or (not powers and (token in ("**", "^") or "." in token)):
            return Refusal(Reason.MALFORMED, f"{token[:20]!r} is not part of an arithmetic expression here")
        position += len(token)
    return None


def arithmetic(answer: str, gold: str, metadata: Mapping[str, Any]) -> Refusal | None:
    """Countdown and 24: whole numbers, + - * / ( ), each given number used exactly once.

    The package's scorer takes `3.5` for a use of 3 and 5, and for 24 it does not compare with the given numbers.
    """
    refusal = _only_tokens(answer, frozenset(), powers=False)
    if refusal or "//" in answer.replace(" ", ""):
        return refusal or Refusal(Reason.MALFORMED, "'//' is not one of + - * /")
    used = sorted(int(number) for number in re.findall(r"\d+", answer))
    if used != sorted(metadata["numbers"]):
        return Refusal(Reason.WRONG, f"uses {used}, not the given numbers")
    return None


def finite_json(answer: str, gold: str, metadata: Mapping[str, Any]) -> Refusal | None:
    """number_sorting: its scorer compares with tolerance, so that a list of NaN passes for any list."""

    def refuse(name: str) -> float:
        raise ValueError(f"{name} is not a number")

    try:
        values = json.loads(answer.replace("'", '"'), parse_constant=refuse)
        finite = isinstance(values, list) and all(math.isfinite(float(value)) for value in values)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        return Refusal(Reason.MALFORMED, str(error)[:100])
    return None if finite else Refusal(Reason.MALFORMED, "not a list of finite numbers")


def complex_number(answer: str, gold: str, metadata: Mapping[str, Any]) -> Refusal | None:
    """complex_arithmetic: its scorer gives `nan` full marks."""
    if re.fullmatch(r"[-+0-9.eE\sijIJ()]{1,200}", answer):
        return None
    return Refusal(Reason.MALFORMED, "not a complex number")


def exact(answer: str, gold: str, metadata: Mapping[str, Any]) -> Refusal | None:
    """game_of_life_halting: its scorer accepts any text, since every non-empty string is true."""
    if answer.strip().casefold() == gold.strip().casefold():
        return None
    return Refusal(Reason.WRONG, f"not {gold!r}")


def _variable(metadata: Mapping[str, Any]) -> frozenset[str]:
    return _FUNCTIONS | {str(metadata["variable"])}


def _variables(metadata: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(str(name) for name in metadata["variables"])


GATES: Mapping[str, Gate] = MappingProxyType(
    {
        # eval
        "binary_matrix": literal,
        "n_queens": literal,
        "spiral_matrix": literal,
        "string_insertion": literal,
        # sympy.parse_expr
        "countdown": arithmetic,
        "puzzle24": arithmetic,
        "polynomial_multiplication": expression(_variables),
        "simple_integration": expression(_variable),
        "intermediate_integration": expression(_variable),
        # scorers that accept wrong answers
        "complex_arithmetic": complex_number,
        "game_of_life_halting": exact,
        "number_sorting": finite_json,
    }
)
"""The gate of every data set that has one."""

EVALUATES_OWN_TEXT: Mapping[str, str] = MappingProxyType(
    {
        "basic_arithmetic": "evaluates the expression it made, to find the gold answer",
        "bitwise_arithmetic": "evaluates the problem's expression; the answer is read with int()",
        "codeio": "runs its own programs to make problems; the answer is read with json.loads",
        "propositional_logic": "its parse_expr is a parser of its own",
    }
)
"""Data sets whose modules evaluate text, but never the answer."""


def refuse(name: str, answer: str, gold: str, metadata: Mapping[str, Any]) -> Refusal | None:
    """Whether data set `name` has a gate that refuses this answer."""
    gate = GATES.get(name)
    return gate(answer, gold, metadata) if gate else None
