"""Tasks made by reasoning-gym: names, options, scores, and what is held out."""

import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import DataError
from anabranch.recipe.tree import Answer, ReasoningGym
from anabranch.records import Problem, Reason, Verdict
from anabranch.tasks import reasoning_gym
from anabranch.tasks.base import derived_seed, open_task, problem_key, self_check, spread
from anabranch.tasks.judge import Judge

pytest.importorskip("reasoning_gym")
ONE_DIGIT = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
TAG = Answer(extract=("boxed", "answer_line", "tag"))


def sums(size=60, seed=0, **options):
    return open_task(ReasoningGym(size=size, seed=seed, options={**ONE_DIGIT, **options}), Answer())


def test_the_key_of_a_problem_is_its_content():
    assert problem_key("ab", "c") != problem_key("a", "bc")
    assert problem_key("ab", "c") == "5b6baf4b54380ebf"  # pinned: keys are in checkpoints
    assert len(problem_key("\ud800")) == 16


def test_the_same_recipe_gives_the_same_problems_each_once():
    first, second = sums(200), sums(200)
    assert first.problems == second.problems
    assert len({problem.key for problem in first.problems}) == len(first.problems)
    assert len(first.problems) < 200  # 200 draws of about 200 sums: repeats are kept once


def test_neighbouring_seeds_make_other_problems():
    wide = {"min_digits": 4, "max_digits": 6}
    first, second = (
        open_task(ReasoningGym(size=50, seed=seed, options=wide | {"max_terms": 3}), Answer()) for seed in (0, 1)
    )
    assert not {problem.key for problem in first.problems} & {problem.key for problem in second.problems}


def test_scores_become_reasons():
    task = sums(1)
    problem = task.problems[0]
    assert task.checker(problem, f"Answer: {problem.answer}") == Verdict(1.0, Reason.CORRECT, problem.answer)
    assert task.checker(problem, f"Answer: ${problem.answer}$.").reason is Reason.CORRECT
    assert task.checker(problem, "Answer: none").reason is Reason.WRONG
    assert task.checker(problem, "I do not know").reason is Reason.NO_ANSWER
    partial = task.checker(problem, f"Answer: {problem.answer} or so")  # the package's scorer pays for containing it
    assert partial.reason is Reason.PARTIAL
    assert 0 < partial.value < 1


def test_a_score_outside_0_1_counts_nothing():
    task = open_task(ReasoningGym(name="calendar_arithmetic", size=1), Answer())
    meta = {"answer": "-1", "metadata": {"task": "recurring_event_day"}}
    problem = Problem("k", "q", "-1", "calendar_arithmetic", meta=meta)  # -1: there is no such date
    assert task.checker(problem, "Answer: -1").reason is Reason.CORRECT
    wrong = task.checker(problem, "Answer: 20")  # exp(-5 * 21 / -1), by the package's scorer
    assert (wrong.value, wrong.reason) == (0.0, Reason.WRONG)


@pytest.mark.parametrize(
    "name",
    ["chain_sum", "countdown", "graph_color", "rubiks_cube", "propositional_logic", "knights_knaves", "arc_1d",
     "mini_sudoku", "tower_of_hanoi", "letter_counting", "time_intervals", "zebra_puzzles"],
)  # fmt: skip
def test_the_gold_answer_scores_1_after_a_round_trip_through_json(name):
    task = open_task(ReasoningGym(name=name, size=2, seed=5), TAG)
    for problem in task.problems:
        meta = json.loads(json.dumps(problem.meta))
        again = Problem(problem.key, problem.question, problem.answer, problem.source, meta=meta)
        assert task.checker(again, f"<answer>{problem.answer}</answer>").reason is Reason.CORRECT
        assert task.checker(again, "").value == 0


@settings(deadline=None, max_examples=50)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(st.text(max_size=5), inner, max_size=3)
            | st.dictionaries(st.integers() | st.tuples(st.integers()), inner, max_size=3)
        ),
        max_leaves=10,
    )
)
def test_metadata_survives_json(value):
    assert reasoning_gym.from_plain(json.loads(json.dumps(reasoning_gym.to_plain(value)))) == value


def test_held_out_problems_are_new_distinct_and_the_same_every_time():
    task = sums(60)
    held_out = task.held_out(40, seed=0)
    keys = {problem.key for problem in held_out}
    assert len(keys) == 40
    assert not keys & {problem.key for problem in task.problems}
    assert held_out == sums(60).held_out(40, seed=0)
    assert held_out != task.held_out(40, seed=1)


def test_a_space_that_is_too_small_for_held_out_problems_is_refused():
    task = sums(3000)  # all 200 one-digit sums and differences
    assert len(task.problems) == 200
    with pytest.raises(DataError, match=r"0 distinct problems outside the 200.*(\n).*data\.size"):
        task.held_out(10, seed=0)


def test_streams_for_different_purposes_are_far_apart():
    seeds = [derived_seed(purpose, seed) for purpose in ("data", "held out", "worked") for seed in range(30)]
    assert len(set(seeds)) == 90
    assert all(2**20 <= seed < 2**31 for seed in seeds)
    assert min(right - left for left, right in zip(sorted(seeds), sorted(seeds)[1:], strict=False)) > 10_000


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "chain_sums"}, "one of the closest: chain_sum"),
        ({"name": "qqqq"}, "no such data set"),
        ({"options": {"min_term": 2}}, r"no such option(.|\n)*use min_terms"),
        ({"options": {"size": 3}}, r"data\.size"),
        ({"options": {"min_terms": 5, "max_terms": 2}}, "max_terms must be >= min_terms"),
        ({"options": {"min_terms": "two"}}, "refuses them"),
        ({"options": {"min_terms": 2.5}}, r"'chain_sum' refuses them(.|\n)*ChainSumConfig"),  # only when it makes one
        ({"name": "boxnet"}, "no gold answer"),
        ({"name": "composite"}, "gates of their own"),
    ],
)
def test_bad_names_and_options_are_refused_with_the_fix(data, message):
    with pytest.raises(DataError, match=message):
        open_task(ReasoningGym(**data), Answer())


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)  # what an import of a missing module meets
    with pytest.raises(DataError, match=r"pip install 'anabranch\[demo\]'"):
        open_task(ReasoningGym(), Answer())


def test_the_self_check_passes_sums_and_names_what_fails():
    task = sums(20)
    with Judge(task.checker) as judge:
        self_check(task, judge, count=5)
        wrong = Problem("bad0", "1 + 1 =", "3", "chain_sum", meta={"answer": "2", "metadata": {}})
        broken = type(task)(task.name, (*task.problems, wrong), task.checker)
        with pytest.raises(DataError, match=f"1 of {len(task.problems) + 1} problems failing: bad0"):
            self_check(broken, judge, count=100)


def test_the_self_check_asks_for_the_tag_where_answers_have_several_lines():
    data = ReasoningGym(name="mini_sudoku", size=2)
    task = open_task(data, Answer())
    tagged = open_task(data, TAG)
    with Judge(tagged.checker) as judge:
        self_check(tagged, judge, count=2)
        with pytest.raises(DataError, match=r"answer\.extract=\[tag\]"):
            self_check(task, judge, count=2)  # written as one answer line, cut at its first row


def test_a_sample_is_spread_over_the_whole():
    problems = tuple(Problem(str(index), "q", "a", "s") for index in range(10))
    assert [problem.key for problem in spread(problems, 3)] == ["0", "3", "6"]
    assert spread(problems, 99) == problems
