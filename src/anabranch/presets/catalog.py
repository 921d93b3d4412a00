"""The table of presets, and the one way from a name or a file to a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

from anabranch.errors import RecipeError, explain
from anabranch.presets import many_updates, methods, single_stream
from anabranch.presets.published import PAPER, Method
from anabranch.presets.quickstart import quickstart
from anabranch.presets.small import small_calculator, small_sums
from anabranch.recipe.io import from_yaml
from anabranch.recipe.tree import Recipe

PRESETS: Mapping[str, Callable[[], Recipe]] = MappingProxyType(
    {
        "quickstart": quickstart,
        "small_sums": small_sums,
        "small_calculator": small_calculator,
        "ppo_vanilla": methods.ppo_vanilla,
        "reinforce_pp": methods.reinforce_pp,
        "grpo": methods.grpo,
        "dr_grpo": methods.dr_grpo,
        "gspo": many_updates.gspo,
        "cispo": many_updates.cispo,
        "lite_ppo": methods.lite_ppo,
        "dapo": many_updates.dapo,
        "prorl_v2": many_updates.prorl_v2,
        "spo": single_stream.spo,
        "bspo": single_stream.bspo,
    }
)
"""Every recipe that has a name, as it runs on a laptop. To add one: write a function that returns a recipe (a method of
a paper: a `Method`), and add it here."""

PAPERS: Mapping[str, Callable[[], Recipe]] = MappingProxyType(
    {name + PAPER: preset.paper for name, preset in PRESETS.items() if isinstance(preset, Method)}
)
"""The same methods at the scale of their papers, as `lite_ppo@paper`."""

FILE_ENDINGS = (".yaml", ".yml")


def load(name_or_path: str) -> Recipe:
    """The preset of that name, or the recipe in that YAML file (`.yaml`, `.yml`, or anything with a folder in it).

    `lite_ppo` is what runs on a laptop, `lite_ppo@paper` the same method at the scale of its paper.

    Raises:
        RecipeError: no such preset, no such file, or a file that holds no valid recipe.
    """
    named = {**PRESETS, **PAPERS}
    if name_or_path in named:
        return named[name_or_path]()
    path = Path(name_or_path)
    if path.suffix in FILE_ENDINGS or len(path.parts) > 1 or path.is_file():
        return from_yaml(path)
    close = get_close_matches(name_or_path, named, n=1)
    fix = close[0] if close else "see `anabranch recipes`, or name a YAML file"
    raise RecipeError(explain("the recipe", repr(name_or_path), f"presets are: {', '.join(PRESETS)}", fix))
