"""Threshold calibrators: how large an activation one spike stands for, layer by layer.

A layer whose spikes each stand for an activation S fires at rate a/S for activation a. With sources of units S_j, a
stage is computed in units of its first source, S_0: branch j gets the gain S_j/S_0, biases are divided by S_0, and
the threshold is theta = S/S_0. In a sequential network without biases the weights stay exactly the ANN's and theta is
the paper's threshold.

Sources: maximum activation, Diehl et al. 2015; percentile, Rueckauer et al. 2017; threshold balancing, Sengupta et
al. 2019 and Rathi et al. 2020 (theta = max over time of the weighted input current, layers before it already spiking;
then a scale factor).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprop.convert.graph import relu_activations
from spikeprop.errors import ConversionError
from spikeprop.seeding import seed_torch
from spikeprop.snn import INPUT, Encoder, Gain, Neuron, SpikingNetwork, Stage


@dataclass(frozen=True, kw_only=True)
class ThresholdCalibrator(ABC):
    """Sets the thresholds (and the gains that go with them) of a freshly converted network."""

    @abstractmethod
    def calibrate(self, network: SpikingNetwork, x: Tensor) -> dict[str, Tensor]:
        """Calibrate ``network`` in place on images x (B, ...); returns the threshold of each stage."""


@dataclass(frozen=True, kw_only=True)
class Percentile(ThresholdCalibrator):
    """S = the given percentile of the layer's ReLU activations over images and neurons (Rueckauer et al. 2017)."""

    percentile: float = 99.9

    def __post_init__(self) -> None:
        _check_percentile(self.percentile)

    def calibrate(self, network: SpikingNetwork, x: Tensor) -> dict[str, Tensor]:
        units = {INPUT: torch.ones((), dtype=x.dtype, device=x.device)}
        activations = relu_activations(network, x)
        thresholds = {}
        for name, stage in network.each():
            base = _fold_units(stage, units)
            if stage.neuron is not None:
                units[name] = _positive(name, _quantile(activations[name], self.percentile / 100))
                thresholds[name] = _set_threshold(stage.neuron, units[name] / base)
        return thresholds


@dataclass(frozen=True, kw_only=True)
class MaxActivation(ThresholdCalibrator):
    """S = the largest ReLU activation of the layer (Diehl et al. 2015)."""

    def calibrate(self, network: SpikingNetwork, x: Tensor) -> dict[str, Tensor]:
        return Percentile(percentile=100.0).calibrate(network, x)


@dataclass(frozen=True, kw_only=True)
class ThresholdBalancing(ThresholdCalibrator):
    """theta = scale * max over images, neurons and steps of the input current W*s of one step, in forward order.

    Each layer is measured on the spikes of layers that already have their threshold (Rathi et al. 2020). Their spike trains
    are kept, one bit a neuron a step, so the whole search costs two passes a layer. Neurons run without leak meanwhile.

    Differences from the authors' code: every layer of a residual network is balanced (theirs balances the first three), and
    the threshold that later layers see includes ``scale``, as it will when the network runs.

    Attributes:
        timesteps: length of the search in steps.
        scale: factor on every threshold; the paper's code has 0.7 for T > 100, smaller for fewer steps.
        percentile: 100 is the paper's maximum; DIET-SNN takes 99.7.
    """

    timesteps: int = 100
    scale: float = 1.0
    percentile: float = 100.0

    def __post_init__(self) -> None:
        _check_percentile(self.percentile)
        if self.timesteps < 1:
            raise ValueError(f"timesteps is {self.timesteps}; the search needs at least 1 step")
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale}; a factor on thresholds is positive")

    def calibrate(self, network: SpikingNetwork, x: Tensor) -> dict[str, Tensor]:
        from spikeprop.snn.stagewise import Stagewise  # here, since it brings Numba

        units = {INPUT: torch.ones((), dtype=x.dtype, device=x.device)}
        stages = Stagewise(network, x, self.timesteps, EncodedInput(network.encoder, x))
        thresholds = {}
        for name, stage in network.each():
            base = _fold_units(stage, units)
            if stage.neuron is None:
                break
            peak = max(_peak(current_KBSC, self.percentile / 100) for current_KBSC in stages.currents(name))
            theta = _set_threshold(stage.neuron, _positive(name, peak) * self.scale)
            thresholds[name], units[name] = theta, theta * base
            stages.fire(name)
        return thresholds


class EncodedInput:
    """The encoder's output at any steps, drawn again (the same) when it is asked for again, rather than kept."""

    def __init__(self, encoder: Encoder, x: Tensor):
        self.encoder, self.x = encoder, x
        self.seed = int(torch.randint(2**62, ()))

    def __call__(self, first: int, steps: int) -> Tensor:
        """Steps first.. of the input, (steps or 1, B, ...)."""
        if self.encoder.constant:
            return self.encoder(self.x, 1)
        with torch.random.fork_rng(devices=[self.x.device] if self.x.is_cuda else []):
            return torch.cat([self._step(t) for t in range(first, first + steps)])

    def _step(self, t: int) -> Tensor:
        seed_torch(self.seed, t)
        return self.encoder(self.x, 1)


def _peak(current_KBSC: Tensor, q: float) -> Tensor:
    """The largest, over steps, of a step's quantile."""
    if q >= 1:
        return current_KBSC.max()
    return torch.stack([_quantile(current_BSC, q) for current_BSC in current_KBSC]).max()


def _fold_units(stage: Stage, units: dict[str, Tensor]) -> Tensor:
    """Express a stage in units of its first source: gains on the branches, biases divided; returns that unit."""
    base = units[stage.sources[0]]
    for _, source, synapse in stage.branches():
        gain = units[source] / base
        weighted = synapse.weighted()
        if weighted:
            weighted[0].weight.data.mul_(gain)
        elif gain != 1:
            synapse.ops.append(Gain(float(gain)))
        for layer in weighted:
            if layer.bias is not None:
                layer.bias.data.div_(base)
    return base


def _set_threshold(neuron: Neuron, theta: Tensor) -> Tensor:
    neuron.v_threshold = theta.detach().clone().to(neuron.v_threshold)
    return neuron.v_threshold


def _check_percentile(percentile: float) -> None:
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile is {percentile}; it lies in (0, 100]")


def _positive(name: str, value: Tensor) -> Tensor:
    if not value > 0:
        raise ConversionError(
            f"layer {name!r} is never active on the calibration images (peak {float(value):g}); the ANN has a dead layer: "
            "train it further or at a lower learning rate"
        )
    return value


def _quantile(values: Tensor, q: float) -> Tensor:
    """Quantile over all elements; the exact order statistic (torch.quantile refuses large tensors)."""
    if q >= 1:
        return values.max()
    flat = values.flatten()
    return flat.kthvalue(max(1, round(q * flat.numel()))).values
