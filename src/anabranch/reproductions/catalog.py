"""What can be reproduced, by name. To add one: a module with a `Reproduction`, and its line here."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType

from anabranch.errors import RecipeError, explain
from anabranch.reproductions.claims import Reproduction
from anabranch.reproductions.spo import SPO
from anabranch.reproductions.tricks import TRICKS

REPRODUCTIONS: Mapping[str, Reproduction] = MappingProxyType({each.name: each for each in (TRICKS, SPO)})


def find(name: str) -> Reproduction:
    """The reproduction of that name.

    Raises:
        RecipeError: there is none.
    """
    if name in REPRODUCTIONS:
        return REPRODUCTIONS[name]
    close = get_close_matches(name, REPRODUCTIONS, n=1) or list(REPRODUCTIONS)
    need = f"what can be reproduced is: {', '.join(REPRODUCTIONS)}"
    raise RecipeError(explain("the reproduction", repr(name), need, f"anabranch reproduce {close[0]}"))
