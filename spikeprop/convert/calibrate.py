"""Calibration: how large an activation one spike of each layer stands for, and the units that follow from it.

A layer whose spikes each stand for an activation S fires at rate a/S for activation a. With sources of units S_j, a
stage is computed in units of its first source, S_0: branch j gets the gain S_j/S_0, biases are divided by S_0, and
the threshold is theta = S/S_0. In a sequential network without biases the weights stay exactly the ANN's and theta is
the paper's threshold. Where a source has a unit for each channel, the stage is computed in the ANN's own units (S_0 = 1).
``Layer.scale`` keeps S_0, so a spike's worth is always ``v_threshold * scale``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spikeprop.convert.graph import NEGATIVE
from spikeprop.convert.part import WHOLE, Part
from spikeprop.errors import ConversionError
from spikeprop.snn import INPUT, ChannelPad, Gain, Layer, SpikingNetwork, Synapse
from spikeprop.snn.neuron import Neuron

Per = Literal["layer", "channel"]


@dataclass(frozen=True, kw_only=True)
class ThresholdCalibrator(ABC):
    """Sets the thresholds (and the gains that go with them) of a freshly converted network.

    One that sees the images in one process alone may leave ``part`` out, and ``joins`` as it is.
    """

    @property
    def joins(self) -> bool:
        """Whether several processes can calibrate together: ``calibrate`` then asks ``part`` for what is of all images."""
        return False

    @abstractmethod
    def calibrate(self, network: SpikingNetwork, x: Tensor, part: Part = WHOLE) -> dict[str, Tensor]:
        """Calibrate ``network`` in place, in every process in the same way.

        Args:
            network: freshly converted, in evaluation mode.
            x: images (B, ...), of several processes those of this one.
            part: which of all images they are, and what is asked of all.

        Returns:
            the threshold of each layer of neurons.
        """


def calibrated(calibrator: ThresholdCalibrator, network: SpikingNetwork, x: Tensor, part: Part) -> dict[str, Tensor]:
    """What ``calibrate`` gives; only a calibrator that joins is told of the part.

    Raises:
        ConversionError: one that does not join, in several processes.
    """
    if calibrator.joins:
        return calibrator.calibrate(network, x, part)
    if part.several:
        raise ConversionError(
            f"{calibrator} calibrates in one process: convert in one, or let calibrate(network, x, part) ask part for what is of "
            "all images, and the property joins be True"
        )
    return calibrator.calibrate(network, x)


class Units:
    """The activation that one spike of each source stands for: a number, or one a channel in a shape that multiplies a sample.

    Args:
        network: freshly converted; its stages are to be folded in order.
        x: images, for their type and device.
    """

    def __init__(self, network: SpikingNetwork, x: Tensor):
        self._shapes = network.shapes()
        self._of: dict[str, Tensor] = {INPUT: torch.ones((), dtype=x.dtype, device=x.device)}

    def fold(self, stage: Layer) -> None:
        """Express a stage in units of its first source: gains on the branches, biases divided."""
        units = [self._of[source] for source in stage.sources]
        scalar = all(unit.numel() == 1 for unit in units)
        base = units[0].reshape(()) if scalar else torch.ones_like(units[0].reshape(-1)[0])
        if stage.dynamics.passes_on:
            return
        for _, source, synapse in stage.branches():
            self._apply(synapse, self._of[source] / base, self._shapes[source])
            for layer in synapse.weighted():
                if layer.bias is not None:
                    layer.bias.data.div_(base)
        stage.scale = base.clone().to(stage.scale)

    def settle(self, name: str, stage: Layer, worth: Tensor) -> Tensor:
        """Set the threshold of a stage whose spikes are to stand for ``worth``, and return it."""
        assert isinstance(stage.neuron, Neuron)
        stage.neuron.set_threshold(worth / stage.scale)
        theta = stage.neuron.v_threshold.detach().clone()
        self._of[name] = theta * stage.scale
        return theta

    def pass_on(self, name: str, stage: Layer) -> None:
        """Pooled spikes keep what they stood for."""
        self._of[name] = self._pooled(stage)
        stage.scale = self._of[name].clone().to(stage.scale)

    def _pooled(self, stage: Layer) -> Tensor:
        units = [self._of[source] for source in stage.sources]
        if all(unit.numel() == 1 and unit == units[0] for unit in units):
            return units[0]
        placed: Any = 0.0
        for (_, source, synapse), unit in zip(stage.branches(), units):
            channels = self._shapes[source][0]
            placed = placed + synapse(unit.expand(channels, 1, 1).reshape(1, 1, channels, 1, 1))
        return torch.where(placed == 0, 1.0, placed).reshape(-1, 1, 1)  # channels of zeros stand for nothing

    def _apply(self, synapse: Synapse, gain: Tensor, shape: tuple[int, ...]) -> None:
        """Multiply what arrives: in the first layer with weights, or where there is none by a gain before all else."""
        weighted = synapse.weighted()
        if weighted and gain.numel() == 1:
            weighted[0].weight.data.mul_(gain.reshape(()))
        elif weighted:
            before = list(synapse)[: list(synapse).index(weighted[0])]
            _scale_inputs(weighted[0], _passed_on(gain.expand(shape[0], *gain.shape[1:]), before, shape))
        elif (gain != 1).any():
            _put_gain(synapse, gain if gain.numel() > 1 else gain.reshape(()))


def _passed_on(gain: Tensor, ops: Iterable[nn.Module], shape: tuple[int, ...]) -> Tensor:
    """A gain by channel, as it is where linear operations on single channels have been passed."""
    for op in ops:
        if isinstance(op, ChannelPad):
            gain = torch.cat([gain.new_ones(op.before, *gain.shape[1:]), gain, gain.new_ones(op.after, *gain.shape[1:])])
        elif isinstance(op, nn.Flatten):
            positions = torch.Size(_shape_through(ops, shape)[1:])
            gain = gain.expand(-1, *positions).flatten()
    return gain.flatten()


def _shape_through(ops: Iterable[nn.Module], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a sample before it is flattened."""
    probe = torch.zeros(1, *shape)
    for op in ops:
        if isinstance(op, nn.Flatten):
            break
        if not isinstance(op, Gain):
            probe = op(probe)
    return tuple(probe.shape[1:])


def _scale_inputs(layer: nn.Conv2d | nn.Linear, gain_C: Tensor) -> None:
    weight = layer.weight.data
    if isinstance(layer, nn.Linear):
        weight.mul_(gain_C)
        return
    by_group = gain_C.reshape(layer.groups, 1, -1, 1, 1)
    weight.view(layer.groups, -1, *weight.shape[1:]).mul_(by_group)


def _put_gain(synapse: Synapse, gain: Tensor) -> None:
    first = next(iter(synapse), None)
    if isinstance(first, Gain):
        first.gain = first.gain * gain.to(first.gain)
    else:
        synapse.ops.insert(0, Gain(gain))


def spike_worths(network: SpikingNetwork) -> dict[str, Tensor]:
    """The activation that a spike of each layer of a calibrated network stands for: a number, or one a channel (C, 1, 1)."""
    return {name: stage.neuron.spike_size * stage.scale for name, stage in network.named_layers() if stage.neuron is not None}


def limited(stage: Layer, worth: Tensor) -> Tensor:
    """A spike's worth, not above what the ANN's activation is clipped at."""
    return worth if stage.ceiling is None else torch.minimum(worth, stage.ceiling.to(worth))


def by_channel(activation: Tensor) -> Tensor:
    """(B, C, ...) as (C, everything else)."""
    return activation.transpose(0, 1).flatten(1)


def in_shape(worth_C: Tensor, activation: Tensor) -> Tensor:
    """A value a channel in a shape that multiplies (B, C, ...)."""
    return worth_C.reshape(-1, *(1,) * (activation.dim() - 2))


def check_percentile(percentile: float) -> None:
    """Raises ValueError outside (0, 100]."""
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile is {percentile}; it lies in (0, 100]")


def check_grid(grid: int) -> None:
    """Raises ValueError below one fraction."""
    if grid < 1:
        raise ValueError(f"grid is {grid}; the search needs at least 1 fraction")


def check_steps(timesteps: int, what: str) -> None:
    """Raises ValueError below one step."""
    if timesteps < 1:
        raise ValueError(f"timesteps is {timesteps}; {what} at least 1 step")


def positive(name: str, worth: Tensor) -> Tensor:
    """A spike's worth that is a positive number; channels that are never active get the layer's largest.

    Raises:
        ConversionError: the layer is never active.
    """
    largest = worth.max()
    if name.endswith(NEGATIVE) and largest == 0:
        return torch.ones_like(worth)  # of an activation whose input never is negative; it will not fire
    if not largest > 0:
        raise ConversionError(
            f"layer {name!r} is never active on the calibration images (peak {float(largest):g}); the ANN has a dead layer: "
            "train it further or at a lower learning rate"
        )
    return torch.where(worth > 0, worth, largest)
