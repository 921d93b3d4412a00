"""Whatever a text does to its judge, it ends as a verdict, and the next answer is judged right after."""

import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from anabranch.recipe.tree import Answer, ReasoningGym
from anabranch.records import Problem, Reason
from anabranch.tasks.base import open_task
from anabranch.tasks.confine import start_alarm
from anabranch.tasks.equality import MathChecker
from anabranch.tasks.judge import Judge

PROBLEM = Problem("k", "q", "7", "s")
TIMEOUT = 1.0


@pytest.fixture(scope="module")
def obedient():
    sys.path.insert(0, str(Path(__file__).parent))  # workers get the path of this process
    from hostile_checkers import Obedient

    yield Obedient()
    sys.path.remove(str(Path(__file__).parent))


@pytest.fixture(scope="module")
def judge(obedient):
    with Judge(obedient, workers=1, timeout=TIMEOUT) as judge:
        yield judge


def reasons(judge, *texts):
    return [str(verdict.reason) for verdict in judge.judge_all([(PROBLEM, text) for text in texts])]


@pytest.mark.parametrize("text", ["sleep 1000", "hang", "c-hang"])
def test_a_checker_that_hangs_is_killed_and_the_next_answer_is_judged_at_once(judge, text):
    start = time.perf_counter()
    assert reasons(judge, text, "fine") == ["timeout", "correct"]
    assert time.perf_counter() - start < TIMEOUT + 2  # pebble alone would wait 3 s more for one stuck in C


@pytest.mark.parametrize("text", ["exit", "abort"])
def test_a_checker_that_dies_is_a_crash_and_the_next_answer_is_judged(judge, text):
    assert reasons(judge, text, "fine", text, "fine") == ["crash", "correct"] * 2


@pytest.mark.parametrize("text", ["raise oh", "recurse", "memory"])
def test_a_checker_that_raises_is_malformed(judge, text):
    assert reasons(judge, text, "fine") == ["malformed", "correct"]


def test_the_detail_names_the_exception(judge):
    assert judge.judge_all([(PROBLEM, "raise oh")])[0].detail == "RuntimeError: oh"


def test_the_limit_counts_from_the_start_of_a_verdict_not_from_its_submission(judge):
    texts = ["sleep 0.4"] * 4  # 1.6 s in all, one worker, limit 1 s
    assert reasons(judge, *texts) == ["correct"] * 4


@pytest.mark.parametrize("deed", ["write {}", "os-write {}", "remove {}", "connect", "popen", "system", "fork"])
def test_workers_cannot_write_connect_or_start_processes(judge, tmp_path, deed):
    path = tmp_path / "file"
    if deed.startswith("remove"):
        path.touch()
    existed = path.exists()
    verdict = judge.judge_all([(PROBLEM, deed.format(path))])[0]
    assert verdict.reason is Reason.MALFORMED
    assert verdict.detail.startswith("RefusedError")
    assert path.exists() == existed


def test_what_a_checker_prints_goes_nowhere(judge, capfd):
    assert reasons(judge, "print") == ["correct"]
    assert capfd.readouterr().out == ""


def test_a_worker_never_imports_torch(judge):
    assert "torch" not in judge.judge_all([(PROBLEM, "modules")])[0].detail.split(",")


def test_verdicts_keep_the_order_of_the_answers(obedient):
    with Judge(obedient, workers=2, timeout=TIMEOUT) as judge:
        verdicts = judge.judge_all([(PROBLEM, f"{index} x") for index in range(50)])
        assert reasons(judge, "sleep 0.2", "exit", "fine", "raise x", "hang") == [
            "correct",
            "crash",
            "correct",
            "malformed",
            "timeout",
        ]
    assert [verdict.extracted for verdict in verdicts] == [f"{index} x" for index in range(50)]


def test_a_worker_killed_from_outside_is_replaced(obedient):
    with Judge(obedient, workers=1, timeout=TIMEOUT) as judge:
        for _ in range(2):
            assert reasons(judge, "fine") == ["correct"]
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
            time.sleep(0.3)


def test_closing_cancels_what_is_outstanding_and_ends_a_hanging_worker(obedient):
    with Judge(obedient, workers=1, timeout=1000) as judge:
        futures = [judge.submit(PROBLEM, "hang") for _ in range(2)]
        time.sleep(0.3)
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(timeout=1)
    with pytest.raises(RuntimeError, match="closed"):
        judge.submit(PROBLEM, "fine")


def test_the_alarm_ends_a_worker_that_nobody_can_kill_any_more():
    process = multiprocessing.get_context("spawn").Process(target=_busy)
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGALRM


def _busy():
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    start_alarm(0.1)
    while True:
        pass


HOSTILE = {
    "a number of ten million digits": "Answer: " + "9" * 10**7,
    "a tower of powers": "Answer: 10**10**10",
    "deep nesting": "Answer: " + "(" * 900 + "1" + ")" * 900,
    "deep braces": "\\boxed{" * 5000,
    "null bytes": "Answer: \x00\x00",
    "surrogates": "Answer: \ud800\udfff",
    "a huge exponent": "Answer: 1e999999999",
    "code": "Answer: __import__('os').system('true')",
    "nothing": "",
    "blanks": " " * 10**6,
    "not a number": "Answer: nan",
    "right to left": "Answer: \u202e7\u0000",
}


@pytest.fixture(scope="module")
def math_judge():
    with Judge(MathChecker(), workers=1, timeout=1.5) as judge:
        yield judge


@pytest.fixture(scope="module")
def sums():
    task = open_task(ReasoningGym(size=1), Answer())
    with Judge(task.checker, workers=1, timeout=1.5) as judge:
        yield task, judge


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_worth_nothing_to_mathematics(math_judge, name):
    verdict, after = math_judge.judge_all([(PROBLEM, HOSTILE[name]), (PROBLEM, "Answer: 7")])
    assert verdict.value == 0
    assert verdict.extracted is None or verdict.extracted.encode("utf-8")
    assert after.reason is Reason.CORRECT


def test_hostile_text_is_worth_nothing_to_a_scorer_of_reasoning_gym(sums):
    task, judge = sums
    verdicts = judge.judge_all([(task.problems[0], text) for text in HOSTILE.values()])
    assert [verdict.value for verdict in verdicts] == [0.0] * len(HOSTILE)


def test_sympy_that_hangs_is_a_timeout_that_names_its_answer(math_judge):
    verdict, after = math_judge.judge_all([(PROBLEM, "Answer: 10^{10^{10}}!"), (PROBLEM, "Answer: 7")])
    assert (verdict.reason, verdict.extracted) == (Reason.TIMEOUT, "10^{10^{10}}!")
    assert after.reason is Reason.CORRECT
