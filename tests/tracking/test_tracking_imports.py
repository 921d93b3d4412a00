"""Tracking is light: readers and the viewer must not wait for torch."""

import subprocess
import sys


def test_tracking_does_not_import_torch():
    code = (
        "import sys, importlib, pkgutil, anabranch.tracking as t\n"
        "[importlib.import_module(f'anabranch.tracking.{m.name}') for m in pkgutil.iter_modules(t.__path__)]\n"
        "import anabranch.evaluation.metrics\n"
        "print(sorted({'torch', 'transformers', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
