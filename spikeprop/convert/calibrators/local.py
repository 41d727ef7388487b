"""Local threshold balancing, and offset spikes on top of any calibrator.

Local threshold balancing (Bu et al. 2024, "Inference-scale complexity in ANN-SNN conversion") lets each channel's threshold
follow the gradient of its own layer's error. The error here is that of the rate after T steps against the activation: rounding to
steps of S/T, taken as uniform, holds large thresholds back, clipping at S small ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprop.convert.calibrate import ThresholdCalibrator, by_channel, calibrated, check_steps, in_shape
from spikeprop.convert.calibrators.statistics import ActivationCalibrator
from spikeprop.convert.part import WHOLE, Part
from spikeprop.snn import Layer, Neuron, SpikingNetwork


@dataclass(frozen=True, kw_only=True)
class LocalThresholdBalancing(ActivationCalibrator):
    """S of each channel by gradient descent on the squared error of S * rate against the activation.

    Attributes:
        timesteps: T of the rate.
        iterations: steps of the descent, each on ``samples`` activations of every channel.
        step: share of a Newton step that is taken, falling to 0 by a cosine.
        samples: activations a step.
    """

    timesteps: int = 16
    iterations: int = 200
    step: float = 0.3
    samples: int = 1024

    def __post_init__(self) -> None:
        check_steps(self.timesteps, "a rate needs")
        if self.iterations < 1 or self.samples < 1 or not self.step > 0:
            raise ValueError(f"iterations {self.iterations}, samples {self.samples}, step {self.step}: each must be positive")

    def worth(self, name: str, layer: Layer, neuron: Neuron, activation: Tensor, part: Part) -> Tensor:
        flat_CN = by_channel(activation)
        largest_C1 = part.largest(flat_CN.amax(1, keepdim=True))
        worth_C1, least_C1 = largest_C1 / 2, largest_C1 * 1e-3  # in the middle between rounding and clipping
        count, each, draws = part.size(flat_CN.shape[1]), flat_CN.shape[1] // len(activation), torch.Generator().manual_seed(0)
        for i in range(self.iterations):
            some = part.own(torch.randint(count, (self.samples,), generator=draws), each)
            rate = self.step * 0.5 * (1 + math.cos(math.pi * i / self.iterations))
            worth_C1 = torch.maximum(worth_C1 - rate * self._newton_step(flat_CN[:, some], worth_C1, part), least_C1)
        return in_shape(worth_C1.squeeze(1), activation)

    def _newton_step(self, a_CN: Tensor, worth_C1: Tensor, part: Part) -> Tensor:
        """Gradient by curvature of the mean squared error by the worth S, over the samples of all processes.

        The error is S^2 / 12 T^2 of rounding where a neuron fires at all, and (a - S)^2 where it is clipped. The gradient alone
        is of size S/T^2, far too small a step for large T.
        """
        over_CN = a_CN - worth_C1
        of_each = ((a_CN > 0) & (over_CN < 0), over_CN > 0, over_CN.clamp(min=0))
        sums_3C1 = torch.stack([values_CN.sum(1, keepdim=True, dtype=torch.float64) for values_CN in of_each])
        firing_C1, clipped_C1, excess_C1 = (part.total(sums_3C1) / self.samples).to(a_CN)
        firing_C1 = firing_C1 / (6 * self.timesteps**2)
        gradient_C1, curvature_C1 = worth_C1 * firing_C1 - 2 * excess_C1, firing_C1 + 2 * clipped_C1
        return torch.where(curvature_C1 > 0, gradient_C1 / curvature_C1, 0.0)


@dataclass(frozen=True, kw_only=True)
class OffsetSpike(ThresholdCalibrator):
    """Any calibrator, and ``pre_run`` steps beforehand that shift where neurons start (Hao et al. 2023; ``snn/offset.py``).

    The latency of the network includes the steps beforehand; the authors count them apart.

    Attributes:
        calibrator: sets the thresholds; theirs is that of a QCFS network (``LearnedCeiling``).
        pre_run: steps beforehand.
    """

    calibrator: ThresholdCalibrator
    pre_run: int = 4

    def __post_init__(self) -> None:
        if self.pre_run < 1:
            raise ValueError(f"pre_run is {self.pre_run}; offsets are learnt in at least 1 step")

    @property
    def joins(self) -> bool:
        return self.calibrator.joins

    def calibrate(self, network: SpikingNetwork, x: Tensor, part: Part = WHOLE) -> dict[str, Tensor]:
        thresholds = calibrated(self.calibrator, network, x, part)
        network.readout.set(pre_run=self.pre_run)
        return thresholds
