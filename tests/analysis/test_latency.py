"""What waiting for groups costs: the paper's arithmetic by hand, our distributions, inequalities that always hold."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from typer.testing import CliRunner

from anabranch.analysis import latency
from anabranch.analysis.group_latency import PAPER, READING, table
from anabranch.analysis.latency import (
    DISTRIBUTIONS,
    GROUPS_OF_THE_PAPER,
    Lognormal,
    Setting,
    Stragglers,
    group_based,
    group_free,
    paper_illustration,
    simulate,
    smallest,
    started,
)
from anabranch.cli.main import app
from anabranch.errors import ShapeError


def run(*arguments):
    return CliRunner().invoke(app, ["simulate", "group-latency", *map(str, arguments)])


def test_S13_throughput_arithmetic():
    """Group maxima (553, 519, 495, 486, 130, 133): the third is 486 s; against 112 s that is 4.3393 times."""
    assert smallest(np.array([[553.0, 519, 495, 486, 130, 133]]), 3).tolist() == [486.0]
    assert sorted(GROUPS_OF_THE_PAPER) == [130, 133, 486, 495, 519, 553]
    based, free = paper_illustration()
    assert (based, free) == (486.0, 112.0)
    assert round(based / free, 4) == 4.3393


def test_S13_throughput_of_the_mixtures():
    quarter, none = simulate(Setting(trials=40_000), (Stragglers(0.25), Stragglers(0.0)))
    assert quarter.group_based == pytest.approx(484, abs=5)
    assert quarter.group_free == pytest.approx(108, abs=1)
    assert quarter.median == pytest.approx(4.5, abs=0.1)
    assert none.mean == pytest.approx(1.26, abs=0.01)


def test_the_table_of_the_specification_comes_out():
    """ "spo" section 11, 200,000 trials there: mean seconds, mean and median speed-up, P(> 4)."""
    expected = {
        0.05: (163.5, 100.8, 1.62, 1.31, 0.08),
        0.10: (287.5, 102.3, 2.80, 1.55, 0.41),
        0.128: (355.1, 103.2, 3.43, 4.21, 0.59),
        0.15: (396.6, 103.9, 3.81, 4.35, 0.71),
        0.20: (456.2, 105.9, 4.31, 4.49, 0.88),
        0.30: (497.6, 111.3, 4.49, 4.50, 0.95),
        0.375: (509.2, 124.3, 4.30, 4.38, 0.87),
    }
    for found in simulate(Setting(trials=40_000), [Stragglers(share) for share in expected]):
        based, free, mean, median, large = expected[found.latency.share]
        assert found.group_based == pytest.approx(based, abs=3)
        assert found.group_free == pytest.approx(free, abs=0.3)
        assert found.mean == pytest.approx(mean, abs=0.03)
        assert found.median == pytest.approx(median, abs=0.06)
        assert found.large == pytest.approx(large, abs=0.01)
    tails = {0.25: 1.39, 0.5: 1.94, 0.75: 2.72, 1.0: 3.84}
    for found in simulate(Setting(trials=40_000), [Lognormal(sigma) for sigma in tails]):
        assert found.mean == pytest.approx(tails[found.latency.sigma], abs=0.03)


def test_groups_wait_for_their_slowest_and_a_batch_for_its_groups_by_hand():
    """Groups (1, 9), (3, 4), (2, 8) are complete at 9, 4, 8. Two of them: 8. The first four answers: 1, 2, 3, 4."""
    seconds_TKG = np.array([[[1.0, 9], [3, 4], [2, 8]], [[5.0, 5], [5, 5], [5, 5]]])
    assert group_based(seconds_TKG, 2).tolist() == [8.0, 5.0]
    assert group_free(seconds_TKG.reshape(2, 6), 4).tolist() == [4.0, 5.0]


finite = st.floats(0.001, 1000)


@st.composite
def draws(draw):
    """Times [T, K, G] and how many groups are picked."""
    trials, groups, size = (draw(st.integers(1, most)) for most in (3, 5, 5))
    seconds = draw(arrays(np.float64, (trials, groups, size), elements=finite))
    return seconds, draw(st.integers(1, groups))


@given(draws())
@settings(deadline=None, max_examples=80)
def test_without_groups_a_batch_is_never_later_for_the_same_times(drawn):
    seconds_TKG, picked = drawn
    trials, groups, size = seconds_TKG.shape
    with_groups, without = group_based(seconds_TKG, picked), group_free(seconds_TKG.reshape(trials, -1), picked * size)
    assert (without <= with_groups).all()
    if size == 1 or picked == groups:  # groups of one are no groups; and where all is needed, all is waited for
        assert (without == with_groups).all()


@given(draws(), st.floats(0.5, 2))
@settings(deadline=None, max_examples=40)
def test_more_groups_are_never_complete_sooner_and_units_do_not_matter(drawn, unit):
    seconds_TKG, picked = drawn
    assert (group_based(seconds_TKG, 1) <= group_based(seconds_TKG, picked)).all()
    assert group_based(unit * seconds_TKG, picked) == pytest.approx(unit * group_based(seconds_TKG, picked))


def test_where_everyone_is_equal_nothing_is_gained():
    (found,) = simulate(Setting(trials=10), [Stragglers(0.3, usual=(100.0, 0.0), slow=(100.0, 0.0))])
    assert (found.group_based, found.group_free, found.mean, found.low, found.high) == (100, 100, 1, 1, 1)


@pytest.mark.parametrize("setting", [Setting(12, 20, 1, trials=100), Setting(24, 3, 8, trials=100)])
def test_groups_of_one_and_a_batch_of_all_gain_nothing(setting):
    for found in simulate(setting):
        assert (found.mean, found.low, found.high) == (1, 1, 1)


def test_the_least_time_holds():
    seconds = Stragglers(0.0, usual=(0.0, 50.0)).seconds(np.full(100, 0.5), np.linspace(-3, 3, 100))
    assert seconds.min() == 1.0
    assert seconds.max() == 150.0


def test_the_same_seed_gives_the_same_numbers_however_many_are_drawn_at_a_time(monkeypatch):
    setting = Setting(trials=1000)
    first = simulate(setting)
    monkeypatch.setattr(latency, "CHUNK", 48 * 7)
    assert simulate(setting) == first
    assert simulate(replace(setting, seed=1)) != first


def test_what_is_started_follows_from_oversampling_or_is_said():
    assert [started(24, 8, factor, None) for factor in (None, 1, 1.5, 1.1, 2)] == [6, 3, 5, 4, 6]  # 4.5 and 3.3 up
    assert started(24, 8, None, 11) == 11
    assert started(30, 10, 1.1, None) == 4
    assert started(100, 10, 1.1, None) == 11  # 10 * 1.1 is a little more than 11


def test_arrays_of_another_shape_are_refused():
    with pytest.raises(ShapeError, match="three axes"):
        group_based(np.ones((2, 3)), 1)
    with pytest.raises(ShapeError, match="two axes"):
        group_free(np.ones(3), 1)
    for count in (0, 4):
        with pytest.raises(ValueError, match="a row has 3 values"):
            group_free(np.ones((1, 3)), count)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--batch", 20], "--batch: found 20, but it is made of whole groups of 8\n  fix: --batch 24"),
        (["--batch", 0], "--batch: found 0"),
        (["--group-size", 0], "--group-size: found 0"),
        (["--groups", 2], "--groups: found 2, but 3 groups of 8 fill a batch of 24\n  fix: --groups 3"),
        (["--groups", 6, "--oversample", 2], "--oversample: found 2.0, but --groups says already"),
        (["--oversample", 0.5], "--oversample: found 0.5, but at least one batch is started\n  fix: --oversample 2"),
        (["--oversample", "nan"], "--oversample: found nan"),
        (["--oversample", "inf"], "--oversample: found inf"),
        (["--trials", 0], "--trials: found 0"),
        (["--trials", 10**9], "--trials: found 1,000,000,000, but their outcomes are kept"),
        (["--groups", 10**9], "--groups: found 8,000,000,000 answers in all"),
        (["--seed", -1], "--seed: found -1"),
        (["--out", "nowhere/a.svg"], "nowhere/a.svg: found no folder to write it into"),
        (["--json", "."], ".: found a folder"),
    ],
)
def test_bad_input_gives_one_message_with_its_fix(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == 2
    assert says in done.stderr
    assert "\n  fix: " in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_table_a_picture_and_numbers_and_says_what_they_depend_on(tmp_path):
    svg, numbers = tmp_path / "a.svg", tmp_path / "a.json"
    done = run("--trials", 200, "--out", svg, "--json", numbers)
    assert done.exit_code == 0
    flat = " ".join(done.stdout.split())
    assert f"{PAPER} 486 112 4.3393" in flat
    assert " ".join(READING.split()) in flat
    assert ET.parse(svg).getroot().tag.endswith("svg")
    assert "25" in svg.read_text() and "stragglers" in svg.read_text()
    stored = json.loads(numbers.read_text())
    assert stored["setting"] == {"batch": 24, "groups": 6, "group_size": 8, "trials": 200, "seed": 0}
    assert [row["distribution"] for row in stored["outcomes"]] == [each.label for each in DISTRIBUTIONS]
    assert stored["outcomes"][0]["latency"]["share"] == 0.0
    assert len(table(Setting(), simulate(Setting(trials=10))).rows) == 1 + len(DISTRIBUTIONS)


def test_no_torch_is_needed():
    code = (
        "import sys; from anabranch.cli.main import app\n"
        "app(['simulate', 'group-latency', '--trials', '10'], standalone_mode=False)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
