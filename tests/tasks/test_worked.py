"""Worked examples for the cold start, and the prompt."""

import pytest

from anabranch.errors import DataError
from anabranch.recipe.tree import Answer, JsonLines, Prompt, ReasoningGym
from anabranch.records import Message, Problem
from anabranch.tasks.base import open_task
from anabranch.tasks.prompts import messages
from anabranch.tasks.worked import worked_answer, worked_problems

ONE_DIGIT = ReasoningGym(size=50, options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})


def chain(expression):
    return Problem("k", f"{expression} =", "", "chain_sum", meta={"metadata": {"expression": expression}})


@pytest.mark.parametrize(
    ("expression", "worked"),
    [
        ("4 + 3", "4 + 3 = 7\nAnswer: 7"),
        ("4 - 7", "4 - 7 = -3\nAnswer: -3"),
        ("4 + 3 - 2", "4 + 3 = 7\n7 - 2 = 5\nAnswer: 5"),
        ("-4 - -3 + 10", "-4 - -3 = -1\n-1 + 10 = 9\nAnswer: 9"),
        ("5", "Answer: 5"),
    ],
)
def test_running_totals(expression, worked):
    assert worked_answer(chain(expression)) == worked


def test_anything_but_a_chain_of_sums_is_refused():
    with pytest.raises(DataError, match="chain of"):
        worked_answer(chain("2 * 3"))


def test_every_worked_answer_is_right_by_the_scorer():
    pytest.importorskip("reasoning_gym")
    data = ReasoningGym(options={"min_terms": 1, "max_terms": 6, "allow_negation": True})
    checker = open_task(data, Answer()).checker
    for problem, text in worked_problems(100, 0, data):
        assert checker(problem, text).value == 1, text


def test_worked_problems_are_distinct_repeatable_and_leave_out_what_is_held_out():
    pytest.importorskip("reasoning_gym")
    held_out = frozenset(problem.key for problem in open_task(ONE_DIGIT, Answer()).held_out(64, seed=0))
    pairs = worked_problems(100, 0, ONE_DIGIT, held_out)
    keys = {problem.key for problem, _ in pairs}
    assert len(keys) == 100
    assert not keys & held_out
    assert pairs == worked_problems(100, 0, ONE_DIGIT, held_out)
    assert pairs != worked_problems(100, 1, ONE_DIGIT, held_out)


def test_worked_problems_come_round_again_where_there_are_too_few():
    pytest.importorskip("reasoning_gym")
    pairs = worked_problems(208, 0, ONE_DIGIT)
    assert len(pairs) == 208
    assert len({problem.key for problem, _ in pairs}) == 200  # all one-digit sums and differences
    assert pairs[200:] == pairs[:8]


def test_a_file_with_solutions_is_worked(tmp_path):
    path = tmp_path / "x.jsonl"
    rows = ['{"question": "1+1", "answer": "2", "solution": "It is 2.\\n"}', '{"question": "q", "answer": "3"}']
    path.write_text("\n".join(rows))
    pairs = worked_problems(1, 0, JsonLines(path=str(path)))
    assert [(problem.question, text) for problem, text in pairs] == [("1+1", "It is 2.\nAnswer: 2")]
    with pytest.raises(DataError, match="held-out"):
        worked_problems(1, 0, JsonLines(path=str(path)), frozenset({pairs[0][0].key}))


def test_data_without_worked_examples_says_what_to_do(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"question": "q", "answer": "3"}')
    for data in (ReasoningGym(name="countdown"), JsonLines(path=str(path))):
        with pytest.raises(DataError, match="cold_start=null, or give a file with a column 'solution'"):
            worked_problems(1, 0, data)
    with pytest.raises(DataError, match="worked examples exist for reasoning-gym chain_sum"):
        worked_answer(Problem("k", "q", "a", "countdown"))


def test_a_prompt_is_the_question_with_the_instruction_below():
    problem = Problem("k", "1 + 1 =", "2", "s")
    assert messages(problem, Prompt(instruction="Be brief.")) == (Message("user", "1 + 1 =\nBe brief."),)
    assert messages(problem, Prompt(instruction="", system="You count.")) == (
        Message("system", "You count."),
        Message("user", "1 + 1 ="),
    )
