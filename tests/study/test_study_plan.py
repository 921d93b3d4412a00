"""What a plan promises: cold starts are shared only where they are the same, and everything is checked first."""

from dataclasses import replace

import pytest

from anabranch.errors import DataError, RecipeError, RunFolderError
from anabranch.presets import load
from anabranch.study.folder import Manifest, StudyPaths, check_same, facts, read_manifest, write_json
from anabranch.study.plan import RL_ONLY, RL_PARTS, Study, check_arms, held_out_digests, jobs, located


def manifest_of(asked, **changes):
    study = asked.study()
    compute = study.arms[0].recipe.model
    digests = tuple(tuple(row) for row in held_out_digests(study))
    return Manifest(study, compute, digests, facts(asked.command()))


def test_arms_that_differ_in_rl_only_share_a_cold_start(asked_for):
    study = asked_for("algorithm.scale=none,group_std", "rollout.per_problem=2,4", "optim.lr=1e-3,2e-3").study()
    assert study.shared_cold_starts() == dict.fromkeys(range(8), 0)


@pytest.mark.parametrize(
    "axis",
    [
        "cold_start.steps=2,3",
        "rollout.max_new_tokens=6,7",
        "rollout.temperature=1.0,0.9",
        "train.row_tokens=512,1024",
        "optim.weight_decay=0.0,0.1",
        "evaluation.samples=2,3",
        "data.limit=20,30",
    ],
)
def test_arms_that_differ_before_rl_have_cold_starts_of_their_own(asked_for, axis):
    study = asked_for(axis).study()
    assert study.cold_starts() == {0: 0, 1: 1}
    assert study.shared_cold_starts() == {}


def test_some_arms_may_share_while_others_do_not(asked_for):
    study = asked_for(
        "cold_start.steps=2,3", "algorithm.scale=none,group_std", bundles=("none:cold_start=null",)
    ).study()
    assert study.shared_cold_starts() == {0: 0, 1: 0, 2: 2, 3: 2}  # arm 4 has none
    assert [job.title for job in jobs(study)][:3] == [
        "cold start, seed 0",
        "cold start, seed 0",
        "cold_start.steps=2, scale=none, seed 0",
    ]


def test_offline_values_of_the_study_are_found_wherever_its_folder_is(tmp_path):
    recipe = load("spo")
    own = recipe.but(algorithm=recipe.algorithm.but(tracker=recipe.algorithm.tracker.but(values="study:v/a.json")))
    found = located(own, tmp_path)
    assert found.algorithm.tracker.values == str(tmp_path / "v" / "a.json")
    assert found.but(algorithm=own.algorithm) == own
    other = recipe.but(algorithm=recipe.algorithm.but(tracker=recipe.algorithm.tracker.but(values="v/a.json")))
    assert (located(other, tmp_path), located(recipe, tmp_path)) == (other, recipe)


def test_every_key_that_only_rl_reads_exists():
    dump = load("quickstart").model_dump()
    assert set(RL_PARTS) <= set(dump)
    assert all(set(keys) <= set(dump[part]) for part, keys in RL_ONLY.items())


def test_jobs_come_seed_by_seed_with_the_cold_start_first(asked_for):
    study = asked_for("algorithm.scale=none,group_std", seeds="4,9").study()
    assert [(job.arm, job.seed, job.cold, job.after) for job in jobs(study)] == [
        (0, 4, True, None),
        (0, 4, False, 0),
        (1, 4, False, 0),
        (0, 9, True, None),
        (0, 9, False, 0),
        (1, 9, False, 0),
    ]


def test_every_run_has_a_folder_a_log_and_a_result_of_its_own(asked_for, tmp_path):
    study, paths = asked_for("algorithm.scale=none,group_std").study(), StudyPaths(tmp_path)
    for place in (paths.run, paths.log, paths.result):
        assert len({place(study, job) for job in jobs(study)}) == 6


def test_held_out_problems_are_told_apart(asked_for, sums):
    fixed = held_out_digests(asked_for("algorithm.scale=none,group_std").study())
    assert fixed[0] == fixed[1] and len(set(fixed[0])) == 1  # a file: one set for all seeds
    other = held_out_digests(asked_for("evaluation.problems=3,4").study())
    assert other[0][0] != other[1][0]


def test_problems_made_by_seed_differ_by_seed_and_agree_between_arms(asked_for):
    pytest.importorskip("reasoning_gym")
    made = ("data={kind: reasoning_gym, name: chain_sum, size: 20}", "evaluation={problems: 4, samples: 2}")
    digests = held_out_digests(asked_for("algorithm.scale=none,group_std", overrides=made).study())
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[0][1]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("evaluation=null",), "evaluation in arm 'scale=none': found None"),
        (("steps=0",), "steps in arm 'scale=none': found 0"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(asked_for, overrides, says):
    with pytest.raises(RecipeError, match=says):
        asked_for("algorithm.scale=none,group_std", overrides=overrides).study()


def test_a_seed_that_no_run_can_have_is_refused(asked_for):
    with pytest.raises(RecipeError, match="seed"):
        asked_for("algorithm.scale=none,group_std", seeds="1,5000000000").study()


def test_a_missing_file_is_found_before_anything_runs(asked_for):
    study = asked_for("algorithm.scale=none,group_std", overrides=("data.path=missing.jsonl",)).study()
    with pytest.raises(DataError, match=r"in arm 'scale=none':\nmissing\.jsonl"):
        held_out_digests(study)


def test_one_seed_and_different_problems_leave_nothing_to_compare(asked_for):
    with pytest.raises(RecipeError, match="--seeds: found one seed"):
        held_out_digests(asked_for("evaluation.problems=3,4", seeds="1").study())


def test_a_manifest_is_read_back_as_it_was(asked_for, tmp_path):
    manifest = manifest_of(asked_for("recipe=lite_ppo,gspo", "optim.lr=1e-3,2e-3"))
    write_json(StudyPaths(tmp_path).manifest, manifest.to_json())
    assert read_manifest(tmp_path) == manifest
    assert manifest.facts["command"].startswith("anabranch ablate quickstart ")
    assert "--vary recipe=lite_ppo,gspo --vary optim.lr=1e-3,2e-3 --seeds 2" in manifest.facts["command"]


@pytest.mark.parametrize(
    ("varied", "seeds", "says"),
    [
        ("algorithm.scale=none,group_std", "3", "a study with seeds 0, 1, not 0, 1, 2"),
        (
            "algorithm.scale=none,batch_std_raw",
            "2",
            "the arms scale=none, scale=group_std, not scale=none, scale=batch",
        ),
    ],
)
def test_another_grid_in_the_same_folder_is_refused(asked_for, tmp_path, varied, seeds, says):
    there = asked_for("algorithm.scale=none,group_std").study()
    with pytest.raises(RunFolderError, match=says):
        check_same(there, asked_for(varied, seeds=seeds).study(), tmp_path)


def test_another_recipe_in_the_same_folder_is_refused_by_the_arm_it_is_in(asked_for, tmp_path):
    there = asked_for("algorithm.scale=none,group_std").study()
    other = asked_for("algorithm.scale=none,group_std", overrides=("steps=3",)).study()
    with pytest.raises(RunFolderError, match="arm 'scale=none' has another recipe"):
        check_same(there, other, tmp_path)
    check_same(there, replace(there), tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 99}', '{"format": 1}'])
def test_a_damaged_manifest_is_one_clear_error(tmp_path, text):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"study\.json"):
        read_manifest(tmp_path)


def test_a_study_is_plain_data(asked_for):
    study = asked_for("algorithm.scale=none,group_std").study()
    assert Study.from_json(study.to_json()) == study
    check_arms(study)
