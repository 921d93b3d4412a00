"""A measurement in a process of its own, so that its peak memory is its own: `python -m anabranch.bench.alone`.

One JSON object a line: settings in, `{"ready": true}` out; then `{"index": 3}` in, measured values out, until the input
ends. An error of ours comes back as `{"error": ...}`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import TracebackType
from typing import Any, TextIO

from anabranch.errors import AnabranchError, EngineError, explain
from anabranch.recipe.tree import Recipe

KINDS = ("step", "generate")
"""What can be measured."""


class Alone:
    """The parent's end: a process that measures when asked, and is idle otherwise. Use it as a context.

    Args:
        kind: of `KINDS`.
        recipe: with its model part settled: a process of its own could choose otherwise.
        prompt_tokens: length of every prompt.
    """

    def __init__(self, kind: str, recipe: Recipe, prompt_tokens: int) -> None:
        self.name = f"{kind} {recipe.rollout.prompts} x {recipe.rollout.per_problem}"
        self._settings = {"kind": kind, "recipe": recipe.model_dump(mode="json"), "prompt_tokens": prompt_tokens}
        self._runs = 0

    def __enter__(self) -> Alone:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "anabranch.bench.alone"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which ends this process when it leaves
        )
        try:
            self._ask(self._settings)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def warm_up(self) -> str:
        """A run that does not count; returns what peak memory counts from, see `measure.restart_peak`."""
        self._runs += 1
        return str(self._ask({"index": self._runs - 1, "warm_up": True})["memory_counts_from"])

    def run(self) -> dict[str, float]:
        """The values of one run.

        Raises:
            AnabranchError: what went wrong there.
        """
        self._runs += 1
        return self._ask({"index": self._runs - 1})

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise EngineError(
                explain(
                    f"process that measures {self.name}",
                    f"exit code {self._process.wait()}",
                    "it has to answer; -9 is what the system does to processes when memory is short",
                    "smaller sizes, or see what it printed above",
                )
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise AnabranchError(answer["error"])
        return answer

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def serve(lines: TextIO, answers: TextIO) -> None:
    """The child's end."""

    def say(message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        settings = json.loads(lines.readline())
        from anabranch.bench.generate import generation
        from anabranch.bench.measure import restart_peak
        from anabranch.bench.step import steps
        from anabranch.bench.workloads import load_answerer, load_learner

        recipe = Recipe.model_validate(settings["recipe"])
        tokens = settings["prompt_tokens"]
        if settings["kind"] == "step":
            run = steps(load_learner(recipe), tokens)
        else:
            run = generation(load_answerer(recipe), tokens)
        say({"ready": True})
        for line in lines:
            asked = json.loads(line)
            values = run(asked["index"])
            say({"memory_counts_from": restart_peak()} if asked.get("warm_up") else dict(values))
    except AnabranchError as error:
        say({"error": f"{type(error).__name__}: {error}"})


def main() -> None:
    """Serve on standard input and output; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
