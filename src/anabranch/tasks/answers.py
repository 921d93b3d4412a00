"""Finding the final answer in a model's text.

Every rule takes the *last* place where its mark stands; if nothing usable follows there, the rule finds nothing. All
rules run in linear time and look only at the last `TAIL` characters, so hostile text of any length costs little.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, Protocol

from anabranch.errors import DataError, explain

Extractor = Literal["boxed", "answer_line", "hashes", "tag", "last_number"]

TAIL = 8_000
"""Only so many characters from the end of a text are searched."""

BOXED = "\\boxed"
_ANSWER_MARK = re.compile(r"\banswer[ \t*_]*[:：]", re.IGNORECASE)
_OPEN_TAG = re.compile(r"<answer>", re.IGNORECASE)
_CLOSE_TAG = re.compile(r"</answer>", re.IGNORECASE)
_NUMBER = re.compile(r"[-−]?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?", re.ASCII)


class Rule(Protocol):
    """One way to find a final answer."""

    def __call__(self, text: str, /) -> str | None:
        """The final answer in `text`, or None."""


def searchable(text: str) -> str:
    """The part of a text that is searched, with lone surrogates replaced: it can be written as UTF-8."""
    return text[-TAIL:].encode("utf-8", "replace").decode("utf-8")


def boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}`, with balanced braces; None if that box is empty or never closed.

    >>> boxed(r"so \boxed{\frac{1}{2}}")
    '\\frac{1}{2}'
    """
    start = text.rfind(BOXED)
    if start < 0:
        return None
    rest = text[start + len(BOXED) :].lstrip()
    if not rest.startswith("{"):
        return None
    depth, index = 0, 0
    while index < len(rest):
        if rest[index] == "\\":
            index += 1  # an escaped brace does not count
        elif rest[index] == "{":
            depth += 1
        elif rest[index] == "}":
            depth -= 1
            if depth == 0:
                return rest[1:index].strip() or None
        index += 1
    return None


def answer_line(text: str) -> str | None:
    """What follows the last `Answer:` (or `Final Answer:`, in any case) on its line, without bold markers.

    >>> answer_line("Answer: 12, no. **Final answer:** 70")
    '70'
    """
    last = None
    for last in _ANSWER_MARK.finditer(text):  # noqa: B007 - only the last match is wanted
        pass
    if last is None:
        return None
    line, _, _ = text[last.end() :].partition("\n")
    return _without_bold(line) or None


def hashes(text: str) -> str | None:
    """What follows the last `####` on its line, as in GSM8K."""
    _, mark, after = text.rpartition("####")
    line, _, _ = after.partition("\n")
    return (line.strip() or None) if mark else None


def tag(text: str) -> str | None:
    """What stands between the last `<answer>` and the `</answer>` after it; may have several lines."""
    last = None
    for last in _OPEN_TAG.finditer(text):  # noqa: B007 - only the last match is wanted
        pass
    if last is None:
        return None
    close = _CLOSE_TAG.search(text, last.end())
    return (text[last.end() : close.start()].strip() or None) if close else None


def last_number(text: str) -> str | None:
    """The last number or simple fraction anywhere in the text. Lenient: it also finds numbers that answer nothing."""
    last = None
    for last in _NUMBER.finditer(text):  # noqa: B007 - only the last match is wanted
        pass
    return last.group() if last else None


RULES: Mapping[Extractor, Rule] = MappingProxyType(
    {"boxed": boxed, "answer_line": answer_line, "hashes": hashes, "tag": tag, "last_number": last_number}
)


def find(text: str, extract: tuple[Extractor, ...]) -> str | None:
    """The final answer by the first rule that finds one, or None."""
    tail = searchable(text)
    return next((found for name in extract if (found := RULES[name](tail)) is not None), None)


_TEMPLATES: Mapping[Extractor, str] = MappingProxyType(
    {
        "answer_line": "Answer: {}",
        "boxed": "\\boxed{{{}}}",
        "hashes": "#### {}",
        "tag": "<answer>{}</answer>",
        "last_number": "{}",
    }
)


def written(answer: str, extract: tuple[Extractor, ...]) -> str:
    """An answer written so that `find` finds it: as `Answer: ...` where that is read, tagged if it has several lines.

    Raises:
        DataError: no rule to read it with.
    """
    names = list(_TEMPLATES)
    if "\n" in answer:
        names.sort(key=lambda name: name != "tag")
    for name in names:
        if name in extract:
            return _TEMPLATES[name].format(answer)
    raise DataError(explain("answer.extract", repr(extract), "at least one rule is needed", "answer.extract=[boxed]"))


def _without_bold(line: str) -> str:
    """A line without surrounding blanks and Markdown bold markers.

    A marker left over from `**Answer:** 7` stands in front, one from `**Answer: 7**` behind.
    """
    line = line.strip().removeprefix("**").strip()
    if line.endswith("**."):
        line = line.removesuffix("**.")
    return line.removesuffix("**").strip()
