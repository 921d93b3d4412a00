"""How a model calls tools in plain text, and how it is told about them.

A call is a JSON object between two marks, as in Hermes, Qwen and SmolLM chat templates:

    <tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Call:
    """One call of a tool."""

    name: str
    arguments: str
    """A JSON object."""


def split(text: str) -> tuple[str, tuple[Call, ...]]:
    """What a model wrote, apart from its calls, and the calls in order. Linear time: the text is hostile.

    What stands between marks and is no call (no JSON object with a `name` and an object of `arguments`) stays text.

    >>> split('Sum. <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>')
    ('Sum.', (Call(name='add', arguments='{"a": 1}'),))
    """
    kept: list[str] = []
    calls: list[Call] = []
    end = 0
    while (start := text.find(OPEN, end)) >= 0 and (close := text.find(CLOSE, start)) >= 0:
        call = _call(text[start + len(OPEN) : close])
        kept.append(text[end : close + len(CLOSE)] if call is None else text[end:start])
        calls += [] if call is None else [call]
        end = close + len(CLOSE)
    kept.append(text[end:])
    return ("".join(kept).strip(), tuple(calls)) if calls else (text, ())


def _call(text: str) -> Call | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    arguments = found.get("arguments", {})
    return Call(found["name"], json.dumps(arguments)) if isinstance(arguments, dict) else None


def describe(tools: Sequence[Mapping[str, Any]]) -> str:
    """What a prompt says about tools: their declarations, one a line, and how they are called. Empty without any.

    Args:
        tools: `{"name", "description", "parameters"}` each, the last one a JSON schema.
    """
    if not tools:
        return ""
    lines = "\n".join(json.dumps(dict(tool)) for tool in tools)
    form = '{"name": NAME, "arguments": {...}}'
    return (
        f"You may call tools. A call is {OPEN}{form}{CLOSE}; end your turn behind it, and the result comes back. "
        f"A turn without a call is your answer. The tools:\n{lines}"
    )
