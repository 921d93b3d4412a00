"""BroRL's simulation of one token: against automatic differentiation and PyTorch's AdamW, and its reference bands."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from anabranch.analysis.mass_balance import (
    Adam,
    AdamW,
    Curve,
    Outcome,
    Setting,
    draw,
    gradient,
    own_numbers,
    simulate,
    softmax,
    start,
)
from anabranch.analysis.mass_balance_command import READING, Asked, parse_draws, table, verdicts
from anabranch.analysis.mass_balance_reference import SIZES, misses, order_misses
from anabranch.cli.main import app
from anabranch.errors import RecipeError
from anabranch.study import picture

TINY = Setting(vocabulary=60, correct=7, draws=5, steps=40)


def run(*arguments):
    return CliRunner().invoke(app, ["simulate", "mass-balance", *map(str, arguments)])


def outcome(mass, improved, worst, worst_of_all=-1.0, draws=4):
    curve = Curve((0, 1), (0.6, mass), (0.0, improved), (0.0, worst))
    return Outcome(Setting(10, 2, draws, 1), curve, worst_of_all)


# ---------------------------------------------------------------------------------------------------- the arithmetic


def test_B6_the_start_of_the_full_size():
    """10,000 at logit 3 but for one at 5, 118,000 at 0: (9,999 e^3 + e^5) / (9,999 e^3 + e^5 + 118,000)."""
    for dtype, within in ((np.float64, 1e-9), (np.float32, 1e-6)):
        prob_V = softmax(start(128_000, 10_000).astype(dtype))
        assert prob_V[:10_000].sum(dtype=np.float64) == pytest.approx(0.630075, abs=max(within, 5e-7))
        assert prob_V[1] == pytest.approx(6.29673e-5, rel=1e-5)
        assert prob_V[0] == pytest.approx(4.65269e-4, rel=1e-5)
        assert prob_V[-1] == pytest.approx(3.13496e-6, rel=1e-5)
    beside = np.append(start(128_000, 10_000)[:-1], 3.0).astype(np.float64)  # the anchor is not one of the correct ones
    assert np.delete(softmax(beside), 0)[beside[1:] == 3].sum() == pytest.approx(0.629635, abs=5e-7)
    assert softmax(np.zeros(128_000))[:10_000].sum() == pytest.approx(0.078125)


def surrogate_gradient(logits_V, drawn_N, reward_N):
    logits = torch.tensor(logits_V, requires_grad=True)
    reward = torch.tensor(reward_N, dtype=logits.dtype)
    (-((reward - reward.mean()) * torch.softmax(logits, 0)[torch.tensor(drawn_N)]).mean()).backward()
    return logits.grad.numpy()


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 30))
@settings(deadline=None, max_examples=40)
def test_B6_the_closed_form_gradient_is_that_of_autograd(seed, vocabulary, draws):
    random = np.random.default_rng(seed)
    logits_V = 2 * random.standard_normal(vocabulary)
    drawn_N, reward_N = random.integers(vocabulary, size=draws), random.standard_normal(draws)
    found_V = gradient(softmax(logits_V), drawn_N, reward_N)
    np.testing.assert_allclose(found_V, surrogate_gradient(logits_V, drawn_N, reward_N), rtol=0, atol=1e-12)


@pytest.mark.parametrize("reward", [1.0, -1.0])
def test_B6_draws_that_agree_teach_nothing_and_only_decay_and_momentum_act(reward):
    prob_V = softmax(np.arange(4.0))
    assert gradient(prob_V, np.array([3, 3, 1]), np.full(3, reward)).tolist() == [0, 0, 0, 0]
    logits_V = np.array([1.0, -2.0], dtype=np.float32)
    optimizer = AdamW(logits_V, Adam(lr=0.1, weight_decay=0.5))
    optimizer.step(np.zeros(2, dtype=np.float32))
    assert logits_V.tolist() == pytest.approx([0.95, -1.9])  # 1 - .1 .5 of it
    optimizer.step(np.array([1e-3, 0.0], dtype=np.float32))
    before = logits_V.copy()
    optimizer.step(np.zeros(2, dtype=np.float32))
    assert logits_V[0] < 0.95 * before[0]  # goes on downwards
    assert logits_V[1] == pytest.approx(0.95 * before[1])


def test_the_optimizer_is_that_of_pytorch():
    random = np.random.default_rng(0)
    logits_V = random.standard_normal(50).astype(np.float32)
    peer = torch.nn.Parameter(torch.tensor(logits_V))
    other = torch.optim.AdamW([peer], lr=1e-3)
    mine = AdamW(logits_V, Adam())
    for scale in (1.0, 1e-3, 1e-6, 1e-8, 1e-9, 1e-10, 0.0, 1e-8):
        gradient_V = (scale * random.standard_normal(50)).astype(np.float32)
        peer.grad = torch.tensor(gradient_V)
        other.step()
        mine.step(gradient_V.copy())
        np.testing.assert_allclose(logits_V, peer.detach().numpy(), rtol=0, atol=3e-7)


def test_a_token_is_drawn_where_the_cumulative_probability_passes_the_number():
    prob_V = np.array([0.25, 0.0, 0.5, 0.25], dtype=np.float32)
    numbers = np.array([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53])
    assert draw(prob_V, numbers).tolist() == [0, 0, 2, 2, 3, 3]
    many = draw(softmax(start(12_800, 1_000)), np.random.default_rng(0).random(200_000))
    assert (many < 1_000).mean() == pytest.approx(0.63141, abs=0.004)


def test_a_whole_run_is_the_same_with_autograd_and_the_optimizer_of_pytorch():
    mine, random = simulate(TINY), own_numbers(TINY)
    logits = torch.nn.Parameter(torch.tensor(start(60, 7)))
    optimizer = torch.optim.AdamW([logits], lr=1e-3)
    first = torch.softmax(logits.detach(), 0)[:7]
    for number in range(1, TINY.steps + 1):
        prob = torch.softmax(logits.detach(), 0)
        drawn = draw(prob.numpy(), np.sort(random.random(TINY.draws)))
        logits.grad = torch.tensor(surrogate_gradient(logits.detach().numpy(), drawn, np.where(drawn < 7, 1.0, -1.0)))
        optimizer.step()
        after = torch.softmax(logits.detach(), 0)[:7]
        assert mine.curve.correct_mass[number] == pytest.approx(after.sum().item(), abs=1e-6)
        assert mine.curve.worst[number] == pytest.approx((after - first).min().item(), abs=1e-6)
    assert mine.curve.improved[-1] == pytest.approx((after > first).double().mean().item())


# -------------------------------------------------------------------------------------------------------- the outcome


@pytest.fixture(scope="module")
def small():
    size = SIZES["ci"]
    return [[simulate(Setting(size.vocabulary, size.correct, draws, size.steps))] for draws in size.bands]


def test_B8_the_small_size_ends_within_its_bands(small):
    """Both where the spec has them: N = 4 below its start .631410 and the others above, worst drop below 0 up to 64."""
    start_mass = small[0][0].curve.correct_mass[0]
    assert start_mass == pytest.approx(0.631410, abs=1e-6)
    for outcomes in small:
        (found,) = outcomes
        assert misses(SIZES["ci"].bands[found.setting.draws], found) == []
        assert (found.correct_mass > start_mass) == (found.setting.draws >= 16)
        assert found.worst_of_all == pytest.approx(min(found.worst_of_all, *found.curve.worst[1:]))
    assert [each.worst < 0 for (each,) in small[:3]] == [True] * 3
    assert small[-1][0].worst > 0
    assert order_misses(SIZES["ci"], small) == []


@pytest.mark.parametrize(("draws", "seed"), [(4, 1), (512, 2)])
def test_B7_the_full_size_ends_within_its_bands(draws, seed):
    """The other N by the command: `anabranch simulate mass-balance --size full`, seconds each."""
    size = SIZES["full"]
    found = simulate(Setting(size.vocabulary, size.correct, draws, size.steps, seed))
    assert misses(size.bands[draws], found) == []
    assert found.worst < 0


def test_a_run_depends_on_its_seed_and_N_only_and_fewer_steps_are_the_beginning_of_more():
    long, other = simulate(TINY), simulate(replace(TINY, seed=1))
    short = simulate(replace(TINY, steps=11))
    assert short.curve.correct_mass == long.curve.correct_mass[:12]
    assert simulate(TINY) == long != other
    assert simulate(replace(TINY, draws=6)).curve != long.curve


def test_long_runs_keep_some_of_their_steps_and_the_last():
    found = simulate(replace(TINY, steps=1001))
    assert found.curve.step[:3] == (0, 6, 12)
    assert found.curve.step[-2:] == (996, 1001)
    assert found.worst_of_all <= min(found.curve.worst[1:])


def test_the_steps_that_are_done_are_told():
    told = []
    simulate(replace(TINY, steps=3), told.append)
    assert told == [1, 2, 3]


# ------------------------------------------------------------------------------------------------------ the reference


def test_what_is_outside_its_band_is_named():
    band = SIZES["full"].bands[4]
    assert misses(band, outcome(0.602, 0.11, -1e-5)) == []
    assert misses(band, outcome(0.61, 0.14, 1e-5, 0.0)) == ["Q_pos", "improved", "worst", "worst of all steps"]
    assert misses(SIZES["ci"].bands[512], outcome(0.6705, 1.0, 0.0)) == []  # of either sign


def test_neighbours_that_are_close_are_compared_in_the_mean_of_several_seeds_or_not_at_all():
    def pair(fewer, more):
        return [
            [outcome(mass, 0.1, -1, draws=4) for mass in fewer],
            [outcome(mass, 0.2, -1, draws=8) for mass in more],
        ]

    size = SIZES["full"]
    assert order_misses(size, pair([0.603], [0.602])) == []
    assert order_misses(size, pair([0.601, 0.603], [0.6025, 0.6035])) == []
    assert order_misses(size, pair([0.602, 0.604], [0.602, 0.603])) == ["mean Q_pos of N = 8 is not above N = 4"]
    swapped = [[outcome(0.64, 0.3, -1, draws=16)], [outcome(0.63, 0.2, -1, draws=512)]]
    told = ["Q_pos of N = 512 is not above N = 16", "share improved of N = 512 is not above N = 16"]
    assert order_misses(size, swapped) == told
    assert verdicts(Asked("full", (16, 512)), swapped) == [f"Not as the reference: {miss}." for miss in told]


def test_another_optimizer_or_other_steps_have_no_reference():
    for asked in (Asked(steps=3, draws=(4,)), Asked(adam=Adam(eps=1e-12), draws=(4,))):
        found = [[simulate(replace(setting, steps=3)) for setting in each] for each in asked.settings()]
        assert {cell for row in table(asked, found).rows for cell in row[2::2]} == {"-"}
        assert verdicts(asked, found) == ["No reference: it is of other steps, or of another optimizer."]


# -------------------------------------------------------------------------------------------------------- the command


def test_the_command_writes_a_table_a_picture_and_numbers(tmp_path):
    svg, numbers = tmp_path / "a.svg", tmp_path / "a.json"
    done = run("--n", "16,4,7", "--seeds", 2, "--out", svg, "--json", numbers)
    assert done.exit_code == 0
    flat = " ".join(done.stdout.split())
    assert "12,800 tokens, 1,000 correct; 300 steps, 2 seeds from 0; Q_pos starts at 0.631410" in flat
    assert "N = 16, seed 1: Q_pos 0.64" in flat
    assert "rise with N, as in the reference." in flat
    assert " ".join(READING.split()) in flat
    drawn = ET.parse(svg).getroot()
    panels = [part for part in drawn if part.tag.endswith("svg")]
    assert [panel[0].text.split(",")[0] for panel in panels] == [
        "Q_pos",
        "Correct tokens above their start",
        "Change of the correct token that did worst",
    ]
    assert all("N = 7" in "".join(panel.itertext()) for panel in panels)
    stored = json.loads(numbers.read_text())
    assert [(each["setting"]["draws"], each["setting"]["seed"]) for each in stored["runs"]] == [
        (4, 0),
        (4, 1),
        (7, 0),
        (7, 1),
        (16, 0),
        (16, 1),
    ]
    assert stored["comparable"] is True and stored["order"] == []
    assert stored["runs"][0]["reference"]["misses"] == [] and stored["runs"][2]["reference"] is None
    assert stored["runs"][0]["final"]["correct_mass"] == stored["runs"][0]["curve"]["correct_mass"][-1]


def test_pictures_are_stacked_without_overlap():
    line = picture.Line("a", [0, 1], [0, 1], [0, 1], [0, 1], 0)
    parts = [picture.curves(name, [line], share=False) for name in "xyz"]
    drawn = ET.fromstring(picture.stacked("all", parts))
    height = float(drawn.get("viewBox").split()[3])
    spans = [(float(p.get("y")), float(p.get("y")) + float(p.get("height"))) for p in drawn if p.tag.endswith("svg")]
    assert spans[0][0] == 0 and spans[-1][1] == height
    assert all(end < begin for (_, end), (begin, _) in pairwise(spans))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--size", "huge"], "--size: found huge, but there are ci, full\n  fix: --size ci"),
        (["--n", "4,many"], "--n: found 4,many, but it is whole numbers with commas between"),
        (["--n", ""], "--n: found nothing"),
        (["--n", "4,0"], "--n: found 0, but it is 1 to 16,777,216\n  fix: --n 1"),
        (["--n", 10**12], "--n: found 1,000,000,000,000"),
        (["--steps", 0], "--steps: found 0"),
        (["--seeds", 0], "--seeds: found 0"),
        (["--seed", -1], "--seed: found -1"),
        (["--eps", 0], "--eps: found 0.0"),
        (["--eps", "nan"], "--eps: found nan"),
        (["--weight-decay", -1], "--weight-decay: found -1.0"),
        (["--weight-decay", "inf"], "--weight-decay: found inf"),
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


def test_draws_are_read_from_text():
    assert parse_draws(None) == ()
    assert parse_draws("4, 512") == (4, 512)
    with pytest.raises(RecipeError):
        parse_draws("4,,5")


def test_no_torch_is_needed():
    code = (
        "import sys; from anabranch.cli.main import app\n"
        "app(['simulate', 'mass-balance', '--n', '4', '--steps', '2'], standalone_mode=False)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
