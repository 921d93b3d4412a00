"""Reports: spread, units, and that what is finished is kept whatever happens."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from anabranch.bench.measure import Report, machine, repeat, restart_peak, spread, summary, unit
from anabranch.errors import RunFolderError
from anabranch.recipe.tree import Model
from anabranch.tracking.memory import peak_rss_mb


def report(path=None) -> Report:
    where = machine(Model(dtype="float32", device="cpu", threads=1), [0.0, 0.0, 0.0])
    return Report("step", {"prompts": 2}, where, path, console=Console(file=io.StringIO(), width=200))


def text_of(found: Report) -> str:
    assert isinstance(found.console.file, io.StringIO)
    return found.console.file.getvalue()


def test_spread_of_four_values():
    # sorted 1 2 3 10: the median is 2.5; quartiles lie at 0.25 * 3 = 0.75 and 2.25 between the sorted values
    assert spread([10.0, 1.0, 3.0, 2.0]) == {"median": 2.5, "q1": 1.75, "q3": 4.75, "min": 1.0, "max": 10.0, "runs": 4}


def test_a_number_that_some_runs_lack_is_summed_up_over_those_that_have_it():
    found = summary([{"a": 1.0}, {"a": 3.0, "b": 5.0}])
    assert list(found) == ["a", "b"]
    assert (found["a"]["median"], found["b"]["runs"]) == (2.0, 1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("time/decode", "seconds"),
        ("ours/time/forward", "seconds"),
        ("growth/2x8/grown/memory_peak_mb", "MB"),
        ("tokens_per_second", "tokens/s"),
        ("ratio/tokens_per_second", ""),
        ("plain/products_share", "share"),
    ],
)
def test_every_number_has_a_unit(name, expected):
    assert unit(name) == expected


def test_warm_up_is_not_counted_and_every_run_has_a_number_of_its_own():
    seen = []
    found = report()
    repeat(lambda index: seen.append(index) or {"seconds": float(index)}, found, warmup=2, repeats=3)
    assert seen == [0, 1, 2, 3, 4]
    assert found.runs == [{"seconds": 2.0}, {"seconds": 3.0}, {"seconds": 4.0}]


def test_an_interrupted_measurement_keeps_what_is_finished(tmp_path):
    def run(index: int) -> dict[str, float]:
        if index == 3:
            raise KeyboardInterrupt
        return {"seconds": float(index)}

    path = tmp_path / "new" / "step.json"
    found = report(path)
    with pytest.raises(KeyboardInterrupt), found:
        repeat(run, found, warmup=1, repeats=10)
    stored = json.loads(path.read_text())
    assert stored["complete"] is False
    assert stored["runs"] == [{"seconds": 1.0}, {"seconds": 2.0}]
    assert "2 runs, interrupted" in text_of(found)


def test_every_key_printed_is_in_the_json(tmp_path):
    found = report(tmp_path / "step.json")
    with found:
        repeat(lambda index: {"seconds": index + 1.0, "time/draw": 0.5}, found, warmup=0, repeats=2)
    stored = json.loads((tmp_path / "step.json").read_text())
    assert stored["complete"] is True
    assert stored["summary"]["seconds"]["median"] == 1.5
    (table,) = found.tables(found)
    assert [row[0] for row in table.rows] == list(stored["summary"]) == ["seconds", "time/draw"]
    assert {"cpu", "cores", "packages", "cpu_flags", "load_average", "threads", "dtype"} <= set(stored["machine"])


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError), report(tmp_path / "file" / "step.json"):
        pytest.fail("measured")


def test_the_peak_of_memory_can_be_restarted():
    block = bytearray(300_000_000)
    before = peak_rss_mb()
    del block
    if restart_peak() == "end of warm-up":
        assert peak_rss_mb() < before - 200
