"""The environments of a recipe, opened for a run or an evaluation and closed behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from anabranch.environments.runner import Runner
from anabranch.recipe.tree import EnvironmentSettings


@contextmanager
def running(settings: EnvironmentSettings | None) -> Iterator[Runner | None]:
    """A runner of environments with these settings; None if there are none.

    Raises:
        AnabranchError: they cannot be had on this machine.
    """
    if settings is None:
        yield None
        return
    from anabranch.environments.catalog import open_world

    with Runner(open_world(settings)) as runner:
        yield runner
