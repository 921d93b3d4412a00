"""Pydantic's validation errors in our form: where, what was found, what is allowed, and a fix that can be pasted."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from anabranch.errors import RecipeError, explain
from anabranch.recipe.schema import Place, by_mark, forms, locate, marks, nullable, tag
from anabranch.recipe.text import inline

BOUNDS = {
    "greater_than": ("gt", "must be greater than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
}
NEEDS = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "tuple_type": "must be a list",
    "dict_type": "must be a group of KEY=VALUE",
    "invalid-json-value": "must be plain data: text, number, true, false, null, list or mapping",
}


def translate(model: type[BaseModel], error: ValidationError) -> RecipeError:
    """A `RecipeError` that says everything `error` found in a tree of type `model`, one explanation after the other."""
    texts = []
    for detail in error.errors():
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, RecipeError):  # our own whole-recipe check, wrapped by pydantic
            texts.append(str(cause))
        else:
            texts.append(_text(locate(model, detail["loc"]), detail["type"], detail["input"], dict(detail)))
    return RecipeError("\n".join(dict.fromkeys(texts)))


def assignments(path: str, value: object) -> str:
    """What to type on the command line to set `path` to `value`; a mapping becomes one assignment for each key."""
    if isinstance(value, Mapping) and value:
        return " ".join(assignments(f"{path}.{key}", below) for key, below in value.items())
    return f"{path}={inline(_data(value))}"


def _data(value: object) -> object:
    """A value as plain data; `...` for what has no such form."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, Mapping):
        return {str(key): _data(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_data(below) for below in value]
    return value if value is None or isinstance(value, str | int | float) else "..."


def _found(value: Any) -> str:
    """A value as one would have typed it, cut short; anything that is not plain data as Python shows it."""
    text = inline(value) if value is None or isinstance(value, str | int | float) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _text(place: Place, problem: str, found: Any, detail: Mapping[str, Any]) -> str:
    if problem == "extra_forbidden":
        return _unknown_key(place, found)
    if problem == "missing":
        return explain(place.path, "nothing", "it must be given", f"{place.path}=...")
    if problem.startswith("union_tag"):
        return _unknown_kind(place, problem, found)
    if problem in ("model_type", "model_attributes_type"):
        keys = ", ".join(dict.fromkeys(key for form in forms(place.annotation) for key in form.model_fields))
        return explain(
            place.path, _found(found), f"must be a group of keys: {keys}{_or_null(place)}", _first_assignment(place)
        )
    return explain(
        place.path or "the recipe", _found(found), _need(place, problem, detail) + _or_null(place), _fix(place, found)
    )


def _need(place: Place, problem: str, detail: Mapping[str, Any]) -> str:
    if problem in BOUNDS:
        bound, words = BOUNDS[problem]
        return f"{words} {detail['ctx'][bound]:g}"
    if problem == "literal_error":
        return "must be one of: " + ", ".join(_choices(place))
    if problem == "string_pattern_mismatch":
        return "must be made of letters, digits, '.', '-' and '_' (it names a folder)"
    return NEEDS.get(problem) or detail["msg"][0].lower() + detail["msg"][1:]


def _or_null(place: Place) -> str:
    return ", or null" if nullable(place.annotation) else ""


def _choices(place: Place) -> list[str]:
    return [str(choice) for choice in get_args(place.annotation)]


def _fix(place: Place, found: Any) -> str:
    """A closely spelled choice if there is one, otherwise the default."""
    close = get_close_matches(str(found), _choices(place), n=1) if isinstance(found, str) else []
    if close:
        return f"{place.path}={close[0]}"
    if place.field is None or place.field.is_required():
        return f"{place.path}=..." if place.path else "give a mapping of keys"
    return assignments(place.path, place.field.get_default(call_default_factory=True))


def _first_assignment(place: Place) -> str:
    """Something to type that builds the part: its first field that has a default."""
    first = forms(place.annotation)[0]
    for name, field in first.model_fields.items():
        if not field.is_required() and not forms(field.annotation):
            return assignments(f"{place.path}.{name}", field.get_default(call_default_factory=True))
    return f"{place.path}.{next(iter(first.model_fields))}=..."


def _unknown_key(place: Place, found: Any) -> str:
    owner = place.owner
    if owner is None:
        return explain(place.path, "an unknown key", "nothing can stand here", "leave it out")
    above = place.path.rpartition(".")[0]
    prefix = f"{above}." if above else ""
    home = above or "the recipe"
    several, key = len(place.siblings) > 1, tag(place.siblings)
    form = f" with {key}={' or '.join(marks(owner, key))}" if several else ""
    need = f"{home}{form} has only: {', '.join(owner.model_fields)}"
    elsewhere = [mark for mark, other in by_mark(place.siblings).items() if place.key in other.model_fields]
    close = get_close_matches(place.key, owner.model_fields, n=1)
    if elsewhere:
        fix = f"{prefix}{key}={elsewhere[0]} {assignments(place.path, found)}"
    elif close:
        fix = assignments(prefix + close[0], found)
    else:
        fix = f"leave {place.path} out"
    return explain(place.path, "an unknown key", need, fix)


def _unknown_kind(place: Place, problem: str, found: Any) -> str:
    key, form_of = tag(forms(place.annotation)), by_mark(forms(place.annotation))
    names, where = list(form_of), f"{place.path}.{tag(forms(place.annotation))}"
    given = found.get(key) if isinstance(found, Mapping) else None
    if problem == "union_tag_not_found" or given is None:
        keys = set(found) if isinstance(found, Mapping) else set()
        fits = [mark for mark, form in form_of.items() if keys <= set(form.model_fields)]
        guess = (fits or names)[0]
        return explain(place.path, f"no {key}", f"one is needed: {', '.join(names)}", f"{where}={guess}")
    close = get_close_matches(str(given), names, n=1) or names
    return explain(where, _found(given), f"must be one of: {', '.join(names)}", f"{where}={close[0]}")
