"""From the settings of a recipe to a world."""

from __future__ import annotations

from anabranch.environments.base import World
from anabranch.environments.calculator import CalculatorWorld
from anabranch.environments.latency import LatencyWorld
from anabranch.environments.python_tool import PythonWorld
from anabranch.recipe.environment import Calculator, EnvironmentSettings, Latency, PythonTool


def open_world(settings: EnvironmentSettings) -> World:
    """The world that settings describe.

    Raises:
        WorldError: it cannot be had on this machine.
    """
    match settings:
        case PythonTool():
            return PythonWorld(settings)
        case Calculator():
            return CalculatorWorld(settings)
        case Latency():
            return LatencyWorld(settings)
