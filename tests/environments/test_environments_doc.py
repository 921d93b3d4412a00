"""What docs/environments.md says is so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from anabranch.environments import inside
from anabranch.environments.arithmetic import DEEPEST, LONGEST, MOST_BITS
from anabranch.environments.sandbox import Limits, Outcome
from anabranch.recipe.tree import PythonTool

TEXT = (Path(__file__).parents[2] / "docs" / "environments.md").read_text(encoding="utf-8")
FLAT = " ".join(TEXT.split())


def test_the_example_runs_and_prints_what_it_says():
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(f"`{line}`" in TEXT for line in lines)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_is_explained(outcome):
    assert f"| `{outcome}` |" in TEXT


def test_the_limits_are_those_of_the_code():
    usual = PythonTool()
    assert f"| `turns` | {usual.turns} |" in TEXT
    assert f"start included | {usual.timeout:g} s |" in TEXT
    assert f"each process | {usual.memory_mb} |" in TEXT
    assert f"cut in the middle | {usual.output_chars} |" in TEXT
    assert f"scripts at a time | {usual.workers} |" in TEXT
    assert f"| {Limits().output_bytes:,} |" in TEXT
    assert f"{inside.FILE_BYTES // 2**20} MiB; {inside.FOLDER_BYTES // 2**20} MiB" in TEXT
    assert f"| {inside.PROCESSES}; {inside.OPEN_FILES} |" in TEXT
    assert f"({MOST_BITS} bits" in TEXT
    assert f"too long ({LONGEST} characters), too deep ({DEEPEST})" in FLAT
