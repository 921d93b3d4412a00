"""Environments of the real `verifiers` package as a world: single turns, games, tools, and what goes wrong in them.

The tasksets are in `verifiers_tasksets`. Opening one takes seconds (the package's import), so tests share three.
"""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("verifiers.v1", reason="the extra 'verifiers' is not installed")

from anabranch.engines.episodes import Answerer
from anabranch.engines.torch_engine import TorchEngine
from anabranch.environments.base import Observation
from anabranch.environments.catalog import open_world
from anabranch.environments.runner import Runner
from anabranch.environments.verifiers_world import VerifiersWorld
from anabranch.errors import DataError, WorldError
from anabranch.modeling.attention import NAME
from anabranch.modeling.tiny import character_tokenizer, tiny_llama
from anabranch.modeling.turns import turn_renderer
from anabranch.recipe.tree import Answer, Verifiers, VerifiersTasks
from anabranch.records import Message, Problem, Request, Sampling, StopReason
from anabranch.tasks.base import open_task, self_check
from anabranch.tasks.judge import Judge

TASKSETS = Path(__file__).parent / "verifiers_tasksets"
FAULTS = (
    "setup raises",
    "reward raises",
    "reward hangs",
    "reward blocks",
    "reward ends the process",
    "reward is nan",
)
GUESS = {"taskset": {"id": "anabranch-guess"}}
SUMS = {"size": 3, "faults": list(FAULTS), "system": "Be brief."}

pytestmark = pytest.mark.timeout(300)


def render(messages: tuple[Message, ...]) -> str:
    return "".join(f"[{message.role}: {message.content}]" for message in messages)


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[None]:
    """The tasksets can be imported, here and in processes that are started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TASKSETS))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TASKSETS), *filter(None, [os.environ.get("PYTHONPATH")])]))
        yield


def opened(**settings: object) -> Iterator[VerifiersWorld]:
    world = VerifiersWorld(Verifiers(**settings), render)
    try:
        yield world
    finally:
        asyncio.run(world.close())


@pytest.fixture(scope="module")
def sums(installed) -> Iterator[VerifiersWorld]:
    yield from opened(options={"taskset": SUMS | {"id": "anabranch-sums"}}, seconds=20.0)


@pytest.fixture(scope="module")
def guess(installed) -> Iterator[VerifiersWorld]:
    yield from opened(options=GUESS, lowest=-1.0, turns=4)


@pytest.fixture(scope="module")
def tools(installed) -> Iterator[VerifiersWorld]:
    yield from opened(options={"taskset": {"id": "anabranch-tools"}}, output_chars=64)


def problems(taskset: str, **settings: object) -> tuple[Problem, ...]:
    return open_task(VerifiersTasks(taskset=taskset, **settings), Answer()).problems


def sum_with(fault: str) -> Problem:
    return problems("anabranch-sums", options=SUMS)[3 + FAULTS.index(fault)]


Heard = tuple[str, bool, float | None]
"""Text, done and reward of an observation."""


def heard(found: Observation) -> Heard:
    return found.text, found.done, found.reward


async def play(world: VerifiersWorld, problem: Problem, *turns: str) -> list[Heard]:
    environment = world.environment()
    try:
        await environment.reset(problem, (1,))
        return [heard(await environment.step(turn)) for turn in turns]
    finally:
        await environment.close()


def played(world: VerifiersWorld, problem: Problem, *turns: str) -> list[Heard]:
    return asyncio.run(play(world, problem, *turns))


def said(text: str) -> Heard:
    return text, False, None


def reward(value: float) -> Heard:
    return "", True, value


# ------------------------------------------------------------------------------------------------------------- problems


def test_a_tasksets_tasks_are_problems_that_only_their_environment_judges():
    task = open_task(VerifiersTasks(taskset="anabranch-sums", options={"size": 9}, skip=1, limit=3), Answer())
    assert [problem.question for problem in task.problems] == ["1 + 2 = ?", "2 + 2 = ?", "3 + 2 = ?"]
    assert task.problems[0].meta["task"]["total"] == 3
    again = problems("anabranch-sums", options={"size": 9}, skip=2)
    assert [problem.key for problem in again[:2]] == [problem.key for problem in task.problems[1:]]
    with Judge(task.checker) as judge:
        self_check(task, judge, 3)  # there is no gold answer that could prove it
        verdict = judge.judge_all([(task.problems[0], "3")])[0]
    assert (verdict.value, verdict.detail) == (0.0, "ended before its environment gave a reward")


def test_the_system_prompt_is_a_part_of_the_question():
    assert problems("anabranch-sums", options=SUMS)[0].question == "Be brief.\n\n0 + 2 = ?"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"taskset": "nowhere"}, "install the package that has the module 'nowhere'"),
        ({"taskset": "json"}, "a taskset is needed"),
        ({"taskset": "anabranch-sums", "options": {"sise": 9}}, "sise"),
        ({"taskset": "anabranch-sums", "skip": 3}, "no row"),
        ({"taskset": "anabranch-guess"}, "data.limit: found None, but it makes tasks without end"),
    ],
)
def test_tasks_that_cannot_be_had_are_refused(settings, message):
    with pytest.raises(DataError) as caught:
        open_task(VerifiersTasks(**settings), Answer())
    assert message in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- rollouts


def test_a_single_turn_is_judged_by_the_environments_rewards(sums):
    problem = problems("anabranch-sums", options=SUMS)[1]
    assert played(sums, problem, "It is 3") == [reward(1.0)]
    assert played(sums, problem, "It is 4") == [reward(0.0)]
    assert (sums.instruction, sums.stop_strings, sums.seconds) == ("", (), 20.0)


def test_many_rollouts_at_once_do_not_mix(sums):
    chosen = problems("anabranch-sums", options=SUMS)[:3] * 4

    async def all_of_them():
        return await asyncio.gather(*(play(sums, problem, f"is {index}") for index, problem in enumerate(chosen)))

    rewards = [found[0][2] for found in asyncio.run(all_of_them())]
    assert rewards == [1.0 if index == index % 3 + 2 else 0.0 for index in range(12)]


def test_a_game_of_several_turns_is_played_by_its_environment(guess):
    problem = problems("anabranch-guess", limit=1)[0]  # the number is 5
    assert played(guess, problem, "3", "9", "5") == [
        said("[user: 3? It is higher.]"),
        said("[user: 9? It is lower.]"),
        reward(1.0),
    ]


def test_behind_the_last_turn_the_environment_ends_by_itself_with_its_reward(guess):
    problem = problems("anabranch-guess", limit=1)[0]
    found = played(guess, problem, "1", "1", "1", "1")
    assert found[2:] == [said("[user: 1? It is higher.]"), reward(0.0)]  # (-1 - -1) / 2
    assert guess.turns == 4


def test_what_the_model_writes_may_make_the_environment_raise(guess):
    with pytest.raises(WorldError, match="invalid literal for int"):
        played(guess, problems("anabranch-guess", limit=1)[0], "²")


def test_a_rollout_is_restored_by_saying_all_again(guess):
    problem = problems("anabranch-guess", limit=1)[0]

    async def in_two_parts():
        first = guess.environment()
        await first.reset(problem, (1,))
        await first.step("3")
        state = first.state()
        await first.close()
        second = guess.environment()
        await second.restore(problem, (1,), state)
        found = [heard(await second.step(turn)) for turn in ("9", "5")]
        await second.close()
        lying = {"said": [["3", {"said": [["user", "3? It is lower."]]}]]}
        with pytest.raises(WorldError, match=r"'3\? It is lower\.'.* before"):
            await guess.environment().restore(problem, (1,), lying)
        return found

    assert asyncio.run(in_two_parts()) == [said("[user: 9? It is lower.]"), reward(1.0)]


def test_a_tool_is_described_called_and_answers(tools):
    assert '"name": "add"' in tools.instruction
    assert "Add two whole numbers." in tools.instruction
    found = played(
        tools,
        problems("anabranch-tools")[0],
        'I add. <tool_call>{"name": "add", "arguments": {"a": 19, "b": 23}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": 1000, "b": 1}}</tool_call>'
        '<tool_call>{"name": "sub", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": "x"}}</tool_call>',
        "42",
    )
    assert found[0] == said("[tool: 42]")
    flood = ("1001" * 3000)[:32]
    assert found[1] == said(f"[tool: {flood} [11936 characters left out] {flood}][tool: no tool 'sub']")
    assert found[2][0].startswith("[tool: Error executing tool add: 2 vali")
    assert found[3] == reward(1.0)


def test_a_model_plays_a_game_turn_by_turn_and_what_it_is_told_is_not_trained(one_thread):
    """The whole way: engine, runner, process, package, and back. 64 tokens, one in six of which ends a turn."""
    model, tokenizer = tiny_llama(), character_tokenizer("".join(map(chr, range(ord("?"), ord("z")))))
    model.set_attn_implementation(NAME)
    ends = tuple(range(4, 64, 6))
    world = open_world(Verifiers(options=GUESS, lowest=-1.0, turns=3), turn_renderer(tokenizer, stop_tokens=ends))
    problem = problems("anabranch-guess", limit=1)[0]
    sampling = Sampling(max_new_tokens=400, stop_tokens=ends)
    request = Request(problem.key, (5, 6, 7), 6, sampling, seed=0, step=0, hold=True)
    with Runner(world) as runner:
        rollouts = list(Answerer(TorchEngine(model, tokenizer), tokenizer, runner).answers([problem], [request]))
    assert sorted(rollout.sample for rollout in rollouts) == list(range(6))
    for rollout in rollouts:
        assert (rollout.stop, rollout.turns, rollout.reward) == (StopReason.EOS, 3, 0.0), rollout.failure
        assert [bool(segment.trained.all()) for segment in rollout.graph.segments] == [
            False,
            True,
            False,
            True,
            False,
            True,
        ]
        told = tokenizer.decode(rollout.graph.segments[2].tokens)
        assert "is" in told  # "99? It is lower.", as far as this tokenizer knows it, within its chat template
        assert "lower" in told


# ----------------------------------------------------------------------------------------------------------- what fails


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("setup raises", "no such row"),
        ("reward raises", "ValueError: cannot judge this"),
        ("reward is nan", "a reward of nan"),
    ],
)
def test_code_of_a_task_that_raises_fails_its_rollout_alone(sums, fault, message):
    async def two():
        return await asyncio.gather(
            play(sums, sum_with(fault), "is 2"),
            play(sums, problems("anabranch-sums", options=SUMS)[0], "is 2"),
            return_exceptions=True,
        )

    failed, other = asyncio.run(two())
    assert isinstance(failed, WorldError)
    assert message in str(failed)
    assert other == [reward(1.0)]


def test_a_reward_outside_of_the_range_fails_with_the_setting_to_change(sums):
    with pytest.raises(WorldError) as caught:
        played(sums, problems("anabranch-sums", options=SUMS)[1], "3")  # right and brief
    assert "a reward of 1.5 (brief 0.5, right 1), but a reward lies in [0, 1]" in str(caught.value)
    assert "environment.lowest, environment.highest" in str(caught.value)


def test_a_call_that_hangs_is_given_up_and_no_other_one_notices(sums):
    async def hang():
        environment = sums.environment()
        await environment.reset(sum_with("reward hangs"), (1,))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(environment.step("2"), 1.0)
        await environment.close()
        return await play(sums, problems("anabranch-sums", options=SUMS)[0], "is 2")

    assert asyncio.run(hang()) == [reward(1.0)]


@pytest.mark.parametrize(
    ("fault", "message"),
    [("reward blocks", "blocked its process"), ("reward ends the process", r"its process ended \(7\): the end")],
)
def test_code_that_blocks_or_ends_its_process_is_outlived(sums, fault, message):
    async def lost():
        bystander, culprit = sums.environment(), sums.environment()
        await bystander.reset(problems("anabranch-sums", options=SUMS)[0], (1,))
        await culprit.reset(sum_with(fault), (2,))
        with pytest.raises((TimeoutError, WorldError)):
            await asyncio.wait_for(culprit.step("2"), 1.5)
        await culprit.close()
        with pytest.raises(WorldError, match=message):
            await bystander.step("is 2")
        await bystander.close()
        return await play(sums, problems("anabranch-sums", options=SUMS)[0], "is 2")

    assert asyncio.run(lost()) == [reward(1.0)]


def test_a_problem_of_another_task_is_refused(sums):
    with pytest.raises(WorldError, match="a problem of 'chain_sum'"):
        played(sums, Problem("k", "1 + 1", "2", "chain_sum"))
    problem = problems("anabranch-guess", limit=1)[0]
    with pytest.raises(WorldError, match="the environment is of taskset 'anabranch-sums'"):
        played(sums, problem)
    with pytest.raises(WorldError, match="the prompt of its task was 'another question'"):
        played(sums, replace(problems("anabranch-sums", options=SUMS)[0], question="another question"))


@pytest.mark.parametrize(
    ("options", "role", "message"),
    [
        ({"taskset": {"id": "nowhere"}}, "", "install the package that has the module 'nowhere'"),
        ({"taskset": {"id": "json"}}, "", "a taskset is needed"),
        (GUESS, "judge", "the model plays one of them: player"),
        (GUESS | {"player": {"max_turns": 3}}, "", "leave max_turns out"),
        (GUESS | {"colour": 3}, "", "colour"),
        ({"taskset": {"id": "anabranch-sums"}, "id": "user-sim"}, "assistant", "options.user: found no client"),
        ({"taskset": {"id": "anabranch-sums"}, "agent": {"runtime": {"type": "nope"}}}, "", "nope"),
    ],
)
def test_an_environment_that_cannot_be_opened_says_why(options, role, message):
    from anabranch.environments.verifiers_host import load  # imports the package

    with pytest.raises(WorldError) as caught:
        load(Verifiers(options=options, role=role).model_dump(mode="json"))
    assert message in str(caught.value)


def test_an_environment_without_a_task_cannot_be_opened():
    with pytest.raises(WorldError, match=r"environment\.options\.taskset: found no task"):
        VerifiersWorld(Verifiers(options={"taskset": {"id": "anabranch-sums", "size": 0}}), render)


def test_a_second_conversation_is_refused():
    world = VerifiersWorld(Verifiers(turns=1, options=GUESS | {"second_try": True}), render)
    try:
        with pytest.raises(WorldError, match="a second conversation with the model"):
            played(world, problems("anabranch-guess", limit=1)[0], "1")
    finally:
        asyncio.run(world.close())
