"""Units: layers of a network are expressed in the activation scales of their sources.

The activation scale of a layer is the activation S that one of its spikes stands for: the layer fires at rate a/S for the
activation a. With sources of scales S_j, a layer is computed in units of its first source, S_0: branch j gets the gain S_j/S_0,
biases are divided by S_0, and the threshold is theta = S/S_0. In a sequential network without biases the weights stay exactly
the ANN's, and theta is the paper's threshold. If a source has one scale for each channel, the layer is computed in the ANN's own
units (S_0 = 1). ``Layer.scale`` keeps S_0, so the activation scale is always ``dynamics.spike_size * scale``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from spikeprop.snn import INPUT, ChannelPad, Gain, Layer, SampleDropout, SpikingNetwork, Synapse
from spikeprop.snn.gather import Shift
from spikeprop.snn.synapse import Weighted
from spikeprop.snn.weights import scale_inputs

CHANNELWISE = {  # operations that act on each channel alone, and flattening
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.ZeroPad1d,
    nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d,
    nn.ReplicationPad2d, nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d, nn.Upsample, nn.Identity,
    nn.Flatten, SampleDropout, Gain, ChannelPad,
}  # fmt: skip


def activation_scales(network: SpikingNetwork) -> dict[str, Tensor]:
    """The activation that a spike of each layer of a calibrated network stands for: a number, or one a channel (C, 1, ..)."""
    return {name: activation_scale(layer) for name, layer in network.named_layers() if layer.neuron is not None}


def activation_scale(layer: Layer) -> Tensor:
    """The activation that a spike of a calibrated layer stands for."""
    return layer.dynamics.spike_size * layer.scale


class Units:
    """Expresses the layers of a network, in order, in the activation scales of their sources.

    Args:
        network: freshly converted.
        x: images, for their type and device.
    """

    def __init__(self, network: SpikingNetwork, x: Tensor):
        self._layers, self._shapes = dict(network.named_layers()), network.shapes()
        self._input = torch.ones((), dtype=x.dtype, device=x.device)

    def fold(self, layer: Layer) -> None:
        """Put the scales of a layer's sources into its gains and weights; the sources are calibrated."""
        if layer.dynamics.passes_on:  # its output spikes stand for what its input spikes stand for
            layer.scale = self._pooled(layer).clone().to(layer.scale)
            return
        scales = [self._scale(source) for source in layer.sources]
        # a function is computed in the ANN's own units
        scalar = not layer.dynamics.arithmetic and all(scale.numel() == 1 for scale in scales)
        base = scales[0].reshape(()) if scalar else torch.ones_like(scales[0].reshape(-1)[0])
        for (_, source, synapse), scale in zip(layer.branches(), scales):
            _apply(synapse, scale / base, self._shapes[source])
            for op in synapse.weighted():
                if op.bias is not None:
                    op.bias.data.div_(base)
            for shift in (op for op in synapse if isinstance(op, Shift)):
                shift.shift = shift.shift / base.to(shift.shift)
        layer.scale = base.clone().to(layer.scale)

    def _scale(self, source: str) -> Tensor:
        return self._input if source == INPUT else activation_scale(self._layers[source])

    def _pooled(self, layer: Layer) -> Tensor:
        scales = [self._scale(source) for source in layer.sources]
        if all(scale.numel() == 1 and scale == scales[0] for scale in scales):
            return scales[0]
        placed: Any = 0.0
        for (_, source, synapse), scale in zip(layer.branches(), scales):
            channels, *positions = self._shapes[source]
            ones = (1,) * len(positions)
            placed = placed + synapse(scale.expand(channels, *ones).reshape(1, 1, channels, *ones))
        return torch.where(placed == 0, 1.0, placed)[0, 0]  # zero channels never spike: any scale will do


def _apply(synapse: Synapse, gain: Tensor, shape: tuple[int, ...]) -> None:
    """Multiply a synapse's input: in its first operation with weights, or else by a gain before all others."""
    weighted = synapse.weighted()
    before = list(synapse)[: list(synapse).index(weighted[0])] if weighted else []
    if any(isinstance(op, Shift) for op in before):  # the constant is not multiplied
        _put_gain(synapse, gain if gain.numel() > 1 else gain.reshape(()))
    elif weighted and gain.numel() == 1:
        weighted[0].weight.data.mul_(gain.reshape(()))
    elif weighted and _along_channels(gain, shape) and _keeps_channels(before, weighted[0], shape):
        scale_inputs(weighted[0], _passed_on(gain.expand(shape[0], *gain.shape[1:]), before, shape))
    elif (gain != 1).any():
        _put_gain(synapse, gain if gain.numel() > 1 else gain.reshape(()))


def _along_channels(gain: Tensor, shape: tuple[int, ...]) -> bool:
    return gain.dim() == len(shape) and len(gain) == gain.numel()


def _keeps_channels(ops: list[nn.Module], layer: Weighted, shape: tuple[int, ...]) -> bool:
    """Whether each input of a layer, after other operations on samples of ``shape``, is made of one channel alone."""
    kinds = [type(op) for op in ops]
    flat = kinds.index(nn.Flatten) if nn.Flatten in kinds else len(kinds)
    if isinstance(layer, nn.Linear) and len(shape) > 1 and flat == len(kinds):  # tokens
        return False
    if any((op.start_dim, op.end_dim) != (1, -1) for op in ops if isinstance(op, nn.Flatten)):
        return False
    return set(kinds) <= CHANNELWISE and set(kinds[flat:]) <= {nn.Flatten, SampleDropout, ChannelPad}


def _passed_on(gain: Tensor, ops: Iterable[nn.Module], shape: tuple[int, ...]) -> Tensor:
    """A gain by channel, as it is after linear operations that act on each channel alone."""
    for op in ops:
        if isinstance(op, ChannelPad):
            gain = torch.cat([gain.new_ones(op.before, *gain.shape[1:]), gain, gain.new_ones(op.after, *gain.shape[1:])])
        elif isinstance(op, nn.Flatten):
            positions = torch.Size(_shape_through(ops, shape)[1:])
            gain = gain.expand(-1, *positions).flatten()
    return gain.flatten()


def _shape_through(ops: Iterable[nn.Module], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a sample where it is flattened."""
    probe = torch.zeros(1, *shape)
    for op in ops:
        if isinstance(op, nn.Flatten):
            break
        if not isinstance(op, Gain):
            probe = op(probe)
    return tuple(probe.shape[1:])


def _put_gain(synapse: Synapse, gain: Tensor) -> None:
    first = next(iter(synapse), None)
    if isinstance(first, Gain):
        first.gain = first.gain * gain.to(first.gain)
    else:
        synapse.ops.insert(0, Gain(gain))
