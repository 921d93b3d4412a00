"""What every reproduction promises before it is run: claims about arms that exist, valid arms, a quick part."""

import pytest

from anabranch.recipe.show import difference
from anabranch.reproductions.catalog import REPRODUCTIONS
from anabranch.reproductions.claims import Expect
from anabranch.reproductions.command import study_of
from anabranch.reproductions.judging import FEWEST_SEEDS
from anabranch.reproductions.measures import MEASURES
from anabranch.reproductions.offline import FILE
from anabranch.reproductions.pictures import TITLES


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_every_claim_names_arms_and_a_measure_and_has_a_margin_where_one_is_read(name):
    reproduction = REPRODUCTIONS[name]
    ids = [claim.id for claim in reproduction.claims]
    assert len(set(ids)) == len(ids)
    for finding in reproduction.findings:
        assert finding.claims
        assert set(finding.arms) <= set(reproduction.arms)
        assert len({(c.arm, c.reference, c.measure, c.expect) for c in finding.claims}) == len(finding.claims)
        for claim in finding.claims:
            assert claim.id.startswith(f"{finding.id}.")
            assert claim.measure in MEASURES
            assert claim.arm != claim.reference
            assert (claim.margin > 0) == (claim.expect in (Expect.EQUAL, Expect.AT_LEAST, Expect.AT_MOST))


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_every_arm_is_a_valid_recipe_of_its_own_that_some_finding_needs(name):
    reproduction = REPRODUCTIONS[name]
    study = study_of(
        reproduction, quick=False, seeds=None
    )  # refuses arms that are equal or differ in nothing that acts
    assert [arm.name for arm in study.arms] == list(reproduction.arms)
    assert {key for finding in reproduction.findings for key in finding.arms} == set(reproduction.arms)
    assert len({arm.slug for arm in study.arms}) == len(study.arms)
    assert len(study.seeds) >= 5
    assert len({(r.model.dtype, r.model.device, r.model.threads) for r in (a.recipe for a in study.arms)}) == 1


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_quick_is_a_part_with_fewer_steps_and_seeds_enough_for_verdicts(name):
    reproduction = REPRODUCTIONS[name]
    quick, study = study_of(reproduction, quick=True, seeds=None), study_of(reproduction, quick=False, seeds=None)
    by_key = {arm.name: arm.recipe for arm in study.arms}
    assert FEWEST_SEEDS <= len(quick.seeds) < len(study.seeds)
    for arm in quick.arms:
        changed = {path.split(".")[0] for path, _, _ in difference(arm.recipe, by_key[arm.name])}
        assert changed <= {"name", "steps", "evaluation"}
        assert arm.recipe.steps < by_key[arm.name].steps
    keys = {arm.name for arm in quick.arms}
    for finding in reproduction.findings:
        assert any({claim.arm, claim.reference} <= keys for claim in finding.claims), finding.id


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_every_picture_has_a_title(name):
    assert {picture.metric for finding in REPRODUCTIONS[name].findings for picture in finding.curves} <= set(TITLES)


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_offline_values_are_made_where_arms_read_them_and_are_of_one_model_asked_one_thing(name):
    reproduction = REPRODUCTIONS[name]
    recipes = [arm.recipe for arm in study_of(reproduction, quick=False, seeds=None).arms]
    readers = [recipe for recipe in recipes if recipe.algorithm.tracker.values is not None]
    assert {recipe.algorithm.tracker.values for recipe in readers} <= {FILE}
    assert bool(readers) == (reproduction.value_samples is not None)
    assert len({(r.model, repr(r.data), r.prompt, r.answer) for r in readers}) <= 1
