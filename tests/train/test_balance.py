"""The mass balance watched in training: where it looks, what it says by hand, and that it changes nothing."""

import json

import numpy as np
import pytest
import torch

from anabranch.errors import RecipeError
from anabranch.modeling.attention import NAME
from anabranch.modeling.next_token import next_probabilities
from anabranch.modeling.tiny import tiny_llama
from anabranch.presets import load
from anabranch.recipe.overrides import apply
from anabranch.records import Problem, Reason, Rollout, Score, Segment, StopReason, StreamGraph, Verdict
from anabranch.tracking.jsonl import read_jsonl
from anabranch.tracking.metrics import validate
from anabranch.train.balance import Fork, Look, balance_record, first_fork, pass_record
from anabranch.train.experience import Dropped, Group, experience_of_groups
from anabranch.train.run import start

PROBLEM = Problem("k", "q", "a", "s")


def answered(rewards, *answers, prompt=(7, 8), trained=None):
    """A group; each answer as its tokens."""
    rollouts = [
        Rollout(
            "k",
            sample,
            StreamGraph(
                (
                    Segment(np.array(prompt)),
                    Segment(
                        np.array(tokens),
                        (0,),
                        np.ones(len(tokens), bool) if trained is None else np.array(trained[: len(tokens)]),
                    ),
                )
            ),
            "",
            StopReason.EOS,
        )
        for sample, tokens in enumerate(answers)
    ]
    scores = [Score(reward, {}, Verdict(reward, Reason.CORRECT if reward == 1 else Reason.WRONG)) for reward in rewards]
    return Group(PROBLEM, rollouts, scores)


# ---------------------------------------------------------------------------------------------------------- the forks


def test_the_first_fork_is_where_two_answers_differ_for_the_first_time():
    fork = first_fork(answered([1.0, 0.0, 0.5], [3, 4, 5, 9], [3, 4, 6], [3, 4, 5, 8]))
    assert fork.before.tolist() == [7, 8, 3, 4]
    assert fork.depth == 2
    assert fork.drawn_N.tolist() == [5, 6, 5]
    assert fork.reward_N.tolist() == [1.0, 0.0, 0.5]
    at_once = first_fork(answered([1.0, 0.0], [3], [4]))
    assert (at_once.before.tolist(), at_once.depth) == ([7, 8], 0)


@pytest.mark.parametrize(
    "group",
    [
        answered([1.0, 1.0], [3, 4], [3, 5]),  # nothing to learn from
        answered([1.0, 0.0], [3, 4], [3, 4, 5]),  # one is the beginning of the other
        answered([1.0, 0.0], [3, 4], [3, 4]),
        answered([1.0, 0.0], [3, 4], [3, 5], trained=[True, False]),  # not drawn by the policy
    ],
)
def test_where_there_is_no_fork_of_draws_there_is_nothing_to_look_at(group):
    assert first_fork(group) is None


# -------------------------------------------------------------------------------------------------------- the numbers


def test_the_record_of_a_fork_by_hand():
    """p = (.4, .1, .3, .2); draws 0, 0, 2, 1 with rewards 1, .5, 0, 0: R = .75, 0, 0, b = .375; 0 is right.

    R - b: .375, -.375, -.375, 0. S = .15 - .0375 - .1125 = 0. Q = .4.
    Term right: .6 .16 .375 = .036. Term other: .4 (.01 + .09) .375 = .015. Term unsampled: 0.
    E[U_2] = .16 .6^4 + .01 .9^4 + .09 .7^4 + .04 .8^4 = .020736 + .006561 + .021609 + .016384 = .06529.
    """
    prob = torch.tensor([[0.4, 0.1, 0.3, 0.2]], dtype=torch.float64)
    after = torch.tensor([[0.45, 0.1, 0.2, 0.25]], dtype=torch.float64)
    fork = Fork(np.array([7, 8]), 3, np.array([0, 0, 2, 1]), np.array([1.0, 0.5, 0.0, 0.0]))
    record = {name.split("/")[1]: value for name, value in balance_record(Look([fork], prob), after).items()}
    expected = {
        "forks": 1,
        "depth": 3,
        "kinds": 3,
        "right": 0.4,
        "other": 0.4,
        "unsampled": 0.2,
        "right_2": 0.16,
        "other_2": 0.10,
        "unsampled_2": 0.04,
        "unsampled_2_expected": 0.06529,
        "net": 0.0,
        "term_right": 0.036,
        "term_other": 0.015,
        "term_unsampled": 0.0,
        "total": 0.051,
        "change": 0.05,
        "change_other": -0.1,
        "change_unsampled": 0.05,
        "agreement": 1.0,
    }
    assert record == pytest.approx(expected, abs=1e-12)


def test_means_are_over_forks_and_signs_are_counted():
    """Token 0 right, p = .5: total > 0. In the first fork its mass grows, in the second it shrinks."""
    fork = Fork(np.array([7]), 0, np.array([0, 1]), np.array([1.0, 0.0]))
    prob = torch.tensor([[0.5, 0.25, 0.25]] * 2, dtype=torch.float64)
    after = torch.tensor([[0.6, 0.2, 0.2], [0.4, 0.3, 0.3]], dtype=torch.float64)
    record = balance_record(Look([fork, fork], prob), after)
    assert record["mass_balance/forks"] == 2
    assert record["mass_balance/agreement"] == 0.5
    assert record["mass_balance/change"] == pytest.approx(0, abs=1e-15)
    assert record["mass_balance/total"] > 0


def test_without_a_fork_only_their_number_is_said():
    nothing = torch.zeros(0, 5, dtype=torch.float64)
    assert balance_record(Look([], nothing), nothing) == {"mass_balance/forks": 0}


def test_tokens_as_good_as_the_group_are_not_right():
    """Both tokens have mean reward .3, of three and of six answers: rounding must not decide."""
    fork = Fork(np.array([7]), 0, np.repeat([0, 1], [3, 6]), np.array([0.1, 0.3, 0.5] * 3))
    prob = torch.full((1, 4), 0.25, dtype=torch.float64)
    record = balance_record(Look([fork], prob), prob)
    assert (record["mass_balance/right"], record["mass_balance/net"], record["mass_balance/total"]) == (0, 0, 0)


def test_the_curve_counts_every_answer_that_was_sampled_and_has_intervals():
    """1 of 4 right, and a dropped group with all right: pass@2 is (1/2 + 1) / 2."""
    kept = answered([1.0, 0.0, 0.0, 0.0], [3], [4], [5], [6])
    dropped = answered([1.0] * 4, [3], [4], [5], [6])
    record = pass_record(experience_of_groups([kept], Dropped(agreeing=[dropped])))
    at = {k: record[f"pass_at/{k}"] for k in (1, 2, 4)}
    assert at == pytest.approx({1: (0.25 + 1) / 2, 2: 0.75, 4: 1.0})
    assert record["pass_at_low/2"] == 0.5 and record["pass_at_high/2"] == 1.0
    assert len(record) == 9


def test_probabilities_are_those_of_the_model_behind_each_text(torch_as_it_was):
    torch.set_num_threads(1)
    model = tiny_llama().eval()
    texts = [np.array(text, np.int32) for text in ([5, 6, 7], [9], [3, 4, 5, 6, 7, 8, 9], [5, 6])]
    with torch.no_grad():
        rows = [model(torch.from_numpy(text.astype(np.int64))[None], use_cache=False).logits[0, -1] for text in texts]
    expected = torch.softmax(torch.stack(rows).double() / 0.7, -1)
    model.set_attn_implementation(NAME)
    for row_tokens in (4, 64):
        found = next_probabilities(model, texts, temperature=0.7, row_tokens=row_tokens)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert next_probabilities(model, [], temperature=1.0, row_tokens=64).shape == (0, expected.shape[1])


# --------------------------------------------------------------------------------------------------------- whole runs

SMALL = ("rollout.prompts=4", "rollout.per_problem=4", "rollout.max_new_tokens=6", "save.keep=1")
WATCHED = ("diagnostics={mass_balance: 3, pass_curve: true}",)
OWN = ("mass_balance/", "pass_at", "time/", "memory", "tokens_per", "rollouts_per")


@pytest.mark.parametrize(("preset", "more"), [("grpo", ()), ("prorl_v2", ("algorithm.overlong={}",))])
def test_watching_adds_numbers_and_changes_nothing_else(preset, more, small_run, tmp_path, torch_as_it_was):
    records, weights = [], []
    for name, watched in (("plain", ()), ("watched", WATCHED)):
        recipe = apply(load(preset), [*small_run, *SMALL, *more, *watched])
        start(recipe, tmp_path / name)
        found = list(read_jsonl(tmp_path / name / "metrics.jsonl"))
        for record in found:
            validate(record)
        records.append(found)
        (safe,) = (tmp_path / name / "checkpoints").glob("*/model/model.safetensors")
        weights.append(safe.read_bytes())
    plain, watched = records
    assert weights[0] == weights[1]

    def shared(record):
        return {name: value for name, value in record.items() if not name.startswith(OWN)}

    assert list(map(shared, plain)) == list(map(shared, watched))
    assert not [name for record in plain for name in record if name.startswith(("mass_balance/", "pass_at"))]
    assert "time/diagnose" not in plain[-1]
    seen = [record for record in watched if record.get("mass_balance/forks", 0) > 0]
    assert seen
    for record in seen:
        parts = [record[f"mass_balance/{name}"] for name in ("right", "other", "unsampled")]
        assert sum(parts) == pytest.approx(1)
        changes = [record[f"mass_balance/{name}"] for name in ("change", "change_other", "change_unsampled")]
        assert sum(changes) == pytest.approx(0, abs=1e-12)
        assert any(changes)
        assert record["time/diagnose"] > 0
    assert watched[-1]["pass_at/1"] == pytest.approx(watched[-1]["accuracy"])


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["diagnostics.mass_balance=-1"], "diagnostics.mass_balance"),
        (["diagnostics.mass_balance=17", "rollout.prompts=16"], "fix: diagnostics.mass_balance=16"),
        (
            ["diagnostics.mass_balance=1", "rollout.per_problem=1", "algorithm.baseline=batch_mean"],
            "fix: rollout.per_problem=8, or diagnostics.mass_balance=0",
        ),
        (
            ["diagnostics.pass_curve=true", "rollout.per_problem=1", "algorithm.baseline=batch_mean"],
            "fix: rollout.per_problem=8, or diagnostics.pass_curve=false",
        ),
        (
            ["diagnostics.mass_balance=1", "rollout.asynchronous={}"],
            "fix: diagnostics.mass_balance=0, or rollout.asynchronous=null",
        ),
    ],
)
def test_what_could_not_be_measured_is_refused(changes, says):
    with pytest.raises(RecipeError) as error:
        apply(load("grpo"), changes)
    assert says in str(error.value)


def test_records_stay_json():
    fork = Fork(np.array([7]), 0, np.array([0, 1]), np.array([1.0, 0.0]))
    prob = torch.full((1, 4), 0.25, dtype=torch.float64)
    assert json.loads(json.dumps(balance_record(Look([fork], prob), prob)))["mass_balance/kinds"] == 2
