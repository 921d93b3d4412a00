"""What the scheduler promises: order, a limit, failures that are named, and no process left behind. Stub processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anabranch.errors import RunFolderError
from anabranch.study.jobs import Standing, run_all
from anabranch.study.plan import Job
from anabranch.study.worker import DISK_FULL

FINE = "pass"


def job(title, arm=0, seed=0, cold=False, after=None):
    return Job(title, arm, seed, cold, after)


class Notes:
    """Writes down what happened."""

    def __init__(self, interrupt_at=None):
        self.events, self.most, self.interrupt_at = [], 0, interrupt_at

    def started(self, job):
        self.events.append(f"started {job.title}")

    def ended(self, job, standing):
        self.events.append(f"{'failed' if job in standing.failed else 'ended'} {job.title}")

    def look(self, standing):
        self.most = max(self.most, len(standing.running))
        if self.interrupt_at is not None and len(standing.running) == self.interrupt_at:
            time.sleep(0.1)
            raise KeyboardInterrupt


def play(tmp_path, scripts, at_once=1, notes=None):
    """Run jobs as `python -S -c SCRIPT`; by job its script."""
    standing, notes = Standing(list(scripts), []), notes or Notes()
    run_all(
        standing,
        command=lambda job: [sys.executable, "-S", "-c", scripts[job]],
        log=lambda job: tmp_path / "logs" / f"{job.title}.log",
        at_once=at_once,
        watcher=notes,
    )
    return standing, notes


def test_jobs_run_in_their_order_one_at_a_time(tmp_path):
    jobs = [job("a"), job("b", 1), job("c", 2)]
    standing, notes = play(tmp_path, dict.fromkeys(jobs, FINE))
    assert notes.events == ["started a", "ended a", "started b", "ended b", "started c", "ended c"]
    assert (standing.done, standing.waiting, standing.running, notes.most) == (jobs, [], {}, 1)
    assert set(standing.seconds) == set(jobs)


def test_no_more_processes_than_asked_for(tmp_path):
    jobs = [job(name, arm) for arm, name in enumerate("abcde")]
    standing, notes = play(tmp_path, dict.fromkeys(jobs, "import time; time.sleep(0.3)"), at_once=2)
    assert (len(standing.done), notes.most) == (5, 2)


def test_what_needs_a_cold_start_waits_for_it_and_the_rest_does_not(tmp_path):
    cold = job("cold", cold=True)
    scripts = {cold: "import time; time.sleep(0.5)", job("a", 0, after=0): FINE, job("b", 1): FINE}
    _, notes = play(tmp_path, scripts, at_once=2)
    assert notes.events == ["started cold", "started b", "ended b", "ended cold", "started a", "ended a"]


def test_a_cold_start_of_another_seed_is_not_waited_for(tmp_path):
    scripts = {job("cold 1", seed=1, cold=True): FINE, job("a 0", seed=0, after=0): FINE}
    standing, _ = play(tmp_path, scripts)
    assert len(standing.done) == 2


def test_a_failed_run_is_named_with_its_own_last_lines_and_the_others_go_on(tmp_path):
    broken = job("broken", 0)
    lines = "import sys; print('\\n'.join(f'line {n}' for n in range(40)), 'fix: \\x1b[2Jthis', sep='\\n'); sys.exit(2)"
    standing, notes = play(tmp_path, {broken: lines, job("fine", 1): FINE})
    assert notes.events[-2:] == ["started fine", "ended fine"]
    reason = standing.failed[broken]
    assert "line 39" in reason and "line 5\n" not in reason
    assert "exit code 2" in reason and str(tmp_path / "logs" / "broken.log") in reason
    assert "\x1b" not in reason  # it must not steer the terminal


def test_a_killed_run_is_said_to_be_killed(tmp_path):
    killed = job("killed")
    standing, _ = play(tmp_path, {killed: "import os; os.kill(os.getpid(), 9)"})
    assert "killed by SIGKILL; the same command goes on with it" in standing.failed[killed]


def test_what_needs_a_failed_cold_start_fails_with_it(tmp_path):
    cold, needs, other = job("cold", cold=True), job("a", 0, after=0), job("b", 1)
    standing, _ = play(tmp_path, {cold: "raise SystemExit(2)", needs: FINE, other: FINE})
    assert standing.failed[needs] == "its cold failed"
    assert standing.done == [other]


def test_a_full_disk_stops_everything_with_one_error(tmp_path):
    full = f"print('No space left on device'); raise SystemExit({DISK_FULL})"
    jobs = {job("a", 0): FINE, job("b", 1): full, job("c", 2): FINE}
    notes = Notes()
    with pytest.raises(RunFolderError) as caught:
        play(tmp_path, jobs, notes=notes)
    assert "b: found a full disk" in str(caught.value)
    assert "No space left on device" in str(caught.value)
    assert "1 of 3 are finished and kept" in str(caught.value)
    assert "started c" not in notes.events


def stopped(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_ctrl_c_ends_what_runs_and_all_that_it_started(tmp_path):
    pids = tmp_path / "pids"
    script = (
        "import os, subprocess, sys, time; child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; "
        f"time.sleep(60)']); open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}'); time.sleep(60)"
    )

    class AfterBoth(Notes):
        def look(self, standing):
            wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(tmp_path, {job("long"): script}, notes=AfterBoth())
    for pid in pids.read_text().split():
        wait_for(lambda pid=pid: stopped(pid))


def test_a_worker_dies_with_the_study_that_started_it():
    """The pipe is closed by the kernel whatever the parent dies of; here the parent is killed for real."""
    worker = "import threading, time; from anabranch.study import worker; " + (
        "threading.Thread(target=worker._die_with_the_parent, daemon=True).start(); print('up', flush=True); "
        "time.sleep(60)"
    )
    parent = (
        "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], "
        "stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True); child.stdout.readline(); "
        "print(child.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-S", "-c", parent, worker], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert not stopped(pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    wait_for(lambda: stopped(pid))
