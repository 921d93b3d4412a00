"""The step's duel once more, TRL's environment variables left as they come: `python -m benchmarks.step_default_memory`.

The search of `benchmarks.step` may find that TRL is faster if the C library never gives memory back, which needs more
of it. Here TRL has the other settings of that search and none of its variables. Options are those of `benchmarks.step`.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from benchmarks import step
from benchmarks.duel import RESULTS
from benchmarks.replay import best_of_search


def main() -> None:
    """Play; TRL's settings are those that `step.json` was played with, or `step.TRL_SETTINGS` before there is one."""
    settings = best_of_search(RESULTS / "step.json") or step.TRL_SETTINGS
    untouched = replace(settings, env={}).as_json()
    step.main(["--out", str(RESULTS / "step_default_memory.json"), "--trl", untouched, *sys.argv[1:]])


if __name__ == "__main__":
    main()
