"""The matrix products of a computation: recorded by shape while it runs, then run again by themselves.

What a computation would take if it did nothing but its matrix products bounds what can be gained by doing everything
else better. Letters: m, k, n sizes of a product [m, k] x [k, n].
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

aten = torch.ops.aten

PRODUCTS: Mapping[Any, tuple[int, int]] = {
    aten.mm.default: (0, 1),
    aten.mm.out: (0, 1),
    aten.addmm.default: (1, 2),
    aten.addmm.out: (1, 2),
    aten.bmm.default: (0, 1),
    aten.bmm.out: (0, 1),
    aten.baddbmm.default: (1, 2),
    aten.baddbmm.out: (1, 2),
}
"""The operations that all products end in, and which of their arguments are the two factors."""

GAP = 64
"""Operands begin at multiples of so many values, as tensors of their own do."""


@dataclass(frozen=True)
class Operand:
    """A tensor without its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> Operand:
        """What a tensor looks like."""
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.device)

    def make(self) -> Tensor:
        """A tensor that looks like this, filled with small random numbers."""
        reach = sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))
        values = torch.empty(max(0, reach + 1) if 0 not in self.shape else 0, dtype=self.dtype, device=self.device)
        return values.uniform_(-0.1, 0.1).as_strided(self.shape, self.stride)


@dataclass(frozen=True)
class Product:
    """One matrix product: which operation, on what."""

    op: Any
    """A key of `PRODUCTS`."""
    args: tuple[Any, ...]
    """Positional arguments; tensors as `Operand`."""
    kwargs: tuple[tuple[str, Any], ...]
    """Named arguments, sorted; tensors as `Operand`."""
    in_head: bool = False
    """Whether it belongs to what comes after the model's last hidden states."""

    @property
    def factors(self) -> tuple[Operand, Operand]:
        """What is multiplied."""
        first, second = PRODUCTS[self.op]
        return self.args[first], self.args[second]

    @property
    def size(self) -> tuple[int, int, int, int]:
        """(batch, m, k, n); batch is 1 unless the operation has one."""
        a, b = self.factors
        return (a.shape[0] if self.batched else 1, a.shape[-2], a.shape[-1], b.shape[-1])

    @property
    def batched(self) -> bool:
        """Whether it is many products in one call; those of attention are."""
        return len(self.factors[0].shape) == 3

    @property
    def flops(self) -> int:
        """Multiplications and additions: 2 * batch * m * k * n."""
        batch, m, k, n = self.size
        return 2 * batch * m * k * n

    @property
    def name(self) -> str:
        """`mm [512, 576] x [576, 49152] bfloat16`."""
        op = str(self.op).removeprefix("aten.").partition(".")[0]
        a, b = self.factors
        return f"{op} {list(a.shape)} x {list(b.shape)} {str(a.dtype).removeprefix('torch.')}"


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every matrix product that is computed while it is entered, in order; also those of backward passes.

    Products inside fused kernels (scaled dot product attention) are no calls of their own and are not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: list[Product] = []
        self._in_head = False

    def leave_body(self, _module: Any, _args: Any, output: Any) -> None:
        """A forward hook of the model without its head: its end, and the backward pass's return to it, are noted."""
        self._in_head = True
        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.register_hook(lambda _: self._enter_body())

    def _enter_body(self) -> None:
        self._in_head = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch in place of every operation."""
        named = kwargs or {}
        if func in PRODUCTS:
            seen = tuple(sorted((name, _seen(value)) for name, value in named.items()))
            self.products.append(Product(func, tuple(_seen(value) for value in args), seen, self._in_head))
        return func(*args, **named)


def _seen(value: Any) -> Any:
    return Operand.of(value) if isinstance(value, Tensor) else value


def record(model: PreTrainedModel, compute: Callable[[], object]) -> list[Product]:
    """The matrix products of forward and backward passes, in order.

    Args:
        model: whose head is told from its layers.
        compute: backward follows each forward before the next one begins.
    """
    recorder = Recorder()
    hook = model.base_model.register_forward_hook(recorder.leave_body)
    try:
        with recorder:
            compute()
    finally:
        hook.remove()
    return recorder.products


class Replay:
    """The same products again, in the same order, and nothing else.

    Each distinct product has operands of its own, made once. Between two products alike the others run, so that caches
    are about as warm as they were; a layer's weights are here those of all layers, which is in the products' favour.
    """

    def __init__(self, products: Sequence[Product]) -> None:
        self._order = list(products)
        self._calls = {product: _call(product) for product in dict.fromkeys(products)}

    @torch.no_grad()
    def run(self) -> dict[Product, float]:
        """Run everything once; returns the seconds of each distinct product, all its calls together."""
        seconds: dict[Product, float] = dict.fromkeys(self._calls, 0.0)
        for product in self._order:
            call = self._calls[product]
            start = time.perf_counter()
            call()
            seconds[product] += time.perf_counter() - start
        return seconds

    @property
    def counts(self) -> dict[Product, int]:
        """How often each distinct product is called."""
        return dict(Counter(self._order))


def _call(product: Product) -> Callable[[], object]:
    args = [_made(value) for value in product.args]
    kwargs = {name: _made(value) for name, value in product.kwargs}
    return lambda: product.op(*args, **kwargs)


def _made(value: Any) -> Any:
    return value.make() if isinstance(value, Operand) else value
