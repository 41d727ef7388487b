"""Calibrators that look at the ANN's activations alone.

Maximum, Diehl et al. 2015; percentile, Rueckauer et al. 2017 (by layer, or by channel as in Kim et al. 2020); least squared error
of the rate for a given number of steps, Li et al. 2021 ("A free lunch from ANN"); learnt clipping of the ANN itself, Ho &
Chang 2021 (TCL) and Bu et al. 2022 (QCFS).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprop.convert.calibrate import (
    Per,
    ThresholdCalibrator,
    Units,
    by_channel,
    check_grid,
    check_percentile,
    check_steps,
    in_shape,
    limited,
    positive,
    quantile,
)
from spikeprop.convert.graph import activations
from spikeprop.errors import ConversionError
from spikeprop.snn import Neuron, SpikingNetwork, Stage
from spikeprop.snn.neuron import SpikingMaxPool

SAMPLES = 1 << 15  # values of a channel that are enough to find its threshold


@dataclass(frozen=True, kw_only=True)
class ActivationCalibrator(ThresholdCalibrator):
    """A spike's worth follows from the ANN's activations of its layer."""

    def calibrate(self, network: SpikingNetwork, x: Tensor) -> dict[str, Tensor]:
        units, thresholds = Units(network, x), {}
        for name, stage, activation in activations(network, x):
            units.fold(stage)
            if isinstance(stage.neuron, SpikingMaxPool):
                units.pass_on(name, stage)
            elif stage.neuron is not None:
                worth = limited(stage, positive(name, self.worth(name, stage, stage.neuron, activation)))
                thresholds[name] = units.settle(name, stage, worth)
        return thresholds

    @abstractmethod
    def worth(self, name: str, stage: Stage, neuron: Neuron, activation: Tensor) -> Tensor:
        """What one spike of a layer stands for, given its activation (B, C, ...): a number, or one a channel (C, 1, 1)."""


@dataclass(frozen=True, kw_only=True)
class Percentile(ActivationCalibrator):
    """S = the given percentile of the activations over images and neurons.

    By layer, Rueckauer et al. 2017; by channel, Kim et al. 2020 (Spiking-YOLO).

    Attributes:
        percentile: in (0, 100].
        per: one threshold a layer, or one a channel.
    """

    percentile: float = 99.9
    per: Per = "layer"

    def __post_init__(self) -> None:
        check_percentile(self.percentile)

    def worth(self, name: str, stage: Stage, neuron: Neuron, activation: Tensor) -> Tensor:
        q = self.percentile / 100
        if self.per == "layer":
            return quantile(activation.flatten(), q)
        return in_shape(quantile(by_channel(activation), q), activation)


@dataclass(frozen=True, kw_only=True)
class MaxActivation(ActivationCalibrator):
    """S = the largest activation (Diehl et al. 2015).

    Attributes:
        per: one threshold a layer, or one a channel.
    """

    per: Per = "layer"

    def worth(self, name: str, stage: Stage, neuron: Neuron, activation: Tensor) -> Tensor:
        return Percentile(percentile=100.0, per=self.per).worth(name, stage, neuron, activation)


@dataclass(frozen=True, kw_only=True)
class LeastError(ActivationCalibrator):
    """S = what makes the rate after ``timesteps`` steps differ least from the activation, in squares (Li et al. 2021).

    The rate is taken as clip(floor(T a/S + v_init), 0, T)/T, that of a constant current; S is searched on a grid of fractions of
    the largest activation.

    Attributes:
        timesteps: T.
        per: one threshold a layer, or one a channel.
        grid: number of fractions.
    """

    timesteps: int = 16
    per: Per = "channel"
    grid: int = 50

    def __post_init__(self) -> None:
        check_steps(self.timesteps, "a rate needs")
        check_grid(self.grid)

    def worth(self, name: str, stage: Stage, neuron: Neuron, activation: Tensor) -> Tensor:
        return best_worth(activation, activation, neuron, self.per, self.timesteps, self.grid)


def best_worth(current: Tensor, target: Tensor, neuron: Neuron, per: Per, timesteps: int, grid: int) -> Tensor:
    """The worth of least error, for currents and targets (B, C, ...): a number, or one a channel (C, 1, 1)."""
    start = float(neuron.v_init.mean())
    if per == "layer":
        return least_error(current.reshape(1, -1), target.reshape(1, -1), start, timesteps, grid).reshape(())
    return in_shape(least_error(by_channel(current), by_channel(target), start, timesteps, grid), target)


def least_error(current_CN: Tensor, target_CN: Tensor, start: float, timesteps: int, grid: int) -> Tensor:
    """For each row, the worth S with the least squared error of S * rate(current / S) against the target, (C,).

    Of long rows ``SAMPLES`` values are looked at, evenly apart.
    """
    largest_C = target_CN.amax(1)
    apart = max(1, target_CN.shape[1] // SAMPLES)
    current_CN, target_CN = current_CN[:, ::apart].contiguous(), target_CN[:, ::apart].contiguous()
    best_C, error_C = largest_C.clone(), torch.full_like(largest_C, torch.inf)
    for fraction in torch.linspace(1, 0, grid + 1)[:-1].tolist():
        worth_C1 = (largest_C * fraction).clamp(min=1e-12).unsqueeze(1)
        found_C = (quantised(current_CN / worth_C1, start, timesteps) * worth_C1).sub_(target_CN).square_().sum(1)
        better_C = found_C < error_C
        error_C = torch.where(better_C, found_C, error_C)
        best_C = torch.where(better_C, worth_C1.squeeze(1), best_C)
    return torch.where(largest_C > 0, best_C, largest_C)


def quantised(ratio: Tensor, start: float | Tensor, timesteps: int) -> Tensor:
    """Rate after ``timesteps`` steps of a constant current, in units of the threshold: clip(floor(T r + v_init), 0, T) / T."""
    return (ratio * timesteps + start).floor_().clamp_(0, timesteps) / timesteps


@dataclass(frozen=True, kw_only=True)
class LearnedCeiling(ActivationCalibrator):
    """S = what the ANN's activation is clipped at: learnt by the ANN (QCFS, TCL), or fixed (ReLU6).

    For QCFS the neurons start at half their threshold (v_init 0.5), as Bu et al. 2022 derive.
    """

    def worth(self, name: str, stage: Stage, neuron: Neuron, activation: Tensor) -> Tensor:
        if stage.ceiling is None:
            raise ConversionError(
                f"layer {name!r} comes from a ReLU without a ceiling; train the ANN with QCFS or ClippedReLU activations, or "
                "choose another calibrator"
            )
        return stage.ceiling.to(activation)
