"""What may stand where in a tree of pydantic models: the one place that reads type annotations."""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def forms(annotation: Any) -> tuple[type[BaseModel], ...]:
    """The parts that a field may hold, e.g. `(ReasoningGym, JsonLines, HubDataset)`; empty for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    origin = get_origin(annotation)
    if origin is Annotated:
        return forms(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return tuple(form for choice in get_args(annotation) for form in forms(choice))
    return ()


def item(annotation: Any) -> Any:
    """The type of the items of a tuple field, `None` for anything else."""
    return get_args(annotation)[0] if get_origin(annotation) is tuple else None


def nullable(annotation: Any) -> bool:
    """Whether `null` is a value of the field."""
    return get_origin(annotation) in (Union, UnionType) and NoneType in get_args(annotation)


def tag(choices: tuple[type[BaseModel], ...]) -> str:
    """The key that says which of several forms a part has: the first one that is a choice of names in all of them.

    `kind` for most parts, `term` for terms of the reward.
    """
    common = (name for name in choices[0].model_fields if all(_names(form, name) for form in choices))
    return next(common, "kind")


def marks(form: type[BaseModel], key: str) -> tuple[str, ...]:
    """What `key`, a `tag`, may say in this form: `("jsonl",)`, or `("accuracy", "format")`."""
    return _names(form, key)


def by_mark(choices: tuple[type[BaseModel], ...]) -> dict[str, type[BaseModel]]:
    """The forms of a part by what its tag says, in order."""
    key = tag(choices)
    return {mark: form for form in choices for mark in marks(form, key)}


def _names(form: type[BaseModel], key: str) -> tuple[str, ...]:
    """The choices of a field, if it is a choice of names."""
    field = form.model_fields.get(key)
    return get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()


@dataclass(frozen=True)
class Place:
    """A place in the tree: where a validation error happened."""

    path: str
    """Dotted, as in an override; empty for the whole."""
    owner: type[BaseModel] | None
    """The part that the last key belongs to, `None` below a free mapping."""
    siblings: tuple[type[BaseModel], ...]
    """All forms that the owner could have had, the owner among them."""
    key: str
    field: FieldInfo | None
    """`None` for a key that the owner does not have, and for an item of a tuple or of a free mapping."""
    annotation: Any


def locate(model: type[BaseModel], steps: tuple[int | str, ...]) -> Place:
    """The place that pydantic's `loc` names. Pydantic puts the tag of a part into the path; here it is left out."""
    keys: list[str] = []
    place = Place("", None, (), "", None, model)
    siblings: tuple[type[BaseModel], ...] = (model,)
    for step in steps:
        choices = forms(place.annotation)
        narrowed = by_mark(choices).get(str(step)) if len(choices) > 1 else None
        if narrowed is not None:
            siblings = choices
            place = Place(place.path, place.owner, place.siblings, place.key, place.field, narrowed)
            continue
        keys.append(str(step))
        path = ".".join(keys)
        if choices:
            owner = choices[0]
            field = owner.model_fields.get(str(step))
            around = siblings if owner in siblings else choices
            place = Place(path, owner, around, str(step), field, field.annotation if field else None)
        else:
            place = Place(path, None, (), str(step), None, item(place.annotation))
    return place
