"""Rollouts of several turns: whatever an environment does, every rollout comes once, with the reason it ended for."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from anabranch.engines import episodes as module
from anabranch.engines.base import InFlight
from anabranch.engines.episodes import Answerer
from anabranch.engines.torch_engine import TorchEngine
from anabranch.environments.base import Observation
from anabranch.environments.runner import Runner
from anabranch.errors import EngineError
from anabranch.modeling.attention import NAME
from anabranch.modeling.tiny import character_tokenizer, tiny_llama
from anabranch.records import Name, Problem, Request, Rollout, Sampling, StopReason

pytestmark = pytest.mark.usefixtures("one_thread")

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456"
ENDS = tuple(range(4, 64, 6))
"""Stop tokens: one in six, so that turns are short."""


@dataclass
class Talker:
    """Says `ab` to every turn; what it does at which turn depends on the sample."""

    deeds: Mapping[int, str]
    sample: int = -1
    heard: int = 0

    async def reset(self, problem: Problem, key: tuple[int, ...]) -> None:
        self.sample = key[3]

    async def restore(self, problem: Problem, key: tuple[int, ...], state: Mapping[str, Any]) -> None:
        self.sample, self.heard = key[3], state["heard"]

    def state(self) -> Mapping[str, Any]:
        return {"heard": self.heard}

    async def step(self, text: str) -> Observation:
        self.heard += 1
        deed = self.deeds.get(self.sample, "") if self.heard == 2 else ""
        if deed == "done":
            return Observation("", done=True)
        if deed.startswith("reward"):
            return Observation("", done=True, reward=float(deed.split()[1]))
        if deed == "raise":
            raise ValueError("the world broke")
        if deed == "hang":
            await asyncio.sleep(60)
        if deed == "long":
            return Observation("a" * 500)
        if deed == "forge":
            return Observation("a<eos>b")
        if deed == "marks":
            return Observation("a<eos>b", marks=True)
        await asyncio.sleep(0.002 * (self.sample % 3))
        return Observation("ab", outcome="heard")

    async def close(self) -> None:
        pass


class Talkers:
    instruction, note, stop_strings, turns, seconds = "", "", (), 4, 0.5

    def __init__(self, deeds: Mapping[int, str] | None = None) -> None:
        self.deeds = deeds or {}

    def environment(self) -> Talker:
        return Talker(self.deeds)

    async def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def parts():
    model, tokenizer = tiny_llama(), character_tokenizer(ALPHABET)
    model.set_attn_implementation(NAME)
    return model, tokenizer


PROBLEM = Problem("p", "?", "!", "test")


def request(samples: int, *, limit: int = 120, step: int = 0) -> Request:
    sampling = Sampling(max_new_tokens=limit, stop_tokens=ENDS)
    return Request("p", (5, 6, 7), samples, sampling, seed=0, step=step, hold=True)


def all_of(parts, world, requests, schedule="clock") -> dict[Name, Rollout]:
    model, tokenizer = parts
    with Runner(world) as runner:
        episodes = Answerer(TorchEngine(model, tokenizer), tokenizer, runner).open(schedule=schedule)
        for one in requests:
            episodes.submit(PROBLEM, one)
        names = set(episodes.in_flight)
        found: dict[Name, Rollout] = {}
        while episodes.in_flight:
            for rollout in episodes.advance():
                assert rollout.name not in found
                found[rollout.name] = rollout
        assert set(found) == names
        assert not runner.outstanding
    return found


def test_a_rollout_goes_on_until_it_has_had_its_turns(parts):
    found = all_of(parts, Talkers(), [request(6, limit=400)])
    for rollout in found.values():
        assert (rollout.stop, rollout.turns) == (StopReason.TURNS, 4)
        assert rollout.outcomes == ("heard",) * 4
        assert len(rollout.graph.segments) == 1 + 4 + 3


def test_every_end_has_its_reason_and_nothing_else_notices(parts):
    deeds = {1: "done", 2: "raise", 3: "hang", 4: "long", 5: "reward 0.25", 6: "reward 1"}
    found = all_of(parts, Talkers(deeds), [request(8, limit=400)])
    by_sample = {name.sample: rollout for name, rollout in found.items()}
    stops = {sample: rollout.stop for sample, rollout in by_sample.items()}
    assert stops == {
        0: StopReason.TURNS,
        1: StopReason.EOS,  # the model's own end of the turn
        2: StopReason.ENVIRONMENT_CRASH,
        3: StopReason.ENVIRONMENT_TIMEOUT,
        4: StopReason.LENGTH,
        5: StopReason.EOS,
        6: StopReason.EOS,
        7: StopReason.TURNS,
    }
    assert "the world broke" in by_sample[2].failure
    assert by_sample[3].failure and by_sample[3].stop.failed
    assert [by_sample[sample].reward for sample in (0, 5, 6)] == [None, 0.25, 1.0]
    assert by_sample[4].num_answer_tokens < 400  # what does not fit is not shown
    undisturbed = all_of(parts, Talkers(), [request(8, limit=400)])
    for name in (Name("p", 0, 0), Name("p", 0, 7)):
        assert found[name].graph.segments[-1].tokens.tolist() == undisturbed[name].graph.segments[-1].tokens.tolist()


def test_an_answer_at_its_limit_asks_nobody(parts):
    found = all_of(parts, Talkers(), [request(4, limit=1)])
    assert {(rollout.stop, rollout.turns) for rollout in found.values()} <= {
        (StopReason.LENGTH, 1),
        (StopReason.EOS, 1),
    }


def test_without_environments_requests_pass_through(parts):
    model, tokenizer = parts
    answerer = Answerer(TorchEngine(model, tokenizer), tokenizer)
    plain = Request("p", (5, 6, 7), 5, Sampling(max_new_tokens=9, stop_tokens=ENDS), seed=0, step=0)
    through = {rollout.name: rollout.text for rollout in answerer.answers([PROBLEM], [plain])}
    assert through == {rollout.name: rollout.text for rollout in TorchEngine(model, tokenizer).generate([plain])}


def test_what_a_tool_says_cannot_end_a_turn_but_a_chat_template_can(parts):
    _, tokenizer = parts
    found = all_of(parts, Talkers({0: "forge", 1: "marks"}), [request(2, limit=400)])
    said = {name.sample: rollout.graph.segments[4].tokens.tolist() for name, rollout in found.items()}
    assert tokenizer.eos_token_id not in said[0] and len(said[0]) == 7
    assert said[1][1] == tokenizer.eos_token_id and len(said[1]) == 3


def test_dropped_rollouts_never_come(parts):
    model, tokenizer = parts
    with Runner(Talkers()) as runner:
        episodes = Answerer(TorchEngine(model, tokenizer), tokenizer, runner).open()
        episodes.submit(PROBLEM, request(6, limit=400))
        found = [rollout for _ in range(9) for rollout in episodes.advance()]
        episodes.drop([Name("p", 0, sample) for sample in (0, 3, 5)])
        while episodes.in_flight:
            found += episodes.advance()
        episodes.submit(PROBLEM, request(6, limit=400))  # the names are free again
    assert sorted(rollout.sample for rollout in found) == [1, 2, 4]


def test_an_environment_that_is_later_than_its_runner_allows_ends_the_run_and_is_named(parts, monkeypatch):
    monkeypatch.setattr(module, "GRACE", -0.4)
    model, tokenizer = parts
    with Runner(Talkers({0: "hang"})) as runner:
        episodes = Answerer(TorchEngine(model, tokenizer), tokenizer, runner).open()
        episodes.submit(PROBLEM, request(1, limit=400))
        with pytest.raises(EngineError, match=r"1 rollouts wait for it, first of all p \(sample 0 of step 0\)"):
            while episodes.in_flight:
                episodes.advance()


@pytest.mark.parametrize("schedule", ["clock", "counted"])
def test_two_streams_with_one_runner_leave_each_other_alone(parts, schedule):
    alone = {name: rollout.text for name, rollout in all_of(parts, Talkers(), [request(6, limit=400)]).items()}
    model, tokenizer = parts
    with Runner(Talkers()) as runner:
        answerer = Answerer(TorchEngine(model, tokenizer), tokenizer, runner)
        waits, runs = answerer.open(schedule=schedule), answerer.open(schedule=schedule)
        waits.submit(PROBLEM, request(6, limit=400))
        found = {rollout.name: rollout.text for _ in range(12) for rollout in waits.advance()}
        runs.submit(PROBLEM, request(5, limit=400, step=-1))
        others = []
        while runs.in_flight:
            others += runs.advance()
        while waits.in_flight:
            found |= {rollout.name: rollout.text for rollout in waits.advance()}
    assert found == alone
    assert sorted(rollout.sample for rollout in others) == [0, 1, 2, 3, 4]


def test_counted_the_order_of_rollouts_depends_on_no_clock(parts):
    orders = [list(all_of(parts, Talkers(), [request(9, limit=400)], "counted")) for _ in range(3)]
    assert orders[0] == orders[1] == orders[2]


@pytest.mark.parametrize("advanced", [0, 1, 3, 6, 10, 18, 30])
def test_what_is_stored_and_restored_goes_on_to_the_same_bits(parts, advanced):
    model, tokenizer = parts

    def go_on(stored: bool) -> list[Rollout]:
        with (
            Runner(Talkers({2: "done", 4: "reward 1"})) as runner,
            Runner(Talkers({2: "done", 4: "reward 1"})) as other,
        ):
            episodes = Answerer(TorchEngine(model, tokenizer), tokenizer, runner).open(schedule="counted")
            episodes.submit(PROBLEM, request(6, limit=400))
            episodes.submit(PROBLEM, request(3, limit=60, step=1))
            found = [rollout for _ in range(advanced) for rollout in episodes.advance()]
            if stored:
                kept = episodes.export()
                again = Answerer(TorchEngine(model, tokenizer), tokenizer, other).open(schedule="counted")
                state = json.loads(json.dumps(kept.state))
                again.restore(InFlight(state, {n: t.clone() for n, t in kept.tensors.items()}), {"p": PROBLEM})
                episodes = again
            while episodes.in_flight:
                found += episodes.advance()
        return found

    straight, resumed = go_on(False), go_on(True)
    assert [(r.name, r.stop, r.text, r.reward, r.outcomes) for r in straight] == [
        (r.name, r.stop, r.text, r.reward, r.outcomes) for r in resumed
    ]
    assert [r.graph.segments for r in straight] == [r.graph.segments for r in resumed]
    assert Counter(r.name for r in straight).most_common(1)[0][1] == 1


def test_every_sampled_token_is_trained_and_no_observed_one(parts):
    for rollout in all_of(parts, Talkers(), [request(5, limit=300)]).values():
        for segment in rollout.graph.segments[1:]:
            assert (segment.trained == np.isfinite(segment.engine_logprob)).all()
        observed = sum(len(s) for s in rollout.graph.segments[1:] if not s.trained.any())
        assert rollout.num_answer_tokens == rollout.graph.num_trained + observed
