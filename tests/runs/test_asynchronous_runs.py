"""Steps that learn from the rollouts that finish first: what is learned from, what is left, killed and resumed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from anabranch.recipe.io import to_yaml
from anabranch.recipe.overrides import apply
from anabranch.recipe.tree import Recipe
from anabranch.tracking.jsonl import read_jsonl
from anabranch.tracking.metrics import validate
from anabranch.train.checkpoint import latest
from anabranch.train.run import resume, start

KILLED = -9
ON = "rollout.asynchronous"
SINGLE = (
    f"{ON}={{oversample: 1.0, max_staleness: 2}}",
    "reward=[{term: accuracy, weight: 0.5}, {term: format, weight: 0.5}]",
    "rollout.prompts=6",
    "rollout.per_problem=1",
    "rollout.max_new_tokens=24",
    "rollout.stop_strings=[a, e, '1']",
    "data.limit=20",
    "train.minibatches=2",
    "steps=5",
    "save={every: 2, keep: 9}",
)
"""6 of 12 rollouts in flight a step."""
ACTING = (f"{ON}.schedule=counted", "environment={kind: latency, stop: b, reply: c, turns: 3, scale: 0.0001}")
"""Rollouts wait for something between their turns."""
GROUPS = (*SINGLE[:1], SINGLE[5], "rollout.max_new_tokens=24", "data.limit=20", "steps=4", "save={every: 2, keep: 9}")


def begun(answer: dict) -> int:
    return answer.get("begun", answer["step"])


def metrics(run: Path) -> list[dict]:
    found = list(read_jsonl(run / "metrics.jsonl"))
    for record in found:
        validate(record)
    return found


@pytest.fixture(scope="module")
def single(make_recipe) -> Recipe:
    return make_recipe(*SINGLE, preset="spo")


@pytest.fixture(scope="module")
def done(single, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("asynchronous") / "run"
    start(single, folder)
    return folder


def test_every_step_takes_its_number_and_nothing_is_learned_from_twice(done):
    answers = list(read_jsonl(done / "rollouts.jsonl"))
    assert Counter(answer["step"] for answer in answers) == dict.fromkeys(range(1, 6), 6)
    names = Counter((answer["key"], begun(answer), answer["sample"]) for answer in answers)
    assert set(names.values()) == {1}


def test_all_that_was_begun_is_learned_from_or_still_in_flight(done):
    for number, record in enumerate(metrics(done), start=1):
        assert record["generated_rollouts"] == 6
        assert record["given_up"] == 0
        # 12 are begun before the first step, 6 before every other one.
        assert record["left_in_flight"] == 12 + 6 * (number - 1) - 6 * number == 6


def test_staleness_is_what_the_answers_say_and_within_the_bound(done):
    answers = list(read_jsonl(done / "rollouts.jsonl"))
    for record in metrics(done):
        here = [answer for answer in answers if answer["step"] == record["step"]]
        ages = [answer["step"] - begun(answer) for answer in here]  # both counted from 1: the step itself is 0
        assert record["staleness"] == pytest.approx(sum(ages) / len(ages))
        assert record["staleness_max"] == max(ages) <= 2
    assert max(record["staleness_max"] for record in metrics(done)) > 0
    assert max(record["stale_tokens"] for record in metrics(done)) > 0
    assert metrics(done)[0]["stale_tokens"] == 0


def test_some_answer_was_written_under_two_policies(done):
    versions = [answer["policy_versions"] for answer in read_jsonl(done / "rollouts.jsonl")]
    assert any(len(found) > 1 for found in versions)


def test_answers_that_finish_first_are_taken_first(done):
    first = [answer for answer in read_jsonl(done / "rollouts.jsonl") if answer["step"] == 1]
    later = [answer for answer in read_jsonl(done / "rollouts.jsonl") if answer["step"] > 1 and begun(answer) == 1]
    assert later and max(answer["tokens"] for answer in first) <= min(answer["tokens"] for answer in later)


def test_what_is_left_over_is_given_up_where_that_is_asked_for(single, tmp_path):
    start(apply(single, [f"{ON}={{oversample: 1.0, leftover: drop, max_staleness: 0}}"]), tmp_path / "run")
    for record in metrics(tmp_path / "run"):
        assert (record["given_up"], record["left_in_flight"]) == (6, 0)
        assert (record["staleness_max"], record["stale_tokens"]) == (0, 0)


def test_groups_are_taken_whole(make_recipe, tmp_path):
    start(make_recipe(*GROUPS, preset="lite_ppo"), tmp_path / "run")
    answers = list(read_jsonl(tmp_path / "run" / "rollouts.jsonl"))
    groups = Counter((answer["step"], begun(answer), answer["key"]) for answer in answers)
    assert set(groups.values()) == {4} and len(groups) == 4 * 4
    assert all(record["left_in_flight"] == 4 * 4 for record in metrics(tmp_path / "run"))


def test_repeats_of_a_problem_are_taken_one_by_one_if_nothing_compares_them(make_recipe, tmp_path):
    start(make_recipe(*GROUPS, SINGLE[1], preset="bspo"), tmp_path / "run")
    answers = list(read_jsonl(tmp_path / "run" / "rollouts.jsonl"))
    groups = Counter((answer["step"], begun(answer), answer["key"]) for answer in answers)
    assert min(groups.values()) < 4
    assert Counter(answer["step"] for answer in answers) == dict.fromkeys(range(1, 5), 16)


def test_with_keys_that_are_computed_anew_other_tokens_are_drawn(done, single, tmp_path):
    start(apply(single, [f"{ON}.keys=recompute", "optim.lr=0.01"]), tmp_path / "anew")
    start(apply(single, ["optim.lr=0.01"]), tmp_path / "kept")
    anew, kept = ([a["answer"] for a in read_jsonl(tmp_path / run / "rollouts.jsonl")] for run in ("anew", "kept"))
    assert anew[:6] == kept[:6]  # nothing was in flight before the first update
    assert anew != kept


def test_tokens_of_older_weights_are_weighed_by_how_likely_they_are_now(single, tmp_path):
    start(apply(single, ["algorithm.mismatch={kind: tis, low: null, high: null}", "optim.lr=0.01"]), tmp_path / "run")
    for record in metrics(tmp_path / "run"):
        # pi(start of the step) / pi(that drew it): only rounding where no weights changed since
        assert (record["mismatch_gap"] > 1e-4) == (record["stale_tokens"] > 0)


@pytest.mark.parametrize(("changes", "deaths"), [(ACTING, 3), ((f"{ON}.keys=recompute",), 1)])
def test_a_killed_run_finds_what_was_in_flight_again(live, single, same_run, tmp_path, changes, deaths):
    recipe = apply(single, changes)
    start(recipe, tmp_path / "whole")
    run = tmp_path / "run"
    kills = [
        {"phase": {"phase": "rl: generating: 4", "count": 3, "delay": 0.0}},
        {"phase": {"phase": "rl: training 2/2", "count": 2, "delay": 0.0}},
        {"operation": ("open", ".partial-step-000004/manifest.json")},  # what is in flight is written, the proof is not
    ]
    for number, kill in enumerate([*kills[-deaths:], {}]):
        life = {} if (run / "recipe.yaml").exists() else {"recipe": to_yaml(recipe)}
        code = live(path=run, log=tmp_path / f"log-{number}", **life, **kill)
        assert code == (KILLED if kill else 0), (tmp_path / f"log-{number}").read_text()
    same_run(tmp_path / "whole", run, logs=("rollouts",))


def test_answers_act_and_what_they_are_told_is_not_trained(single, tmp_path):
    start(apply(single, ACTING), tmp_path / "run")
    answers = list(read_jsonl(tmp_path / "run" / "rollouts.jsonl"))
    acted = [answer for answer in answers if answer.get("turns", 1) > 1]
    assert acted
    for answer in acted:
        assert answer["answer"].count("bc") >= answer["turns"] - 1
    for record in metrics(tmp_path / "run"):
        here = [answer for answer in answers if answer["step"] == record["step"]]
        told = sum(answer.get("turns", 1) - 1 for answer in here)  # a character each
        assert record["observed_tokens"] == pytest.approx(told / sum(answer["tokens"] for answer in here))
        assert record["turns"] == pytest.approx(1 + told / len(here))
        assert record["sampled_tokens"] == sum(answer["tokens"] for answer in here) - told


def test_a_step_that_waits_for_all_of_its_own_acts_too(make_recipe, tmp_path):
    recipe = make_recipe("rollout.max_new_tokens=24", ACTING[1], "steps=2", SINGLE[5], preset="lite_ppo")
    start(recipe, tmp_path / "run")
    for record in metrics(tmp_path / "run"):
        assert record["turns_max"] > 1
        assert record["time/wait"] >= 0
        assert "staleness" not in record


def test_a_run_that_is_made_longer_is_the_run_that_was_longer_at_once(done, single, same_run, tmp_path):
    start(apply(single, ["steps=3"]), tmp_path / "run")
    resume(tmp_path / "run", 5)
    same_run(done, tmp_path / "run", logs=("rollouts",))


def test_the_checkpoint_says_what_is_in_flight(done):
    found = latest(done / "checkpoints")
    assert found is not None and found.in_flight is not None
    assert len(found.in_flight.state["units"]) == 6
