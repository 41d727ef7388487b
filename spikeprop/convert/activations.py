"""An uncalibrated network computed as the ANN it came from: each neuron layer is a (clipped) ReLU of its input current."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from spikeprop.snn import INPUT, Layer, SpikingNetwork


def relu_activations(network: SpikingNetwork, x: Tensor) -> dict[str, Tensor]:
    """The ANN's activation (B, ...) of each layer, the scores of the output included."""
    return {name: activation for name, _, activation in activations(network, x)}


def activations(network: SpikingNetwork, x: Tensor) -> Iterator[tuple[str, Layer, Tensor]]:
    """(name, layer, the ANN's activation (B, ...)) in order; see ``layer_values``."""
    return ((name, layer, activation) for name, layer, _, activation in layer_values(network, x))


def ann_output(network: SpikingNetwork, x: Tensor) -> Tensor:
    """What the last layer computes (B, ...), in one piece whatever structure ``forward`` returns."""
    output = x
    for _, _, output in activations(network, x):  # noqa: B007  the last one is meant, and no other is kept
        pass
    return output


def layer_values(network: SpikingNetwork, x: Tensor) -> Iterator[tuple[str, Layer, Tensor, Tensor]]:
    """(name, layer, the ANN's pre-activation and activation (B, ...)) in order; values that no later layer reads are dropped.

    The caller may change a layer after it was yielded: its activation is computed before that.
    """
    values = {INPUT: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x}  # in which convolutions are fastest
    for name, layer in list(network.named_layers()):
        total = current(layer, values)
        values[name] = layer.dynamics.activation(total, layer.ceiling)
        yield name, layer, total, values[name]
        forget(network, values, name)


def current(layer: Layer, values: dict[str, Tensor]) -> Tensor:
    """Input current (B, ...) of a layer for its sources' values (B, ...)."""
    return layer.current({source: values[source].unsqueeze(0) for source in layer.sources})[0]


def forget(network: SpikingNetwork, values: dict[str, Tensor], done: str) -> None:
    """Drop the values that no layer after ``done`` reads."""
    for name in values.keys() - network.read_after(done):
        del values[name]
