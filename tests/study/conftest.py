"""Studies of a tiny random model on a file of sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from anabranch.study.command import Asked

AskedFor = Callable[..., Asked]


@pytest.fixture(autouse=True)
def _torch_as_it_was(torch_as_it_was: None) -> Iterator[None]:
    """Every test here, without asking."""
    yield


@pytest.fixture(scope="session")
def asked_for(small_run: tuple[str, ...], small_stages: tuple[str, ...]) -> AskedFor:
    """`asked_for("algorithm.scale=none,group_std", seeds="2")`: a small study of the quickstart recipe."""

    sizes = "rollout={prompts: 4, per_problem: 4, max_new_tokens: 6}"  # in one, so that an axis may be a part of it

    def ask(*varied: str, seeds: str = "2", overrides: tuple[str, ...] = (), bundles: tuple[str, ...] = ()) -> Asked:
        return Asked("quickstart", (*small_run, sizes, *small_stages, *overrides), varied, bundles, seeds)

    return ask
