"""The grid of a study: what was typed after --vary, --arm and --seeds, and the recipes that it names."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from anabranch.errors import RecipeError, explain
from anabranch.presets import load
from anabranch.recipe.overrides import apply
from anabranch.recipe.text import inline
from anabranch.recipe.tree import Recipe

PRESET = "recipe"
"""The axis whose values are recipes; see `method_of`."""
SIZES = {
    "rollout": ("prompts", "per_problem", "temperature", "top_p", "top_k", "max_new_tokens", "stop_strings"),
    "train": ("row_tokens",),
}
"""Keys of `rollout` and `train` that say how much is computed and how answers are drawn: no part of a method."""


@dataclass(frozen=True)
class Arm:
    """One point of the grid."""

    name: str
    changes: tuple[str, ...]
    """What makes it differ, as typed: `algorithm.clip.high=0.28`, `recipe=grpo`."""
    overrides: tuple[str, ...]
    """All that is applied to the study's recipe, with presets written out: methods, common changes, own changes."""
    recipe: Recipe
    """Everything but the seed."""

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return re.sub(r"[^A-Za-z0-9._=+-]+", "_", self.name).strip("_")[:60] or "arm"


def split_values(text: str, separator: str = ",") -> list[str]:
    """The parts of a list, without splitting inside brackets or quotes.

    >>> split_values("0.2,{kind: soft, buffer: 8},[a, b]")
    ['0.2', '{kind: soft, buffer: 8}', '[a, b]']
    """
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        if letter == separator and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def parse_seeds(text: str) -> tuple[int, ...]:
    """`5` is 0 to 4; `3,7,11` are these; `7,` is one.

    Raises:
        RecipeError: no number, none at all, a seed twice.
    """
    parts = [part for part in text.split(",") if part.strip()]
    if not parts or not all(part.strip().isdecimal() for part in parts):
        raise RecipeError(explain("--seeds", repr(text), "it is how many, or which ones", "--seeds 5 or --seeds 3,7"))
    numbers = [int(part) for part in parts]
    if "," not in text:
        if numbers[0] == 0:
            raise RecipeError(explain("--seeds", 0, "every arm runs at least once", "--seeds 5"))
        return tuple(range(numbers[0]))
    twice = sorted(seed for seed, count in Counter(numbers).items() if count > 1)
    if twice:
        fix = ",".join(map(str, dict.fromkeys(numbers)))
        need = "the same seed gives the same run: it would count twice"
        raise RecipeError(explain("--seeds", f"seed {twice[0]} twice", need, f"--seeds {fix}"))
    return tuple(numbers)


def arms(base_name: str, overrides: Sequence[str], varied: Sequence[str], bundles: Sequence[str]) -> tuple[Arm, ...]:
    """All arms: the product of the axes, the last one fastest, then the bundles.

    Args:
        base_name: of the recipe, as typed.
        overrides: changes that all arms share.
        varied: each `AXIS=VALUE,VALUE`.
        bundles: each `NAME:KEY=VALUE;KEY=VALUE`.

    Raises:
        RecipeError: an axis, value or bundle that does not exist or cannot work, an arm that is there twice, fewer than
            two arms.
    """
    base = load(base_name)
    _check_overrides(overrides, [text.partition("=")[0] for text in varied])
    axes = [_axis(text) for text in varied]
    twice = [key for key, count in Counter(key for key, _ in axes).items() if count > 1]
    if twice:
        values = ",".join(value for key, several in axes if key == twice[0] for value in several)
        raise RecipeError(
            explain(f"--vary {twice[0]}", "this axis twice", "an axis stands once", f"--vary {twice[0]}={values}")
        )
    grid: Iterable[tuple[str, ...]] = ()
    if axes:
        grid = itertools.product(*([f"{key}={value}" for value in values] for key, values in axes))
    named = [(", ".join(map(short, changes)), changes) for changes in grid]
    named += [_bundle(text) for text in bundles]
    if len(named) < 2:
        found = f"{len(named)} arm" + ("" if len(named) == 1 else "s")
        fix = "--vary algorithm.scale=none,group_std, or --arm base: --arm NAME:KEY=VALUE"
        raise RecipeError(explain("the grid", found, "a study compares at least two", fix))
    built = tuple(make_arm(base, name, overrides, changes) for name, changes in named)
    check_distinct(built)
    return built


def short(change: str) -> str:
    """How an arm calls a change: `clip.high=0.28` for `algorithm.clip.high=0.28`, `grpo` for `recipe=grpo`."""
    return change.removeprefix("algorithm.").removeprefix(f"{PRESET}=")


def method_of(name: str) -> list[str]:
    """What makes a recipe's method, as overrides: its algorithm, its reward, and how a batch is drawn and used.

    Sizes stay out (problems and answers a step, lengths, temperature), and so do model, data, optimizer and stages:
    with those of one common recipe, methods are compared at equal numbers of answers a step and equal learning rate.

    Raises:
        RecipeError: no such recipe.
    """
    dump = load(name).model_dump(mode="json")
    changes = {"algorithm": dump["algorithm"], "reward": dump["reward"]}
    for part, sizes in SIZES.items():
        changes |= {f"{part}.{key}": value for key, value in dump[part].items() if key not in sizes}
    return [f"{key}={inline(value)}" for key, value in changes.items()]


def _axis(text: str) -> tuple[str, list[str]]:
    key, equals, rest = text.partition("=")
    if not equals or not key:
        need, fix = "its form is AXIS=VALUE,VALUE", "--vary algorithm.scale=none,group_std"
        raise RecipeError(explain("--vary", repr(text), need, fix))
    _refuse_reserved("--vary", key)
    values = split_values(rest)
    if "" in values:
        fix = f"--vary {key}=" + (",".join(value for value in values if value) or "VALUE,VALUE")
        raise RecipeError(explain(f"--vary {key}", "no value" if values == [""] else "an empty value", "name one", fix))
    return key, values


def _bundle(text: str) -> tuple[str, tuple[str, ...]]:
    name, colon, rest = text.partition(":")
    if not colon or not name.strip() or "=" in name:
        fix = "--arm tuned:algorithm.clip.high=0.28;algorithm.scale=none"
        raise RecipeError(explain("--arm", repr(text), "its form is NAME:KEY=VALUE;KEY=VALUE", fix))
    changes = tuple(part for part in split_values(rest, ";") if part)
    for change in changes:
        _refuse_reserved(f"--arm {name}", change.partition("=")[0])
    return name.strip(), changes


def _refuse_reserved(where: str, key: str) -> None:
    if key == "seed":
        raise RecipeError(explain(where, "seed", "all arms have the same seeds", "--seeds 3,7,11"))
    if key == "name":
        raise RecipeError(explain(where, "name", "a name changes nothing", "--arm NAME:KEY=VALUE names an arm"))


def _check_overrides(overrides: Sequence[str], axes: Sequence[str]) -> None:
    """A common change that no arm would keep is a mistake."""
    for text in overrides:
        key = text.partition("=")[0]
        if key == "seed":
            raise RecipeError(explain(text, "a seed", "a study has several", "--seeds 3,7,11"))
        for axis in axes:
            if key == axis or key.startswith(f"{axis}."):
                need = f"--vary {axis} sets it in every arm"
                raise RecipeError(explain(text, "a change that no arm would keep", need, "leave it out"))


def make_arm(base: Recipe, name: str, common: Sequence[str], changes: Sequence[str]) -> Arm:
    """One arm: the method of a recipe that `changes` name (`recipe=dapo`), then the common changes, then its own.

    Raises:
        RecipeError: it cannot work; it says which arm.
    """
    presets = [change.removeprefix(f"{PRESET}=") for change in changes if change.startswith(f"{PRESET}=")]
    own = [change for change in changes if not change.startswith(f"{PRESET}=")]
    try:
        method = [text for preset in presets for text in method_of(preset)]
        overrides = (*method, *common, *own)
        return Arm(name, tuple(changes), overrides, apply(base, overrides))
    except RecipeError as error:
        raise RecipeError(f"in arm '{name}':\n{error}") from None


def check_distinct(built: Sequence[Arm]) -> None:
    """No two arms may have one name, or compute the same.

    Raises:
        RecipeError: two do.
    """
    seen: dict[str, Arm] = {}
    for arm in built:
        if arm.name in {other.name for other in seen.values()}:
            need = "every arm has a name of its own"
            raise RecipeError(explain(f"arm '{arm.name}'", "two of that name", need, "leave one out, or rename it"))
        same = seen.get(_effect(arm.recipe, exact=True))
        if same is not None:
            need = "equal arms give equal runs, and nothing can be compared"
            raise RecipeError(
                explain(f"arms '{same.name}' and '{arm.name}'", "the same recipe", need, "leave one of them out")
            )
        seen[_effect(arm.recipe, exact=True)] = arm
    acting: dict[str, Arm] = {}
    for arm in built:
        same = acting.setdefault(_effect(arm.recipe, exact=False), arm)
        if same is not arm:
            need = (
                "with one update a rollout batch (train.minibatches=1, train.epochs=1) every ratio is exactly 1, so "
                "that algorithm.ratio and algorithm.clip cannot act"
            )
            where = f"arms '{same.name}' and '{arm.name}'"
            raise RecipeError(explain(where, "recipes that differ in nothing that acts", need, "train.minibatches=4"))


def _effect(recipe: Recipe, *, exact: bool) -> str:
    """Text that two recipes share if their runs are the same: name and seed left out, and without `exact` also what a
    single update a batch cannot show."""
    dump: dict[str, Any] = recipe.model_dump(mode="json", exclude={"name", "seed"})
    if not exact and recipe.train.minibatches == recipe.train.epochs == 1:
        del dump["algorithm"]["ratio"], dump["algorithm"]["clip"]
    return repr(dump)
