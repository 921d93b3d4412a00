"""What a verdict promises: the side on which an interval lies, worked by hand, and nothing told where nothing is."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from anabranch.errors import RecipeError
from anabranch.reproductions.claims import Claim, Expect
from anabranch.reproductions.judging import Verdict, judge, overall, p_value, verdict_on
from anabranch.reproductions.measures import MEASURES
from anabranch.study.results import Evaluated
from anabranch.study.statistics import holm, spread

sys.path.insert(0, str(Path(__file__).parent))
from hand_made import outline_of, run_of

sys.path.remove(str(Path(__file__).parent))

AGREES, DISAGREES, NOT_SHOWN = Verdict.AGREES, Verdict.DISAGREES, Verdict.NOT_SHOWN
NO_VERDICT, NOT_RUN, PARTLY = Verdict.NO_VERDICT, Verdict.NOT_RUN, Verdict.PARTLY

LUCK = (0.0, 0.125, 0.25, 0.125, 0.0)
A = [(0.125 + luck, 0.375 + luck) for luck in LUCK]


def raised(gains):
    return [(x + gain, y + gain) for (x, y), gain in zip(A, gains, strict=True)]


def claim(expect, margin=0.0):
    return Claim("X1", "x", "b", "a", expect, margin=margin)


@pytest.mark.parametrize(
    ("expect", "margin", "interval", "verdict"),
    [
        (Expect.HIGHER, 0, (0.01, 0.05), AGREES),
        (Expect.HIGHER, 0, (-0.05, -0.01), DISAGREES),
        (Expect.HIGHER, 0, (-0.01, 0.05), NOT_SHOWN),
        (Expect.HIGHER, 0, (0.0, 0.0), NOT_SHOWN),
        (Expect.LOWER, 0, (-0.05, -0.01), AGREES),
        (Expect.LOWER, 0, (0.01, 0.05), DISAGREES),
        (Expect.LOWER, 0, (-0.01, 0.05), NOT_SHOWN),
        (Expect.EQUAL, 0.03, (-0.02, 0.02), AGREES),
        (Expect.EQUAL, 0.03, (0.0, 0.0), AGREES),
        (Expect.EQUAL, 0.03, (0.04, 0.06), DISAGREES),
        (Expect.EQUAL, 0.03, (-0.06, -0.04), DISAGREES),
        (Expect.EQUAL, 0.03, (-0.02, 0.04), NOT_SHOWN),
        (Expect.EQUAL, 0.03, (-0.05, 0.05), NOT_SHOWN),
        (Expect.AT_LEAST, 0.03, (-0.02, 0.5), AGREES),
        (Expect.AT_LEAST, 0.03, (-0.5, -0.04), DISAGREES),
        (Expect.AT_LEAST, 0.03, (-0.5, 0.0), NOT_SHOWN),
        (Expect.AT_MOST, 0.03, (-0.5, 0.02), AGREES),
        (Expect.AT_MOST, 0.03, (0.04, 0.5), DISAGREES),
        (Expect.AT_MOST, 0.03, (0.0, 0.5), NOT_SHOWN),
    ],
)
def test_a_verdict_is_the_side_on_which_the_interval_lies(expect, margin, interval, verdict):
    assert verdict_on(claim(expect, margin), *interval) is verdict


def told(outline, small):
    return {row["id"]: row for found in judge(outline, small.findings) for row in found["claims"]}


def test_a_gain_in_every_seed_agrees_and_luck_that_both_share_does_not_matter(small):
    rows = told(outline_of({"a": A, "b": raised([0.125, 0.0625, 0.125, 0.125, 0.125])}), small)
    row = rows["F1.1"]
    assert row["by_seed"] == pytest.approx([0.125, 0.0625, 0.125, 0.125, 0.125])
    assert row["value"] == pytest.approx(0.1125)  # (4 * 0.125 + 0.0625) / 5
    assert row["means"] == pytest.approx([0.4625, 0.35])  # 0.25 + mean luck 0.1, and that + 0.1125
    assert row["verdict"] is AGREES
    assert rows["F1.2"]["verdict"] is DISAGREES  # all of the interval lies above 3 points
    assert rows["F2.1"]["verdict"] is NOT_RUN


def test_a_loss_disagrees_and_gains_that_scatter_around_0_show_nothing(small):
    assert (
        told(outline_of({"a": A, "b": raised([-0.125, -0.0625, -0.125, -0.125, -0.125])}), small)["F1.1"]["verdict"]
        is DISAGREES
    )
    rows = told(outline_of({"a": A, "b": raised([0.125, -0.125, 0.125, -0.125, 0.03])}), small)
    assert (rows["F1.1"]["verdict"], rows["F1.2"]["verdict"]) == (NOT_SHOWN, NOT_SHOWN)


def test_the_very_same_numbers_are_said_to_be_that(small):
    rows = told(outline_of({"a": A, "b": A}), small)
    assert (rows["F1.1"]["verdict"], rows["F1.2"]["verdict"]) == (NOT_SHOWN, AGREES)
    assert rows["F1.2"]["why"] == "the very same numbers in every run"


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_arms_that_cannot_differ_are_not_called_equal(small, end):
    at_end, nearly = [(end, end)] * 5, [(end, end)] * 4 + [(end, abs(end - 0.0625))]
    row = told(outline_of({"a": at_end, "b": nearly}), small)["F1.2"]
    assert row["verdict"] is NOT_SHOWN
    assert "they could not differ" in row["why"]


def test_two_seeds_give_no_verdict_and_a_missing_one_is_left_out(small):
    two = outline_of({"a": A[:2], "b": raised([0.1] * 5)[:2]}, seeds=(0, 1))
    row = told(two, small)["F1.1"]
    assert (row["verdict"], "p" in row, "value" in row) == (NO_VERDICT, False, True)
    holes = raised([0.125, 0.125, 0.0625, 0.125, 0.125])
    holes[1] = None
    row = told(outline_of({"a": A, "b": holes}), small)["F1.1"]
    assert (row["seeds"], row["verdict"]) == ([0, 2, 3, 4], AGREES)
    none = told(outline_of({"a": A, "b": [None] * 5}), small)["F1.1"]
    assert (none["verdict"], none["why"]) == (NOT_RUN, "no seed is finished in both arms")


def test_a_number_that_no_run_has_shows_nothing(small):
    row = told(outline_of({"a": A, "c": A}), small)["F2.1"]
    assert row["verdict"] is NOT_SHOWN
    assert "no run has this number (mean entropy)" in row["why"]


def test_p_is_where_the_interval_touches_the_border(small):
    found = spread([[x] for x in (0.01, 0.03, 0.02, 0.05, 0.04)], shared=False)
    for each in (claim(Expect.HIGHER), claim(Expect.LOWER), claim(Expect.EQUAL, 0.06), claim(Expect.AT_MOST, 0.01)):
        p = p_value(each, found)
        side = verdict_on(each, *found.interval(1 - 1.01 * p))
        assert side in (AGREES, DISAGREES)
        assert verdict_on(each, *found.interval(1 - 0.98 * p)) is NOT_SHOWN
    assert p_value(claim(Expect.HIGHER), found) == p_value(claim(Expect.LOWER), found) == found.p_value()


def test_p_values_are_adjusted_for_the_claims_of_all_findings(small):
    entropies = [{"entropy": (0.3, 0.2)}] * 5
    less = [{"entropy": (0.3 - gap, 0.2)} for gap in (0.01, 0.03, 0.02, 0.05, 0.04)]
    scores = {"a": A, "b": raised([0.125, 0.0, 0.125, -0.03, 0.125]), "c": A}
    rows = told(outline_of(scores, curves={"a": entropies, "c": less}), small)
    tested = [rows[name] for name in ("F1.1", "F1.2", "F2.1")]
    assert [row["p_holm"] for row in tested] == holm([row["p"] for row in tested])
    assert rows["F2.1"]["value"] == pytest.approx(-0.015)  # half of the mean gap of 0.03
    assert rows["F2.1"]["verdict"] is AGREES
    assert rows["F2.1"]["firm"] == (rows["F2.1"]["p_holm"] < 0.05)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([AGREES, AGREES], AGREES),
        ([AGREES, NOT_SHOWN], PARTLY),
        ([AGREES, DISAGREES], PARTLY),
        ([AGREES, NOT_RUN], PARTLY),
        ([DISAGREES, NOT_SHOWN], DISAGREES),
        ([NOT_SHOWN, NOT_SHOWN], NOT_SHOWN),
        ([NOT_SHOWN, NOT_RUN], NOT_SHOWN),
        ([NO_VERDICT, NOT_RUN], NO_VERDICT),
        ([NOT_RUN], NOT_RUN),
    ],
)
def test_the_verdict_on_a_finding_follows_from_its_claims(verdicts, expected):
    assert overall(verdicts) is expected


def test_claims_that_are_not_the_papers_have_no_part_in_the_verdict(small):
    (first, _) = judge(outline_of({"a": A, "b": raised([0.125, 0.0625, 0.125, 0.125, 0.125])}), small.findings)
    assert (first["verdict"], first["counts"]) == (AGREES, "agrees: 1")  # though F1.2 disagrees


def test_a_finding_of_ours_alone_has_no_verdict_of_the_papers(small):
    ours = replace(small.findings[0], claims=(small.findings[0].claims[1],))
    (found,) = judge(outline_of({"a": A, "b": A}), [ours])
    assert (found["verdict"], found["counts"]) == (Verdict.OURS, "ours: agrees: 1")


def test_measures_by_hand():
    run = run_of(
        "a",
        0,
        (0.5, 1.0),
        curves={
            "accuracy": (0.0, *(1.0,) * 11, 0.0, 0.0),
            "grad_norm": (1.0, 2.0, 8.0),
            "entropy": (4.0, 3.0, 2.0, 1.0),
            "repeat_ratio": (None, 0.5, None, 1.0),
        },
    )
    read = {name: measure.read(run) for name, measure in MEASURES.items()}
    assert read["final"] == 0.75
    assert read["way"] == pytest.approx(11 / 14)  # training accuracy: nothing was evaluated on the way
    assert read["fall"] == pytest.approx(2 / 11)  # means over 11 steps: 10/11, 1, 10/11, 9/11
    assert read["grad_spikes"] == 4.0  # 8 over the median 2
    assert (read["entropy"], read["entropy_late"]) == (2.5, 1.0)
    assert read["repeat_ratio"] == 0.75
    assert read["clipped"] is None
    rising = run_of("a", 0, (1.0,))
    assert MEASURES["fall"].read(rising) == 0.0


def test_measures_of_advantages_by_hand():
    run = run_of(
        "a",
        0,
        (0.0, 0.25, 0.5, 1.0),
        curves={
            "centred_small": (0.0, 0.5, 0.25, 0.75),
            "centred_variance": (0.1, None, 0.2, 0.3),
            "sigma_batch": (0.5, 0.5, 0.5, 0.0),
        },
    )
    read = {name: measure.read(run) for name, measure in MEASURES.items()}
    assert (read["dead"], read["dead_late"]) == (0.375, 0.75)
    assert read["variance"] == pytest.approx(0.2)
    assert read["variance_spread"] == pytest.approx(0.1)  # of 0.1, 0.2, 0.3: sqrt((0.01 + 0.01) / 2)
    assert read["variance_kept"] == pytest.approx((0.1 + 0.2) / 2 / 0.25)  # the last step's rewards do not vary
    assert read["solved"] == 0.5  # with two answers a problem 0.25 is a part of a right one
    assert read["early"] is None  # nothing was evaluated in the first quarter
    early = replace(run, evaluations=tuple(Evaluated(step, (step / 10,), 1) for step in (0, 1, 2, 3, 10)))
    assert MEASURES["early"].read(replace(early, curves={"accuracy": (0.0,) * 10})) == pytest.approx(0.15)
    assert all(MEASURES[name].read(run_of("a", 0, (1.0,))) is None for name in ("dead", "variance", "variance_kept"))


def test_findings_are_chosen_by_name(small):
    assert [finding.id for finding in small.chosen("f2, F1,f2")] == ["F2", "F1"]
    assert small.chosen(None) == small.findings
    for bad in ("F3", "F1,F3", "", ","):
        with pytest.raises(RecipeError, match=r"--only: found .*the findings of 'sample' are F1, F2"):
            small.chosen(bad)
    assert small.findings[0].arms == ("a", "b")
    assert small.findings[1].arms == ("a", "c")
