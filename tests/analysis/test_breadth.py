"""What `anabranch breadth` shows of watched runs."""

import json
import xml.etree.ElementTree as ET

import pytest
from typer.testing import CliRunner

from anabranch.analysis.breadth import PANELS, drawing, read, table
from anabranch.cli.main import app

NAMES = ("kinds", "unsampled_2", "agreement", *(name for name, *_ in PANELS))


def written(folder, records):
    folder.mkdir()
    (folder / "recipe.yaml").write_text("name: x\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def step(number, value, *, forks=2, most=4):
    record = {"step": number, "stage": "rl", "mass_balance/forks": forks}
    if forks:
        record |= {f"mass_balance/{name}": value for name in NAMES}
    for k in (1, most):
        record |= {f"pass_at/{k}": value, f"pass_at_low/{k}": value - 0.1, f"pass_at_high/{k}": value + 0.1}
    return record


@pytest.fixture
def runs(tmp_path):
    cold = {"step": 1, "stage": "cold_start"}
    few = written(tmp_path / "few", [cold, step(1, 0.2), step(2, 0.9, forks=0), step(3, 0.4)])
    many = written(tmp_path / "many", [step(1, 0.5, most=512), step(2, 0.5, most=512)])
    return few, many


def test_means_are_over_the_steps_that_found_a_fork_and_pass_at_k_is_the_last(runs):
    rows = table([read(run) for run in runs]).rows
    assert rows[0][:4] == ("few", "2", "0.3", "0.3")
    assert rows[0][8:] == ("30%", "40.0 [30.0, 50.0] %", "40.0 [30.0, 50.0] %")
    assert rows[1][:4] == ("many", "2", "0.5", "0.5")


def test_a_run_may_have_only_one_of_both(tmp_path):
    only = {"step": 1, "stage": "rl", **{f"pass_at{end}/1": 0.5 for end in ("", "_low", "_high")}}
    run = read(written(tmp_path / "only", [only]))
    assert table([run]).rows[0][1:9] == ("0", *["-"] * 7)
    assert len([part for part in ET.fromstring(drawing([run])) if part.tag.endswith("svg")]) == 2


def test_the_command_draws_a_line_a_run_in_every_panel(runs, tmp_path):
    svg = tmp_path / "a.svg"
    done = CliRunner().invoke(app, ["breadth", *map(str, runs), "--out", str(svg)])
    assert done.exit_code == 0
    assert "few" in done.stdout and "many" in done.stdout
    panels = [part for part in ET.parse(svg).getroot() if part.tag.endswith("svg")]
    assert len(panels) == len(PANELS) + 2
    for panel in panels:
        assert {"few", "many"} <= set(panel.itertext())


def test_a_run_that_was_not_watched_and_a_folder_without_a_run_are_refused(tmp_path):
    plain = written(tmp_path / "plain", [{"step": 1, "stage": "rl"}])
    for path, says in ((plain, "diagnostics.mass_balance=4"), (tmp_path / "none", "no run")):
        done = CliRunner().invoke(app, ["breadth", str(path)])
        assert done.exit_code == 2
        assert says in done.stderr and "fix:" in done.stderr
