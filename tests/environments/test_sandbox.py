"""What the sandbox promises, with real processes between every kind of walls that this machine has.

Limits are seconds where a script would take a minute or for ever; no test asserts more than that it did not.
"""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest

from anabranch.environments import sandbox as module
from anabranch.environments.inside import printed
from anabranch.environments.sandbox import Limits, Outcome, Sandbox, Walls, find_walls, hold

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")

SHORT = Limits(timeout=4.0)
LONG = Limits(timeout=60.0)
MINUTE = 60


def held(walls: Walls) -> bool:
    return walls is Walls.HOOK or (
        sys.platform == "linux" and (walls is Walls.USER or os.geteuid() == 0) and hold(walls)
    )


HELD = [walls for walls in Walls if held(walls)]
NAMESPACES = [walls for walls in HELD if walls is not Walls.HOOK]
everywhere = pytest.mark.parametrize("walls", HELD)
in_namespaces = pytest.mark.parametrize("walls", NAMESPACES)


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


def run(script, walls, limits=LONG):
    start = time.monotonic()
    ran = asyncio.run(Sandbox(limits, walls).run(script))
    assert time.monotonic() - start < MINUTE
    assert not list(Path(tempfile.gettempdir()).iterdir()), "its folder is gone"
    return ran


def test_the_best_walls_of_this_machine_are_found():
    assert find_walls() in HELD
    assert (find_walls() is Walls.HOOK) == (not NAMESPACES)


# ------------------------------------------------------------------------------------------------------------ scripts


@everywhere
def test_a_script_is_run_and_its_last_expression_printed(walls):
    ran = run("import math\nx = 6\nmath.factorial(x)", walls)
    assert (ran.outcome, ran.output, ran.detail) == (Outcome.OK, "720\n", "")


@pytest.mark.parametrize(
    ("script", "output"),
    [
        ("1 + 1", "2\n"),
        ("print(3)", "3\n"),
        ("x = 3", ""),
        ("sum(\n  [1, 2]\n)", "3\n"),
        ("for i in range(2):\n    print(i)", "0\n1\n"),
        ("for i in range(2):\n    i", ""),
        ("'a'; 'b'", "b\n"),
        ("printed = 4\nprinted", "4\n"),
        ("1 + 1  # a comment", "2\n"),
        ("", ""),
        ("# nothing", ""),
    ],
)
def test_which_last_lines_are_printed(script, output, capsys):
    exec(compile(printed(script), "script", "exec"), {})  # these scripts are ours
    assert capsys.readouterr().out == output


@everywhere
@pytest.mark.parametrize(
    ("script", "last"),
    [
        ("x = (", "SyntaxError: '(' was never closed"),
        ("1/0", "ZeroDivisionError: division by zero"),
        ("print(undefined)", "NameError: name 'undefined' is not defined"),
        ("input()", "EOFError: EOF when reading a line"),
    ],
)
def test_an_error_shows_the_traceback_of_the_script_alone(script, last, walls):
    ran = run(script, walls)
    assert ran.outcome is Outcome.ERROR
    assert ran.output.rstrip().endswith(last)
    assert 'File "script.py", line 1' in ran.output
    assert "inside.py" not in ran.output


@everywhere
def test_scripts_have_the_packages_that_are_installed(walls):
    ran = run("import sympy, numpy\nx = sympy.Symbol('x')\nsympy.solve(x**2 - 2), int(numpy.arange(4).sum())", walls)
    assert (ran.outcome, ran.output) == (Outcome.OK, "([-sqrt(2), sqrt(2)], 6)\n")


@everywhere
def test_scripts_share_nothing_and_draw_the_same_numbers_again(walls):
    script = "import random, os\nopen('left', 'a').write('x')\nprint(os.listdir(), random.random(), {'a', 'b', 'c'})"
    first, second = run(script, walls), run(script, walls)
    assert first == second
    assert first.output.startswith("['left'] ")


@everywhere
def test_no_variable_of_our_environment_is_seen(walls, monkeypatch):
    monkeypatch.setenv("A_SECRET", "hidden")
    ran = run("import os\nsorted(os.environ)", walls)
    assert ran.output == f"{sorted(module.CALM)}\n"


# ------------------------------------------------------------------------------------------- hangs, crashes, floods


ENDLESS = (
    "while True: pass",
    "import time; time.sleep(3600)",
    "import signal, time\nfor s in (2, 14, 15): signal.signal(s, signal.SIG_IGN)\ntime.sleep(3600)",
    "import os, time\nos.close(1); os.close(2); time.sleep(3600)",
    "9**9**9",
)


def test_what_does_not_end_is_killed_and_what_it_wrote_is_kept():
    async def play():
        boxes = [Sandbox(SHORT, walls) for walls in HELD]
        return await asyncio.gather(*(box.run(f"print('begun')\n{script}") for box in boxes for script in ENDLESS))

    start = time.monotonic()
    for ran in asyncio.run(play()):
        assert (ran.outcome, ran.output, ran.detail) == (Outcome.TIMEOUT, "begun\n", "still running after 4 s")
    assert time.monotonic() - start < MINUTE


@everywhere
@pytest.mark.parametrize(
    ("script", "detail"),
    [
        ("import os; os._exit(3)", "exit code 3"),
        ("import ctypes; ctypes.string_at(0)", "killed by SIGSEGV"),
        ("import os; os.abort()", "killed by SIGABRT"),
        ("raise SystemExit(7)", "exit code 7"),
    ],
)
def test_a_crash_is_told_apart(script, detail, walls):
    ran = run(script, walls)
    assert (ran.outcome, ran.detail) == (Outcome.CRASH, detail)


@everywhere
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is kept on Linux only")
@pytest.mark.parametrize("script", ["x = 'a' * 10**10", "x = []\nwhile True: x.append(bytes(10**7))"])
def test_too_much_memory_is_an_outcome_of_its_own(script, walls):
    ran = run(script, walls, Limits(timeout=60.0, memory_mb=256))
    assert (ran.outcome, ran.detail) == (Outcome.MEMORY, "more than 256 MiB of memory")
    assert "MemoryError" in ran.output


@everywhere
@pytest.mark.parametrize(
    "script", ["while True: print('x' * 1000)", "import os\nwhile True: os.write(2, bytes(10**6))"]
)
def test_a_flood_is_cut_off_and_neither_blocks_nor_fills_our_memory(script, walls):
    ran = run(script, walls)
    assert (ran.outcome, ran.detail) == (Outcome.FLOOD, "more than 262144 bytes of output")
    assert len(ran.output) == 262144


@everywhere
def test_output_that_is_no_text_is_replaced(walls):
    ran = run("import sys\nn = sys.stdout.buffer.write(b'\\xff\\xfe!\\n')", walls)
    assert ran.output == "\ufffd\ufffd!\n"


@everywhere
def test_a_large_file_is_an_error(walls):
    ran = run("open('big', 'wb').write(bytes(10**8))", walls)
    assert "File too large" in ran.output, ran


# -------------------------------------------------------------------------------------------------------------- outside


@everywhere
@pytest.mark.parametrize(
    "script",
    [
        "import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=20)",
        "import urllib.request\nurllib.request.urlopen('http://192.0.2.1/', timeout=20)",
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.sendto(b'x', ('192.0.2.1', 53))",
    ],
)
def test_there_is_no_network(script, walls):
    ran = run(script, walls)
    assert ran.outcome is Outcome.ERROR
    assert "not allowed here" in ran.output or "unreachable" in ran.output


@everywhere
def test_nothing_outside_of_the_folder_can_be_written(walls, tmp_path):
    (tmp_path / "theirs").mkdir()
    victim = tmp_path / "theirs" / "victim"
    victim.write_text("whole")
    for script in (
        f"open({str(victim)!r}, 'w').write('gone')",
        f"import os; os.remove({str(victim)!r})",
        f"import os; os.rename({str(victim)!r}, 'mine')",
        f"import pathlib; pathlib.Path({str(victim.parent / 'new')!r}).mkdir()",
        f"import os; os.symlink({str(victim.parent)!r}, 'link'); open('link/new', 'w')",
    ):
        assert run(script, walls).outcome is Outcome.ERROR, script
    assert victim.read_text() == "whole"
    assert list(victim.parent.iterdir()) == [victim]


@in_namespaces
def test_other_files_cannot_be_read_and_other_processes_not_be_seen(walls, tmp_path):
    (tmp_path / "answers").write_text("42")
    ran = run(f"open({str(tmp_path / 'answers')!r}).read()", walls)
    assert "FileNotFoundError" in ran.output
    ran = run(f"import os\nos.kill({os.getpid()}, 0)", walls)
    assert "ProcessLookupError" in ran.output
    assert run("import os\n(os.getpid() < 5, os.getppid() < 5)", walls).output == "(True, True)\n"


@in_namespaces
def test_no_right_is_left_over(walls):
    script = (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "print([libc.umount2(b'/usr', 2), libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None), libc.chroot(b'/tmp')])\n"
        "open('/usr/x', 'w')"
    )
    ran = run(script, walls)
    assert ran.output.startswith("[-1, -1, -1]\n")
    assert ran.outcome is Outcome.ERROR


def living(*marks):
    """Processes whose command line holds all of the marks."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                line = (entry / "cmdline").read_bytes()
                found |= {int(entry.name)} if all(mark in line for mark in marks) else set()
    return found


@in_namespaces
@pytest.mark.parametrize("ends", ["os._exit(0)", "time.sleep(3600)"])
def test_a_grandchild_that_made_itself_a_daemon_dies_with_the_script(walls, ends):
    mark, python = f"left-behind-{walls}-{os.getpid()}-{len(ends)}", os.path.realpath(sys.executable)
    script = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        f"        os.execv({python!r}, ['python', '-S', '-c', 'import time; time.sleep(3600)', {mark!r}])\n"
        "    os._exit(0)\n"
        "time.sleep(0.5)\n"
        "print('begun', flush=True)\n"
        f"{ends}"
    )
    ran = run(script, walls, SHORT)
    assert ran.output == "begun\n"
    assert ran.outcome is (Outcome.OK if "_exit" in ends else Outcome.TIMEOUT)
    deadline = time.monotonic() + MINUTE
    while living(mark.encode()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not living(mark.encode())


@pytest.mark.parametrize("walls", [walls for walls in HELD if walls is not Walls.USER or os.geteuid() != 0])
def test_a_fork_bomb_is_bounded(walls):
    """In a user namespace of root's there is no limit on processes; `find_walls` never gives root one."""
    ran = run("import os, time\nfor n in range(200):\n    if os.fork() == 0: time.sleep(3600)", walls)
    assert ran.outcome is Outcome.ERROR
    assert "Resource temporarily unavailable" in ran.output or "not allowed here" in ran.output


def test_walls_that_are_an_audit_hook_refuse_processes_and_signals():
    for script in ("import os; os.fork()", "import subprocess; subprocess.run(['true'])", "import os; os.kill(1, 0)",
                   "import os; os.system('true')"):  # fmt: skip
        assert "PermissionError: not allowed here" in run(script, Walls.HOOK).output


# ---------------------------------------------------------------------------------------------------------- our own end


@everywhere
def test_a_run_that_is_cancelled_leaves_nothing_behind(walls):
    mark = f"cancelled-{walls}-{os.getpid()}"

    async def cancelled():
        before = living(b"inside.py")
        task = asyncio.create_task(Sandbox(LONG, walls).run(f"import time; time.sleep(3600)  # {mark}"))
        while not living(b"inside.py") - before:
            await asyncio.sleep(0.02)
        started = living(b"inside.py") - before
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return started

    if not Path("/proc").exists():
        pytest.skip("reads /proc")
    started = asyncio.run(cancelled())
    deadline = time.monotonic() + MINUTE
    while started & living(b"inside.py") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not started & living(b"inside.py")


@everywhere
@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process of its parent's death")
def test_a_script_dies_with_the_process_that_started_it_however_that_ends(walls, tmp_path):
    program = tmp_path / "starts.py"
    program.write_text(
        "import asyncio\nfrom anabranch.environments.sandbox import *\n"
        f"asyncio.run(Sandbox(Limits(timeout=3600.0), Walls({str(walls)!r})).run('import time; time.sleep(3600)'))"
    )
    child = module.subprocess.Popen([sys.executable, str(program)], env={**os.environ, "TMPDIR": str(tmp_path)})

    def below():
        return living(b"inside.py", b"\0%d\0" % child.pid)

    deadline = time.monotonic() + MINUTE
    while len(below()) < (1 if walls is Walls.HOOK else 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert below()
    child.send_signal(signal.SIGKILL)
    child.wait()
    while below() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not below()


def test_many_run_at_once():
    async def play():
        box = Sandbox(LONG)
        return await asyncio.gather(*(box.run(f"{n} * {n}") for n in range(12)))

    assert [ran.output for ran in asyncio.run(play())] == [f"{n * n}\n" for n in range(12)]


def test_walls_that_cannot_be_put_up_are_an_error_not_a_result(monkeypatch):
    from anabranch.errors import AnabranchError

    monkeypatch.setattr(module, "SYSTEM", ("/usr",))
    monkeypatch.setattr(module, "_command", lambda walls, folder, limits: [sys.executable, "-S", str(module.PROGRAM),
                        "user", "1", folder, "64", "1"])  # fmt: skip  # process 1 did not start it
    with pytest.raises(AnabranchError, match="sandbox could not be made"):
        asyncio.run(Sandbox(LONG, Walls.USER).run("1"))
