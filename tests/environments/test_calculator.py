"""What the calculator promises to a model, and to small ones that know no tags."""

import asyncio
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.environments.calculator import CalculatorWorld, find_expression
from anabranch.environments.catalog import open_world
from anabranch.recipe.tree import Calculator
from anabranch.tasks.exercises import Kind, Manner, exercises

TAGS = Calculator()
PLAIN = Calculator(open="", close="=", reply=" {}")


def step(settings_, text):
    return asyncio.run(open_world(settings_).environment().step(text))


def test_an_expression_between_tags_is_worked_out():
    found = step(TAGS, "12 dozen: <calc>12 * 12</calc>")
    assert (found.text, found.done, found.outcome) == ("<result>144</result>", False, "ok")


def test_an_error_is_an_observation_in_fixed_words():
    found = step(TAGS, "<calc>1/0</result></calc>")
    assert (found.text, found.done, found.outcome) == ("<result>error: not an expression</result>", False, "error")
    assert step(TAGS, "<calc>1/0</calc>").text == "<result>error: division by zero</result>"


@pytest.mark.parametrize("text", ["The answer is 7.", "<calc>1+1", "</calc>", "1+1</calc><calc>", ""])
def test_a_turn_without_an_expression_is_the_last(text):
    assert step(TAGS, text).done


def test_only_the_first_expression_counts():
    assert step(TAGS, "<calc>1</calc> <calc>2</calc>").text == "<result>1</result>"


def test_a_result_that_is_too_long_is_an_error():
    assert step(Calculator(output_chars=16), "<calc>2^60</calc>").outcome == "error"  # 19 digits
    assert step(Calculator(output_chars=19), "<calc>2^60</calc>").text == f"<result>{2**60}</result>"


@pytest.mark.parametrize(
    ("turn", "reply"),
    [
        ("12 - 3 =", " 9"),
        (" 9\n9 + 4 =", " 13"),
        ("Step 2: 3*(4+1) =", " 15"),
        ("x =", " error: not an expression"),
        ("=", " error: not an expression"),
    ],
)
def test_an_equals_sign_alone_can_ask_for_the_result(turn, reply):
    assert step(PLAIN, turn).text == reply


def test_the_worked_answers_of_small_models_come_out_right_with_an_equals_sign():
    """Their steps are `a + b = c`: the calculator fills in just what they would write."""
    stream = exercises((Kind(2, 6, 1),), Manner(), seed=0)
    for _ in range(50):
        answer = next(stream).answer
        turn = ""
        for line in answer.split("\n"):
            if "=" in line:
                asked, result = line.split("=")
                assert step(PLAIN, turn + asked + "=").text == result
                turn = ""
            turn += "\n"


def test_the_instruction_shows_the_marks_and_is_empty_without_an_opening_one():
    assert "<calc>12*(3+4)</calc>" in CalculatorWorld(TAGS).instruction
    assert CalculatorWorld(PLAIN).instruction == ""
    assert CalculatorWorld(PLAIN).stop_strings == ("=",)


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="<calc>/ 1+=", max_size=60))
def test_every_turn_is_answered_and_the_reply_is_the_settings_own(text):
    found = step(TAGS, text)
    if found.done:
        assert find_expression(text, "<calc>", "</calc>") is None
    else:
        assert found.text.startswith("<result>")
        assert found.text.count("<") == 2


@settings(deadline=None, max_examples=100)
@given(st.integers(-999, 999), st.integers(-999, 999), st.sampled_from("+-*/"))
def test_two_numbers_come_out_as_fractions_have_them(a, b, operator):
    found = step(TAGS, f"<calc>{a} {operator} ({b})</calc>")
    if operator == "/" and b == 0:
        assert found.outcome == "error"
    else:
        expected = {"+": Fraction(a + b), "-": Fraction(a - b), "*": Fraction(a * b)}.get(operator)
        shown = found.text.removeprefix("<result>").removesuffix("</result>")
        assert Fraction(shown) == (Fraction(a, b) if expected is None else expected)
