"""Calls of tools in a model's text."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.environments.tool_calls import CLOSE, OPEN, Call, describe, split


def call(name: str, arguments: dict[str, object]) -> str:
    return f"{OPEN}{json.dumps({'name': name, 'arguments': arguments})}{CLOSE}"


def test_text_and_calls_come_apart_in_order():
    text = f"First {call('add', {'a': 1, 'b': 2})} then {call('now', {})} done."
    assert split(text) == ("First  then  done.", (Call("add", '{"a": 1, "b": 2}'), Call("now", "{}")))


def test_text_without_a_call_stays_as_it_is():
    for text in ("", " 42 \n", OPEN, f"{CLOSE}{OPEN}", f"{OPEN}{{}}"):
        assert split(text) == (text, ())


def test_what_is_no_call_stays_text():
    for inner in ("add(1)", "[]", "{}", '{"name": 3}', '{"name": "add", "arguments": [1]}', "[" * 100_000):
        text = f"a {OPEN}{inner}{CLOSE} b"
        assert split(text) == (text, ())


def test_a_million_open_marks_take_no_time():
    text = OPEN * 100_000
    assert split(text) == (text, ())


@settings(deadline=None, max_examples=50)
@given(st.text(), st.dictionaries(st.text(), st.integers()))
def test_every_call_that_is_written_is_found(name, arguments):
    if CLOSE not in json.dumps([name, arguments]):
        assert split(call(name, arguments))[1] == (Call(name, json.dumps(arguments)),)


def test_tools_are_described_one_a_line_and_nothing_without_any():
    tools = [{"name": "add", "description": "Adds.", "parameters": {}}, {"name": "now"}]
    lines = describe(tools).splitlines()
    assert [json.loads(line) for line in lines[1:]] == tools
    assert OPEN in lines[0]
    assert CLOSE in lines[0]
    assert describe([]) == ""
