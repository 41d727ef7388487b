"""Batch-norm over a batch that is sharded over processes: mean and variance are of the complete batch, in both passes.

With n_r values of a channel at rank r, of N in all,

    mean = sum_r n_r mean_r / N,    var = sum_r n_r (var_r + mean_r^2) / N - mean^2    (summed in float64)

and, with x^ the normalised input, g the gradient by the output and the loss L = sum_r w_r L_r over the processes' shards, whose
gradients are weighted by w_r only afterwards,

    dL_r/dx = gamma / sigma (g - (a + x^ b) / (N w_r)),    a = sum_r w_r sum g,    b = sum_r w_r sum g x^.

Where g is already weighted, as that of a sharded network is at its output, w_r is 1 here. Each pass needs one all-reduce.
PyTorch's ``SyncBatchNorm`` runs only on GPUs and gives all processes the same weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn

KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _Normalise(torch.autograd.Function):
    """(x, gamma, beta) to the normalised x, and the mean and variance of the complete batch."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor | None, beta: Tensor | None, share: float, weight: float, eps: float
    ) -> tuple[Tensor, ...]:
        mean, var = moments(x)
        own = x.numel() / x.shape[1]
        ctx.weight, ctx.count = weight, round(own / share)
        sums = own * torch.stack([mean, var + mean.square()])
        distributed.all_reduce(sums)
        mean, square = sums / ctx.count
        var = (square - mean.square()).clamp_min(0)
        mean, var = mean.to(x.dtype), var.to(x.dtype)
        ctx.eps, ctx.affine = eps, gamma is not None
        ctx.save_for_backward(x, torch.ones_like(mean) if gamma is None else gamma, mean, var)
        ctx.mark_non_differentiable(mean, var)
        return nn.functional.batch_norm(x, mean, var, gamma, beta, False, 0.0, eps), mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """In three passes over the data: torch's at fixed statistics, then the gradient through them, which is linear in x."""
        x, gamma, mean, var = ctx.saved_tensors
        fixed = torch.ops.aten.native_batch_norm_backward
        by_x, by_gamma, by_beta = fixed(grads[0], x, gamma, mean, var, None, None, False, ctx.eps, [True, True, True])
        total = torch.stack([by_beta, by_gamma]) * ctx.weight
        distributed.all_reduce(total)
        a, b = (total / (ctx.weight * ctx.count)).unbind()
        scale, shape = torch.rsqrt(var + ctx.eps), [1, -1] + [1] * (x.dim() - 2)
        slope = -gamma * scale.square() * b
        by_x.addcmul_(x, slope.view(shape)).sub_((gamma * scale * a + slope * mean).view(shape))
        return by_x, by_gamma if ctx.affine else None, by_beta if ctx.affine else None, None, None, None


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel, float64."""
    if x.is_cuda:
        var, mean = torch.var_mean(x, [axis for axis in range(x.dim()) if axis != 1], correction=0)
        return mean.double(), var.double()
    count, shape = x.numel() / x.shape[1], [1, -1] + [1] * (x.dim() - 2)
    rough = (_sums(x)[0] / count).to(x.dtype)  # squares are summed about it, so that a large mean does not cancel them
    rest, squares = _sums(x - rough.view(shape)) / count
    return rough + rest, squares - rest.square()


def _sums(x: Tensor) -> Tensor:
    """Sums of each channel's values and of their squares, (2, C) float64.

    By batch-norm's backward pass at mean 0 and variance 1, which on CPUs is ten times as fast as ``torch.var_mean``.
    """
    zeros, ones = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    only_sums = [False, True, True]
    _, squares, plain = torch.ops.aten.native_batch_norm_backward(x, x, ones, zeros, ones, None, None, False, 0.0, only_sums)
    return torch.stack([plain, squares]).double()


def _forward(module: Any, weight: Callable[[], float], weighted: bool, x: Tensor) -> Tensor:
    """The forward of a batch-norm module on this process's shard of a batch."""
    if not module.training and module.running_mean is not None:
        return type(module).forward(module, x)
    module._check_input_dim(x)
    share = weight()
    out, mean, var = _Normalise.apply(x, module.weight, module.bias, share, 1.0 if weighted else share, module.eps)
    count = round(x.numel() / x.shape[1] / share)  # values of a channel in the complete batch
    _update_running(module, mean, var * (count / max(count - 1, 1)))
    return out


@torch.no_grad()
def _update_running(module: Any, mean: Tensor, var: Tensor) -> None:
    if module.training and module.running_mean is not None:
        module.num_batches_tracked += 1
        rate = 1 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
        module.running_mean.lerp_(mean, rate)
        module.running_var.lerp_(var, rate)


def has_batchnorm(models: Sequence[nn.Module]) -> bool:
    """Whether there are statistics to synchronise."""
    return bool(_norms(models))


def _norms(models: Sequence[nn.Module]) -> list[Any]:
    return [module for model in models for module in model.modules() if type(module) in KINDS]


@contextmanager
def synchronised(models: Sequence[nn.Module], weight: Callable[[], float], *, weighted: bool = False) -> Iterator[None]:
    """Within this context batch-norm modules compute their statistics over all processes.

    Args:
        models: whose modules; names and parameters stay as they are.
        weight: this process's share of the current batch's examples.
        weighted: whether gradients arrive already weighted by it.
    """
    changed = _norms(models)
    for module in changed:
        module.forward = partial(_forward, module, weight, weighted)
    try:
        yield
    finally:
        for module in changed:
            del module.forward
