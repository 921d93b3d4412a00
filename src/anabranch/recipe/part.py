"""The base of every part of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from anabranch.recipe.translate import translate


class Part(BaseModel):
    """Base of every part of a recipe: frozen, and without room for unknown keys.

    Raises:
        RecipeError: an unknown key, a wrong type, a value out of range, or parts that do not fit together.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    if not TYPE_CHECKING:  # type checkers see the fields as arguments, not **values

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise translate(type(self), error) from None

        # nothing else is added: lets pydantic validate nested parts in place, so that errors name the full path
        __init__.__pydantic_base_init__ = True

        @classmethod
        def model_validate(cls, obj: Any, **options: Any) -> Self:
            """As pydantic's, with a `RecipeError` that names the place."""
            try:
                return super().model_validate(obj, **options)
            except ValidationError as error:
                raise translate(cls, error) from None

    def but(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked like any other. (`model_copy` does not check.)

        >>> Clip().but(high=0.28)
        Clip(low=0.2, high=0.28, dual=None)
        """
        return type(self)(**{**dict(self), **changes})
