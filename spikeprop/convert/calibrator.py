"""``ThresholdCalibrator``, and ``LayerwiseCalibrator``: the walk through a network's layers that the calibrators have in common.

For each layer in order: express it in the activation scales of its sources (``convert/units.py``), ask the calibrator for the
activation S that the layer's largest spike stands for, and set the threshold: of neurons that send one bit theta = S/S_0. So a
calibrator only says how S follows from what
``LayerData`` gives it: the ANN's activation, and the spikes of the layers below, which are calibrated already.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from spikeprop.convert.activations import layer_values
from spikeprop.convert.builder import NEGATIVE, refuse_unconvertible
from spikeprop.convert.shard import UNSHARDED, CalibrationShard
from spikeprop.convert.spikes import SpikeTrains
from spikeprop.convert.units import Units
from spikeprop.errors import ConversionError
from spikeprop.runtime.progress import bar
from spikeprop.snn import Layer, Neuron, SpikingNetwork


@dataclass(frozen=True, kw_only=True)
class ThresholdCalibrator(ABC):
    """Sets the thresholds (and the gains that go with them) of a freshly converted network.

    A calibrator that runs in one process only may define ``calibrate(network, x)`` and leave ``supports_distributed`` False.
    """

    @property
    def supports_distributed(self) -> bool:
        """Whether several processes can calibrate together: ``calibrate`` then asks ``shard`` for results over all images."""
        return False

    @property
    def calibrated_for(self) -> int | None:
        """The number of steps that the thresholds are made for; None where they are for any."""
        return getattr(self, "timesteps", None)

    @abstractmethod
    def calibrate(self, network: SpikingNetwork, x: Tensor, shard: CalibrationShard = UNSHARDED) -> dict[str, Tensor]:
        """Calibrate ``network`` in place, in every process in the same way.

        Args:
            network: freshly converted, in evaluation mode.
            x: images (B, ...); with several processes, those of this one.
            shard: which of all images they are; computes results over all images.

        Returns:
            the threshold of each layer of neurons.
        """


def run_calibrator(
    calibrator: ThresholdCalibrator, network: SpikingNetwork, x: Tensor, shard: CalibrationShard
) -> dict[str, Tensor]:
    """Call ``calibrate``; only a calibrator with ``supports_distributed`` is given the shard.

    Raises:
        ConversionError: a calibrator without ``supports_distributed``, in several processes.
    """
    if calibrator.supports_distributed:
        return calibrator.calibrate(network, x, shard)
    if shard.distributed:
        raise ConversionError(
            f"{calibrator} calibrates in one process: convert in one, or let calibrate(network, x, shard) ask shard for results "
            "over all images, and let the property supports_distributed be True"
        )
    return calibrator.calibrate(network, x)


@dataclass(frozen=True)
class LayerData:
    """One layer that is being calibrated; the layers before it are calibrated already.

    Attributes:
        name, layer: of the network; weights and biases are in units of the sources.
        shard: which of all images the values are for.
        total: the ANN's pre-activation (B, C, ...), in its own units; empty without ``needs_activations``.
        activation: the ANN's activation, likewise; for the output its scores.
        trains: spikes of the layers before, if the calibrator makes them.
    """

    name: str
    layer: Layer
    shard: CalibrationShard
    total: Tensor
    activation: Tensor
    trains: SpikeTrains | None

    @property
    def neuron(self) -> Neuron:
        """The layer's neurons."""
        assert isinstance(self.layer.neuron, Neuron)
        return self.layer.neuron

    def counts(self, timesteps: int) -> int:
        """The largest sum that a neuron can send in that many steps."""
        return timesteps * self.neuron.payload

    @property
    def spikes(self) -> SpikeTrains:
        """Spikes of the layers before, of a calibrator that makes them."""
        assert self.trains is not None
        return self.trains

    @cached_property
    def target(self) -> Tensor:
        """The ANN's activation in units of the layer's potential (B, C, ...)."""
        return self.activation / self.layer.scale

    @property
    def axis(self) -> int:
        """Of the channels; the batch is axis 0."""
        return self.layer.channel_axis

    @property
    def size(self) -> Tensor:
        """How large the ANN's activation is, of neurons that send both signs without it."""
        return self.activation.abs() if self.layer.both_signs else self.activation

    def positive(self, scale: Tensor) -> Tensor:
        """A scale for a layer that is active; channels that are never active get the layer's largest.

        Raises:
            ConversionError: the layer is never active.
        """
        largest = scale.max()
        if (self.name.endswith(NEGATIVE) or self.layer.may_rest) and largest <= 0:
            return torch.ones_like(scale)  # the input of this activation is never negative, or always 0: the layer will not fire
        if not largest > 0:
            raise ConversionError(
                f"layer {self.name!r} is never active on the calibration images (peak {float(largest):g}); the ANN has a dead "
                "layer: train it further or at a lower learning rate"
            )
        return torch.where(scale > 0, scale, largest)

    def limited(self, scale: Tensor) -> Tensor:
        """An activation scale, at most the value at which the ANN clips the activation."""
        return scale if self.layer.ceiling is None else torch.minimum(scale, self.layer.ceiling.to(scale))


@dataclass(frozen=True, kw_only=True)
class LayerwiseCalibrator(ThresholdCalibrator):
    """Walks through the layers in order and sets each threshold; subclasses say what a spike of the layer stands for."""

    needs_activations: ClassVar[bool] = True  # whether LayerData is to hold the ANN's activations

    @property
    def supports_distributed(self) -> bool:
        return True

    @abstractmethod
    def activation_scale(self, data: LayerData) -> Tensor:
        """The positive activation that the layer's largest spike is to stand for: a number, or one a channel (C, 1, 1).

        It is what a neuron can send in a step. Of ordinary neurons all spikes are equal.

        With several processes each is given its own images, and all must return the same scale.
        """

    def spike_trains(self, network: SpikingNetwork, x: Tensor, shard: CalibrationShard) -> SpikeTrains | None:
        """Makes the spike trains of calibrated layers, for a calibrator that reads them."""
        return None

    def calibrate_readout(self, network: SpikingNetwork, x: Tensor, data: LayerData) -> None:
        """Calibrate the output layer, which has no threshold; does nothing by default."""

    @torch.no_grad()
    def calibrate(self, network: SpikingNetwork, x: Tensor, shard: CalibrationShard = UNSHARDED) -> dict[str, Tensor]:
        for neuron in network.neurons().values():
            refuse_unconvertible(neuron)
        units, trains, thresholds = Units(network, x), self.spike_trains(network, x, shard), {}
        label = "calibrate" if trains is not None and shard.processes.rank == 0 else None
        with bar(label, total=len(network.layers), unit="layer", leave=False) as progress:
            for name, layer, total, activation in self._layers(network, x):
                units.fold(layer)
                data = LayerData(name, layer, shard, total, activation, trains)
                if layer.neuron is None:
                    self.calibrate_readout(network, x, data)
                elif isinstance(layer.neuron, Neuron):
                    layer.neuron.set_full_scale(self.activation_scale(data) / layer.scale)
                    thresholds[name] = layer.neuron.v_threshold.detach().clone()
                if trains is not None and layer.neuron is not None:
                    trains.fire(name)
                progress.update()
        return thresholds

    def _layers(self, network: SpikingNetwork, x: Tensor) -> Iterator[tuple[str, Layer, Tensor, Tensor]]:
        if self.needs_activations:
            return layer_values(network, x)
        none = x.new_empty(0)
        return ((name, layer, none, none) for name, layer in network.named_layers())
