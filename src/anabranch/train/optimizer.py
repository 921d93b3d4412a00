"""AdamW on float32 master weights, for a model that computes in float32 or bfloat16.

Memory in bytes per parameter: 4 master, 4 gradient, 8 moments, and 2 for the bfloat16 copy that computes. A model that
computes in float32 is its own master. The compute weights are written in place, so an engine that shares them needs no
reload.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from anabranch.errors import CheckpointError, ModelError, TrainingError, explain
from anabranch.recipe.tree import Optim

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW remembers of every parameter, under the names of `torch.optim.AdamW`."""


def learning_rate(optim: Optim, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step `step`, counted from 0.

    Linear warm-up: lr * (step + 1) / warmup for step < warmup, so the first step already moves. After it `constant`
    stays at lr; `cosine` is lr * (1 + cos(pi * x)) / 2, x growing from 0 at the end of warm-up to 1 at `total_steps`.
    """
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    if optim.schedule == "constant":
        return optim.lr
    x = min(1.0, (step - optim.warmup) / max(1, total_steps - optim.warmup))
    return optim.lr * 0.5 * (1.0 + math.cos(math.pi * x))


class MasterOptimizer:
    """Float32 masters, their AdamW state, and the compute model that they are written back to.

    Gradients gather in float32 on the compute parameters themselves (`grad_dtype`): autograd converts every gradient as
    it arrives and adds it up over micro-batches, so no second set in bfloat16 ever lives. Tied parameters count once.
    Weight decay applies to parameters of two or more dimensions; biases and norm weights are not decayed.

    Raises:
        ModelError: a trainable parameter is neither float32 nor bfloat16, or there is none.
    """

    def __init__(self, model: nn.Module, optim: Optim) -> None:
        self.model = model
        self.grad_clip = optim.grad_clip
        self.compute = {name: p for name, p in model.named_parameters() if p.requires_grad}
        _check_parameters(self.compute)
        for parameter in self.compute.values():
            parameter.grad_dtype = torch.float32
        self.masters = {name: _master(parameter) for name, parameter in self.compute.items()}
        decay = optim.weight_decay
        masters = list(self.masters.values())
        self.adamw = torch.optim.AdamW(
            [
                {"params": [p for p in masters if p.ndim >= 2], "weight_decay": decay},
                {"params": [p for p in masters if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            fused=True,
        )
        for master in masters:  # torch makes these at the first step; made here, a checkpoint of step 0 is complete
            self.adamw.state[master] = {
                "step": torch.zeros((), dtype=torch.float32, device=master.device),
                "exp_avg": torch.zeros_like(master, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(master, requires_grad=False),
            }

    def step(self, lr: float) -> float:
        """One AdamW step on the gradients that backward left on the compute parameters, which are then freed.

        Args:
            lr: learning rate of this step, see `learning_rate`.

        Returns:
            Global L2 norm of the gradient before clipping. A larger one than `grad_clip` is scaled down to it.

        Raises:
            TrainingError: no parameter has a gradient, or the norm is not finite. Weights, moments and gradients are
                as they were.
        """
        grads = {name: p.grad for name, p in self.compute.items() if p.grad is not None}
        norm = self._checked_norm(grads)
        if self.grad_clip is not None and norm > self.grad_clip:
            torch._foreach_mul_(list(grads.values()), self.grad_clip / norm)
        for group in self.adamw.param_groups:
            group["lr"] = lr
        for name, master in self.masters.items():
            master.grad = grads.get(name)
        self.adamw.step()
        self.drop_gradients()
        self._write_back()
        return norm

    def zero_gradients(self) -> None:
        """Float32 zeros for every gradient, into which backward passes add without a detour (see `ops.hand_over`)."""
        for parameter in self.compute.values():
            parameter.grad = torch.zeros_like(parameter, dtype=torch.float32)

    def drop_gradients(self) -> None:
        """Free all gradients, as after a step."""
        for parameter in (*self.compute.values(), *self.masters.values()):
            parameter.grad = None

    @torch.no_grad()
    def forget(self) -> None:
        """Back to moments of zero and step 0, as in a new optimizer on the same weights."""
        for tensor in self.state_dict().values():
            tensor.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """AdamW's memory as flat tensors `<parameter>.<exp_avg | exp_avg_sq | step>`; by reference, not copied.

        Together with `master_state` this is everything: training continues from both bit for bit.
        """
        return {
            f"{name}.{key}": self.adamw.state[master][key] for name, master in self.masters.items() for key in MOMENTS
        }

    def load_state_dict(self, state: Mapping[str, Tensor], masters: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` and `master_state` gave; the compute weights are rewritten in place.

        Raises:
            CheckpointError: names, shapes or dtypes are not those of this model. Nothing is changed then.
        """
        kept = dict(self._untrained())
        _check_tensors("optimizer state", state, self.state_dict())
        _check_tensors("model weights", masters, {**self.masters, **kept})
        with torch.no_grad():
            for name, current in self.state_dict().items():
                current.copy_(state[name])
            for name, tensor in {**self.masters, **kept}.items():
                tensor.copy_(masters[name])
        self.drop_gradients()
        self._write_back()

    def master_state(self) -> dict[str, Tensor]:
        """Weights for the model folder: float32 masters under the model's own names, tied ones once; by reference.

        Parameters that are not trained and buffers that a checkpoint of the model holds are included as they are.
        """
        return {**{name: master.detach() for name, master in self.masters.items()}, **dict(self._untrained())}

    def _untrained(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.model.named_parameters():
            if name not in self.compute:
                yield name, parameter.detach()
        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        for name, tensor in self.model.state_dict().items():
            if name not in parameters:
                yield name, tensor

    def _checked_norm(self, grads: Mapping[str, Tensor]) -> float:
        if not grads:
            raise TrainingError(
                explain("optimizer step", "no gradient", "a step needs one", "run backward first, or skip the step")
            )
        norms = {name: gradient_norm(grad) for name, grad in grads.items()}
        norm = math.hypot(*norms.values())
        if not math.isfinite(norm):
            worst = next((name for name, value in norms.items() if not math.isfinite(value)), "the sum over all")
            raise TrainingError(
                explain(
                    "optimizer step",
                    f"a gradient norm of {norm} (first in {worst})",
                    "only a finite gradient can be applied; the weights are unchanged",
                    "a smaller optim.lr, or model.dtype=float32",
                )
            )
        return norm

    @torch.no_grad()
    def _write_back(self) -> None:
        pairs = [(self.compute[name], master) for name, master in self.masters.items()]
        copied = [(compute, master) for compute, master in pairs if compute is not master]
        if copied:
            torch._foreach_copy_([compute for compute, _ in copied], [master for _, master in copied])


@torch.no_grad()
def gradient_norm(grad: Tensor) -> float:
    """L2 norm of one gradient: rows in float32, their sum in float64.

    A single float32 sum over the 28 million values of an embedding is off by half a per cent.
    """
    rows = torch.linalg.vector_norm(grad, dim=-1) if grad.ndim >= 2 else grad
    return float(torch.linalg.vector_norm(rows.double()))


def _master(parameter: nn.Parameter) -> nn.Parameter:
    if parameter.dtype == torch.float32:
        return parameter
    return nn.Parameter(parameter.detach().float())


def _check_parameters(parameters: Mapping[str, nn.Parameter]) -> None:
    if not parameters:
        raise ModelError(explain("model", "no trainable parameter", "training needs one", "set requires_grad"))
    for name, parameter in parameters.items():
        if parameter.dtype not in (torch.float32, torch.bfloat16):
            raise ModelError(
                explain(name, str(parameter.dtype), "training computes in float32 or bfloat16", "model.dtype=float32")
            )


def _check_tensors(what: str, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    odd = sorted(given.keys() ^ own.keys())
    odd += sorted(
        name
        for name in given.keys() & own.keys()
        if given[name].shape != own[name].shape or given[name].dtype != own[name].dtype
    )
    if odd:
        raise CheckpointError(
            explain(
                what,
                f"{len(odd)} tensors that are missing, unknown or of another shape or dtype, first {odd[0]}",
                "it must come from the same model",
                "resume with the recipe that the run was started with",
            )
        )
