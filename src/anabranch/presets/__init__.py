"""Recipes that have a name: functions that return one."""

from anabranch.presets.catalog import PRESETS, load

__all__ = ["PRESETS", "load"]
