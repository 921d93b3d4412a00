"""What a report promises: numbers worked by hand, a verdict in words, and nothing that comes from elsewhere."""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from anabranch.errors import RunFolderError
from anabranch.study.analysis import analyse
from anabranch.study.outline import ArmOutline, Outline, read_outline, write_export
from anabranch.study.report import html, markdown, missing_sentence, write_report
from anabranch.study.results import Evaluated, RunResult

SEEDS = (0, 1, 2, 3, 4)
SVG = "{http://www.w3.org/2000/svg}"
FACTS = {
    "version": "0",
    "git_commit": None,
    "cpu": "a <cpu>",
    "cores": 2,
    "started": "now",
    "command": "anabranch ablate x",
}


def result(arm, seed, scores, *, before=(0.0, 0.0), accuracy=(0.0, 0.5, 1.0), way=()):
    evaluations = [Evaluated(0, before, 2), *(Evaluated(step, values, 2) for step, values in way)]
    evaluations.append(Evaluated(3, tuple(scores), 2))
    return RunResult(
        arm=arm,
        seed=seed,
        curves={"accuracy": accuracy, "reward": tuple(2 * value for value in accuracy)},
        evaluations=tuple(evaluations),
        cost={"answers": 48, "tokens": 100 + seed, "trained_tokens": 90, "seconds": 60.0},
        environment={"version": "0", "commit": None},
    )


def study(scores_by_arm, *, shared=True, seeds=SEEDS, held_out=None, **options):
    """An outline with runs: for each arm and seed the final scores of two problems."""
    digests = tuple("same" if shared else f"of seed {seed}" for seed in seeds)
    arms = tuple(
        ArmOutline(name, (f"algorithm.{name}",), (f"algorithm.{name}",), (held_out or {}).get(name, digests))
        for name in scores_by_arm
    )
    runs = {
        (name, seed): result(name, seed, scores, **options)
        for name, several in scores_by_arm.items()
        for seed, scores in zip(seeds, several, strict=True)
        if scores is not None
    }
    compute = {"dtype": "float32", "device": "cpu", "threads": 1}
    return Outline("quickstart", ("steps=3",), arms, tuple(seeds), compute, FACTS, runs)


LUCK = [0.0, 0.125, 0.25, 0.125, 0.0]
"""How lucky each seed is, in every arm."""
BASE = [(0.125 + luck, 0.375 + luck) for luck in LUCK]


def raised_by(gains):
    return [(a + gain, b + gain) for (a, b), gain in zip(BASE, gains, strict=True)]


def test_accuracy_difference_and_cost_by_hand():
    found = analyse(study({"a": BASE, "b": raised_by([0.125] * 5)}, shared=False))
    a, b = found["arms"]
    # mean of the luck 0.1, of the two problems 0.25
    assert a["accuracy"]["value"] == pytest.approx(0.35)
    assert b["accuracy"]["value"] == pytest.approx(0.475)
    assert a["by_seed"] == pytest.approx([0.25, 0.375, 0.5, 0.375, 0.25])
    assert a["accuracy"]["low"] < 0.35 < a["accuracy"]["high"]
    assert (a["before"], a["cost"]["tokens"], a["problems"], a["samples"]) == (0.0, 102.0, 2, 2)
    (difference,) = found["comparisons"]
    # luck and hardness cancel: every seed differs by exactly 0.125
    assert difference["difference"] == pytest.approx({"value": 0.125, "low": 0.125, "high": 0.125})
    assert difference["by_seed"] == pytest.approx([0.125] * 5)
    assert (difference["verdict"], difference["paired_by_problem"]) == ("better", True)


def test_the_interval_over_seeds_by_hand():
    # differences 0, 0.25, 0, 0.25, 0.125: mean 0.125, standard deviation 0.125, standard error 0.125 / sqrt(5) =
    # 0.0559; t_4 = 2.776 of it is 0.155, so that 0 is inside; a percentile interval is close to it
    found = analyse(study({"a": BASE, "b": raised_by([0, 0.25, 0, 0.25, 0.125])}, shared=False))
    (difference,) = found["comparisons"]
    ends = difference["difference"]
    assert ends["value"] == pytest.approx(0.125)
    assert (ends["value"] - ends["low"], ends["high"] - ends["value"]) == pytest.approx((0.155, 0.155), rel=0.12)
    assert difference["verdict"] == "no difference shown"
    assert "no difference to a shown: +12.5 points [" in difference["sentence"]


def test_verdicts_hold_for_all_comparisons_together():
    gains = [0.0625, 0.1875, 0.125, 0.25, 0.0]
    alone = analyse(study({"a": BASE, "b": raised_by(gains)}, shared=False))["comparisons"][0]
    assert (alone["verdict"], alone["p_holm"]) == ("better", alone["p"])
    assert 0.01 < alone["p"] < 0.05
    several = {"a": BASE, "b": raised_by(gains)}
    several |= {name: raised_by([0.125, -0.125, 0.0625, -0.0625, 0.0]) for name in "cdefg"}
    among = analyse(study(several, shared=False))["comparisons"]
    assert among[0]["p"] == alone["p"]
    assert among[0]["p_holm"] == pytest.approx(min(1, 6 * alone["p"]))
    assert among[0]["verdict"] == "no difference shown"


def test_worse_is_said_as_well():
    found = analyse(study({"a": BASE, "b": raised_by([-0.125, -0.0625, -0.125, -0.0625, -0.125])}, shared=False))
    assert found["comparisons"][0]["verdict"] == "worse"
    assert found["comparisons"][0]["sentence"].startswith("b is worse than a: -10.0 points [")


@pytest.mark.parametrize(("seeds", "says"), [((0,), "one seed cannot tell"), ((0, 1), "2 seeds cannot tell")])
def test_few_seeds_give_no_verdict(seeds, says):
    count = len(seeds)
    found = analyse(study({"a": BASE[:count], "b": [(1.0, 0.5)] * count}, seeds=seeds))
    assert found["comparisons"][0]["verdict"] == "no verdict"
    assert says in found["comparisons"][0]["sentence"]


def test_a_change_without_any_effect_is_said_to_have_none():
    found = analyse(study({"a": BASE, "b": BASE}))
    assert found["comparisons"][0]["verdict"] == "no effect"
    assert "the very same numbers as a in every run" in found["comparisons"][0]["sentence"]


def test_problems_that_differ_between_arms_are_not_paired():
    other = {"b": tuple(f"other {seed}" for seed in SEEDS)}
    found = analyse(study({"a": BASE, "b": raised_by([0.125] * 5)}, held_out=other))
    assert found["comparisons"][0]["paired_by_problem"] is False
    assert found["comparisons"][0]["difference"]["value"] == pytest.approx(0.125)
    assert any("by seed only: the arms have different held-out problems." in text for text in found["statistics"])


def test_shared_problems_widen_the_interval_by_their_own_scatter():
    uneven = [(a + 0.25, b) for a, b in BASE]
    own = analyse(study({"a": BASE, "b": uneven}, shared=False))["comparisons"][0]["difference"]
    shared = analyse(study({"a": BASE, "b": uneven}, shared=True))["comparisons"][0]["difference"]
    assert own["value"] == shared["value"] == pytest.approx(0.125)
    assert own["high"] - own["low"] < 1e-9 < 0.2 < shared["high"] - shared["low"]


def test_missing_runs_are_named_and_the_rest_is_compared():
    scores = {"a": BASE, "b": [None, *raised_by([0.125] * 5)[1:]], "c": [None] * 5}
    found = analyse(study(scores))
    assert missing_sentence(found).startswith("6 runs are missing: b seed 0, c seed 0, c seed 1")
    b, c = found["comparisons"]
    assert (b["seeds"], b["difference"]["value"]) == ([1, 2, 3, 4], pytest.approx(0.125))
    assert c["verdict"] == "missing"
    for text in (markdown(found), html(found)):
        assert "6 runs are missing" in text
    assert missing_sentence(analyse(study({"a": BASE, "b": BASE}))) is None


def test_learning_speed_is_the_mean_height_of_the_curve():
    plain = analyse(study({"a": BASE, "b": BASE}))
    assert plain["speed_of"] == "training accuracy"
    assert plain["arms"][0]["speed"]["value"] == pytest.approx(0.5)  # (0 + 0.5 + 1) / 3
    way = analyse(study({"a": [(0.5, 0.5)] * 5, "b": BASE}, way=[(1, (0.5, 1.0))]))
    assert way["speed_of"] == "held-out accuracy"
    # steps 0, 1, 3 at 0, 0.75, 0.5: (1 * 0.375 + 2 * 0.625) / 3
    assert way["arms"][0]["speed"]["value"] == pytest.approx(1.625 / 3)


def test_curves_are_means_over_seeds_with_t_intervals():
    outline = study({"a": BASE, "b": BASE})
    runs = dict(outline.runs)
    for seed in SEEDS:  # values 0, 0.1, ..., 0.4 at each step: mean 0.2, standard deviation 0.158114
        runs["a", seed] = replace(runs["a", seed], curves={"accuracy": (seed / 10, None), "reward": (seed / 10, 1.0)})
    found = analyse(replace(outline, runs=runs))["curves"]
    line = found["accuracy"]["a"]
    half = 2.77645 * 0.158114 / 5**0.5
    assert line["steps"] == [1]
    assert line["mean"] == [0.2]
    assert (*line["low"], *line["high"]) == pytest.approx((0.2 - half, 0.2 + half), abs=1e-5)
    assert found["reward"]["a"]["steps"] == [1, 2]
    assert found["held_out"]["b"]["steps"] == [0, 3]


def test_the_page_is_whole_and_loads_nothing(tmp_path):
    arms = {"a <script>alert(1)</script> & co": BASE, "b": raised_by([0.125, 0.0, 0.25, 0.125, 0.25])}
    found = write_report(study(arms), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(found))
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page)
    assert "color-scheme: light dark" in page
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) == 5  # two of intervals; held-out accuracy, training accuracy, reward
    for text in pictures:
        root = ET.fromstring(text)
        assert root.find(f"{SVG}title") is not None
        numbers = re.findall(r"-?\d+\.\d+", " ".join(p.get("points", "") for p in root.iter(f"{SVG}polyline")))
        assert all(0 <= float(number) <= 720 for number in numbers)
    assert "anabranch ablate x" in page
    assert "anabranch train quickstart 'algorithm.a &lt;script" in page or "algorithm.a" in page


def test_markdown_escapes_what_would_be_markup():
    text = markdown(analyse(study({"a*b|c": BASE, "b": BASE})))
    assert r"a\*b\|c" in text
    assert "```sh\nanabranch ablate x\n```" in text
    widths = {line.replace(r"\|", "").count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {8, 9, 7}  # all rows of a table have as many cells


def test_a_study_of_seven_arms_has_seven_looks():
    page = html(analyse(study({f"arm {number}": BASE for number in range(7)})))
    assert page.count('stroke-dasharray="7 4"') > 0


def folder_of(outline, root):
    """A study's folder with its results, as a study leaves it."""
    manifest = {
        "format": 1,
        "base": outline.base,
        "overrides": list(outline.overrides),
        "seeds": list(outline.seeds),
        "arms": [
            {"name": arm.name, "changes": list(arm.changes), "overrides": list(arm.overrides), "recipe": {}}
            for arm in outline.arms
        ],
        "compute": dict(outline.compute),
        "held_out": [list(arm.held_out) for arm in outline.arms],
        "facts": dict(outline.facts),
    }
    (root / "results").mkdir(parents=True)
    (root / "study.json").write_text(json.dumps(manifest))
    for number, run in enumerate(outline.runs.values()):
        (root / "results" / f"{number}.json").write_text(json.dumps(run.to_json()))
    (root / "results" / "cold-start-1-seed-0.json").write_text('{"cold_start": "runs/cold-start-1/seed-0"}')


def test_one_file_keeps_all_that_the_report_needs(tmp_path):
    outline = study({"a": BASE, "b": raised_by([0.125, 0.0, 0.25, 0.125, 0.25])})
    folder_of(outline, tmp_path / "study")
    assert read_outline(tmp_path / "study") == outline
    export = write_export(tmp_path / "study")
    moved = tmp_path / "elsewhere.json"
    moved.write_bytes(export.read_bytes())
    assert read_outline(moved) == outline
    assert write_report(read_outline(moved), tmp_path / "one") == write_report(outline, tmp_path / "other")
    for name in ("report.md", "report.html", "report.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert export.stat().st_size < 1000 * (len(outline.runs) + 3)


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"study": {"format": 1}, "runs": []}'])
def test_a_file_that_holds_no_study_is_one_clear_error(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"results\.json"):
        read_outline(tmp_path / "results.json")


def test_a_folder_that_holds_no_study_is_one_clear_error(tmp_path):
    with pytest.raises(RunFolderError, match=r"study\.json"):
        read_outline(tmp_path)
    with pytest.raises(RunFolderError, match="no-such"):
        read_outline(tmp_path / "no-such")
