"""Recipes as YAML, there and back without loss."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from anabranch.errors import RecipeError, explain
from anabranch.recipe.text import parse, reason, render
from anabranch.recipe.tree import Recipe


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe, defaults included: `from_yaml(to_yaml(recipe)) == recipe`."""
    return render(recipe.model_dump(mode="json"))


def from_yaml(source: str | Path) -> Recipe:
    """A recipe from YAML text, or from the file that a `Path` names. Keys that are left out take their defaults.

    Raises:
        RecipeError: no such file, not YAML, not a mapping, or a recipe that cannot work.
    """
    if isinstance(source, Path):
        text = _read(source)
        try:
            return from_yaml(text)
        except RecipeError as error:
            raise RecipeError(f"in {source}:\n{error}") from None
    try:
        tree = parse(source)
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(
            explain("the recipe", reason(error), "it must be YAML", "start from `anabranch show grpo`")
        ) from None
    if not isinstance(tree, Mapping):
        found = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise RecipeError(
            explain("the recipe", found, "it must be a mapping of keys", "start from `anabranch show grpo`")
        )
    if not all(isinstance(key, str) for key in tree):
        odd = next(key for key in tree if not isinstance(key, str))
        raise RecipeError(explain("the recipe", f"the key {odd!r}", "keys are names", "leave it out"))
    return Recipe(**tree)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(explain(str(path), "no such file", "a recipe is needed", "check the path")) from None
    except IsADirectoryError:
        raise RecipeError(explain(str(path), "a folder", "a recipe is a YAML file", "name the file in it")) from None
    except UnicodeDecodeError:
        raise RecipeError(
            explain(str(path), "bytes that are no UTF-8", "a recipe is YAML text", "name a YAML file")
        ) from None
    except OSError as error:
        raise RecipeError(explain(str(path), str(error.strerror), "it must be readable", "check the path")) from None
