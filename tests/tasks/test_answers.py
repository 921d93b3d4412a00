"""Finding the final answer: every rule takes the last mark, in linear time."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import DataError
from anabranch.tasks import answers

DEFAULT = ("boxed", "answer_line", "hashes")
ALL = ("boxed", "answer_line", "hashes", "tag", "last_number")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{7}", "7"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),  # escaped braces do not count
        (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."),
        (r"\boxed {7}", "7"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{}", None),
        (r"\boxed{1} and \boxed{2", None),  # the last box decides, and it was never closed
        (r"\boxed 7", None),
        ("nothing", None),
    ],
)
def test_the_last_box_with_balanced_braces(text, found):
    assert answers.boxed(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Answer: 7", "7"),
        ("Final Answer: 7", "7"),
        ("ANSWER : 7", "7"),
        ("Answer: 12\nwait\nAnswer: 70", "70"),
        ("Answer: 12 Answer: 70", "70"),
        ("**Answer:** 7", "7"),
        ("**Answer**: 7", "7"),
        ("**Answer: 7**", "7"),
        ("**Final Answer: 7**.", "7"),
        ("Answer: **7**", "7"),
        ("Answer: x**2", "x**2"),  # a power, not bold
        ("The answer: 7", "7"),
        ("Answer: 12\nAnswer:\n70", None),  # the last mark decides, and nothing stands on its line
        ("my_answer: 7", None),
        ("the answer is 7", None),
    ],
)
def test_the_last_answer_line(text, found):
    assert answers.answer_line(text) == found


def test_hashes_tag_and_last_number_take_the_last():
    assert answers.hashes("#### 1\n#### 72\nbye") == "72"
    assert answers.hashes("no mark") is None
    assert answers.tag("<answer>1</answer> <ANSWER>\n1 2\n3 4\n</Answer>") == "1 2\n3 4"
    assert answers.tag("<answer>1</answer><answer>2") is None
    assert answers.last_number("from 3 to $1,234.50 in all.") == "$1,234.50"
    assert answers.last_number("3/4 of it") == "3/4"
    assert answers.last_number("none") is None


def test_rules_are_tried_in_order_and_last_number_only_when_named():
    text = "\\boxed{1}\nAnswer: 2\n#### 3\nand 4"
    assert answers.find(text, DEFAULT) == "1"
    assert answers.find(text, ("answer_line", "boxed")) == "2"
    assert answers.find("it is 4", DEFAULT) is None
    assert answers.find("it is 4", (*DEFAULT, "last_number")) == "4"


def test_only_the_tail_is_searched():
    assert answers.find("Answer: 7" + " " * answers.TAIL, DEFAULT) is None
    assert answers.find(" " * answers.TAIL + "Answer: 7", DEFAULT) == "7"


def test_lone_surrogates_never_come_back():
    assert answers.find("Answer: \ud8007", DEFAULT) == "?7"


@pytest.mark.parametrize("extract", [(name,) for name in ALL])
@pytest.mark.parametrize("answer", ["7", "-1/2"])
def test_what_is_written_is_found(extract, answer):
    assert answers.find(answers.written(answer, extract), extract) == answer


def test_an_answer_of_several_lines_is_written_with_the_tag():
    extract = (*DEFAULT, "tag")
    assert answers.find(answers.written("1 2\n3 4", extract), extract) == "1 2\n3 4"
    with pytest.raises(DataError, match="at least one rule"):
        answers.written("7", ())


@pytest.mark.parametrize(
    "piece",
    ["\\boxed{", "answer   ", "answer:", "<answer>", "{", "}", "####", "1,", "\\", "**", "Answer: **", "9", "\x00"],
)
def test_hostile_text_takes_no_time(piece):
    text = piece * (2_000_000 // len(piece))
    start = time.perf_counter()
    answers.find(text, ALL)
    assert time.perf_counter() - start < 0.5  # quadratic time on the tail alone would take seconds


@settings(deadline=None, max_examples=100)
@given(st.text(), st.sampled_from(ALL))
def test_any_text_gives_a_writable_answer_or_none(text, name):
    found = answers.find(text, (name,))
    assert found is None or (found.strip() == found and found.encode())
