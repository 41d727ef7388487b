"""NIR graph -> SpikingNetwork: nodes of weights become synapses, nodes of neurons and max pooling become layers.

``spikeprop_hardware.graph`` says what nodes and metadata mean and in which order they compute; here is only which of ours they
become. What cannot be expressed exactly is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import nir
import numpy as np
import torch
from spikeprop_hardware.graph import (
    NEURONS,
    SpikingMaxPool2d,
    encoder_of,
    nir_errors,
    pair,
    readout_from,
    window_of,
)
from spikeprop_hardware.matrix import margins_of
from spikeprop_hardware.neurons import NeuronParameters, neurons_of
from spikeprop_hardware.topology import ends, ordered
from torch import Tensor, nn

from spikeprop.errors import NirError
from spikeprop.snn import (
    IF,
    INPUT,
    LIF,
    Direct,
    Encoder,
    Gain,
    GradedIF,
    Layer,
    LayerDynamics,
    Neuron,
    Poisson,
    SignedIF,
    SpikingNetwork,
    Surrogate,
    Synapse,
)
from spikeprop.snn.layer import OUTPUT, is_layer_name
from spikeprop.snn.pooling import SpikingMaxPool

ENCODERS: dict[str, type[Encoder]] = {"Direct": Direct, "Poisson": Poisson}  # what the graph's metadata may name
_Branch = tuple[str, tuple[nn.Module, ...]]


def from_nir(
    graph: nir.NIRGraph, *, encoder: Encoder | None = None, surrogate: Surrogate | None = None, dt: float | None = None
) -> SpikingNetwork:
    """A network from a NIR graph, in float64 where its weights are, else in float32.

    Args:
        graph: feed-forward graph of linear nodes, IF, LIF, GradedIF and max pooling, one input and one output.
        encoder: from image to input; default what the graph's metadata names, or ``Direct()`` where it names none.
        surrogate: for training; default ``STDB()``.
        dt: time step in the unit of tau, for LIF nodes that do not record one.

    Raises:
        NirError: naming the node that is not known or cannot be expressed exactly.
    """
    with nir_errors():
        return _from_nir(graph, encoder if encoder is not None else _encoder(graph), surrogate, dt)


def _from_nir(graph: nir.NIRGraph, encoder: Encoder, surrogate: Surrogate | None, dt: float | None) -> SpikingNetwork:
    first, _ = ends(graph)
    values: dict[str, list[_Branch]] = {first: [(INPUT, ())]}
    layers: dict[str, Layer] = {}
    names = layer_names(graph)
    for name in ordered(graph).names:
        node = graph.nodes[name]
        branches = [b for source, target in graph.edges if target == name for b in values[source]]
        if name in names:
            pools = isinstance(node, SpikingMaxPool2d)
            neuron = SpikingMaxPool(*window_of(node, name)) if pools else _neuron(node, name, surrogate, dt)
            layers[names[name]] = _layer(branches, neuron)
            values[name] = [(names[name], ())]
        elif isinstance(node, nir.Output):
            layers[_layer_name(name, {*layers, INPUT})] = _layer(branches, None)
        else:
            values[name] = [_through(name, node, branch, len(branches)) for branch in branches]
    shape = tuple(int(n) for n in graph.nodes[first].input_type["input"])
    network = SpikingNetwork(layers, encoder, shape).to(_dtype(graph)).eval()
    network.readout.set(delay=readout_from(graph))
    return network


def layer_names(graph: nir.NIRGraph) -> dict[str, str]:
    """What ``from_nir`` calls the layer of each node of neurons: torch forbids dots and names of
    its own ("training", "keys"), and "input" and "output" are taken.

    Raises:
        NirError: a loop, or a node that is not connected to the input.
    """
    names: dict[str, str] = {}
    for node in ordered(graph).names:
        if isinstance(graph.nodes[node], (*NEURONS, SpikingMaxPool2d)):
            names[node] = _layer_name(node, {*names.values(), INPUT, OUTPUT})
    return names


def _encoder(graph: nir.NIRGraph) -> Encoder:
    name = encoder_of(graph)
    if name is None:
        return Direct()
    if name not in ENCODERS:
        raise NirError(f"the graph was written with encoder {name!r}, which is not one of {list(ENCODERS)}; pass encoder=...")
    return ENCODERS[name]()


def _through(name: str, node: Any, branch: _Branch, count: int) -> _Branch:
    reader = _READERS.get(type(node))
    if reader is None:
        known = ", ".join(t.__name__ for t in _READERS)
        raise NirError(
            f"node {name!r} is a {type(node).__name__}, which cannot be imported; known: {known}, IF, LIF, GradedIF, "
            "SpikingMaxPool2d"
        )
    if count > 1:
        raise NirError(f"node {name!r} reads a sum of {count} nodes; only neurons may")
    return branch[0], (*branch[1], reader(node, name))


def _neuron(node: Any, name: str, surrogate: Surrogate | None, dt: float | None) -> Neuron:
    read = neurons_of(node, name, dt)
    leak = _uniform(read.leak)
    if leak.ndim:
        raise NirError(f"node {name!r} has several leaks; one tau a layer can be expressed")
    common: dict[str, Any] = {"reset": read.reset, "surrogate": surrogate}
    neuron: Neuron
    if read.levels:
        neuron = _graded(read, surrogate)
    elif isinstance(node, nir.IF):
        neuron = IF(**common)
    else:
        neuron = LIF(leak=float(leak), **common)
        neuron.leak = _tensor(leak)
    neuron.v_init = _tensor(_uniform(read.v_init))
    neuron.v_threshold = _tensor(_uniform(read.theta * 2 ** (max(read.levels, 1) - 1)))
    return neuron


def _graded(read: NeuronParameters, surrogate: Surrogate | None) -> GradedIF:
    if read.levels == 1:
        return SignedIF(surrogate=surrogate, rectify=read.rectify)
    return GradedIF(levels=read.levels, surrogate=surrogate, rectify=read.rectify)


def _dtype(graph: nir.NIRGraph) -> torch.dtype:
    """That of the weights, since r, tau and scale are often float64 in the file of a float32 network."""
    weights = [np.asarray(getattr(node, "weight", 0)).dtype for node in graph.nodes.values()]
    return torch.float64 if np.dtype(np.float64) in weights else torch.float32


def _layer_name(name: str, taken: Collection[str]) -> str:
    name = name.replace(".", "_") or "_"
    while name in taken or not is_layer_name(name):
        name += "_"
    return name


def _layer(branches: list[_Branch], neuron: LayerDynamics | None) -> Layer:
    return Layer([(source, Synapse(ops)) for source, ops in branches], neuron)


def _read_conv(node: nir.Conv2d, name: str) -> nn.Conv2d:
    weight, bias = _tensor(node.weight), _tensor(node.bias)
    margins_of(node, name)  # refuses padding "same" with a stride
    padding: Any = node.padding if isinstance(node.padding, str) else pair(node.padding)
    op = nn.Conv2d(
        weight.shape[1] * int(node.groups),
        weight.shape[0],
        (weight.shape[2], weight.shape[3]),
        stride=pair(node.stride),
        padding=padding,
        dilation=pair(node.dilation),
        groups=int(node.groups),
        bias=bool((bias != 0).any()),
    )
    return _filled(op, weight, bias)


def _read_linear(node: Any, name: str) -> nn.Linear:
    weight = _tensor(node.weight)
    bias = _tensor(node.bias) if isinstance(node, nir.Affine) else None
    return _filled(nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None), weight, bias)


def _read_pool(node: nir.AvgPool2d, name: str) -> nn.AvgPool2d:
    return nn.AvgPool2d(pair(node.kernel_size), pair(node.stride), pair(node.padding))


def _read_sum(node: nir.SumPool2d, name: str) -> nn.AvgPool2d:
    return nn.AvgPool2d(pair(node.kernel_size), pair(node.stride), pair(node.padding), divisor_override=1)


def _read_flatten(node: nir.Flatten, name: str) -> nn.Flatten:
    if int(node.start_dim) != 0 or int(node.end_dim) != -1:
        raise NirError(f"node {name!r} flattens axes {node.start_dim} to {node.end_dim}; only all axes can be")
    return nn.Flatten()


def _read_scale(node: nir.Scale, name: str) -> Gain:
    scale = _uniform(node.scale)
    if scale.ndim == 3 and np.all(scale == scale[:, :1, :1]):
        scale = scale[:, :1, :1]
    elif scale.size != 1 and scale.ndim != 1:
        raise NirError(f"node {name!r} scales each value differently; one factor, or one a channel, can be expressed")
    gain = Gain(1.0)
    gain.gain = _tensor(scale)
    return gain


_READERS: dict[type, Callable[..., nn.Module]] = {
    nir.Conv2d: _read_conv,
    nir.Linear: _read_linear,
    nir.Affine: _read_linear,
    nir.AvgPool2d: _read_pool,
    nir.SumPool2d: _read_sum,
    nir.Flatten: _read_flatten,
    nir.Scale: _read_scale,
}


def _filled(op: Any, weight: Tensor, bias: Tensor | None) -> Any:
    op.weight = nn.Parameter(weight)
    if op.bias is not None and bias is not None:
        op.bias = nn.Parameter(bias)
    return op


def _tensor(array: Any) -> Tensor:
    """In float64, which loses nothing; the network that is built gets the graph's dtype at the end."""
    return torch.as_tensor(np.array(array), dtype=torch.float64)


def _uniform(array: Any) -> np.ndarray:
    """A scalar where all values are equal, else the array."""
    values = np.asarray(array)
    return values.reshape(-1)[0] if values.size and np.all(values == values.flat[0]) else values
