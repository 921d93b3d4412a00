"""Recipes for people: flat, explained, and compared."""

from __future__ import annotations

import re
import textwrap
from enum import Enum
from typing import Any

from anabranch.recipe.checks import notes
from anabranch.recipe.io import to_yaml
from anabranch.recipe.text import inline, render
from anabranch.recipe.tree import Part, Recipe


class Absent(Enum):
    """Stands for the value of a key that one of two recipes does not have."""

    ABSENT = "-"


ABSENT = Absent.ABSENT


def flatten(recipe: Recipe) -> dict[str, Any]:
    """Every setting by its dotted path, in the order of the tree. A part that is absent is one entry, `None`."""
    flat: dict[str, Any] = {}
    _flatten(recipe, "", flat)
    return flat


def _flatten(value: Any, path: str, flat: dict[str, Any]) -> None:
    prefix = f"{path}." if path else ""
    if isinstance(value, Part):
        for name, below in value:
            _flatten(below, prefix + name, flat)
    elif isinstance(value, tuple) and any(isinstance(item, Part) for item in value):
        for index, item in enumerate(value):
            _flatten(item, f"{prefix}{index}", flat)
    elif isinstance(value, dict) and value:
        for key, item in value.items():
            _flatten(item, prefix + key, flat)
    else:
        flat[path] = value


def difference(a: Recipe, b: Recipe) -> list[tuple[str, Any, Any]]:
    """The settings in which two recipes differ, as (path, value in a, value in b); names are not compared."""
    flat_a, flat_b = flatten(a), flatten(b)
    parts = list(Recipe.model_fields)
    paths = sorted(dict.fromkeys([*flat_a, *flat_b]), key=lambda path: parts.index(path.partition(".")[0]))
    rows = [(path, flat_a.get(path, ABSENT), flat_b.get(path, ABSENT)) for path in paths if path != "name"]
    return [row for row in rows if row[1] != row[2]]


def table(a: Recipe, b: Recipe) -> str:
    """`difference(a, b)` as aligned text, one setting a line (`-`: not there); a sentence if there is none."""
    rows = [(path, _cell(left), _cell(right)) for path, left, right in difference(a, b)]
    if not rows:
        return f"{a.name} and {b.name} differ in nothing but the name."
    lines = [("", a.name, b.name), *rows]
    wide = [max(len(line[column]) for line in lines) for column in (0, 1)]
    return "\n".join(f"{path:<{wide[0]}}  {left:<{wide[1]}}  {right}".rstrip() for path, left, right in lines)


def _cell(value: Any) -> str:
    return ABSENT.value if value is ABSENT else inline(value)


def described(recipe: Recipe, *, explain: bool = False) -> str:
    """The recipe as YAML that can be read back, headed by its notes; with `explain`, every key below what it means."""
    head = "".join(f"{line}\n" for note in notes(recipe) for line in _comment(f"note: {note}"))
    return head + ("\n".join(_explained(recipe)) + "\n" if explain else to_yaml(recipe))


def _explained(part: Part) -> list[str]:
    lines: list[str] = []
    for name, value in part:
        description = type(part).model_fields[name].description or ""
        lines += _comment(re.sub(r"\bNone\b", "null", description))  # the descriptions speak Python, this is YAML
        if isinstance(value, Part):
            lines += [f"{name}:", *(f"  {line}" for line in _explained(value))]
        elif isinstance(value, tuple) and value and isinstance(value[0], Part):
            lines.append(f"{name}:")
            for item in value:
                first, *rest = _explained(item)
                lines += [f"- {first}", *(f"  {line}" for line in rest)]
        else:
            plain = list(value) if isinstance(value, tuple) else value
            lines += render({name: plain}).splitlines()
    return lines


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(" ".join(text.split()), width=110)]
