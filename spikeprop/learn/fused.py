"""Optimisers in torch's fused form on the CPU: a step is one pass over memory instead of ten.

torch's fused kernels take parameter, gradient and state for tensors that lie in memory alike, and do not look whether they do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

FUSED = (Adam, AdamW, SGD, Adagrad)
CHOICES = ("fused", "foreach")  # how an optimiser computes; not what


def can_be_fused(optimizer: Optimizer, model: nn.Module) -> bool:
    """Whether torch has a fused form of exactly this optimiser for these parameters, and nobody has chosen another form."""
    if type(optimizer) not in FUSED:
        return False
    if any(getattr(module, "sparse", False) is True for module in model.modules()):  # an embedding with sparse gradients
        return False
    groups = optimizer.param_groups
    if any(group.get("momentum") and group.get("dampening") for group in groups):  # a first step has none, see ``align``
        return False
    if any(group.get(name) is not None for group in groups for name in CHOICES) or any(g.get("differentiable") for g in groups):
        return False
    parameters = [p for group in groups for p in group["params"]]
    return all(type(p) is nn.Parameter and p.device.type == "cpu" and p.is_floating_point() for p in parameters)


@contextmanager
def fused_steps(optimizer: Optimizer, model: nn.Module) -> Iterator[None]:
    """Within the block the optimiser is fused where it can be."""
    fused = can_be_fused(optimizer, model)
    for group in optimizer.param_groups if fused else []:
        group["fused"] = True
    try:
        yield
    finally:
        for group in optimizer.param_groups if fused else []:
            group["fused"] = None


def align(optimizer: Optimizer) -> None:
    """Give gradients and state the memory layout of their parameters, where a fused step will read them."""
    for group in optimizer.param_groups:
        if group.get("fused") and group.get("momentum"):
            _start_late_momenta(optimizer, group["params"])
        for p in group["params"] if group.get("fused") else []:
            if p.grad is not None and p.grad.stride() != p.stride():
                p.grad = like(p, p.grad)
            state = optimizer.state.get(p, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == p.shape and value.stride() != p.stride():
                    state[key] = like(p, value)


def _start_late_momenta(optimizer: Optimizer, parameters: list[Tensor]) -> None:
    """Momenta of 0 for parameters that get their first gradient, or a new start, after the others of their group.

    torch's fused SGD starts all momenta of a group together. Without dampening a momentum of 0 is a first step.
    """
    stepping = [p for p in parameters if p.grad is not None]
    late = [p for p in stepping if optimizer.state.get(p, {}).get("momentum_buffer") is None]
    if len(late) < len(stepping):
        for p in late:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """``value`` in the memory layout of ``parameter``."""
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
