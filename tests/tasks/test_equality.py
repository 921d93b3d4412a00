"""Equality of final answers: numbers exactly, LaTeX by math-verify, nothing by hedging."""

import json
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.records import Problem, Reason
from anabranch.tasks.equality import MathChecker, _equal_latex, equal, read_number

EVAL = Path(__file__).parents[2].parent / "shared" / "data" / "eval"
needs_data = pytest.mark.skipif(not EVAL.is_dir(), reason="the evaluation files are not here")


def rows(name):
    with (EVAL / name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1234", "1,234"),
        ("10,000", "10{,}000"),
        ("0.5", "1/2"),
        ("0.5", r"\frac12"),
        ("0.5", r"\dfrac{1}{2}"),
        (r"-\frac{3}{4}", "-0.75"),
        (r"\frac{-3}{4}", "-3/4"),
        ("3/4", "3 / 4"),
        ("7", "7."),
        ("7", "$7$."),
        ("7", "**7**"),
        ("7", r"\(7\)"),
        ("7", "+7.0"),
        ("-3", "\u22123"),  # a typographic minus
        ("7", r"\$7"),
        ("7", "$7"),
        ("7", "7 dollars"),
        ("7", "$7.00 dollars."),
        ("7", r"7\text{ cm}"),
        ("7", "7cm"),
        ("30", r"30^\circ"),
        ("50", r"50\%"),
        ("0.5", "50%"),
        ("50%", "50 percent"),
        ("4.5e3", r"4.5 \times 10^{3}"),
        ("4500", r"4.5\cdot10^3"),
        ("5", "x = 5"),
        ("p - q", "-q + p"),
        ("x^2+1", "1+x^2"),
        (r"2\sqrt{3}", r"\sqrt{12}"),
        (r"\text{Evelyn}", "Evelyn"),
        (r"(3,\frac{\pi}{2})", r"\left( 3, \frac{\pi}{2} \right)"),
        (r"\{1, 2\}", r"\{2, 1\}"),
    ],
)
def test_equal_answers(gold, answer):
    assert equal(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("70", "12"),
        ("70", "12, 70"),
        ("70", "70 or 12"),
        ("70", "$12$ or $70$"),
        ("70", "12 70"),
        ("70", r"\{12, 70\}"),
        ("70", r"12 \text{ or } 70"),
        ("7", r"\pm 7"),
        ("12", "1 2"),
        ("5", "5x"),
        ("18000", "18 thousand"),
        ("50%", "5000%"),
        ("1/3", "0.333"),
        ("1/3", "0.333333"),  # numbers are compared exactly
        ("1234", "1,23,4"),
        ("7", ""),
        ("7", "7" * 500),
        ("1", "1e999999999"),
        ("0", "1e-999999999"),
        ("1", "1/0"),
        ("7", "__import__('os')"),
    ],
)
def test_different_answers(gold, answer):
    assert not equal(gold, answer)


def test_leniencies_that_come_with_math_verify_are_known():
    assert equal("5m", "5")  # it takes m for a unit
    assert equal("P - Q", "p - q")  # it ignores the case of symbols
    assert equal(r"\sqrt{2}", "1.4142136")  # it compares with six decimals, where one side is no plain number


def test_a_chain_of_equations_is_its_last_side_only():
    assert equal("70", "7 \\cdot 10 = 70")
    assert not equal("12", "12 = 70")


@settings(deadline=None, max_examples=200)
@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "${}$", "{}.", "{}.00", " {} ", "**{:,}**"]))
def test_a_whole_number_is_read_however_it_is_dressed(number, dress):
    read = read_number(dress.format(number))
    assert read is not None
    assert read.value == number


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="0123456789.,-+/eE\\frac{}$% ^()x", max_size=40))
def test_reading_a_number_never_raises(text):
    number = read_number(text)
    assert number is None or isinstance(number.value, Fraction)


def test_the_checker_says_why():
    checker, problem = MathChecker(), Problem("k", "q", "70", "s")
    assert checker(problem, "Answer: 12\nno, Answer: 70").reason is Reason.CORRECT
    assert checker(problem, "Answer: 70\nno, Answer: 12").reason is Reason.WRONG
    assert checker(problem, "it is 70").reason is Reason.NO_ANSWER
    assert checker(problem, "").value == 0
    assert checker(problem, "Answer: " + "7" * 2000).reason is Reason.MALFORMED


@needs_data
@pytest.mark.parametrize("name", ["gsm8k_test.jsonl", "svamp_test.jsonl", "aime24.jsonl", "amc23.jsonl"])
def test_every_gold_answer_verifies_and_no_other_number_does(name):
    checker = MathChecker()
    for row in rows(name):
        problem = Problem("k", row["question"], row["answer"], "s")
        assert checker(problem, f"so\nAnswer: {row['answer']}").reason is Reason.CORRECT, row
        assert checker(problem, f"so\nAnswer: {row['answer']}1").reason is Reason.WRONG, row


@needs_data
def test_gold_answers_of_math500_verify_when_boxed_and_by_math_verify_alone():
    checker, sample = MathChecker(), rows("math500.jsonl")[::5]
    for row in sample:
        problem = Problem("k", row["question"], row["answer"], "s")
        assert checker(problem, f"\\boxed{{{row['answer']}}}").reason is Reason.CORRECT, row["answer"]
    parsed = [row for row in sample if _equal_latex(row["answer"], row["answer"] + r" \quad")]
    assert len(parsed) >= 0.97 * len(sample)  # without the shortcut for equal text


@needs_data
def test_gold_answers_of_neighbouring_problems_are_told_apart():
    sample = rows("math500.jsonl")[::10]
    pairs = [(left["answer"], right["answer"]) for left, right in pairwise(sample)]
    assert sum(equal(*pair) for pair in pairs) == sum(left == right for left, right in pairs)
