"""A rollout turned inside out: what an environment asks becomes what the model is told, or the rollout is refused."""

import asyncio
import math

import pytest

from anabranch.environments.verifiers_conversation import Conversation, RefusedError, Said, shortened, total
from anabranch.errors import WorldError

ADD = {"type": "function", "function": {"name": "add", "parameters": {}}}
CALLING = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


class Play:
    """An environment that asks with the bodies it is given, one after the other."""

    def __init__(self, *bodies: dict, sessions: str = "aaaaaaaa") -> None:
        self.conversation = Conversation()
        self.bodies, self.sessions, self.replies = bodies, sessions, []

    async def run(self) -> None:
        for session, body in zip(self.sessions, self.bodies, strict=False):
            self.replies.append(await self.conversation.ask(session, body))
        self.conversation.finish(0.5)


def played(play: Play, *turns: str, question: str = "q"):
    """The tools, and what came back to each turn."""

    async def both():
        environment = asyncio.create_task(play.run())
        try:
            found = [await play.conversation.begin(question)]
            for turn in turns:
                found.append(await play.conversation.step(turn))
            return found
        finally:
            environment.cancel()
            await asyncio.gather(environment, return_exceptions=True)

    return asyncio.run(both())


def refusal(*bodies: dict, turns: tuple[str, ...] = ("x",), sessions: str = "aaaaaaaa", question: str = "q") -> str:
    with pytest.raises(RefusedError) as caught:
        played(Play(*bodies, sessions=sessions), *turns, question=question)
    return str(caught.value)


def test_what_is_added_to_the_conversation_is_the_observation():
    play = Play({"messages": [user("q")]}, {"messages": [user("q"), assistant("x"), user("more"), user("and")]})
    assert played(play, "x", "y") == [(), (Said("user", "more"), Said("user", "and")), 0.5]
    assert play.replies == [assistant("x"), assistant("y")]


def test_a_prompt_of_system_and_user_is_one_question():
    messages = [{"role": "system", "content": "s"}, user("q")]
    assert played(Play({"messages": messages}), "x", question="s\n\nq") == [(), 0.5]


def test_calls_of_tools_are_taken_from_the_text_and_recognised_when_they_come_back():
    call = {"id": "call_1_0", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    said = {"role": "assistant", "content": "I add.", "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "call_1_0", "content": [{"type": "text", "text": "2"}]}
    play = Play({"messages": [user("q")], "tools": [ADD]}, {"messages": [user("q"), said, result], "tools": [ADD]})
    found = played(play, f"I add. {CALLING}", "2")
    assert found == [('{"name": "add", "parameters": {}}',), (Said("tool", "2"),), 0.5]
    assert play.replies == [said, assistant("2")]


def test_without_tools_a_call_is_text():
    play = Play({"messages": [user("q")]})
    played(play, CALLING)
    assert play.replies == [assistant(CALLING)]


def test_what_cannot_be_one_stream_of_turns_is_refused_with_what_was_found():
    start = {"messages": [user("q")]}
    assert "begins with 'other'" in refusal({"messages": [user("other")]})
    assert "begins with 'q'" in refusal({"messages": [user("q"), {"role": "assistant", "content": ""}]})
    other = [user("q"), assistant("z"), user("more")]
    assert "content='z'" in refusal(start, {"messages": other})
    assert "a shorter conversation" in refusal(start, {"messages": [user("q")]})
    assert "without a word to it" in refusal(start, {"messages": [user("q"), assistant("x")]})
    assert "a second conversation" in refusal(start, {"messages": [user("q")]}, sessions="ab")
    assert "3 answers asked for" in refusal({"messages": [user("q")], "n": 3})
    longer = {"messages": [user("q"), assistant("x"), user("more")], "tools": [ADD]}
    assert "other tools" in refusal(start, longer)
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    assert "more than text" in refusal({"messages": [picture]})


def test_two_calls_at_once_are_refused():
    conversation = Conversation()

    async def twice() -> None:
        first = asyncio.create_task(conversation.ask("a", {"messages": [user("q")]}))
        await asyncio.sleep(0)
        with pytest.raises(RefusedError, match="two calls of the model at once"):
            await conversation.ask("a", {"messages": [user("q")]})
        first.cancel()

    asyncio.run(twice())


def test_rewards_are_scaled_by_the_stated_range_and_never_clipped():
    assert total({"right": 1.0, "brief": 0.5}, 0.0, 2.0) == 0.75  # (1.5 - 0) / 2
    assert total({"found": -1.0}, -1.0, 1.0) == 0.0
    assert total({"found": 0.0}, -1.0, 1.0) == 0.5
    assert total({"a": 0.1, "b": 0.2, "c": 0.7}, 0.0, 1.0) == 1.0  # the sum is 1 up to rounding
    with pytest.raises(WorldError, match=r"a reward of 1.5 \(right 1, brief 0.5\), but a reward lies in \[0, 1\]"):
        total({"right": 1.0, "brief": 0.5}, 0.0, 1.0)
    for value in (-0.001, 1.001, math.nan, math.inf):
        with pytest.raises(WorldError, match="a reward of"):
            total({"right": value}, 0.0, 1.0)


def test_a_rollout_without_a_reward_has_failed():
    with pytest.raises(WorldError, match="no reward"):
        total({}, 0.0, 1.0)
    with pytest.raises(WorldError, match="no value of right"):
        total({"brief": 1.0, "right": None}, 0.0, 1.0)


def test_long_messages_lose_their_middle():
    assert shortened("a" * 10, 10) == "a" * 10
    assert shortened("abcdefghijk", 5) == "ab [6 characters left out] ijk"
