"""What may stand where in a tree of pydantic models: the one place that reads type annotations."""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

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


def kind(form: type[BaseModel]) -> str | None:
    """What `kind` says in this form; `None` for a part that has only one form."""
    field = form.model_fields.get("kind")
    choices = get_args(field.annotation) if field else ()
    return choices[0] if len(choices) == 1 else None


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
    """The place that pydantic's `loc` names. Pydantic puts the kind of a part into the path; here it is left out."""
    keys: list[str] = []
    place = Place("", None, (), "", None, model)
    siblings: tuple[type[BaseModel], ...] = (model,)
    for step in steps:
        choices = forms(place.annotation)
        narrowed = [form for form in choices if kind(form) == step]
        if len(choices) > 1 and narrowed:
            siblings = choices
            place = Place(place.path, place.owner, place.siblings, place.key, place.field, narrowed[0])
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
