"""Where and in which precision tensors are computed: chosen by looking at the machine, never assumed."""

from __future__ import annotations

import ctypes
import platform
import time
from collections.abc import Mapping, Sequence

import torch

from anabranch.errors import RecipeError, explain
from anabranch.recipe.tree import Model

RATE_SHAPES = ((64, 576, 1536), (256, 576, 1536), (256, 1536, 576))
"""(rows, in, out) of the products that are timed: those of a small model while decoding and while training."""

WORTH_IT = 1.2
"""bfloat16 must be so much faster than float32 before it is chosen: it costs precision."""

SECONDS = 0.2
"""Time spent on one dtype."""

THREAD_TRIALS = 10
"""How often each number of threads is tried, at most."""


def choose_device(setting: str) -> torch.device:
    """The device for `model.device`: `auto` (CUDA where there is one, otherwise the CPU), `cpu`, `cuda` or `cuda:N`.

    Raises:
        RecipeError: another word, or a CUDA device that is not there.
    """
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = setting.partition(":")
    if setting != "cpu" and (kind != "cuda" or (":" in setting and not index.isdecimal())):
        raise RecipeError(explain("model.device", setting, "it is auto, cpu, cuda or cuda:N", "model.device=auto"))
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise RecipeError(
            explain("model.device", setting, f"{torch.cuda.device_count()} CUDA devices are here", "model.device=cpu")
        )
    return torch.device(setting)


def measure_rates(
    device: torch.device | None = None, shapes: Sequence[tuple[int, int, int]] = RATE_SHAPES
) -> dict[str, float]:
    """Rate of matrix products in float32 and bfloat16, in TFLOP/s. Takes about 0.4 s.

    Args:
        device: where; None: the CPU.
        shapes: (rows, in, out) of each product.

    Returns:
        `{"float32": ..., "bfloat16": ...}`: operations of one pass over all shapes by the time of the fastest pass.
    """
    place = device or torch.device("cpu")
    flops = sum(2 * m * k * n for m, k, n in shapes)
    return {
        name: flops / _fastest_pass(place, shapes, dtype) / 1e12
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }


def _fastest_pass(device: torch.device, shapes: Sequence[tuple[int, int, int]], dtype: torch.dtype) -> float:
    pairs = [
        (torch.ones(m, k, dtype=dtype, device=device), torch.ones(n, k, dtype=dtype, device=device))
        for m, k, n in shapes
    ]
    best = float("inf")
    end = time.perf_counter() + SECONDS
    warm = False
    while not warm or time.perf_counter() < end:
        start = time.perf_counter()
        for a, b in pairs:
            torch.nn.functional.linear(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if warm:
            best = min(best, time.perf_counter() - start)
        warm = True  # the first pass compiles kernels
    return best if best < float("inf") else SECONDS


def choose_dtype(setting: str, device: torch.device) -> torch.dtype:
    """The compute dtype for `model.dtype`: `float32`, `bfloat16`, or `auto`.

    auto is bfloat16 only where it is measured to be at least 1.2 times as fast (a CPU without AMX or AVX512-BF16 is
    much slower in bfloat16). A measurement may come out differently next time: a run records what was chosen and keeps
    it on resume.

    Raises:
        RecipeError: another word.
    """
    if setting == "auto":
        rates = measure_rates(device)
        return torch.bfloat16 if rates["bfloat16"] >= WORTH_IT * rates["float32"] else torch.float32
    if setting == "float32":
        return torch.float32
    if setting == "bfloat16":
        return torch.bfloat16
    raise RecipeError(explain("model.dtype", setting, "it is auto, bfloat16 or float32", "model.dtype=auto"))


def set_threads(threads: int) -> int:
    """Set the CPU threads of tensor work (`model.threads`; 0 leaves torch's choice) and return the number in force.

    Sums over many values are split by thread: results are bit-equal only for the same number.

    Raises:
        RecipeError: a negative number.
    """
    if threads < 0:
        raise RecipeError(explain("model.threads", threads, "it is 0 or more", "model.threads=0"))
    if threads:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def choose_threads(setting: int) -> int:
    """Settle `model.threads` and return the number in force.

    0 tries torch's own choice, a half of it, a quarter and 1, in turns, on what a decode step does: products over 64
    rows and small operations between them. More threads win unless fewer are a tenth faster: on a machine that is busy
    with something else, threads that wait for each other at every small operation cost a factor of 3 and more.

    Raises:
        RecipeError: a negative number.
    """
    most = set_threads(setting)
    if setting or most == 1:
        return most
    candidates = sorted({most, max(1, most // 2), max(1, most // 4), 1}, reverse=True)
    seconds = dict.fromkeys(candidates, 0.0)
    chores = _Chores()
    end = time.perf_counter() + SECONDS
    for trial in range(THREAD_TRIALS):
        if trial and time.perf_counter() > end:
            break  # a busy machine: a round has taken long enough to tell
        for threads in candidates:
            torch.set_num_threads(threads)
            chores.run()  # the first pass with another number of threads wakes them
            start = time.perf_counter()
            for _ in range(3):
                chores.run()
            seconds[threads] += time.perf_counter() - start
    return set_threads(fastest(seconds))


def fastest(seconds: Mapping[int, float]) -> int:
    """The largest number of threads, unless fewer are at least a tenth faster than it: then the fastest."""
    most = max(seconds)
    best = min(seconds, key=lambda threads: seconds[threads])
    return best if seconds[best] < 0.9 * seconds[most] else most


class _Chores:
    """About what one decoder layer does with 64 rows, in float32: 2 ms on one core."""

    def __init__(self) -> None:
        self._x = torch.ones(64, 576)
        self._weights = torch.full((1536, 576), 1e-3), torch.full((576, 1536), 1e-3)

    def run(self) -> None:
        x = self._x
        for _ in range(4):
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        wide = torch.nn.functional.silu(torch.nn.functional.linear(x, self._weights[0]))
        torch.nn.functional.linear(wide, self._weights[1]).add_(x).softmax(-1)


def settle(model: Model) -> Model:
    """The model part with nothing left to measure: device, dtype and threads as they will be, now and on resume."""
    device = choose_device(model.device)
    threads = choose_threads(model.threads)
    dtype = choose_dtype(model.dtype, device)
    settled = {"device": str(device), "threads": threads, "dtype": str(dtype).removeprefix("torch.")}
    return Model.model_validate({**model.model_dump(), **settled})


def full_determinism() -> None:
    """Make torch refuse operations without a bit-exact form, and pick the exact form where there are two.

    On a CPU this matters for scattered additions, which otherwise race between threads. The filling of fresh memory
    that torch couples to it is switched off: it costs time, and nothing here reads memory that it has not written.
    """
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def return_free_memory() -> None:
    """Hand freed memory back to the system (glibc only; elsewhere it does nothing).

    Sampling and training take turns with tensors of other sizes, and the C library keeps what was freed in a heap full
    of holes. Measured on the quickstart: 40 to 110 MB less at the peak, for about 5 % of the training time.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
