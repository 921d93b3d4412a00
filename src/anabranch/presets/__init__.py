"""Recipes that have a name: functions that return one."""

from anabranch.presets.catalog import PAPERS, PRESETS, load

__all__ = ["PAPERS", "PRESETS", "load"]
