"""What the calculator's arithmetic promises: exact values, and an end for every text."""

import time
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anabranch.environments.arithmetic import CHARACTERS, DEEPEST, LONGEST, MOST_BITS, ExpressionError, value, written


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("12*(3+4)", "84"),
        (" 12 - 3 ", "9"),
        ("7 - 12", "-5"),
        ("10 - 3 - 2", "5"),  # from the left
        ("2*3/4", "1.5"),
        ("8/4/2", "1"),
        ("1/3", "1/3"),
        ("4/6", "2/3"),
        ("-5/4", "-1.25"),
        ("0.1+0.2", "0.3"),  # exact
        (".5+1.", "1.5"),
        ("-2^2", "-4"),  # as in mathematics
        ("(-2)^2", "4"),
        ("2^3^2", "512"),  # 2^9
        ("2**10", "1024"),
        ("2^-2", "0.25"),
        ("(2/3)^3", "8/27"),
        ("--3", "3"),
        ("3*-2", "-6"),
        ("+4", "4"),
        ("6×7÷2−1", "20"),
        ("1/1024", "0.0009765625"),
        ("0^0", "1"),
        ("(-1)^1000001", "-1"),
        ("1^99999999999", "1"),
        ("0", "0"),
        ("-0", "0"),
        ("100", "100"),
        ("7/100", "0.07"),
    ],
)
def test_values_by_hand(text, result):
    assert written(value(text)) == result


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not an expression"),
        ("3 +", "not an expression"),
        ("3 4", "not an expression"),
        ("1.2.3", "not an expression"),
        ("(1", "a parenthesis is not closed"),
        ("1)", "not an expression"),
        ("()", "not an expression"),
        ("import os", "not an expression"),
        ("__import__('os')", "not an expression"),
        ("1e5", "not an expression"),
        ("٣+1", "not an expression"),  # a digit, but not one of ours
        ("1//2", "not an expression"),
        ("1/0", "division by zero"),
        ("1/(2-2)", "division by zero"),
        ("0^-1", "division by zero"),
        ("2^(1/2)", "an exponent must be a whole number"),
        ("9^9^9", "the number is too large"),
        ("2^1025", "the number is too large"),
        ("1/2^9999999999", "the number is too large"),
        ("9" * 400, "the number is too large"),
        ("1" * (LONGEST + 1), "the expression is too long"),
        ("(" * 100 + "1" + ")" * 100, "the expression is too deep"),
        ("-" * 100 + "1", "the expression is too deep"),
        ("2^" * 100 + "1", "the expression is too deep"),
    ],
)
def test_what_has_no_value_says_why(text, why):
    with pytest.raises(ExpressionError) as caught:
        value(text)
    assert str(caught.value) == why


NUMBERS = st.builds(
    lambda whole, decimals: (f"{whole}.{decimals}", Fraction(f"{whole}.{decimals}")) if decimals else
    (str(whole), Fraction(whole)),
    st.integers(0, 999), st.sampled_from(["", "5", "25", "125", "07"]),
)  # fmt: skip


def combined(parts):
    """(text, value) of two operands in parentheses; the value is None where it divides by zero."""
    (left, a), operator, (right, b) = parts
    text = f"({left}) {operator} ({right})"
    if a is None or b is None or (operator == "/" and b == 0):
        return text, None
    return text, {"+": a + b, "-": a - b, "*": a * b}.get(operator) if operator != "/" else a / b


EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(combined),
        inner.map(lambda pair: (f"-({pair[0]})", None if pair[1] is None else -pair[1])),
        st.tuples(inner, st.integers(0, 3)).map(
            lambda pair: (f"({pair[0][0]})^{pair[1]}", None if pair[0][1] is None else pair[0][1] ** pair[1])
        ),
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200)
@given(EXPRESSIONS)
def test_every_expression_has_the_value_that_fractions_give(pair):
    text, expected = pair
    try:
        found = value(text)
    except ExpressionError as error:
        assert expected is None or str(error) != "division by zero"
        assert expected is None or len(text) > LONGEST or "too" in str(error)
    else:
        assert found == expected


FLAT = st.lists(st.tuples(st.sampled_from("+-*"), st.integers(0, 99)), min_size=1, max_size=20)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 99), FLAT)
def test_products_bind_more_than_sums_and_both_go_from_the_left(first, rest):
    total, product = 0, first
    for operator, number in rest:
        if operator == "*":
            product *= number
        else:
            total, product = total + product, number if operator == "+" else -number
    assert value(f"{first}" + "".join(f" {operator} {number}" for operator, number in rest)) == total + product


@settings(deadline=None, max_examples=200)
@given(st.fractions(max_denominator=10**6))
def test_what_is_written_reads_back_as_the_same_number(number):
    assert value(written(number)) == number


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet=sorted(CHARACTERS), max_size=LONGEST + 10))
@example("9^" * 200)
@example("(" * LONGEST)
@example("1/" * (LONGEST // 2 - 1) + "3")
@example("(" * (DEEPEST // 2) + "7" + ")^3" * (DEEPEST // 2))
@example("9" * 308 + "/" + "7" * 180)
def test_every_text_ends_at_once(text):
    start = time.process_time()
    try:
        found = value(text)
        assert max(found.numerator.bit_length(), found.denominator.bit_length()) <= MOST_BITS
        written(found)
    except ExpressionError:
        pass
    assert time.process_time() - start < 5
