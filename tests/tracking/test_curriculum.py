"""The picture of what a run drew, by value."""

import xml.etree.ElementTree as ET

import pytest

from anabranch.errors import DataError
from anabranch.tracking.curriculum import MOST_COLUMNS, curriculum_svg

SVG = "{http://www.w3.org/2000/svg}"


def record(step, **shares):
    return {"step": step, "stage": "rl", **{name.replace("_", "/"): value for name, value in shares.items()}}


def boxes(svg):
    return [{name: float(box.get(name)) for name in ("x", "y", "width", "height", "fill-opacity")}
            for box in ET.fromstring(svg).iter(f"{SVG}rect")]  # fmt: skip


def test_every_share_is_a_box_at_its_step_and_tenth_as_dark_as_it_is_large():
    svg = curriculum_svg(
        [record(1, drawn_0=1.0, problems_0=0.75, problems_9=0.25), record(2, drawn_5=0.5, drawn_9=0.5, problems_9=1.0)]
    )
    # Panels of (720 - 64 - 20 - 28) / 2 = 304: from 64 and from 396. Rows of (300 - 44 - 48) / 10 = 20.8 from 252 up.
    found = [(box["x"], box["y"], box["width"], box["fill-opacity"]) for box in boxes(svg)]
    assert found == [
        (64.0, 231.2, 152.0, 1.0),
        (216.0, 127.2, 152.0, 0.5),
        (216.0, 44.0, 152.0, 0.5),
        (396.0, 231.2, 152.0, 0.75),
        (396.0, 44.0, 152.0, 0.25),
        (548.0, 44.0, 152.0, 1.0),
    ]


def test_many_steps_share_columns():
    svg = curriculum_svg([record(step, drawn_3=step % 2, problems_3=1.0) for step in range(1, 4 * MOST_COLUMNS + 1)])
    drawn = boxes(svg)[:MOST_COLUMNS]
    assert len(boxes(svg)) == 2 * MOST_COLUMNS
    assert {box["fill-opacity"] for box in drawn} == {0.5}  # of four steps two drew it


def test_records_of_other_stages_are_left_out_and_a_run_without_values_is_refused():
    values = record(1, drawn_0=1.0, problems_0=1.0)
    assert curriculum_svg([{"step": 1, "stage": "sft", "loss": 1.0}, values]) == curriculum_svg([values])
    with pytest.raises(DataError, match="curriculum: found 1 records without values"):
        curriculum_svg([{"step": 1, "stage": "rl", "reward": 1.0}])
