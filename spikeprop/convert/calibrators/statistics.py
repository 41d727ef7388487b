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
)
from spikeprop.convert.graph import activations
from spikeprop.convert.part import WHOLE, Part
from spikeprop.errors import ConversionError
from spikeprop.snn import Layer, Neuron, SpikingNetwork

SAMPLES = 1 << 15  # values of a channel that are enough to find its threshold


@dataclass(frozen=True, kw_only=True)
class ActivationCalibrator(ThresholdCalibrator):
    """A spike's worth follows from the ANN's activations of its layer."""

    @property
    def joins(self) -> bool:
        return True

    def calibrate(self, network: SpikingNetwork, x: Tensor, part: Part = WHOLE) -> dict[str, Tensor]:
        units, thresholds = Units(network, x), {}
        for name, layer, activation in activations(network, x):
            units.fold(layer)
            if layer.dynamics.passes_on:
                units.pass_on(name, layer)
            elif isinstance(layer.neuron, Neuron):
                worth = limited(layer, positive(name, self.worth(name, layer, layer.neuron, activation, part)))
                thresholds[name] = units.settle(name, layer, worth)
        return thresholds

    @abstractmethod
    def worth(self, name: str, layer: Layer, neuron: Neuron, activation: Tensor, part: Part) -> Tensor:
        """What one spike of a layer stands for, given its activation (B, C, ...): a number, or one a channel (C, 1, 1).

        Of several processes each gives its own activations, and all get the same worth."""


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

    def worth(self, name: str, layer: Layer, neuron: Neuron, activation: Tensor, part: Part) -> Tensor:
        q = self.percentile / 100
        if self.per == "layer":
            return part.quantile(activation.reshape(1, -1), q).reshape(())
        return in_shape(part.quantile(by_channel(activation), q), activation)


@dataclass(frozen=True, kw_only=True)
class MaxActivation(ActivationCalibrator):
    """S = the largest activation (Diehl et al. 2015).

    Attributes:
        per: one threshold a layer, or one a channel.
    """

    per: Per = "layer"

    def worth(self, name: str, layer: Layer, neuron: Neuron, activation: Tensor, part: Part) -> Tensor:
        return Percentile(percentile=100.0, per=self.per).worth(name, layer, neuron, activation, part)


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

    def worth(self, name: str, layer: Layer, neuron: Neuron, activation: Tensor, part: Part) -> Tensor:
        search = Search(float(neuron.v_init.mean()), self.timesteps, self.grid)
        return best_worth(activation, activation, self.per, search, part)


@dataclass(frozen=True)
class Search:
    """For the worth of least error.

    Attributes:
        start: initial potential, in thresholds.
        timesteps: T of the rate.
        grid: fractions of the largest target that are tried.
    """

    start: float
    timesteps: int
    grid: int


def best_worth(current: Tensor, target: Tensor, per: Per, search: Search, part: Part) -> Tensor:
    """The worth of least error, for currents and targets (B, C, ...): a number, or one a channel (C, 1, 1)."""
    if per == "layer":
        return least_error(current.reshape(1, -1), target.reshape(1, -1), len(target), search, part).reshape(())
    return in_shape(least_error(by_channel(current), by_channel(target), len(target), search, part), target)


def least_error(current_CN: Tensor, target_CN: Tensor, images: int, search: Search, part: Part) -> Tensor:
    """For each row, the worth S with the least squared error of S * rate(current / S) against the target, (C,).

    Of long rows ``SAMPLES`` values are looked at, evenly apart over all images; the values of an image lie side by side.
    """
    largest_C, count = part.largest(target_CN.amax(1)), part.size(target_CN.shape[1])
    looked_at = part.own(torch.arange(0, count, max(1, count // SAMPLES)), target_CN.shape[1] // images)
    current_CN, target_CN = current_CN[:, looked_at], target_CN[:, looked_at]
    worth_GC = torch.stack([(largest_C * fraction).clamp(min=1e-12) for fraction in _fractions(search.grid)])
    error_GC = part.total(torch.stack([_squared_error(current_CN, target_CN, worth_C, search) for worth_C in worth_GC]))
    best_C, least_C = largest_C.clone(), torch.full_like(error_GC[0], torch.inf)
    for worth_C, error_C in zip(worth_GC, error_GC, strict=True):
        better_C = error_C < least_C
        best_C, least_C = torch.where(better_C, worth_C, best_C), torch.where(better_C, error_C, least_C)
    return torch.where(largest_C > 0, best_C, largest_C)


def _fractions(grid: int) -> list[float]:
    return torch.linspace(1, 0, grid + 1)[:-1].tolist()


def _squared_error(current_CN: Tensor, target_CN: Tensor, worth_C: Tensor, search: Search) -> Tensor:
    """Summed over each row, (C,), in float64: which worth is best must not hang on how sums are rounded."""
    worth_C1 = worth_C.unsqueeze(1)
    rates_CN = quantised(current_CN / worth_C1, search.start, search.timesteps)
    return (rates_CN * worth_C1).sub_(target_CN).square_().sum(1, dtype=torch.float64)


def quantised(ratio: Tensor, start: float | Tensor, timesteps: int) -> Tensor:
    """Rate after ``timesteps`` steps of a constant current, in units of the threshold: clip(floor(T r + v_init), 0, T) / T."""
    return (ratio * timesteps + start).floor_().clamp_(0, timesteps) / timesteps


@dataclass(frozen=True, kw_only=True)
class LearnedCeiling(ActivationCalibrator):
    """S = what the ANN's activation is clipped at: learnt by the ANN (QCFS, TCL), or fixed (ReLU6).

    For QCFS the neurons start at half their threshold (v_init 0.5), as Bu et al. 2022 derive.
    """

    def worth(self, name: str, layer: Layer, neuron: Neuron, activation: Tensor, part: Part) -> Tensor:
        if layer.ceiling is None:
            raise ConversionError(
                f"layer {name!r} comes from a ReLU without a ceiling; train the ANN with QCFS or ClippedReLU activations, or "
                "choose another calibrator"
            )
        return layer.ceiling.to(activation)
