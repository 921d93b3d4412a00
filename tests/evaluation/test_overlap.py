"""What the overlap report promises: repeated problems are found, shared templates are not mistaken for them."""

from pathlib import Path

import pytest

from anabranch.evaluation.overlap import find_overlap, shingles
from anabranch.recipe.tree import Answer, JsonLines
from anabranch.records import Problem
from anabranch.tasks.base import open_task, problem_key

DATA = Path(__file__).parents[2] / "../shared/data"


def problem(question, answer="1"):
    return Problem(problem_key(question, answer), question, answer, "test")


def test_shingles_are_eight_words_in_a_row():
    assert shingles("A b c d e f g H  i") == {"a b c d e f g h", "b c d e f g h i"}
    assert shingles("4+3") == {"4 + 3"}  # shorter: the whole text
    assert shingles("") == {""}


def test_the_same_question_with_the_same_answer_is_the_same_problem():
    old = problem("one two three four five six seven eight nine")
    overlap = find_overlap([old], [old, problem("something else")])
    assert overlap.same == (old.key,) and overlap.near == () and overlap.num_training == 1


def test_a_problem_with_one_word_changed_at_its_end_is_near():
    words = "a farmer has 12 cows and buys 7 more of them at the market on monday"
    old, new = problem(words), problem(words.replace("monday", "tuesday"))
    # 16 words, 9 shingles, of which the last one differs
    assert find_overlap([old], [new]).near == ((new.key, old.key, 8 / 9),)


def test_the_same_question_with_another_gold_answer_is_near():
    old, new = (
        problem("what is the largest prime below one hundred", "97"),
        problem("what is the largest prime below one hundred", "89"),
    )
    assert find_overlap([old], [new]).near == ((new.key, old.key, 1.0),)


def test_a_template_shared_by_all_training_problems_is_no_overlap():
    template = "state the final answer to the following arithmetic problem"
    training = [problem(f"{template} {n} + {n + 1} =") for n in range(10)]
    assert find_overlap(training, [problem(f"{template} 50 + 60 =")]).near == ()
    repeated = problem(f"{template} 3 + 4 =", "7 apples")
    assert [pair[:2] for pair in find_overlap(training, [repeated]).near] == [(repeated.key, training[3].key)]


def test_amc23_is_known_to_overlap_with_dapo_in_sixteen_problems():
    if not DATA.is_dir():
        pytest.skip("no shared data")
    dapo, amc23 = (
        open_task(JsonLines(path=str(DATA / path)), Answer()).problems
        for path in ("train/dapo_math_17k.jsonl", "eval/amc23.jsonl")
    )
    overlap = find_overlap(dapo, amc23)
    assert len(overlap.same) + len(overlap.near) == 16
