"""What the picture of a run promises."""

import xml.etree.ElementTree as ET

import pytest

from anabranch.errors import DataError
from anabranch.tracking.curve import COLOURS, curve_svg, ticks

SVG = "{http://www.w3.org/2000/svg}"


def run(values, stage="rl", y="accuracy"):
    return [{"step": step, "stage": stage, y: value} for step, value in enumerate(values, start=1)]


def polylines(svg):
    return [
        [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
        for line in ET.fromstring(svg).iter(f"{SVG}polyline")
    ]


def texts(svg):
    return [text.text for text in ET.fromstring(svg).iter(f"{SVG}text")]


def test_a_share_is_drawn_from_0_to_100_percent_at_the_right_places():
    svg = curve_svg({"a": run([0.0, 0.5, 1.0])}, width=720, height=360)
    # left 64, right 720 - 20 = 700; bottom 360 - 48 = 312, top 44, middle (312 + 44) / 2 = 178
    assert polylines(svg) == [[(64.0, 312.0), (382.0, 178.0), (700.0, 44.0)]]
    assert [text for text in texts(svg) if text.endswith("%")] == ["0%", "20%", "40%", "60%", "80%", "100%"]


def test_every_run_has_its_line_and_its_label_whatever_the_label_says():
    svg = curve_svg({"grpo <b> & co": run([0.1, 0.2]), "lite_ppo": run([0.1, 0.4, 0.5])})
    assert [len(line) for line in polylines(svg)] == [2, 3]
    assert {"grpo <b> & co", "lite_ppo", "accuracy", "step"} <= set(texts(svg))
    assert COLOURS[0] in svg and COLOURS[1] in svg


def test_only_the_asked_stage_and_the_records_with_the_number_are_drawn():
    records = run([3.0, 2.0], stage="cold_start", y="loss") + run([0.1, 0.2, 0.3])
    assert [len(line) for line in polylines(curve_svg({"a": records}))] == [3]
    assert [len(line) for line in polylines(curve_svg({"a": records}, y="loss", stage="cold_start"))] == [2]


def test_other_numbers_get_round_marks_that_cover_them():
    svg = curve_svg({"a": run([-0.3, 1.1], y="reward")}, y="reward")
    assert {"-0.5", "0", "0.5", "1", "1.5"} <= set(texts(svg))


def test_one_step_is_a_dot_and_hundreds_are_a_line():
    assert curve_svg({"a": run([0.5])}).count("<circle") == 1
    assert curve_svg({"a": run([0.5] * 300)}).count("<circle") == 0


def test_ticks_by_hand():
    assert ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0, 0.9, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(1, 10, 8, whole=True) == [2, 4, 6, 8, 10]
    assert ticks(1, 3, 8, whole=True) == [1, 2, 3]
    assert ticks(0, 120, 5) == [0, 50, 100, 150]
    assert ticks(5, 5, 8, whole=True) == [5]


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(DataError, match="records without it"):
        curve_svg({"a": run([0.5], y="reward")})
    with pytest.raises(DataError, match="no run"):
        curve_svg({})
    with pytest.raises(ValueError, match="not in the registry"):
        curve_svg({"a": run([0.5])}, y="vibes")
