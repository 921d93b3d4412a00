"""Runs in processes that can be killed for real, without paying for the imports each time.

Started once as `python killable.py MODEL`. Every line on its input describes one life of a run; it forks a child that
lives it, waits for its end, and prints how it ended. A child kills itself with SIGKILL: from a second thread, some time
after the run announced a phase (`phase`), or right before a file operation of the main thread (`operation`).

Imports are inside the functions: workers that judge import this file, too.
"""

import json
import os
import re
import resource
import signal
import sys
import threading
import time
from pathlib import Path


def die(delay: float = 0.0) -> None:
    """SIGKILL to this process: no handler, no clean-up, no flush."""
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)


def announce_phases(kill: dict | None) -> None:
    """Let the run print its phases, and die `kill["delay"]` s after the `kill["count"]`th one that matches."""
    from anabranch.tracking.display import PlainDisplay
    from anabranch.train import run

    class Announcing(PlainDisplay):
        name = "before"

        def stage(self, name: str, total: int, seconds: float | None = None, *, spent: float = 0.0) -> None:
            self.name = name

        def phase(self, text: str) -> None:
            here = f"{self.name}: {text}"
            self.note(here)
            if kill and re.search(kill["phase"], here):
                kill["count"] -= 1
                if kill["count"] == 0:
                    threading.Thread(target=die, args=(kill["delay"],), daemon=True).start()

    run.make_display = Announcing


def die_at(event: str, path: str) -> None:
    """Die right before a file operation (named as audit events are) on a path that holds `path`."""

    def hook(name: str, args: tuple) -> None:
        if name == event and args and path in str(args[0]):
            die()

    sys.addaudithook(hook)


def live(life: dict) -> int:
    """One life of a run, up to its end or its death; returns the exit code. Output goes to the file `log`."""
    from anabranch.errors import AnabranchError
    from anabranch.recipe.io import from_yaml
    from anabranch.train import run

    with Path(life["log"]).open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    announce_phases(life.get("phase"))
    if "operation" in life:
        die_at(*life["operation"])
    if "largest_file" in life:
        resource.setrlimit(resource.RLIMIT_FSIZE, (life["largest_file"], life["largest_file"]))
    try:
        if "recipe" in life:
            run.start(from_yaml(life["recipe"]), Path(life["path"]))
        else:
            run.resume(Path(life["path"]), life.get("steps"))
    except AnabranchError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return 2
    return 0


def warm_up(model: str) -> None:
    """Import what every child needs, the lazy parts too. Nothing is computed before a fork."""
    import math_verify  # noqa: F401
    import torch

    from anabranch.modeling.load import load_model, load_tokenizer
    from anabranch.recipe.tree import Optim
    from anabranch.train import run  # noqa: F401
    from anabranch.train.optimizer import MasterOptimizer

    torch.set_num_threads(1)
    load_tokenizer(model)
    MasterOptimizer(load_model(model, torch.float32, torch.device("cpu")), Optim())


def main() -> None:
    """Serve lives until the input ends."""
    warm_up(sys.argv[1])
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(live(json.loads(line)))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
