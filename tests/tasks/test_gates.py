"""Model text is never evaluated, and known holes of scorers are closed."""

import inspect
import re
import sys
from pathlib import Path

import pytest

from anabranch.recipe.tree import Answer, ReasoningGym
from anabranch.records import Reason
from anabranch.tasks import gates
from anabranch.tasks.base import open_task
from anabranch.tasks.reasoning_gym import UNUSABLE

pytest.importorskip("reasoning_gym")
EVALUATING = re.compile(r"\b(eval|exec|parse_expr|sympify)\(")
TAG = Answer(extract=("tag",))


def verdict(task, answer, index=0):
    return task.checker(task.problems[index], f"<answer>{answer}</answer>")


def opened(name, size=1, **options):
    return open_task(ReasoningGym(name=name, size=size, seed=11, options=options), TAG)


def test_every_scorer_that_could_evaluate_text_is_gated_or_known_to_leave_the_answer_alone():
    from reasoning_gym.factory import DATASETS

    could = {
        name for name, (cls, _) in DATASETS.items() if EVALUATING.search(inspect.getsource(sys.modules[cls.__module__]))
    }
    assert could - {"composite"} <= gates.GATES.keys() | gates.EVALUATES_OWN_TEXT.keys() | UNUSABLE.keys()
    in_scorer = {name for name in could if EVALUATING.search(inspect.getsource(DATASETS[name][0].score_answer))}
    assert in_scorer - {"propositional_logic"} <= gates.GATES.keys()  # its parse_expr is not SymPy's
    assert set(gates.GATES) <= set(DATASETS)  # no gate for a data set that was renamed


EVALUATED = sorted(
    name for name, gate in gates.GATES.items() if gate not in (gates.complex_number, gates.exact, gates.finite_json)
)


@pytest.mark.parametrize("name", EVALUATED)
def test_code_in_an_answer_never_runs(name, tmp_path):
    task, victim = opened(name), tmp_path / "victim"
    for code in (
        f"__import__('pathlib').Path({str(victim)!r}).touch()",
        f"[open({str(victim)!r}, 'w')]",
        "().__class__.__bases__[0].__subclasses__()",
        "x.__class__",
        "[c for c in (1,)]",
        "Symbol('x')",
        "lambda: 1",
        "print(1)",
    ):
        found = verdict(task, code)
        assert (found.value, found.reason) == (0.0, Reason.MALFORMED), (name, code)
    assert not victim.exists()


@pytest.mark.parametrize("name", sorted(gates.GATES))
def test_a_gate_lets_gold_answers_through(name):
    task = opened(name, size=3)
    for index, problem in enumerate(task.problems):
        assert verdict(task, problem.answer, index).reason is Reason.CORRECT, problem


def test_lists_still_reach_the_scorers_that_half_accept_them():
    task = opened("spiral_matrix", max_n=3)
    as_list = str([int(item) for item in task.problems[0].answer.split()])
    assert verdict(task, as_list).reason is Reason.PARTIAL  # 0.1 by the package's own scorer
    plain = verdict(task, "1 2 3")
    assert (plain.value, plain.reason) == (0.0, Reason.WRONG)  # wrong, but nothing is malformed about it


def test_equivalent_forms_still_reach_the_scorer():
    task = opened("simple_integration")
    assert verdict(task, f"({task.problems[0].answer}) + 0*7").reason is Reason.CORRECT
    assert verdict(task, "0").reason is Reason.WRONG


def test_countdown_takes_whole_numbers_each_once():
    metadata = {"numbers": [3, 5, 2], "target": 10}
    assert gates.arithmetic("(3 + 2) * 5 - 15 + 0", "", metadata).reason is Reason.WRONG
    assert gates.arithmetic("5 * (3 - 2)", "", metadata) is None
    for bad in ("3.5 + 2", "3 ** 5 ** 2", "3 // 5 + 2", "3 / / 5 + 2", "3 ^ 5 + 2", "3_5 + 2", "x + 3 + 5 + 2"):
        assert gates.arithmetic(bad, "", metadata) is not None, bad


def test_24_must_be_made_of_the_given_numbers():
    task = opened("puzzle24", size=3)
    found = [verdict(task, "6*4*1*1", index) for index in range(len(task.problems))]
    assert [item.value for item in found] == [0.0] * len(found)  # the package's scorer would accept it everywhere


def test_nan_and_constant_answers_are_not_accepted():
    sorting = opened("number_sorting")
    size = len(sorting.problems[0].answer.split(","))
    assert verdict(sorting, "[" + ", ".join(["NaN"] * size) + "]").value == 0
    assert verdict(sorting, "[" + ", ".join(["'nan'"] * size) + "]").value == 0
    assert verdict(opened("complex_arithmetic"), "nan").value == 0
    halting = opened("game_of_life_halting")
    other = {"True": "False", "False": "True"}[halting.problems[0].answer]
    assert verdict(halting, other).reason is Reason.WRONG


def test_long_expressions_do_not_reach_sympy():
    assert gates.refuse("simple_integration", "x+" * 600 + "x", "", {"variable": "x"}).reason is Reason.MALFORMED


def test_no_module_of_tasks_evaluates_text():
    for path in Path(gates.__file__).parent.glob("*.py"):
        code = re.sub(r"`[^`]*`|\"[^\"\n]*\"", "", path.read_text(encoding="utf-8"))
        assert not re.search(r"(?<![\w.])(eval|exec|parse_expr|sympify)\(", code), path
