"""Local threshold balancing (Bu et al. 2024, "Inference-scale complexity in ANN-SNN conversion").

Each channel's threshold follows the gradient of its own layer's error. The error here is that of the rate after T steps against
the activation: rounding to steps of S/T, assumed uniform, makes large thresholds worse; clipping at S makes small ones worse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprop.convert.calibrator import LayerData, LayerwiseCalibrator
from spikeprop.convert.calibrators.rows import from_rows, rows
from spikeprop.convert.shard import CalibrationShard
from spikeprop.runtime.checks import at_least_one


@dataclass(frozen=True, kw_only=True)
class LocalThresholdBalancing(LayerwiseCalibrator):
    """S of each channel by gradient descent on the squared error of S * rate against the activation.

    For comparison with its paper: ``LeastError`` finds thresholds of least error by a search.

    Attributes:
        timesteps: T of the rate.
        iterations: steps of the descent, each on ``samples`` activations of every channel.
        step: fraction of a Newton step that is taken, falling to 0 by a cosine.
        samples: activations a step.
    """

    timesteps: int = 16
    iterations: int = 200
    step: float = 0.3
    samples: int = 1024

    def __post_init__(self) -> None:
        at_least_one(self, "timesteps")
        if self.iterations < 1 or self.samples < 1 or not self.step > 0:
            raise ValueError(f"iterations {self.iterations}, samples {self.samples}, step {self.step}: each must be positive")

    def activation_scale(self, data: LayerData) -> Tensor:
        shard, a_CN = data.shard, rows(data.activation, "channel")
        largest_C1 = shard.largest(a_CN.amax(1, keepdim=True))
        scale_C1, least_C1 = largest_C1 / 2, largest_C1 * 1e-3  # start in the middle between rounding and clipping
        count, per_image = shard.size(a_CN.shape[1]), a_CN.shape[1] // len(data.activation)
        draws, counts = torch.Generator().manual_seed(0), data.counts(self.timesteps)
        for i in range(self.iterations):
            some = shard.local(torch.randint(count, (self.samples,), generator=draws), per_image)
            rate = self.step * 0.5 * (1 + math.cos(math.pi * i / self.iterations))
            scale_C1 = torch.maximum(scale_C1 - rate * self._newton_step(a_CN[:, some], scale_C1, counts, shard), least_C1)
        return data.limited(data.positive(from_rows(scale_C1.squeeze(1), "channel", data.activation)))

    def _newton_step(self, a_CN: Tensor, scale_C1: Tensor, counts: int, shard: CalibrationShard) -> Tensor:
        """Gradient by curvature of the mean squared error by the scale S, over the samples of all processes.

        The error is S^2 / 12 T^2 of rounding where a neuron fires at all, and (a - S)^2 where it is clipped. The gradient alone
        is of size S/T^2, far too small a step for large T.
        """
        over_CN = a_CN - scale_C1
        terms = ((a_CN > 0) & (over_CN < 0), over_CN > 0, over_CN.clamp(min=0))
        sums_3C1 = torch.stack([values_CN.sum(1, keepdim=True, dtype=torch.float64) for values_CN in terms])
        firing_C1, clipped_C1, excess_C1 = (shard.total(sums_3C1) / self.samples).to(a_CN)
        firing_C1 = firing_C1 / (6 * counts**2)
        gradient_C1, curvature_C1 = scale_C1 * firing_C1 - 2 * excess_C1, firing_C1 + 2 * clipped_C1
        return torch.where(curvature_C1 > 0, gradient_C1 / curvature_C1, 0.0)
