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

from spikeprop.convert.calibrate import ThresholdCalibrator, by_channel, check_steps, in_shape
from spikeprop.convert.statistics import ActivationCalibrator
from spikeprop.snn import Neuron, SpikingNetwork, Stage


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

    def worth(self, name: str, stage: Stage, neuron: Neuron, activation: Tensor) -> Tensor:
        flat_CN = by_channel(activation)
        worth_C1 = flat_CN.amax(1, keepdim=True) / 2  # in the middle between rounding and clipping
        least_C1 = flat_CN.amax(1, keepdim=True) * 1e-3
        draws = torch.Generator().manual_seed(0)
        for i in range(self.iterations):
            some_CN = flat_CN[:, torch.randint(flat_CN.shape[1], (self.samples,), generator=draws)]
            rate = self.step * 0.5 * (1 + math.cos(math.pi * i / self.iterations))
            worth_C1 = torch.maximum(worth_C1 - rate * _newton_step(some_CN, worth_C1, self.timesteps), least_C1)
        return in_shape(worth_C1.squeeze(1), activation)


def _newton_step(a_CN: Tensor, worth_C1: Tensor, timesteps: int) -> Tensor:
    """Gradient by curvature of the mean squared error by the worth S.

    The error is S^2 / 12 T^2 of rounding where a neuron fires at all, and (a - S)^2 where it is clipped. The gradient alone is
    of size S/T^2, far too small a step for large T.
    """
    firing_C1 = ((a_CN > 0) & (a_CN < worth_C1)).to(a_CN).mean(1, keepdim=True) / (6 * timesteps**2)
    over_CN = a_CN - worth_C1
    gradient_C1 = worth_C1 * firing_C1 - 2 * over_CN.clamp(min=0).mean(1, keepdim=True)
    curvature_C1 = firing_C1 + 2 * (over_CN > 0).to(a_CN).mean(1, keepdim=True)
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

    def calibrate(self, network: SpikingNetwork, x: Tensor) -> dict[str, Tensor]:
        thresholds = self.calibrator.calibrate(network, x)
        network.pre_run.fill_(self.pre_run)
        network.readout_from.zero_()  # its output starts anew after them
        return thresholds
