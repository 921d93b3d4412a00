"""What a duel promises, with tiny workers as real processes."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from benchmarks import machine
from benchmarks.duel import Side, SideError, Worker, duel, kept_search, spread, summary
from benchmarks.tune import Change, search


@pytest.fixture
def side(tmp_path):
    """A side whose `prepare` has the given body."""

    def make(name: str, body: str, **settings: object) -> Side:
        file = tmp_path / f"{name}_side.py"
        head = "import os, sys, time\nfrom benchmarks.worker import serve\n\ndef prepare(settings):\n"
        foot = '\n\nif __name__ == "__main__":\n    serve(prepare)\n'
        file.write_text(head + textwrap.indent(textwrap.dedent(body), "    ") + foot)
        here = str(Path(__file__).parents[2])
        return Side(name, [sys.executable, str(file)], settings, {"PYTHONPATH": here})

    return make


CONSTANT = """
def run(args):
    with open(settings["notes"], "a") as notes:
        notes.write(f"{settings['letter']}{args['round']} ")
    return {"work": settings["work"], "seconds": settings["seconds"], "answers": args["answers"]}
return run
"""


def test_sides_take_turns_and_the_ratio_is_that_of_the_rates(side, tmp_path, capsys):
    notes = tmp_path / "notes"
    a = side("ours", CONSTANT, notes=str(notes), letter="A", work=12, seconds=2.0)
    b = side("theirs", CONSTANT, notes=str(notes), letter="B", work=4, seconds=1.0)
    out = tmp_path / "out.json"
    report = duel("test", a, b, rounds=2, args={"answers": 3}, out=out, goal=1.4)
    assert notes.read_text().split() == ["A-1", "B-1", "A0", "B0", "A1", "B1"]
    assert report["summary"]["ratio"]["median"] == 1.5  # (12 / 2) / (4 / 1)
    assert [rate["median"] for rate in report["summary"]["rates"]] == [6.0, 4.0]
    assert [r["answers"] for r in report["sides"]["ours"]["rounds"]] == [3, 3]
    assert json.loads(out.read_text()) == report
    printed = capsys.readouterr().out
    assert "ratio: median 1.50" in printed
    assert "goal 1.4" in printed


def test_summary_of_rounds_by_hand():
    a = [{"rate": rate, "memory": {"peak_mb": peak}, "other_cores": 0.0} for rate, peak in ((6, 10), (10, 30), (8, 20))]
    b = [{"rate": rate, "memory": {"peak_mb": 5}, "other_cores": 0.5} for rate in (2, 5, 1)]
    found = summary([a, b])
    # ratios of the rounds: 3, 2, 8; their median is 3, not the ratio of the medians, 8 / 2 = 4
    assert (found["ratio"]["median"], found["ratio"]["min"], found["ratio"]["max"]) == (3, 2, 8)
    assert found["peak_mb"] == [30, 5]
    assert found["other_cores"] == 0.25  # half of the six rounds 0, half 0.5
    assert not found["quiet"]
    assert summary([[], []]) is None


def test_spread_of_one_value_and_of_five():
    assert set(spread([7.0]).values()) == {7.0}
    assert spread([5, 1, 4, 2, 3]) == {"median": 3, "min": 1, "max": 5, "lower_quartile": 2, "upper_quartile": 4}


def test_prints_of_libraries_and_of_processes_they_start_go_to_the_log(side, tmp_path):
    noisy = side(
        "noisy",
        """
        print("loading")
        os.system("echo from a child")
        os.write(1, b"from C\\n")
        def run(args):
            print("running")
            assert sys.stdin.read() == ""  # what a library reads is not the protocol's
            return {"work": 1}
        return run
        """,
    )
    log = tmp_path / "noisy.log"
    with Worker(noisy, log) as worker:
        assert worker.ready()["versions"]["torch"]
        result = worker.run({})
    assert result["work"] == 1
    assert result["rate"] == 1 / result["seconds"]
    assert {"loading", "from a child", "from C"} <= set(log.read_text().splitlines())


def test_a_side_that_dies_is_an_error_with_its_last_words_and_the_file_keeps_the_rounds_before(side, tmp_path):
    notes = str(tmp_path / "notes")
    good = side("good", CONSTANT, notes=notes, letter="A", work=1, seconds=1.0)
    bad = side(
        "bad",
        """
        def run(args):
            if args["round"] == 1:
                raise MemoryError("no room for 7 prompts")
            return {"work": 1, "seconds": 1.0}
        return run
        """,
    )
    out = tmp_path / "out.json"
    with pytest.raises(SideError, match=r"bad: it ended with code 1(.|\n)*MemoryError: no room for 7 prompts"):
        duel("test", good, bad, rounds=3, args={"answers": 1}, out=out)
    kept = json.loads(out.read_text())
    assert len(kept["sides"]["bad"]["rounds"]) == 1
    assert kept["summary"]["ratio"]["median"] == 1


def test_a_side_that_cannot_prepare_is_an_error(side, tmp_path):
    with (
        Worker(side("broken", "import no_such_library"), tmp_path / "log") as worker,
        pytest.raises(SideError, match="no_such_library"),
    ):
        worker.ready()


def test_a_side_that_hangs_is_ended(side, tmp_path):
    with (
        Worker(side("slow", "time.sleep(60)"), tmp_path / "log", limit=0.5) as worker,
        pytest.raises(SideError, match=r"slow: not back within 0\.5 s"),
    ):
        worker.ready()


def test_a_side_without_work_is_an_error(side, tmp_path):
    with Worker(side("idle", "return lambda args: {'work': 0}"), tmp_path / "log") as worker:
        worker.ready()
        with pytest.raises(SideError, match="'work' above 0"):
            worker.run({})


def test_a_stopped_side_uses_no_time_and_its_children_stop_too(side, tmp_path):
    busy = side(
        "busy",
        """
        import subprocess
        spin = [sys.executable, "-c", "while True: pass"]
        child = subprocess.Popen(spin)
        return lambda args: {"work": 1, "child": child.pid}
        """,
    )
    with Worker(busy, tmp_path / "log") as worker:
        worker.ready()
        child = worker.run({})["child"]
        worker.stop()
        time.sleep(0.1)
        before = machine.cpu_seconds([child])
        time.sleep(0.3)
        assert machine.cpu_seconds([child]) == before
        worker.go()
        deadline = time.monotonic() + 10
        while machine.cpu_seconds([child]) == before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert machine.cpu_seconds([child]) > before
    assert child not in machine.family(worker._process.pid)


def test_a_duel_that_is_told_to_end_takes_the_children_of_its_workers_along(side, tmp_path):
    lone = side(
        "lone",
        """
        import subprocess
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        return lambda args: {"work": 1, "child": child.pid}
        """,
    )
    starter = tmp_path / "starter.py"
    starter.write_text(
        textwrap.dedent(f"""
        import time
        from pathlib import Path
        from benchmarks.duel import Side, Worker
        lone = Side("lone", {list(lone.command)!r}, {{}}, {dict(lone.env)!r})
        with Worker(lone, Path({str(tmp_path / "log")!r})) as worker:
            worker.ready()
            print(worker.run({{}})["child"], flush=True)
            worker.stop()
            time.sleep(60)
        """)
    )
    env = {**os.environ, **lone.env}
    with subprocess.Popen([sys.executable, str(starter)], env=env, stdout=subprocess.PIPE, text=True) as duel_process:
        child = int(duel_process.stdout.readline())
        duel_process.terminate()
        assert duel_process.wait(timeout=60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        _wait_until_gone(child)


def _wait_until_gone(process: int) -> None:
    for _ in range(200):
        os.kill(process, 0)
        if machine._stat(process)[0] == "Z":  # nobody reaps it where the first process of a container does not
            raise ProcessLookupError
        time.sleep(0.02)


def test_memory_of_a_round_is_its_own_peak_and_counts_children(side, tmp_path):
    hungry = side(
        "hungry",
        """
        import subprocess
        block = b"1" * 150_000_000
        del block
        def run(args):
            block = b"1" * args["bytes"]
            return {"work": 1}
        return run
        """,
    )
    with Worker(hungry, tmp_path / "log") as worker:
        assert worker.ready()["memory"]["peak_mb"] > 150
        small = worker.run({"bytes": 1000})["memory"]
        large = worker.run({"bytes": 60_000_000})["memory"]
    assert small["peak_mb"] < 60
    assert 55 < large["peak_mb"] - small["peak_mb"] < 65
    assert 0 < large["pss_mb"] < large["peak_mb"]


def test_sides_need_different_names(side, tmp_path):
    one = side("one", "return lambda args: {'work': 1}")
    with pytest.raises(ValueError, match="one"):
        duel("test", one, one, rounds=1, args={}, out=tmp_path / "out.json")


def test_a_worker_ends_with_the_duel_that_started_it_even_while_stopped(side, tmp_path):
    starter = tmp_path / "starter.py"
    lone = side("lone", "return lambda args: {'work': 1}")
    starter.write_text(
        textwrap.dedent(f"""
        import time
        from pathlib import Path
        from benchmarks.duel import Side, Worker
        worker = Worker(Side("lone", {list(lone.command)!r}, {{}}, {dict(lone.env)!r}), Path({str(tmp_path / "log")!r}))
        worker.ready()
        worker.stop()
        print(worker._process.pid, flush=True)
        time.sleep(60)
        """)
    )
    read, write = os.pipe()
    env = {**os.environ, **lone.env}
    actions = [(os.POSIX_SPAWN_DUP2, write, 1)]
    pid = os.posix_spawn(sys.executable, [sys.executable, str(starter)], env, file_actions=actions)
    os.close(write)
    with os.fdopen(read) as lines:
        worker = int(lines.readline())
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with pytest.raises(ProcessLookupError):
        _wait_until_gone(worker)


def test_a_search_in_which_nothing_runs_is_an_error(side, tmp_path):
    broken = side("broken", "return lambda args: {'work': 1 / 0}", rows=1)
    with pytest.raises(SideError, match=r"no candidate of broken(.|\n)*ZeroDivisionError"):
        search(broken, [[Change({"rows": 2})]], args={}, log=tmp_path / "log")


def test_the_search_goes_axis_by_axis_from_the_best_so_far(side, tmp_path):
    one = side(
        "one",
        """
        def run(args):
            if settings["dtype"] == "half" and settings["rows"] == 4:
                raise RuntimeError("no kernel")
            return {"work": settings["rows"] * {"full": 1, "half": 3}[settings["dtype"]], "seconds": 1.0}
        return run
        """,
        dtype="full",
        rows=1,
    )
    axes = [[Change({"dtype": "half"})], [Change({"rows": 2}), Change({"rows": 4})]]
    best, tried = search(one, axes, args={}, log=tmp_path / "log", beside=[Change({"rows": 3})])
    assert best.settings == {"dtype": "half", "rows": 2}
    # full with 1 row; half with 1, 2, 4 rows; beside the search half with 3 rows, fastest of all
    assert [record.get("rate") for record in tried] == [1, 3, 6, None, 9]
    assert tried[-1]["for_comparison"]


def test_a_candidate_that_does_not_come_back_ends_in_time_with_all_that_it_started_and_the_search_goes_on(
    side, tmp_path, capsys
):
    children = tmp_path / "children"
    one = side(
        "one",
        f"""
        import subprocess
        def run(args):
            if settings["compile"]:
                for own_session in (False, True):
                    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                                             start_new_session=own_session)
                    with open({str(children)!r}, "a") as notes:
                        notes.write(f"{{child.pid}} ")
                time.sleep(60)
            return {{"work": settings["rows"], "seconds": 1.0}}
        return run
        """,
        compile=False,
        rows=1,
    )
    axes = [[Change({"compile": True})], [Change({"rows": 2})]]
    start = time.monotonic()
    best, tried = search(one, axes, args={}, log=tmp_path / "log", limit=2)
    assert time.monotonic() - start < 20
    assert best.settings == {"compile": False, "rows": 2}
    assert [record.get("error") for record in tried] == [None, "not back within 2 s", None]
    assert "one, compile=True: not back within 2 s" in capsys.readouterr().out
    assert len(children.read_text().split()) == 2
    for child in children.read_text().split():
        with pytest.raises(ProcessLookupError):
            _wait_until_gone(int(child))


def test_a_change_is_read_from_json_and_written_as_it_is_read():
    change = Change.parse('{"dtype": "bfloat16", "env": {"THREADS": 2}}')
    assert change == Change({"dtype": "bfloat16"}, {"THREADS": "2"})
    assert Change.parse(change.as_json()) == change
    for text in ("[]", '{"env": []}', "{"):
        with pytest.raises(ValueError, match=r"JSON|Expecting"):
            Change.parse(text)


def test_a_change_between_two_sides_makes_one_of_the_other():
    start = Side("one", [], {"rows": 1, "dtype": "full"}, {"A": "1"})
    end = Side("one", [], {"rows": 4, "dtype": "full"}, {"A": "1", "B": "2"})
    change = Change.between(start, end)
    assert change == Change({"rows": 4}, {"B": "2"})
    assert change.of(start) == end


def test_a_duel_that_is_played_again_keeps_the_last_search_and_its_date(tmp_path):
    file = tmp_path / "step.json"
    assert kept_search(file) == ([], None)
    file.write_text(json.dumps({"search": [], "started": "2026-01-01"}))
    assert kept_search(file) == ([], None)
    tried = [{"side": "trl", "rate": 1.0}]
    file.write_text(json.dumps({"search": tried, "started": "2026-01-01"}))
    assert kept_search(file) == (tried, "2026-01-01")
    file.write_text(json.dumps({"search": tried, "started": "2026-01-03", "searched": "2026-01-01"}))
    assert kept_search(file) == (tried, "2026-01-01")
