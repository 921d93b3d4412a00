"""What the reproduction of "Tricks or Traps" promises before it is run: arms that are what their names say."""

from dataclasses import replace

import pytest

from anabranch.presets import load
from anabranch.presets.small import SETS
from anabranch.recipe.show import difference
from anabranch.reproductions.claims import Claim, Expect
from anabranch.reproductions.command import study_of
from anabranch.reproductions.tricks import SHORT, TRICKS


@pytest.fixture(scope="module")
def whole():
    """The recipes of all arms by key."""
    return {arm.name: arm.recipe for arm in study_of(TRICKS, quick=False, seeds=None).arms}


def test_the_size_is_that_of_three_hours():
    assert len(TRICKS.arms) <= 46
    assert [finding.id for finding in TRICKS.findings] == [f"T{n}" for n in range(1, 10)]


def test_arms_are_what_their_names_say(whole):
    for key, recipe in whole.items():
        place, _, name = key.partition(" ")
        model, _, difficulty = place.partition("-")
        assert recipe.model.source == f"small-{model}"
        assert recipe.data == SETS[difficulty]
        a = recipe.algorithm
        if name not in ("Lite PPO", "GRPO", "DAPO"):
            assert a.kl.kind == "none"
            assert a.clip.low == 0.2
            assert (recipe.train.minibatches > 1) == name.startswith("clip ")
            assert a.aggregate == ("token_mean" if name == "token" else "seq_mean_token_mean")
            assert recipe.reward[0].wrong == (-1.0 if name.endswith("-1/1") else 0.0)
            assert a.overlong.kind == ("filter" if name.endswith("filtered") else "none")
            assert a.clip.high == (float(name.removeprefix("clip ")) if name.startswith("clip ") else 0.2)
    scheme = {key: (whole[key].algorithm.baseline, whole[key].algorithm.scale) for key in whole}
    assert scheme["base-hard none"] == ("none", "none")
    assert scheme["base-hard batch"] == scheme["base-hard batch -1/1"] == ("batch_mean", "batch_std_raw")
    assert scheme["base-hard group"] == ("group_mean", "group_std")
    assert scheme["base-hard mean"] == ("group_mean", "none")
    assert scheme["base-hard mixed"] == ("group_mean", "batch_std_raw")
    assert whole["base-medium short"].rollout.max_new_tokens == SHORT


@pytest.mark.parametrize(("name", "preset"), [("Lite PPO", "lite_ppo"), ("GRPO", "grpo"), ("DAPO", "dapo")])
def test_methods_are_the_presets_at_the_sizes_of_the_small_one(whole, name, preset):
    recipe = whole[f"base-hard {name}"]
    assert recipe.algorithm == load(preset).algorithm
    assert recipe.train.minibatches == load(preset).train.minibatches
    assert (recipe.rollout.dynamic is None) == (load(preset).rollout.dynamic is None)
    small = load("small_sums")
    assert (recipe.optim, recipe.steps, recipe.rollout.prompts) == (small.optim, small.steps, small.rollout.prompts)


def test_pairs_that_are_compared_differ_in_what_their_finding_is_about(whole):
    """Model, data and everything else that a finding is not about are the same in both arms of a comparison."""
    about = {
        "T1": ("algorithm.baseline", "algorithm.scale", "reward"),
        "T2": ("algorithm.scale",),
        "T3": ("algorithm.scale",),
        "T4": ("algorithm.clip.high",),
        "T5": ("algorithm.clip.high",),
        "T6": ("algorithm.clip.high",),
        "T7": ("algorithm.aggregate",),
        "T8": ("algorithm.overlong.kind",),
        "T9": ("algorithm", "rollout.dynamic", "train.minibatches"),
    }
    other_data = "T2.4"  # compares the std of rewards on two sets
    for finding in TRICKS.findings:
        for claim in finding.claims:
            paths = [path for path, _, _ in difference(whole[claim.arm], whole[claim.reference])]
            assert paths
            allowed = ("data",) if claim.id == other_data else about[finding.id]
            assert all(path.startswith(allowed) for path in paths), (claim.id, paths)


def test_the_arithmetic_of_whitened_rewards_is_claimed_against_the_papers_words():
    """ "lite_ppo" L5: batch normalisation is the same for rewards 0/1 and -1/1. Both expectations are registered."""
    (t1,) = (finding for finding in TRICKS.findings if finding.id == "T1")
    paper, arithmetic = [c for c in t1.claims if c.arm.endswith("batch -1/1") and c.arm.startswith("base-easy")]
    assert (paper.expect, paper.of_paper, arithmetic.expect, arithmetic.of_paper) == (
        Expect.HIGHER,
        True,
        Expect.EQUAL,
        False,
    )


def test_a_claim_is_kept_as_plain_data():
    claim = Claim("T1.1", "x", "a", "b", Expect.EQUAL, margin=0.03)
    assert Claim(**{**claim.to_json(), "expect": Expect(claim.to_json()["expect"])}) == claim
    assert replace(claim, expect=Expect.AT_MOST).region[1] == 0.03
