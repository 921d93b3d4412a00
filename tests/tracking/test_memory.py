"""What the memory measure promises."""

import subprocess
import sys

import numpy as np

from anabranch.tracking.memory import peak_rss_mb


def test_the_peak_stays_after_memory_is_given_back():
    before = peak_rss_mb()
    block = np.ones(40_000_000 // 8)
    with_block = peak_rss_mb()
    del block
    assert before > 5
    assert peak_rss_mb() >= with_block - 1
    assert peak_rss_mb() > 40


def test_a_living_child_counts_and_a_dead_one_does_not():
    before = peak_rss_mb()
    code = "x = b'1' * 60_000_000; print('ready', flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    during = peak_rss_mb()
    child.communicate("\n")
    assert during - before > 55
    assert peak_rss_mb() < during - 55


def test_a_child_of_a_child_counts():
    before = peak_rss_mb()
    inner = "x = b'1' * 60_000_000; print('ready', flush=True); input()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    child = subprocess.Popen([sys.executable, "-c", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    during = peak_rss_mb()
    child.communicate("\n")
    assert during - before > 65  # 60 MB and two interpreters
