"""A Python interpreter as a tool (SPO, arXiv:2509.13232, section 5.1 and appendix D; docs/environments.md).

A turn that holds `<code>` script `</code>`, the script perhaps in a Markdown fence, is answered with

    \\n<interpreter>\\n OUTPUT \\n</interpreter>\\n

(no spaces). OUTPUT is what the script wrote, without line ends behind it, its middle cut out where it is too long. A
script that did not end by itself, or wrote nothing, has a line in square brackets there that says so. Only the first
script of a turn is run. A turn without one is the last.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

from anabranch.environments.base import Observation
from anabranch.environments.guard import queued
from anabranch.environments.sandbox import WALLS, Limits, Outcome, Ran, Sandbox, Walls
from anabranch.recipe.environment import PythonTool
from anabranch.records import Problem

OPEN, CLOSE = "<code>", "</code>"
FENCE = "```"
CUT = " [...] "
"""Stands for the middle of an output that was cut."""
GRACE = 30.0
"""Seconds beyond a script's limit in which its processes are started, killed and cleared away."""
INSTRUCTION = (
    "You may run Python on the way: write a complete script, with its imports, between <code> and </code> and stop. "
    "What it prints comes back between <interpreter> and </interpreter>, and you go on from there. "
    "Nothing is kept from one script to the next."
)

_TAG = re.compile(
    r"<(?=\s*/?\s*(?:interpreter|code|tool_\w+|(?:start|end)_of_\w+|s|bos|eos|pad|unk|mask|sep|cls)\b|[|｜])",
    re.IGNORECASE,
)
"""Where a tag of the protocol begins, or what chat templates and tokenizers use as marks."""


class PythonWorld:
    """Python tools that share a limit on scripts run at a time.

    Args:
        settings: limits.
        walls: what holds scripts; None: the best that this system has.

    Raises:
        WorldError: scripts cannot be held here at all.
    """

    instruction = INSTRUCTION
    stop_strings = (CLOSE,)

    def __init__(self, settings: PythonTool, walls: Walls | None = None) -> None:
        self.turns = settings.turns
        self.seconds = settings.timeout + GRACE
        self.settings = settings
        self.sandbox = Sandbox(Limits(timeout=settings.timeout, memory_mb=settings.memory_mb), walls)
        self._slots: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None

    @property
    def note(self) -> str:
        """What holds scripts on this machine."""
        return f"scripts: {WALLS[self.sandbox.walls]}"

    @property
    def slots(self) -> asyncio.Semaphore:
        """Of the loop that runs: one for each script at a time."""
        loop = asyncio.get_running_loop()
        if self._slots is None or self._slots[0] is not loop:
            self._slots = loop, asyncio.Semaphore(self.settings.workers)
        return self._slots[1]

    def environment(self) -> PythonEnvironment:
        """A new one."""
        return PythonEnvironment(self)

    async def close(self) -> None:
        """Nothing is left: every script's processes end with it."""


class PythonEnvironment:
    """Answers every turn by itself: scripts leave nothing behind."""

    def __init__(self, world: PythonWorld) -> None:
        self._world = world

    async def reset(self, problem: Problem, key: tuple[int, ...]) -> None:
        """Nothing to do."""

    async def restore(self, problem: Problem, key: tuple[int, ...], state: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def state(self) -> Mapping[str, Any]:
        """None."""
        return {}

    async def step(self, text: str) -> Observation:
        """Run the script of a turn."""
        script = find_script(text)
        if script is None:
            return Observation("", done=True)
        slots = self._world.slots
        with queued():
            await slots.acquire()
        try:
            ran = await self._world.sandbox.run(script)
        finally:
            slots.release()
        return Observation(shown(ran, self._world.settings.output_chars), outcome=str(ran.outcome))

    async def close(self) -> None:
        """Nothing to do."""


def find_script(text: str) -> str | None:
    """The first script of a turn, without its fence; None if there is none. Linear time.

    >>> find_script("So: <code>\\n```python\\nprint(1)\\n```\\n</code>")
    'print(1)'
    """
    start = text.find(OPEN)
    end = text.find(CLOSE, start)
    if start < 0 or end < 0:
        return None
    script = text[start + len(OPEN) : end].strip("\n")
    fenced = script.strip()
    if not fenced.startswith(FENCE):
        return script
    _, _, script = fenced.partition("\n")  # the rest of the first line names the language
    return script.rstrip().removesuffix(FENCE).strip("\n")


def shown(ran: Ran, limit: int) -> str:
    """What the model reads of a script's run, see the head of this file.

    The output cannot end the block or begin another, nor a turn of the chat: a tag of the protocol in it, or a mark of
    a chat template, gets a space behind its `<`.
    """
    output = _TAG.sub("< ", cut(ran.output.rstrip("\n"), limit))
    note = f"[stopped: {ran.detail}]" if ran.detail else "[no output]"
    if ran.outcome is Outcome.CRASH:
        note = f"[ended: {ran.detail}]"
    parts = [output] if output else []
    if ran.detail or not output:
        parts.append(note)
    return "\n<interpreter>\n" + "\n".join(parts) + "\n</interpreter>\n"


def cut(text: str, limit: int) -> str:
    """At most `limit` characters of a text: its beginning and its end.

    >>> cut("0123456789abcdefghij", 16)
    '01234 [...] ghij'
    """
    if len(text) <= limit:
        return text
    kept = limit - len(CUT)
    return text[: (kept + 1) // 2] + CUT + text[len(text) - kept // 2 :]
