"""Batch-norm over a batch that several processes share: mean and variance are those of all of it, in both passes.

    mean = sum_r s_r / n,    var = sum_r sum (x - mean)^2 / n

Each sum is one all-reduce. With the loss L = sum_r w_r L_r over the processes' shares, and gradients that are weighed by w_r
only afterwards, the derivative by a sum S is handed back to rank r as (1 / w_r) sum_r' w_r' dL_r'/dS. PyTorch's own
``SyncBatchNorm`` is for GPUs alone and weighs all processes alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn

KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0] * ctx.weight
        distributed.all_reduce(total)
        return total / ctx.weight, None


def _forward(module: Any, weight: Callable[[], float], x: Tensor) -> Tensor:
    """What a batch-norm module does to its part of a batch that is spread over the processes."""
    if not module.training and module.running_mean is not None:
        return type(module).forward(module, x)
    module._check_input_dim(x)
    share = weight()
    axes = [axis for axis in range(x.dim()) if axis != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    seen = round(x.numel() / x.shape[1] / share)  # values of a channel in the whole batch
    mean = _SumOverProcesses.apply(x.sum(axes), share) / seen
    centred = x - mean.view(shape)
    var = _SumOverProcesses.apply(centred.square().sum(axes), share) / seen
    _remember(module, mean.detach(), var.detach() * (seen / max(seen - 1, 1)))
    scaled = centred * torch.rsqrt(var + module.eps).view(shape)
    return scaled if module.weight is None else scaled * module.weight.view(shape) + module.bias.view(shape)


@torch.no_grad()
def _remember(module: Any, mean: Tensor, var: Tensor) -> None:
    if module.training and module.running_mean is not None:
        module.num_batches_tracked += 1
        rate = 1 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
        module.running_mean.lerp_(mean, rate)
        module.running_var.lerp_(var, rate)


def has_batchnorm(models: Sequence[nn.Module]) -> bool:
    """Whether there is anything to synchronise."""
    return any(type(module) in KINDS for model in models for module in model.modules())


@contextmanager
def synchronised(models: Sequence[nn.Module], weight: Callable[[], float]) -> Iterator[None]:
    """Batch-norm modules share their statistics for as long as the context lasts.

    Args:
        models: whose modules; names and parameters stay as they are.
        weight: this process's share of the batch at hand.
    """
    changed: list[Any] = [m for model in models for m in model.modules() if type(m) in KINDS]
    for module in changed:
        module.forward = partial(_forward, module, weight)
    try:
        yield
    finally:
        for module in changed:
            del module.forward
