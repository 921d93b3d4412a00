"""What `Runner` promises, with environments that misbehave in every way we can think of."""

import asyncio
import json
import threading
import time
from collections import Counter

import pytest

from anabranch.environments.base import Observation
from anabranch.environments.guard import LONGEST_TEXT, queued
from anabranch.environments.runner import Failure, Runner
from anabranch.records import Problem

PROBLEM = Problem("k", "1 + 1 =", "2", "s")
LONG = 60.0
"""What a thing that is killed would take if it were not."""


class Plain:
    """Counts its turns. What it does otherwise, `do` says: an async function of the environment and the text."""

    def __init__(self, world):
        self.world, self.count = world, 0

    async def reset(self, problem, key):
        self.key = key
        await self.world.act("reset", self, "")

    async def restore(self, problem, key, state):
        self.key, self.count = key, state["count"]

    async def step(self, text):
        self.count += 1
        found = await self.world.act("step", self, text)
        return Observation(f"{self.count}: {text}") if found is None else found

    def state(self):
        return {"count": self.count} if self.world.states is None else self.world.states

    async def close(self):
        await self.world.act("close", self, "")
        self.world.closed[self.key] += 1


class World:
    instruction, stop_strings, turns = "", ("\n",), 8

    def __init__(self, step=None, reset=None, close=None, seconds=LONG, states=None):
        self.does = {"step": step, "reset": reset, "close": close}
        self.seconds, self.states = seconds, states
        self.closed, self.was_closed = Counter(), 0

    async def act(self, what, environment, text):
        do = self.does[what]
        return None if do is None else await do(environment, text)

    def environment(self):
        return Plain(self)

    async def close(self):
        self.was_closed += 1


def ask(runner, name="a", text="x", timeout=LONG):
    runner.step(name, text)
    return runner.wait_for(name, timeout)


def failing(world, name="a"):
    """What the first step of an environment comes to, and what happens to a second rollout beside it."""
    with Runner(world) as runner:
        runner.begin(name, PROBLEM, (0,))
        failure = ask(runner, name, "bad")
        assert ask(runner, name, "again") == failure, "a rollout that failed stays so"
        runner.begin("other", PROBLEM, (1,))
        assert ask(runner, "other", "good") == Observation("1: good")
        runner.end(name)
    assert isinstance(failure, Failure)
    return failure


def test_turns_are_answered_one_after_the_other():
    world = World()
    with Runner(world) as runner:
        runner.begin("a", PROBLEM, (7,))
        assert [ask(runner, "a", text) for text in "xy"] == [Observation("1: x"), Observation("2: y")]
        assert runner.outstanding == {}
    assert world.closed == {(7,): 1}
    assert world.was_closed == 1


def test_two_hundred_rollouts_of_five_turns_lose_no_answer_and_double_none():
    async def step(environment, text):
        await asyncio.sleep((environment.key[0] * 37 % 11) / 2000)

    with Runner(World(step)) as runner:
        for name in range(200):
            runner.begin(name, PROBLEM, (name,))
            runner.step(name, "0")
        came: dict[int, list[str]] = {name: [] for name in range(200)}
        while any(len(found) < 5 for found in came.values()):
            for name, answer in runner.results(LONG):
                came[name].append(answer.text)
                if len(came[name]) < 5:
                    runner.step(name, str(len(came[name])))
        assert runner.results(0) == []
    assert all(found == [f"{turn + 1}: {turn}" for turn in range(5)] for found in came.values())


def test_results_come_in_the_order_in_which_they_came_and_none_waits_for_another():
    waits = {"slow": 0.3, "fast": 0.0}

    async def step(environment, text):
        await asyncio.sleep(waits[text])

    with Runner(World(step)) as runner:
        for name in ("slow", "fast"):
            runner.begin(name, PROBLEM, (0,))
            runner.step(name, name)
        found = []
        while len(found) < 2:
            found += runner.results(LONG)
    assert [name for name, _ in found] == ["fast", "slow"]


def test_results_with_timeout_0_do_not_wait_and_without_a_step_nothing_is_waited_for():
    gate = asyncio.Event

    async def step(environment, text):
        await gate().wait()

    with Runner(World(step)) as runner:
        assert runner.results(None) == []
        runner.begin("a", PROBLEM, (0,))
        runner.step("a", "x")
        assert runner.results(0) == []
        assert runner.results(0.05) == []
        assert list(runner.outstanding) == ["a"]
        assert runner.outstanding["a"] >= 0.05
        with pytest.raises(TimeoutError, match=r"no environment answered for 0\.05 s; 'a' asked"):
            runner.wait_for("a", 0.05)


def test_waiting_for_one_goes_on_as_long_as_others_are_answered():
    """They may share something: 12 answers come 0.15 s apart, and 1.5 s without any would be too long."""
    lock = []

    async def step(environment, text):
        lock[:] = lock or [asyncio.Lock()]
        async with lock[0]:
            await asyncio.sleep(0.15)

    with Runner(World(step)) as runner:
        for name in range(12):
            runner.begin(name, PROBLEM, (name,))
            runner.step(name, "x")
        assert runner.wait_for(11, 1.5) == Observation("1: x")
        assert len(runner.results(0)) == 11


# --------------------------------------------------------------------------------------------------------- misbehaviour


def raising(error):
    async def do(environment, text):
        if text == "bad" or environment.key == (0,):
            raise error

    return do


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (ValueError("no such tool"), "step raised ValueError: no such tool (test_runner.py:"),
        (asyncio.CancelledError(), "step raised CancelledError"),
        (SystemExit(3), "step raised SystemExit: 3"),
        (KeyboardInterrupt(), "step raised KeyboardInterrupt"),
        (MemoryError(), "step raised MemoryError"),
        (StopIteration(1), "step raised RuntimeError: coroutine raised StopIteration"),
        (GeneratorExit(), "step raised GeneratorExit"),
    ],
)
def test_whatever_step_raises_is_a_crash_of_this_rollout_alone(error, detail):
    failure = failing(World(raising(error)))
    assert failure.kind == "crash"
    assert failure.detail.startswith(detail)


def test_an_exception_whose_text_raises_is_a_crash_too():
    class NastyError(Exception):
        def __str__(self):
            raise SystemExit

    assert "NastyError: (no text)" in failing(World(raising(NastyError()))).detail


def test_what_reset_raises_is_heard_of_at_the_first_step():
    failure = failing(World(reset=raising(OSError("no room"))))
    assert failure.detail.startswith("reset raised OSError: no room")


def test_an_environment_that_cannot_be_made_is_a_crash():
    class Empty(World):
        def environment(self):
            if not self.closed.total():
                self.closed[()] = 1
                raise FileNotFoundError("no binary")
            return super().environment()

    assert failing(Empty()).detail.startswith("reset raised FileNotFoundError: no binary")


async def _sleep(environment, text):
    if text == "bad" or environment.key == (0,):
        await asyncio.sleep(LONG)


@pytest.mark.parametrize(("method", "world"), [("step", World(_sleep, seconds=1.0)),
                                               ("reset", World(reset=_sleep, seconds=1.0))])  # fmt: skip
def test_a_method_that_takes_too_long_is_a_timeout(method, world):
    assert failing(world) == Failure("timeout", f"{method} did not answer within 1 s")


def test_one_that_ignores_being_cancelled_is_a_timeout_all_the_same_and_is_not_closed_while_it_runs():
    released = threading.Event()

    async def stubborn(environment, text):
        while text == "bad" and not released.is_set():
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue

    world = World(stubborn, seconds=1.0)
    with Runner(world) as runner:
        runner.begin("a", PROBLEM, (0,))
        assert ask(runner, "a", "bad").kind == "timeout"
        runner.begin("b", PROBLEM, (1,))
        assert ask(runner, "b") == Observation("1: x")
        runner.end("a")
    assert world.closed == {(1,): 1}
    assert runner.not_closed == 1
    released.set()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("a text", "TypeError: step gave str, not an Observation"),
        (Observation(3), "TypeError: text and outcome of an Observation are str"),  # type: ignore[arg-type]  # on purpose
        (Observation(""), "ValueError: an Observation without text, but not done"),
        (Observation("x" * (LONGEST_TEXT + 1)), "ValueError: an Observation of 1000001 characters"),
        (Observation("\ud800"), "UnicodeEncodeError"),
        (Observation("x", True, 1.5), "ValueError: reward 1.5: must be in [0, 1]"),
        (Observation("x", True, -0.1), "ValueError: reward -0.1"),
        (Observation("x", True, float("nan")), "ValueError: reward nan"),
        (Observation("x", True, "1"), "ValueError: reward 1"),  # type: ignore[arg-type]  # on purpose
    ],
)
def test_nonsense_is_a_crash_that_says_what_is_wrong(given, why):
    async def step(environment, text):
        return given if text == "bad" else None

    failure = failing(World(step))
    assert failure.kind == "crash"
    assert why in failure.detail


def test_a_method_that_is_not_async_is_a_crash():
    class Sync(World):
        def environment(self):
            made = Plain(self)
            if not self.closed.total():
                self.closed[()] = 1
                made.step = lambda text: Observation(text)
            return made

    assert "TypeError" in failing(Sync()).detail


@pytest.mark.parametrize("state", [{"x": object()}, {"x": float("nan")}])
def test_a_state_that_is_not_plain_json_is_a_crash(state):
    with Runner(World(states=state)) as runner:
        runner.begin("a", PROBLEM, (0,))
        assert "reset raised" in ask(runner).detail


def test_system_exit_in_a_task_of_an_environments_own_does_not_stop_the_others():
    async def quits():
        raise SystemExit

    async def step(environment, text):
        if text == "bad":
            task = asyncio.get_running_loop().create_task(quits())
            await asyncio.sleep(0.05)
            await task

    assert "SystemExit" in failing(World(step)).detail


def test_a_thread_that_is_blocked_is_noticed_its_rollouts_fail_with_the_culprits_name_and_later_ones_live():
    free = threading.Event()

    async def step(environment, text):
        if text == "block":
            free.wait(LONG)  # no await: nobody else runs in this thread

    with Runner(World(step, seconds=1.0)) as runner:
        for name in ("guilty", "waiting", "idle"):
            runner.begin(name, PROBLEM, (0,))
        runner.step("guilty", "block")
        time.sleep(0.05)
        runner.step("waiting", "x")
        found = {}
        while len(found) < 2:
            found |= dict(runner.results(LONG))
        assert set(found) == {"guilty", "waiting"}
        assert {answer.kind for answer in found.values()} == {"timeout"}
        assert all("step of 'guilty' (" in answer.detail for answer in found.values())
        assert "blocked the thread of all environments" in found["waiting"].detail
        assert ask(runner, "idle") == found["waiting"], "its environment was in there, too"
        runner.begin("later", PROBLEM, (1,))
        assert ask(runner, "later") == Observation("1: x")
        free.set()
        time.sleep(0.1)
        assert runner.results(0) == [], "what the blocked step gives in the end is not counted again"


def test_a_wait_in_a_queue_is_not_counted_against_the_deadline():
    """Ten rollouts take turns of 0.2 s at one slot: the last waits 1.8 s, and the deadline is 1.5 s."""
    slot = []

    async def step(environment, text):
        slot[:] = slot or [asyncio.Semaphore(1)]
        with queued():
            await slot[0].acquire()
        await asyncio.sleep(0.2 if text != "late" else LONG)
        slot[0].release()

    with Runner(World(step, seconds=1.5)) as runner:
        for name in range(10):
            runner.begin(name, PROBLEM, (name,))
            runner.step(name, "x")
        assert [runner.wait_for(name, LONG).text for name in range(10)] == ["1: x"] * 10
        assert ask(runner, 0, "late").kind == "timeout", "behind the queue the clock goes on"


# ------------------------------------------------------------------------------------------------------ states, ends


def test_a_rollout_goes_on_in_another_runner_where_its_state_was_taken():
    with Runner(World()) as runner:
        runner.begin("a", PROBLEM, (0,))
        ask(runner)
        state = json.loads(json.dumps(runner.state("a")))
    with Runner(World()) as runner:
        runner.begin("a", PROBLEM, (0,), state)
        assert ask(runner, "a", "y") == Observation("2: y")


def test_a_state_taken_during_a_step_or_before_its_answer_is_fetched_is_the_one_before_it():
    async def step(environment, text):
        await asyncio.sleep(float(text))

    with Runner(World(step)) as runner:
        runner.begin("a", PROBLEM, (0,))
        assert runner.state("a") in ({}, {"state": {"count": 0}})
        ask(runner, "a", "0")
        runner.step("a", "0.2")
        assert runner.state("a") == {"state": {"count": 1}}
        while runner.outstanding:
            time.sleep(0.01)
        assert runner.state("a") == {"state": {"count": 1}}
        runner.wait_for("a", LONG)
        assert runner.state("a") == {"state": {"count": 2}}


def test_a_state_before_anything_has_begun_begins_anew():
    with Runner(World()) as runner:
        runner.begin("a", PROBLEM, (0,), {})
        assert ask(runner) == Observation("1: x")


def test_an_end_drops_the_answer_frees_the_name_and_cancels_a_step_under_way():
    world = World(_sleep)
    with Runner(world) as runner:
        for name in ("done", "busy"):
            runner.begin(name, PROBLEM, (ord(name[0]),))
        runner.step("done", "x")
        runner.step("busy", "bad")
        while "done" in runner.outstanding:
            time.sleep(0.01)
        runner.end("done")
        runner.end("busy")
        assert runner.results(0) == []
        assert runner.outstanding == {}
        runner.begin("busy", PROBLEM, (1,))
        assert ask(runner, "busy") == Observation("1: x")
    assert world.closed == {(ord("d"),): 1, (ord("b"),): 1, (1,): 1}


def test_ended_before_it_has_begun_it_is_closed_all_the_same():
    world = World(reset=_sleep)
    with Runner(world) as runner:
        runner.begin("a", PROBLEM, (0,))
        runner.end("a")
    assert set(world.closed.values()) <= {1}


@pytest.mark.parametrize("how", ["sleeps", "raises", "stubborn"])
def test_close_ends_in_time_whatever_closing_environments_do(how):
    async def close(environment, text):
        if how == "raises":
            raise SystemExit
        while True:
            try:
                await asyncio.sleep(LONG)
            except asyncio.CancelledError:
                if how == "sleeps":
                    raise

    start = time.monotonic()
    with Runner(World(close=close, seconds=1.0)) as runner:
        for name in range(20):
            runner.begin(name, PROBLEM, (name,))
            ask(runner, name)
    assert time.monotonic() - start < LONG
    assert runner.not_closed == 20


def test_close_ends_in_time_if_an_environment_blocks_in_it():
    free = threading.Event()

    async def close(environment, text):
        free.wait(LONG)

    start = time.monotonic()
    with Runner(World(close=close, seconds=1.0)) as runner:
        runner.begin("a", PROBLEM, (0,))
        ask(runner)
    assert time.monotonic() - start < LONG
    free.set()


def test_mistakes_of_the_caller_are_errors():
    with Runner(World(_sleep)) as runner:
        runner.begin("a", PROBLEM, (0,))
        with pytest.raises(ValueError, match="has begun already"):
            runner.begin("a", PROBLEM, (0,))
        with pytest.raises(ValueError, match="no step under way"):
            runner.wait_for("a", 0)
        runner.step("a", "bad")
        with pytest.raises(ValueError, match="has a step under way already"):
            runner.step("a", "x")
        for call in (runner.end, runner.state, lambda name: runner.step(name, "x")):
            with pytest.raises(ValueError, match="no rollout 'b' has begun"):
                call("b")
    runner.close()
    with pytest.raises(RuntimeError, match="the runner is closed"):
        runner.begin("b", PROBLEM, (0,))
