"""One rollout in an environment of the `verifiers` package, turned inside out.

The environment owns its loop and calls a model. Here every call waits until the model, which lives in another process,
has written its turn; what the environment says until it calls again is the observation:

    ask (the environment's side)  --messages-->  begin, step (the model's side)
            ^---------------turn------------------'

Knows nothing of the package: messages are plain JSON in the form of OpenAI's chat completions.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anabranch.environments.tool_calls import split
from anabranch.errors import WorldError, explain

SHOWN = 200
"""How much of a message an error shows."""


@dataclass(frozen=True)
class Said:
    """A message, in the form in which two are compared."""

    role: str
    content: str
    calls: tuple[tuple[str, str, str], ...] = ()
    """Id, name and arguments of the tools that the model called."""


@dataclass(frozen=True)
class _Ask:
    """A call of the model that waits for its turn."""

    said: tuple[Said, ...]
    tools: tuple[str, ...]
    """Declarations as JSON, sorted keys."""
    turn: asyncio.Future[dict[str, Any]]


class RefusedError(WorldError):
    """The environment does something that no rollout can follow."""


class Conversation:
    """The two sides of a rollout. Used by one event loop."""

    def __init__(self) -> None:
        self._news: asyncio.Queue[_Ask | float | WorldError] = asyncio.Queue()
        """What happens next: a call of the model, the reward, or a failure."""
        self._ask: _Ask | None = None
        self._session: str | None = None
        self._turns = 0
        self._failed = False

    # ------------------------------------------------------------------------------------------- the environment's side

    async def ask(self, session: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A call of the model: the message that it answers with.

        Args:
            session: which conversation of the environment it belongs to.
            body: of a chat completion.

        Raises:
            RefusedError: it is not the next turn of the only conversation; the rollout has failed with that.
        """
        try:
            if self._session not in (None, session):
                raise refusal("a second conversation with the model", "a rollout is one conversation")
            if self._ask is not None or not self._news.empty():
                raise refusal("two calls of the model at once", "a rollout is one stream of turns")
            if body.get("n") not in (None, 1):
                raise refusal(f"{body['n']} answers asked for", "a rollout has one")
            self._session = session
            said = tuple(heard(message) for message in body["messages"])
            tools = tuple(json.dumps(tool["function"], sort_keys=True) for tool in body.get("tools") or ())
            ask = _Ask(said, tools, asyncio.get_running_loop().create_future())
        except WorldError as error:
            self.fail(error)
            raise
        self._news.put_nowait(ask)
        return await ask.turn

    def finish(self, reward: float) -> None:
        """The environment is through."""
        self._news.put_nowait(reward)

    def fail(self, error: WorldError) -> None:
        """The rollout is lost; the first reason counts."""
        if not self._failed:
            self._failed = True
            self._news.put_nowait(error)

    # ------------------------------------------------------------------------------------------------ the model's side

    async def begin(self, question: str) -> tuple[str, ...]:
        """Wait for the first call of the model; the tools that it may call, as JSON.

        Raises:
            WorldError: there is none, or it does not ask the question.
        """
        news = await self._next()
        if not isinstance(news, _Ask):
            raise refusal("no call of the model", "a rollout begins with one")
        asked = "\n\n".join(said.content for said in news.said if said.content)
        if asked != question or any(said.role not in ("system", "user") for said in news.said):
            shown = f"a conversation that begins with {asked[:SHOWN]!r}"
            raise refusal(shown, f"the prompt of its task was {question[:SHOWN]!r}")
        self._ask = news
        return news.tools

    async def step(self, text: str) -> tuple[Said, ...] | float:
        """Give the model's turn; what the environment says to it, or the reward if it is through.

        Raises:
            WorldError: the environment failed, or goes on in a way that the turns so far do not lead to.
        """
        ask = self._ask
        assert ask is not None, "begin first"
        self._ask, self._turns = None, self._turns + 1
        message = self._message(text, bool(ask.tools))
        ask.turn.set_result(message)
        news = await self._next()
        if not isinstance(news, _Ask):
            return news
        before = (*ask.said, heard(message))
        if news.said[: len(before)] != before:
            place = next((i for i, (new, old) in enumerate(zip(news.said, before, strict=False)) if new != old), None)
            found = "a shorter conversation" if place is None else f"{news.said[place]} in place of {before[place]}"
            raise refusal(f"{found[: 2 * SHOWN]}", "what was said stays: the model has read it, and written on behind")
        if news.tools != ask.tools:
            raise refusal("other tools than before", "the prompt describes them, once")
        if len(news.said) == len(before):
            raise refusal("a call of the model without a word to it", "an observation has text")
        self._ask = news
        return news.said[len(before) :]

    def _message(self, text: str, tools: bool) -> dict[str, Any]:
        content, calls = split(text) if tools else (text, ())
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{self._turns}_{index}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for index, call in enumerate(calls)
            ]
        return message

    async def _next(self) -> _Ask | float:
        news = await self._news.get()
        if isinstance(news, WorldError):
            raise news
        return news


def heard(message: Mapping[str, Any]) -> Said:
    """A message of a chat completion.

    Raises:
        RefusedError: it is not text.
    """
    content = message.get("content") or ""
    if not isinstance(content, str):
        if any(part.get("type") != "text" for part in content):
            raise refusal(f"a message of {message['role']} with more than text", "the model reads text")
        content = "\n".join(part["text"] for part in content)
    calls = tuple(
        (call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls") or ()
    )
    return Said(message["role"], content, calls)


def refusal(found: str, need: str) -> RefusedError:
    """What a rollout cannot follow."""
    return RefusedError(explain("environment", found, need, "choose another environment, or another agent of it"))


def shortened(text: str, limit: int) -> str:
    """`text`, without its middle if it is longer than `limit`.

    >>> shortened("abcdefghij", 4)
    'ab [6 characters left out] ij'
    """
    if len(text) <= limit:
        return text
    head = limit // 2
    return f"{text[:head]} [{len(text) - limit} characters left out] {text[len(text) - (limit - head) :]}"


def total(rewards: Mapping[str, float | None], lowest: float, highest: float) -> float:
    """The sum of an environment's rewards, from [lowest, highest] to [0, 1].

    Raises:
        WorldError: there is no reward, one was not computed, or the sum is outside of the range.
    """
    missing = [name for name, value in rewards.items() if value is None]
    if missing or not rewards:
        found = f"no value of {', '.join(missing)}" if missing else "no reward"
        raise WorldError(explain("environment", found, "a rollout ends with a reward", "see its rewards"))
    value = sum(value for value in rewards.values() if value is not None)
    slack = 1e-9 * (highest - lowest)  # what a sum of weighted parts may be off
    if not lowest - slack <= value <= highest + slack:
        parts: Sequence[str] = [f"{name} {part:g}" for name, part in rewards.items()]
        need = f"a reward lies in [{lowest:g}, {highest:g}] (environment.lowest, environment.highest)"
        fix = "set both to what its rewards can sum up to: they are mapped to 0 and 1"
        raise WorldError(explain("environment", f"a reward of {value:g} ({', '.join(parts)})", need, fix))
    return min(1.0, max(0.0, (value - lowest) / (highest - lowest)))
