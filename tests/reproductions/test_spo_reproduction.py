"""What the reproduction of SPO promises before it is run: arms that are what their names say, and its values file."""

import json
import shutil
from dataclasses import replace

import pytest

from anabranch.presets import load
from anabranch.recipe.io import from_yaml
from anabranch.recipe.show import difference
from anabranch.reproductions import command
from anabranch.reproductions.claims import Claim, Expect, Finding, Quick
from anabranch.reproductions.command import reproduce, study_of
from anabranch.reproductions.offline import SETTING
from anabranch.reproductions.spo import BATCH, SPO
from anabranch.study.outline import read_outline


@pytest.fixture(scope="module")
def whole():
    """The recipes of all arms by key."""
    return {arm.name: arm.recipe for arm in study_of(SPO, quick=False, seeds=None).arms}


def test_every_arm_samples_as_many_answers_and_makes_as_many_updates(whole):
    for recipe in whole.values():
        assert recipe.rollout.prompts * recipe.rollout.per_problem == BATCH
        assert (recipe.train.minibatches, recipe.train.epochs) == (4, 1)
        assert recipe.algorithm.clip == load("spo").algorithm.clip
        assert recipe.algorithm.aggregate == load("spo").algorithm.aggregate
        assert recipe.algorithm.kl.kind == "none"


def test_spo_is_the_preset(whole):
    """Algorithm, draw and one answer a problem; offline values beside."""
    recipe, preset = whole["SPO"], load("spo")
    tracker = recipe.algorithm.tracker.but(values=None)
    assert recipe.algorithm.but(tracker=tracker) == preset.algorithm
    assert (recipe.sampling, recipe.rollout.per_problem) == (preset.sampling, preset.rollout.per_problem)
    assert whole["BSPO"].algorithm.tracker.duplicates == load("bspo").algorithm.tracker.duplicates == "joint"


def test_an_ablation_changes_what_it_is_called_after_and_nothing_else(whole):
    about = {
        "no baseline": {"algorithm.baseline"},
        "no offline values": {"algorithm.tracker.values"},
        "no priority": {"sampling"},
        "constant forgetting": {"algorithm.tracker.divergence"},
        "BSPO": {"algorithm.tracker.duplicates", "rollout.prompts", "rollout.per_problem"},
    }
    for key, paths in about.items():
        found = {path for path, _, _ in difference(whole[key], whole["SPO"])}
        assert {"sampling" if path.startswith("sampling") else path for path in found} == paths
    assert set(whole) == {*about, "SPO", "GRPO"}
    assert whole["no baseline"].algorithm.whiten == "trajectories"  # "spo" section 4: still globally normalised
    assert whole["no priority"].sampling.kind == "uniform"
    grpo = whole["GRPO"].algorithm
    assert (grpo.baseline, grpo.scale, grpo.whiten) == ("group_mean", "group_std", "none")


@pytest.fixture
def tiny(small, sums, tiny_model, monkeypatch):
    """Groups against values that are made first, on a random model; `anabranch reproduce sample` finds it."""
    held_out = f"{{kind: jsonl, path: {sums / 'held_out.jsonl'}}}"
    tracked = "algorithm={baseline: tracker, scale: none, whiten: trajectories}"
    claim = Claim("F1.1", "b is better than a", "b", "a", Expect.HIGHER)
    sample = replace(
        small,
        common=(
            "name=sample",
            f"model={{source: {tiny_model}, dtype: float32, device: cpu, threads: 1}}",
            f"data={{kind: jsonl, path: {sums / 'train.jsonl'}, limit: 5}}",
            "answer.extract=[last_number]",
            "rollout={prompts: 2, per_problem: 2, max_new_tokens: 4}",
            "steps=1",
            f"evaluation={{problems: 2, samples: 1, every: 0, data: {held_out}}}",
            "probes.patience=99",
        ),
        arms={"a": (), "b": (tracked, SETTING)},
        findings=(
            Finding("F1", "b is better", "It was.", "It may be.", (claim,)),
            Finding("F2", "a", "It was.", "It may be.", (replace(claim, id="F2.1", arm="a"),)),
        ),
        quick=Quick(arms=("a", "b"), changes=()),
        value_samples=2,
    )
    monkeypatch.setattr(command, "find", lambda name: sample)
    return sample


def test_offline_values_are_made_once_in_the_studys_folder_and_go_with_it(tiny, tmp_path, monkeypatch):
    root, values = tmp_path / "study", tmp_path / "study" / "values" / "values.json"
    monkeypatch.chdir(tmp_path)
    assert reproduce("sample", only="F2", seeds="1", out=root, at_once=1) == 0
    assert not values.exists()  # nothing that was run reads them

    assert reproduce("sample", seeds="1", out=root, at_once=1) == 0
    first = values.read_bytes()
    assert [count for _, count in json.loads(first)["problems"].values()] == [2] * 5
    assert from_yaml(root / "runs" / "2-b" / "seed-0" / "recipe.yaml").algorithm.tracker.values == str(values)
    page = (root / "report.md").read_text()
    assert "\nanabranch values small_sums name=sample " in page and "--samples 2 --out values\n" in page
    assert "algorithm.tracker.values=values/values.json" in page
    assert "study:" not in page.partition("## To do it again")[2]

    values.unlink()  # all is finished: nobody needs it any more
    assert reproduce("sample", seeds="1", out=root, at_once=1) == 0
    assert not values.exists()
    (root / "results" / "2-b-seed-0.json").unlink()
    shutil.rmtree(root / "runs" / "2-b")
    moved = root.rename(tmp_path / "moved")
    assert reproduce("sample", seeds="1", out=moved, at_once=1) == 0
    assert (moved / "values" / "values.json").read_bytes() == first
    assert set(read_outline(moved).runs) == {("a", 0), ("b", 0)}
