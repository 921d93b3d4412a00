"""How far two gradients of the same loss lie apart, parameter by parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


def compare(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Figures of `ours - theirs`, summed in float64; see `compare_by_name`."""
    return compare_by_name(ours.keys(), theirs.keys(), ours.__getitem__, theirs.__getitem__)


def compare_files(ours: Path, theirs: Path) -> dict[str, Any]:
    """As `compare`, for two safetensors files; one parameter at a time is in memory."""
    from safetensors import safe_open

    with safe_open(ours, "pt") as a, safe_open(theirs, "pt") as b:
        return compare_by_name(a.keys(), b.keys(), a.get_tensor, b.get_tensor)


def compare_by_name(
    our_names: Iterable[str],
    their_names: Iterable[str],
    ours: Callable[[str], Tensor],
    theirs: Callable[[str], Tensor],
) -> dict[str, Any]:
    """Figures of the difference between two gradients, theirs being the reference.

    A tied parameter is expected once on both sides, under the same name: its gradient is then that of all its uses.

    Returns:
        `relative_error` ||ours - theirs|| / ||theirs|| over everything (L2 norms), `cosine` of the angle between them,
        `norm_ratio` ||ours|| / ||theirs||, `parameters`, how many there are, and `worst`: `name` and `relative_error`
        of the parameter with the largest error relative to its own norm (a parameter that is 0 on both sides has none).

    Raises:
        ValueError: names or shapes differ, or their gradient is 0 everywhere.
    """
    names, others = set(our_names), set(their_names)
    if names != others:
        odd = sorted(names ^ others)
        raise ValueError(f"{len(odd)} parameters have a gradient on one side only, first {odd[0]}")
    square = our_square = their_square = dot = 0.0
    worst = ("", -1.0)
    for name in sorted(names):
        a, b = ours(name).double().flatten(), theirs(name).double().flatten()
        if ours(name).shape != theirs(name).shape:
            raise ValueError(f"{name}: shapes {tuple(ours(name).shape)} and {tuple(theirs(name).shape)}")
        difference, reference = float((a - b).square().sum()), float(b.square().sum())
        square, our_square, their_square = (
            square + difference,
            our_square + float(a.square().sum()),
            their_square + reference,
        )
        dot += float(a @ b)
        worst = max(worst, (name, _relative(difference, reference)), key=lambda found: found[1])
    if their_square == 0:
        raise ValueError("the reference gradient is 0 everywhere: there is nothing to compare with")
    return {
        "relative_error": math.sqrt(square / their_square),
        "cosine": dot / math.sqrt(our_square * their_square) if our_square else 0.0,
        "norm_ratio": math.sqrt(our_square / their_square),
        "parameters": len(names),
        "worst": {"name": worst[0], "relative_error": worst[1]},
    }


def _relative(difference_square: float, reference_square: float) -> float:
    if reference_square == 0:
        return 0.0 if difference_square == 0 else math.inf
    return math.sqrt(difference_square / reference_square)
