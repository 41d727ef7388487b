"""Batch-norm of currents over the batch and time, whose statistics a spiking network takes while it is trained.

With m and s2 the mean and the variance of a channel's current over samples, steps and positions,

    nn.BatchNorm    y_t = w (x_t - m) / sqrt(s2 + eps) + b
    tdBN            the same, w starts at alpha * v_threshold (Zheng et al. 2021, "Going deeper with directly-trained larger
                    spiking neural networks", eq. 7-9), so that currents are as large as the threshold
    TEBN            y_t = p_t (w (x_t - m) / sqrt(s2 + eps) + b), one trained factor a step (Duan et al. 2022, "Temporal
                    effective batch normalization in spiking neural networks", eq. 8)

A synapse folds time into the batch, so that PyTorch's own modules take the statistics of both. An input that is the same at
every step is one step to them: copies of a sample say nothing new about the variance. ``snn/folding.py`` puts all of them into
weights. Suffix legend: T steps, B batch, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spikeprop.runtime.checks import at_least_one, positive


class ThresholdBatchNorm(_BatchNorm):
    """Threshold-dependent batch-norm (tdBN): of vectors, signals, images or volumes, channels on axis 1.

    Args:
        num_features: channels C.
        v_threshold: of the neurons that read it.
        alpha: the current's standard deviation in thresholds at the start; of several paths that are added, 1/sqrt(paths).
        **settings: as of ``torch.nn.BatchNorm2d``.
    """

    def __init__(self, num_features: int, *, v_threshold: float = 1.0, alpha: float = 1.0, **settings: Any):
        self.v_threshold, self.alpha = float(v_threshold), float(alpha)
        positive(self, "v_threshold", "alpha")
        super().__init__(num_features, **settings)

    def reset_parameters(self) -> None:
        """The start of training."""
        super().reset_parameters()
        if self.affine:
            nn.init.constant_(self.weight, self.alpha * self.v_threshold)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"a {type(self).__name__} reads (batch, {self.num_features}, ...); got {tuple(input.shape)}")


class TemporalBatchNorm(ThresholdBatchNorm):
    """Batch-norm with a trained factor for each time step (TEBN).

    A network of them runs for at most as many steps as there are factors.

    Args:
        num_features: channels C.
        timesteps: T, the number of factors.
        **settings: as of ``ThresholdBatchNorm``.
    """

    def __init__(self, num_features: int, timesteps: int, **settings: Any):
        self.timesteps = timesteps
        at_least_one(self, "timesteps")
        super().__init__(num_features, **settings)
        self.factors = nn.Parameter(torch.ones(timesteps, device=settings.get("device"), dtype=settings.get("dtype")))

    def forward(self, input: Tensor, steps: int | None = None, first: int = 0) -> Tensor:
        """``input`` (T*B, C, ...) of ``steps`` steps from step ``first`` on.

        Raises:
            ValueError: more steps than there are factors.
        """
        normal = super().forward(input)
        if steps is None or input.is_meta:
            return normal
        if first + steps > len(self.factors):
            raise ValueError(
                f"a TemporalBatchNorm with {len(self.factors)} factors was given {first + steps} steps: run the network for at "
                f"most {len(self.factors)}"
            )
        factor_T = self.factors[first : first + steps].to(normal.dtype).reshape(-1, *(1,) * normal.dim())
        return (normal.unflatten(0, (steps, -1)) * factor_T).flatten(0, 1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, timesteps={len(self.factors)}"


_FIRST_STEP: ContextVar[int] = ContextVar("first_step", default=0)
_SHAPES_ONLY: ContextVar[bool] = ContextVar("shapes_only", default=False)
OWN_NORMS = (ThresholdBatchNorm, TemporalBatchNorm)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, *OWN_NORMS)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Meanwhile batch-norm, which changes no shape, is left out, so that its statistics stay as they are."""
    token = _SHAPES_ONLY.set(True)
    try:
        yield
    finally:
        _SHAPES_ONLY.reset(token)


@contextmanager
def steps_from(first: int) -> Iterator[None]:
    """Meanwhile the first of the steps that a batch-norm is given is this one of the simulation."""
    token = _FIRST_STEP.set(first)
    try:
        yield
    finally:
        _FIRST_STEP.reset(token)


def normalised(norm: nn.Module, x_TB: Tensor, steps: int) -> Tensor:
    """A batch-norm's result for currents (T*B, C, ...) of ``steps`` steps."""
    if _SHAPES_ONLY.get():
        return x_TB
    return norm(x_TB, steps, _FIRST_STEP.get()) if isinstance(norm, TemporalBatchNorm) else norm(x_TB)


def takes_statistics(network: nn.Module) -> str | None:
    """Path of a batch-norm that normalises by the statistics of its batch; None without."""
    for path, module in network.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats):
            return path
    return None


def needs_all_steps(network: nn.Module) -> str | None:
    """Why a network can only run all its steps at once, in words; None if it can run them one by one."""
    path = takes_statistics(network)
    return None if path is None else f"{path!r} is a batch-norm in training mode, which takes the statistics of all steps"
