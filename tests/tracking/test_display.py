"""What a person sees: one line a step that stays, a live line on terminals only, no control codes from model text."""

import io

import pytest
from rich.console import Console

from anabranch.tracking.display import (
    LiveDisplay,
    PlainDisplay,
    TimeLeft,
    duration,
    make_display,
    printable,
    stage_line,
    step_line,
)
from anabranch.tracking.tables import TextTable

RL = {
    "step": 3,
    "stage": "rl",
    "reward": 0.4125,
    "accuracy": 0.4,
    "entropy": 0.3,
    "answer_length_mean": 33.6,
    "truncated": 0.0,
    "dead_groups": 0.25,
    "grad_norm": 1.25,
    "trained_rollouts": 96,
    "generated_rollouts": 128,
    "rollouts_per_second": 6.25,
    "tokens_per_second": 210.4,
    "time/step": 20.48,
}
COLD = {"step": 1, "stage": "cold_start", "loss": 1.5, "lr": 2e-5, "grad_norm": 4.0, "tokens_per_second": 250.0}


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def live():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=200, color_system=None)
    return LiveDisplay(console), stream


def test_a_reinforced_step_is_one_readable_line():
    assert step_line(RL, 10) == (
        "RL 3/10  reward 0.412  accuracy 40.0%  entropy 0.300  length 34  cut 0.0%  dead groups 25%  grad 1.25  "
        "trained 96/128  6.2 answers/s  210 tokens/s  20.5 s"
    )


def test_a_supervised_step_shows_its_own_numbers():
    assert step_line(COLD, 13) == "cold start 1/13  loss 1.500  lr 2e-05  grad 4.00  250 tokens/s"


def test_an_evaluation_counts_batches_and_shows_what_answers_were_like():
    record = {"step": 2, "stage": "evaluation", "accuracy": 0.25, "answer_length_mean": 40.0, "truncated": 0.5}
    assert step_line(record, 3) == "evaluation 2/3  accuracy 25.0%  length 40  cut 50.0%"
    assert stage_line("evaluation", 3, None) == "evaluation: 3 batches"
    assert stage_line("evaluation", 1, None) == "evaluation: 1 batch"


def test_numbers_that_a_step_does_not_have_are_left_out():
    assert step_line({"step": 1, "stage": "rl", "reward": 1.0}, 2) == "RL 1/2  reward 1.000"


def test_the_plain_display_writes_one_line_a_step_and_no_control_code():
    clock = Clock()
    stream = io.StringIO()
    with PlainDisplay(stream, clock) as display:
        display.stage("cold_start", 1)
        clock.now = 2.0
        display.step(COLD)
        display.stage("rl", 10, seconds=300)
        for step in (1, 2):
            clock.now += 20.0
            display.phase("generating 57/128")
            display.step({**RL, "step": step})
        display.note("probe passed")
        display.table(TextTable("title", ("a", "b"), (("x", "1"),)))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "cold start: 1 step"
    assert lines[1].endswith("0 s left")
    assert lines[2] == "RL: 10 steps, at most 5:00"
    assert lines[3].startswith("RL 1/10") and lines[3].endswith("3:00 left")  # 9 more of 20 s
    assert lines[4].endswith("2:40 left")
    assert lines[5:] == ["probe passed", "title", "a  b", "-  -", "x  1"]
    assert "\x1b" not in stream.getvalue()


def test_time_left_is_bounded_by_the_time_limit_and_right_after_a_resume():
    clock = Clock()
    left = TimeLeft(10, 50.0, clock)
    clock.now = 20.0
    assert left.after(7) == pytest.approx(30.0)  # resumed: first step seen is 7; 3 * 20 = 60, but 50 - 20 remain
    clock.now = 40.0
    assert left.after(8) == pytest.approx(10.0)
    clock.now = 60.0
    assert left.after(9) == 0.0


def test_time_that_passed_before_a_resume_counts_towards_the_limit():
    clock = Clock()
    left = TimeLeft(10, 50.0, clock, spent=25.0)
    clock.now = 10.0
    assert left.after(7) == pytest.approx(15.0)  # 3 * 10 = 30, but 50 - 25 - 10 remain
    stream = io.StringIO()
    with PlainDisplay(stream, clock) as display:
        display.stage("rl", 10, seconds=300, spent=200)
        clock.now += 20.0
        display.step({**RL, "step": 3})
    assert stream.getvalue().splitlines()[-1].endswith("1:20 left")  # 7 * 20 = 140, but 300 - 200 - 20 remain


def test_the_live_display_keeps_every_step_and_shows_phase_and_progress():
    display, stream = live()
    with display:
        display.stage("rl", 10)
        display.phase("generating 57/128")
        display._progress.refresh()
        display.step({**RL, "step": 1})
        display.step({**RL, "step": 2})
        display._progress.refresh()
        display.note("[bold]not markup[/bold]")
        display.table(TextTable("title", ("a", "b"), (("[x]", "1"),)))
    shown = stream.getvalue()
    assert "generating 57/128" in shown
    assert "2/10" in shown
    for step in (1, 2):
        assert step_line({**RL, "step": step}, 10) in shown
    assert "[bold]not markup[/bold]" in shown
    assert "[x]" in shown
    assert "reward 0.41  accuracy 40%  entropy 0.30  6.2 answers/s  210 tokens/s" in shown
    display.close()


def test_model_text_cannot_steer_the_terminal():
    assert printable("a\x1b[2Jb\rc\x9bd\te\n") == "a\ufffd[2Jb\ufffdc\ufffdd\te\n"
    display, stream = live()
    display.note("\x1b]0;owned\x07")
    display.close()
    assert "\x1b]0" not in stream.getvalue()


def test_a_pipe_gets_plain_lines_and_a_terminal_the_live_display(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(make_display(io.StringIO()), PlainDisplay)
    assert isinstance(make_display(Terminal()), LiveDisplay)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_display(Terminal()), PlainDisplay)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1:00"), (185, "3:05"), (3723, "1:02:03")])
def test_durations_read_like_a_clock(seconds, text):
    assert duration(seconds) == text


def test_a_plain_table_is_aligned():
    table = TextTable("t", ("name", "value"), (("long name", "1.0"), ("x", "10.25")))
    assert table.plain() == "t\nname       value\n---------  -----\nlong name    1.0\nx          10.25"
