"""Torch's global settings are put back after each test."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _torch_as_it_was(torch_as_it_was: None) -> None:
    """Every test here, without asking."""
