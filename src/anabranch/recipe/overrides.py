"""`optim.lr=2e-6 cold_start=null data.path=gsm8k.jsonl`: changes to a recipe, as typed on a command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import BaseModel

from anabranch.errors import RecipeError, explain
from anabranch.recipe.schema import by_mark, forms, item, marks, tag
from anabranch.recipe.text import parse_value, reason
from anabranch.recipe.tree import Recipe


def apply(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """The recipe with `KEY=VALUE` changes, checked as a whole.

    Keys are dotted; items of a list are counted from 0, and the index after the last one adds an item
    (`reward.1.term=format`). Values are YAML scalars or flow collections (`2e-6`, `null`, `[boxed, hashes]`); `KEY=`
    is the empty text. Later ones win. All are applied before anything is checked, so order matters only for that.

    A key below a part that is absent (`cold_start.steps=5`) adds the part, with defaults for the rest.

    A part with several forms, such as `data`, takes the form that `kind` names. Without `kind`, a form is chosen for
    the keys given: the present one if it has them all, otherwise the only other one that does (`data.path=gsm8k.jsonl`
    makes it `jsonl`). What the new form has no room for is dropped, unless it was given here: then it is an error.
    A term of the reward has a `term` in place of `kind`, and becomes another one only where `term` says so.

    Raises:
        RecipeError: not of the form KEY=VALUE, an unknown key, a bad value, or a recipe that cannot work.
    """
    root = _Change()
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            raise RecipeError(explain(f"override {text!r}", "no KEY=VALUE", "that is its form", "steps=10"))
        try:
            parsed = parse_value(value)
        except (yaml.YAMLError, ValueError) as error:
            raise RecipeError(
                explain(key, f"{value!r} ({reason(error)})", "a value must be YAML", f"{key}='\"...\"'")
            ) from None
        root.place(key.split("."), parsed)
    return Recipe(**_merge(Recipe, recipe.model_dump(), root, ""))


@dataclass
class _Change:
    """What the overrides say about one place: perhaps a value in place of the old one, then changes below it."""

    replaced: bool = False
    value: Any = None
    below: dict[str, _Change] = field(default_factory=dict)

    def place(self, keys: list[str], value: Any) -> None:
        """Note one override; later ones win."""
        if keys:
            self.below.setdefault(keys[0], _Change()).place(keys[1:], value)
        else:
            self.replaced, self.value, self.below = True, value, {}


def _merge(annotation: Any, old: Any, change: _Change, path: str) -> Any:
    """The value at `path`, plain data: `old` with `change`, in the form that `annotation` allows."""
    start = change.value if change.replaced else old
    choices = forms(annotation)
    if not change.below and not (choices and isinstance(start, Mapping)):
        return start
    if choices:
        return _merge_part(choices, start, change, path)
    if isinstance(start, list | tuple):
        return _merge_list(annotation, list(start), change, path)
    if isinstance(start, Mapping) or annotation is None:  # free mapping, or an unknown key that validation will report
        merged = dict(start) if isinstance(start, Mapping) else {}
        for key, deeper in change.below.items():
            merged[key] = _merge(None, merged.get(key), deeper, f"{path}.{key}")
        return merged
    key, deeper = next(iter(change.below.items()))
    raise RecipeError(
        explain(f"{path}.{key}", "a key below a single value", f"{path} has no parts", f"{path}={_shown(deeper)}")
    )


def _merge_part(choices: tuple[type[BaseModel], ...], start: Any, change: _Change, path: str) -> Any:
    present = dict(start) if isinstance(start, Mapping) else {}
    given = set(change.below) | (set(present) if change.replaced else set())
    form = _form(choices, present, change, given, path)
    if form is None:
        merged = present
    else:
        merged = {key: value for key, value in present.items() if key in form.model_fields or key in given}
        if len(choices) > 1 and merged.get(tag(choices)) not in marks(form, tag(choices)):
            merged[tag(choices)] = marks(form, tag(choices))[0]
    for key, deeper in change.below.items():
        known = form.model_fields.get(key) if form else None
        below = f"{path}.{key}" if path else key
        merged[key] = _merge(known.annotation if known else None, merged.get(key), deeper, below)
    return merged


def _form(
    choices: tuple[type[BaseModel], ...], present: Mapping[str, Any], change: _Change, given: set[str], path: str
) -> type[BaseModel] | None:
    """Which form a part takes; `None` if validation shall say that there is none."""
    if len(choices) == 1:
        return choices[0]
    key, form_of = tag(choices), by_mark(choices)
    if key in change.below:
        return form_of.get(str(change.below[key].value))
    current = form_of.get(str(present.get(key)))
    fitting = [form for form in choices if given - {key} <= set(form.model_fields)]
    if current is not None and (current in fitting or key in given or key != "kind"):
        return current
    if len(fitting) == 1:
        return fitting[0]
    if fitting and current is None and key not in given:
        names = [mark for mark, form in form_of.items() if form in fitting]
        need = f"more than one would fit: {', '.join(names)}"
        raise RecipeError(explain(path, f"no {key}", need, f"{path}.{key}={names[0]}"))
    return current


def _merge_list(annotation: Any, items: list[Any], change: _Change, path: str) -> list[Any]:
    for key, deeper in sorted(change.below.items(), key=lambda pair: (len(pair[0]), pair[0])):
        index = int(key) if key.isascii() and key.isdigit() else -1
        if not 0 <= index <= len(items):
            allowed = f"0 to {len(items)}"
            raise RecipeError(explain(f"{path}.{key}", "no such item", f"the list takes {allowed}", f"{path}.0=..."))
        if index == len(items):
            items.append(None)
        items[index] = _merge(item(annotation), items[index], deeper, f"{path}.{key}")
    return items


def _shown(change: _Change) -> str:
    return str(change.value) if change.replaced else "..."
