"""Worked examples for the cold start, and the prompt."""

import pytest

from anabranch.errors import DataError
from anabranch.recipe.tree import Answer, JsonLines, Prompt, ReasoningGym
from anabranch.records import Message, Problem
from anabranch.tasks.base import open_task
from anabranch.tasks.prompts import messages
from anabranch.tasks.worked import worked_answer


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
    task = open_task(data, Answer())
    for problem in task.problems[:100]:
        assert task.checker(problem, worked_answer(problem)).value == 1


def test_a_file_with_solutions_is_worked(tmp_path):
    path = tmp_path / "x.jsonl"
    rows = ['{"question": "1+1", "answer": "2", "solution": "It is 2.\\n"}', '{"question": "q", "answer": "3"}']
    path.write_text("\n".join(rows))
    with_solution, without = open_task(JsonLines(path=str(path)), Answer()).problems
    assert worked_answer(with_solution) == "It is 2.\nAnswer: 2"
    with pytest.raises(DataError, match="cold_start=null, or give a file with a column 'solution'"):
        worked_answer(without)


def test_data_without_worked_examples_says_what_to_do():
    with pytest.raises(DataError, match="worked examples exist for reasoning-gym chain_sum"):
        worked_answer(Problem("k", "q", "a", "countdown"))


def test_a_prompt_is_the_question_with_the_instruction_below():
    problem = Problem("k", "1 + 1 =", "2", "s")
    assert messages(problem, Prompt(instruction="Be brief.")) == (Message("user", "1 + 1 =\nBe brief."),)
    assert messages(problem, Prompt(instruction="", system="You count.")) == (
        Message("system", "You count."),
        Message("user", "1 + 1 ="),
    )
