"""Exercises: questions as reasoning-gym writes them, answers of the quality that was asked for."""

import re
from collections import Counter
from itertools import islice

import pytest

from anabranch.recipe.tree import Answer, Prompt, ReasoningGym
from anabranch.tasks.answers import answer_line
from anabranch.tasks.base import open_task
from anabranch.tasks.exercises import LOOP_CHARACTERS, Kind, Manner, exercises
from anabranch.tasks.worked import worked_answer

KINDS = (Kind(2, 4, 1), Kind(2, 4, 2))


def some(manner, count=400, kinds=KINDS, seed=0):
    return list(islice(exercises(kinds, manner, seed), count))


def test_plain_exercises_are_worked_out_and_right():
    for exercise in some(Manner()):
        assert exercise.ends
        assert answer_line(exercise.answer) == str(exercise.gold)
        *lines, _ = exercise.answer.splitlines()
        terms = len(re.findall(r"\d+", exercise.prompt.splitlines()[0]))
        assert len(lines) == terms - 1
        for line in lines:
            left, operator, right, result = re.fullmatch(r"(-?\d+) ([-+]) (\d+) = (-?\d+)", line).groups()
            assert int(result) == int(left) + (int(right) if operator == "+" else -int(right))


def test_questions_and_answers_are_those_of_a_cold_start_on_reasoning_gym():
    pytest.importorskip("reasoning_gym")
    options = {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 2, "allow_parentheses": False}
    arithmetic = ReasoningGym(name="basic_arithmetic", options={**options, "operators": ["+", "-"]}, size=50)
    chain = ReasoningGym(name="chain_sum", options={k: v for k, v in options.items() if k != "allow_parentheses"})
    by_question = {exercise.prompt.splitlines()[0]: exercise for exercise in some(Manner(), 20_000)}
    found = Counter()
    for data in (arithmetic, chain):
        for problem in open_task(data, Answer()).problems:
            if problem.question in by_question:
                found[data.name] += 1
                assert by_question[problem.question].answer == worked_answer(problem)
    assert min(found["basic_arithmetic"], found["chain_sum"]) > 0


def test_a_tenth_of_the_prompts_carry_the_default_instruction_and_half_of_those_ask_as_chain_sum_does():
    prompts = [exercise.prompt for exercise in some(Manner(), 2000)]
    assert 0.08 < sum(prompt.endswith("\n" + Prompt().instruction) for prompt in prompts) / 2000 < 0.12
    assert 0.03 < sum(prompt.startswith("State the final answer") for prompt in prompts) / 2000 < 0.07


def test_slips_are_as_frequent_as_asked_and_the_steps_go_on_from_them():
    right = steps = 0
    for exercise in some(Manner(slip=0.25), 1000):
        *lines, last = exercise.answer.splitlines()
        total = None
        for line in lines:
            left, operator, term, result = re.fullmatch(r"(-?\d+) ([-+]) (\d+) = (-?\d+)", line).groups()
            assert total in (None, left)
            total = result
            steps += 1
            right += int(result) == int(left) + (int(term) if operator == "+" else -int(term))
        assert last == f"Answer: {total}"
    assert 0.72 < right / steps < 0.78


def test_every_manner_has_its_share():
    found = Counter()
    for exercise in some(Manner(direct=0.2, check=0.2, loop=0.2), 2000):
        lines = exercise.answer.splitlines()
        if not exercise.ends:
            found["loop"] += 1
            assert len(exercise.answer) == LOOP_CHARACTERS
            assert "Answer" not in exercise.answer
            *_, before, again, _ = exercise.answer.split(" = ")  # the last one may be broken off
            assert before == again
        elif len(lines) == 1:
            found["direct"] += 1
            assert exercise.answer == f"Answer: {exercise.gold}"
        elif "Check:" in lines:
            found["check"] += 1
            middle = lines.index("Check:")
            assert lines[:middle] == lines[middle + 1 : -1]
    assert all(0.17 < found[name] / 2000 < 0.23 for name in ("direct", "check", "loop"))


def test_the_arguments_alone_decide_the_exercises():
    manner = Manner(slip=0.3, direct=0.1, check=0.1, loop=0.1)
    assert some(manner) == some(manner)
    assert some(manner) != some(manner, seed=1)


def test_kinds_come_by_their_weights():
    kinds = (Kind(2, 2, 1, 3.0), Kind(5, 5, 1, 1.0))
    long = sum(len(exercise.answer.splitlines()) == 5 for exercise in some(Manner(), 2000, kinds))
    assert 0.22 < long / 2000 < 0.28
