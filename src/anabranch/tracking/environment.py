"""What a run ran on: software versions, machine, commit. No environment variables: they hold secrets."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PACKAGES = ("anabranch", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic", "math-verify")
EXTRAS = ("reasoning-gym", "gguf", "datasets")


def describe_environment(working_directory: Path | None = None) -> dict[str, Any]:
    """Plain JSON types: time, python, platform, package versions, processor, cores, git commit, command line.

    Args:
        working_directory: whose git commit to name; None: the current one. The commit is None outside a repository.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in (*PACKAGES, *EXTRAS)},
        "cpu": _cpu_model(),
        "cores": _cores(),
        "git_commit": _git_commit(working_directory or Path.cwd()),
        "command": list(sys.argv),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_flags(cpuinfo: str) -> set[str]:
    """The features that the text of /proc/cpuinfo lists; empty where it lists none (other than x86)."""
    lines = [line.partition(":")[2] for line in cpuinfo.splitlines() if line.startswith("flags")]
    return set(lines[0].split()) if lines else set()


def _cores() -> int:
    """Cores this process may use, where the system tells; otherwise all."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _git_commit(folder: Path) -> str | None:
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git here, or a file system that does not answer
        return None
    return done.stdout.strip() if done.returncode == 0 else None
