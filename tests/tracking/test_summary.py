"""What the end-of-run table promises."""

import io
import json

import pytest
from rich.console import Console

from anabranch.evaluation.metrics import Estimate
from anabranch.tracking.jsonl import encode
from anabranch.tracking.summary import evaluation_record, summary_table


def record(stage, step, value, change=None):
    estimates = {
        "mean@2": Estimate(value, value - 0.05, value + 0.05, 64, 128),
        "pass@2": Estimate(value + 0.1, value, value + 0.2, 64, 128),
    }
    return evaluation_record(step=step, stage=stage, policy_version=step, estimates=estimates, change=change)


RUN = [
    record("before", 0, 0.05),
    record("cold_start", 13, 0.0625),
    record("rl", 5, 0.5),
    record("rl", 10, 0.75, ("cold_start", Estimate(0.6875, 0.6, 0.775, 64, 256))),
]


def test_the_table_shows_the_last_evaluation_of_every_stage_with_intervals():
    table = summary_table(RUN)
    assert table.title == (
        "On problems never trained on, in % (mean: the scorer's value, pass: right in full), "
        "with 95 % intervals over problems"
    )
    assert table.columns == ("held-out problems", "mean@2", "pass@2", "change, points", "problems", "answers")
    assert table.rows == (
        ("before", "5.0 [0.0, 10.0]", "15.0 [5.0, 25.0]", "-", "64", "128"),
        ("after cold start (13 steps)", "6.2 [1.2, 11.2]", "16.2 [6.2, 26.2]", "-", "64", "128"),
        (
            "after RL (10 steps)",
            "75.0 [70.0, 80.0]",
            "85.0 [75.0, 95.0]",
            "+68.8 [+60.0, +77.5] since the cold start",
            "64",
            "128",
        ),
    )


def test_a_run_without_cold_start_or_change_has_no_such_row_or_column():
    table = summary_table([RUN[0], record("rl", 1, 0.5)])
    assert [row[0] for row in table.rows] == ["before", "after RL (1 step)"]
    assert "change, points" not in table.columns


@pytest.mark.parametrize(
    ("since", "words"), [("before", "the start"), ("cold_start", "the cold start"), ("sft", "SFT")]
)
def test_a_change_names_the_stage_it_is_counted_from(since, words):
    table = summary_table([record("rl", 1, 0.5, (since, Estimate(0.25, 0.0, 0.5, 64, 256)))])
    assert table.rows[0][3] == f"+25.0 [+0.0, +50.0] since {words}"


def test_the_table_is_the_same_on_a_terminal_and_in_a_file():
    table = summary_table(RUN)
    stream = io.StringIO()
    Console(file=stream, width=200).print(table.rich())
    for row in table.rows:
        for cell in row:
            assert cell in stream.getvalue()
            assert cell in table.plain()


def test_an_evaluation_record_survives_its_file():
    assert summary_table([json.loads(encode(each)) for each in RUN]) == summary_table(RUN)


def test_misuse_is_our_bug():
    with pytest.raises(ValueError, match="at least one evaluation record"):
        summary_table([])
    with pytest.raises(ValueError, match="'later' or that of the change"):
        record("later", 0, 0.5)
    with pytest.raises(ValueError, match="at least one estimate"):
        evaluation_record(step=0, stage="rl", policy_version=0, estimates={})
