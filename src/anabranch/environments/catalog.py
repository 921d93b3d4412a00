"""From the settings of a recipe to a world."""

from __future__ import annotations

from anabranch.environments.base import World
from anabranch.environments.calculator import CalculatorWorld
from anabranch.environments.latency import LatencyWorld
from anabranch.environments.python_tool import PythonWorld
from anabranch.environments.verifiers_world import Render, VerifiersWorld
from anabranch.errors import WorldError, explain
from anabranch.recipe.environment import Calculator, EnvironmentSettings, Latency, PythonTool, Verifiers


def open_world(settings: EnvironmentSettings, render: Render | None = None) -> World:
    """The world that settings describe.

    Args:
        settings: of an environment.
        render: writes messages in the model's chat template; for environments that speak in messages.

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
        case Verifiers():
            if render is None:
                need = "what it says is written in the chat template of a model"
                raise WorldError(explain("environment.kind", "verifiers", need, "a run with a model"))
            return VerifiersWorld(settings, render)
