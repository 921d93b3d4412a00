"""What the latency world promises: the stated mixture, from the rollout's key alone, and a real sleep."""

import asyncio
import math
import time
from statistics import NormalDist, fmean

import pytest

from anabranch.environments.catalog import open_world
from anabranch.environments.latency import duration
from anabranch.recipe.tree import Latency
from anabranch.records import Problem

DRAWS = 20_000
PROBLEM = Problem("k", "q", "a", "s")
QUICK = Latency(mean=0.02, std=0.0, slow_share=0.0, floor=0.0, scale=1.0)


def drawn(settings, calls=1):
    return [duration(settings, (0, 1, number), call) for number in range(DRAWS // calls) for call in range(calls)]


def test_the_moments_are_those_of_the_mixture():
    """0.25 N(480, 50^2) + 0.75 N(100, 20^2): mean 195; variance 0.25 50^2 + 0.75 20^2 + 0.25 * 0.75 * 380^2 = 28000."""
    found = drawn(Latency(scale=1.0))
    deviation = math.sqrt(28000)
    assert fmean(found) == pytest.approx(195, abs=4 * deviation / math.sqrt(DRAWS))
    assert fmean((x - 195) ** 2 for x in found) == pytest.approx(28000, rel=0.05)
    slow = [x for x in found if x > 290]  # 3.8 and 9.5 standard deviations from both
    assert len(slow) / DRAWS == pytest.approx(0.25, abs=4 * math.sqrt(0.1875 / DRAWS))
    assert fmean(slow) == pytest.approx(480, abs=4 * 50 / math.sqrt(DRAWS / 4))


def test_fast_calls_are_normal_all_over():
    found = sorted(drawn(Latency(slow_share=0.0, scale=1.0), calls=4))
    worst = max(abs(NormalDist(100, 20).cdf(x) - rank / DRAWS) for rank, x in enumerate(found))
    assert worst < 2 / math.sqrt(DRAWS)  # Kolmogorov-Smirnov: 1.95 at a chance of 0.001


def test_no_call_is_shorter_than_the_floor_and_scale_is_a_factor():
    low = Latency(mean=1.0, std=5.0, slow_share=0.0, floor=1.0, scale=1.0)
    found = drawn(low)
    assert min(found) == 1.0
    assert found.count(1.0) / DRAWS == pytest.approx(0.5, abs=0.02)
    assert duration(low.but(scale=0.01), (3,), 0) == pytest.approx(duration(low, (3,), 0) / 100)


def test_the_same_rollout_always_sleeps_equally_long_and_another_does_not():
    """Fixed numbers: they must be the same in every process and version."""
    settings = Latency(scale=1.0)
    assert [round(duration(settings, (0, 7), call), 6) for call in range(3)] == [78.5686, 94.782161, 133.583497]
    assert len({duration(settings, (seed, 7), call) for seed in range(9) for call in range(9)}) == 81


def answers(settings, texts, key=(5,), state=None):
    async def play():
        environment = open_world(settings).environment()
        if state is None:
            await environment.reset(PROBLEM, key)
        else:
            await environment.restore(PROBLEM, key, state)
        return [await environment.step(text) for text in texts], environment.state()

    return asyncio.run(play())


def test_it_really_sleeps_and_then_lets_the_model_go_on():
    start = time.monotonic()
    (first, last), _ = answers(QUICK, ["1 + 1 =", " 2\nAnswer: 2"])
    assert time.monotonic() - start >= 0.02
    assert (first.text, first.done) == (" ", False)
    assert last.done


def test_without_a_stop_string_the_end_of_the_answer_calls():
    world = open_world(QUICK.but(stop=""))
    assert world.stop_strings == ()
    start = time.monotonic()
    (only,), _ = answers(QUICK.but(stop=""), ["Answer: 2"])
    assert time.monotonic() - start >= 0.02
    assert only.done


def test_a_restored_environment_goes_on_with_its_next_call():
    _, state = answers(QUICK, ["=", "=", "no call"])
    assert state == {"calls": 2}
    assert answers(QUICK, ["="], state=state)[1] == {"calls": 3}


def test_the_deadline_is_longer_than_any_call():
    world = open_world(Latency(scale=1.0))
    assert world.seconds > max(drawn(Latency(scale=1.0))) + 10
