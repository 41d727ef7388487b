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
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprop.convert.graph import relu_activations
from spikeprop.errors import ConversionError
from spikeprop.seeding import seed_torch
from spikeprop.snn import INPUT, Encoder, Gain, Neuron, SpikingNetwork, Stage
from spikeprop.snn.kernels.bits import PackedSpikes


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

    def calibrate(self, network: SpikingNetwork, x: Tensor) -> dict[str, Tensor]:
        if not 0 < self.percentile <= 100:
            raise ValueError(f"percentile is {self.percentile}; it lies in (0, 100]")
        units = {INPUT: torch.ones((), dtype=x.dtype)}
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
    are kept, one bit a neuron a step, so the whole search costs one pass a layer. Neurons run without leak meanwhile.

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

    def calibrate(self, network: SpikingNetwork, x: Tensor) -> dict[str, Tensor]:
        if self.timesteps < 1 or self.scale <= 0:
            raise ValueError(f"timesteps={self.timesteps}, scale={self.scale}: both must be positive")
        units = {INPUT: torch.ones((), dtype=x.dtype)}
        trains: Trains = {INPUT: _EncodedInput(network.encoder, x, self.timesteps)}
        thresholds = {}
        for name, stage in network.each():
            base = _fold_units(stage, units)
            if stage.neuron is None:
                break
            peak = max(_quantile(current, self.percentile / 100) for current in _currents(stage, trains))
            theta = _set_threshold(stage.neuron, _positive(name, peak) * self.scale)
            thresholds[name], units[name] = theta, theta * base
            trains[name] = _fire(stage, trains)
            _forget(network, name, trains)
        return thresholds


class _EncodedInput:
    """The encoder's output step by step, drawn again (the same) on each pass rather than kept."""

    def __init__(self, encoder: Encoder, x: Tensor, timesteps: int):
        self.encoder, self.x, self.timesteps = encoder, x, timesteps
        self.seed = int(torch.randint(2**62, ()))

    def __iter__(self) -> Iterator[Tensor]:
        if self.encoder.constant:
            yield from [self.encoder(self.x, 1)[0]] * self.timesteps
            return
        for t in range(self.timesteps):
            with torch.random.fork_rng():
                seed_torch(self.seed, t)
                (step,) = self.encoder(self.x, 1)
            yield step


Trains = dict[str, _EncodedInput | PackedSpikes]


def _currents(stage: Stage, trains: Trains) -> Iterator[Tensor]:
    """Input current (B, ...) of a stage, step by step; steps that repeat the one before are computed once."""
    sources = [trains[source] for source in stage.sources]
    previous: list[Tensor] = []
    current = None
    for spikes in zip(*sources):
        if current is None or any(new is not old for new, old in zip(spikes, previous)):
            current = torch.stack([syn(s.unsqueeze(0))[0] for (_, _, syn), s in zip(stage.branches(), spikes)]).sum(0)
        previous = list(spikes)
        yield current


def _fire(stage: Stage, trains: Trains) -> PackedSpikes:
    """The stage's spike trains, its neurons run without leak."""
    neuron = stage.neuron
    assert neuron is not None
    leak = neuron.leak.clone()
    neuron.leak.fill_(1.0)
    packed, state = PackedSpikes(), None
    for current in _currents(stage, trains):
        state = neuron.initial_state(current) if state is None else state
        spikes, state = neuron.step(current, state)
        packed.append(spikes)
    neuron.leak.copy_(leak)
    return packed


def _forget(network: SpikingNetwork, done: str, trains: Trains) -> None:
    """Drop the spike trains that no later stage reads."""
    names = list(network.stages)
    later = {source for n, stage in network.each() if names.index(n) > names.index(done) for source in stage.sources}
    for name in list(trains):
        if name not in later:
            del trains[name]


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
