"""NIR graph -> SpikingNetwork: nodes of weights become synapses, nodes of neurons, integrators and max pooling become layers.

``spikeprop_hardware.graph`` says what nodes and metadata mean, its neighbours in which order they compute and what takes a step;
here is only which of ours they become. What takes a step becomes a feedback branch. What cannot be expressed exactly is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np
import torch
from spikeprop_hardware.graph import (
    INTEGRATORS,
    NEURONS,
    SpikingMaxPool2d,
    StepLIF,
    encoder_of,
    nir_errors,
    pair,
    read_of,
    readout_from,
    window_of,
)
from spikeprop_hardware.matrix import margins_of
from spikeprop_hardware.neurons import NeuronParameters, integrator_of, neurons_of
from spikeprop_hardware.topology import ends, flat, ordered
from torch import Tensor, nn

from spikeprop.errors import NirError
from spikeprop.snn import (
    ALIF,
    IF,
    INPUT,
    LIF,
    CubaLIF,
    Direct,
    Encoder,
    Frames,
    Gain,
    GradedIF,
    Integrator,
    Latency,
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

# what the graph's metadata may name: those without settings, which a file does not hold
ENCODERS: dict[str, type[Encoder]] = {"Direct": Direct, "Frames": Frames, "Latency": Latency, "Poisson": Poisson}


@dataclass(frozen=True)
class _Branch:
    """A path from a layer: its operations, and the steps that it takes."""

    source: str
    ops: tuple[nn.Module, ...] = ()
    lag: int = 0


def from_nir(
    graph: nir.NIRGraph, *, encoder: Encoder | None = None, surrogate: Surrogate | None = None, dt: float | None = None
) -> SpikingNetwork:
    """A network from a NIR graph, in float64 where its weights are, else in float32.

    Args:
        graph: graph of linear nodes, IF, LIF, CubaLIF, StepLIF, ALIF, GradedIF, integrators and max pooling, one input and one
            output; with edges back, subgraphs and delays of one step.
        encoder: from image to input; default what the graph's metadata names, or ``Direct()`` where it names none.
        surrogate: for training; default ``STDB()``. Graded and signed neurons use none.
        dt: time step in the unit of tau, for LIF nodes that do not record one.

    Raises:
        NirError: naming the node that is not known or cannot be expressed exactly.
    """
    with nir_errors():
        return _from_nir(graph, encoder if encoder is not None else _encoder(graph), surrogate, dt)


def _from_nir(graph: nir.NIRGraph, encoder: Encoder, surrogate: Surrogate | None, dt: float | None) -> SpikingNetwork:
    graph = flat(graph)
    first, _ = ends(graph)
    paths = _Paths(graph)
    layers: dict[str, Layer] = {}
    for name in paths.order.names:
        node, branches = graph.nodes[name], paths.arriving(name)
        if isinstance(node, SpikingMaxPool2d):
            layers[paths.names[name]] = _layer(branches, SpikingMaxPool(*window_of(node, name)), name)
        elif name in paths.names:
            layers[paths.names[name]] = _layer(branches, _neuron(node, name, surrogate, dt), name)
        elif isinstance(node, INTEGRATORS):
            integrator, gain = _integrator(node, name, dt)
            branches = [replace(branch, ops=(*branch.ops, *gain)) for branch in branches]
            layers[_layer_name(name, {*layers, INPUT, OUTPUT})] = _layer(branches, integrator, name)
        elif isinstance(node, nir.Output) and [b.source for b in branches] != [paths.integrator]:
            layers[_layer_name(name, {*layers, INPUT})] = _layer(branches, None, name)
    shape = tuple(int(n) for n in graph.nodes[first].input_type["input"])
    network = SpikingNetwork(layers, encoder, shape).to(_dtype(graph)).eval()
    network.read = read_of(graph)
    network.readout.set(delay=readout_from(graph))
    return network


class _Paths:
    """The paths between the layers of a graph without subgraphs."""

    def __init__(self, graph: nir.NIRGraph):
        self.graph, self.order = graph, ordered(graph)
        self.first, self.last = ends(graph)
        self.names = layer_names(graph)
        self.integrator = next((name for name, node in graph.nodes.items() if isinstance(node, INTEGRATORS)), "")
        self.behind: dict[str, list[_Branch]] = {name: [_Branch(layer)] for name, layer in self.names.items()}
        self.behind |= {self.first: [_Branch(INPUT)]}
        if self.integrator:
            self.behind[self.integrator] = [_Branch(self.integrator)]
            readers = [target for source, target in graph.edges if source == self.integrator]
            others = [source for source, target in graph.edges if target == self.last and source != self.integrator]
            if readers != [self.last] or others:
                raise NirError(
                    f"node {self.integrator!r} is an integrator without spikes, which can be read where it and the output are "
                    "each other's only reader and source"
                )

    def arriving(self, name: str) -> list[_Branch]:
        """The branches that end in a node, in the order of its edges."""
        return [
            replace(branch, lag=branch.lag + self.order.lags.get((source, target), 0))
            for source, target in self.graph.edges
            if target == name
            for branch in self._behind(source)
        ]

    def _behind(self, name: str) -> list[_Branch]:
        if name not in self.behind:
            node, branches = self.graph.nodes[name], self.arriving(name)
            self.behind[name] = (
                branches if isinstance(node, nir.Delay) else [_through(name, node, b, len(branches)) for b in branches]
            )
        return self.behind[name]


def layer_names(graph: nir.NIRGraph) -> dict[str, str]:
    """What ``from_nir`` calls the layer of each node of neurons: torch forbids dots and names of
    its own ("training", "keys"), and "input" and "output" are taken.

    Raises:
        NirError: a loop, or a node that is not connected to the input.
    """
    names: dict[str, str] = {}
    graph = flat(graph)
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
            f"node {name!r} is a {type(node).__name__}, which cannot be imported; known: {known}, "
            f"{', '.join(kind.__name__ for kind in (*NEURONS, *INTEGRATORS, SpikingMaxPool2d))}"
        )
    if count > 1:
        raise NirError(f"node {name!r} reads a sum of {count} nodes; only neurons may")
    return replace(branch, ops=(*branch.ops, reader(node, name)))


def _neuron(node: Any, name: str, surrogate: Surrogate | None, dt: float | None) -> Neuron:
    read = neurons_of(node, name, dt)
    common: dict[str, Any] = {"reset": read.reset, "surrogate": surrogate}
    neuron: Neuron
    if read.levels:
        neuron = _graded(read)
    elif read.adaptation is not None:
        neuron = ALIF(**common)
        neuron.adaptation = _values(read.adaptation)
        neuron.set_factor("adaptation_leak", _values(read.adaptation_leak))
    elif read.synaptic_leak is not None:
        neuron = CubaLIF(**common)
        neuron.set_factor("synaptic_leak", _values(read.synaptic_leak))
    else:
        neuron = IF(**common) if _is_if(node) else LIF(**common)
    if not read.levels and not _is_if(node):
        neuron.leak = _values(read.leak)
    neuron.v_init = _values(read.v_init)
    neuron.v_threshold = _values(read.theta * 2 ** (max(read.levels, 1) - 1))
    return neuron


def _is_if(node: Any) -> bool:
    """Whether neurons have no leak and no current that outlives its step."""
    own = isinstance(node, StepLIF) and not np.any(np.asarray(node.synaptic_leak)) and np.all(np.asarray(node.leak) == 1)
    return isinstance(node, nir.IF) or bool(own)


def _integrator(node: Any, name: str, dt: float | None) -> tuple[Integrator, tuple[nn.Module, ...]]:
    """The output layer, and a factor on what it reads where there is one."""
    found = integrator_of(node, name, dt)
    leak = _uniform(found.leak)
    if found.synaptic_leak is not None or leak.ndim:
        what = "a current that outlives its step" if found.synaptic_leak is not None else "several leaks"
        raise NirError(f"node {name!r} is an integrator with {what}; one leak of the potential can be expressed")
    integrator = Integrator()
    integrator.leak = _tensor(leak)
    if found.factor is None:
        return integrator, ()
    gain = Gain(1.0)
    gain.gain = _values(found.factor)
    return integrator, (gain,)


def _graded(read: NeuronParameters) -> GradedIF:
    if read.levels == 1:
        return SignedIF(rectify=read.rectify)
    return GradedIF(levels=read.levels, rectify=read.rectify)


def _dtype(graph: nir.NIRGraph) -> torch.dtype:
    """That of the weights, since r, tau and scale are often float64 in the file of a float32 network."""
    weights = [np.asarray(getattr(node, "weight", 0)).dtype for node in graph.nodes.values()]
    return torch.float64 if np.dtype(np.float64) in weights else torch.float32


def _layer_name(name: str, taken: Collection[str]) -> str:
    name = name.replace(".", "_") or "_"
    while name in taken or not is_layer_name(name):
        name += "_"
    return name


def _layer(branches: list[_Branch], neuron: LayerDynamics | None, name: str) -> Layer:
    late = [branch for branch in branches if branch.lag > 1]
    if late:
        raise NirError(f"node {name!r} reads {late[0].source!r} {late[0].lag} steps late; feedback of one step can be expressed")
    forward, feedback = ([(b.source, Synapse(b.ops)) for b in branches if b.lag == lag] for lag in (0, 1))
    if not forward:
        raise NirError(f"node {name!r} reads feedback alone; a layer reads the input or an earlier layer in the same step too")
    return Layer(forward, neuron, feedback=feedback)


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


def _read_conv1d(node: nir.Conv1d, name: str) -> nn.Conv1d:
    weight, bias = _tensor(node.weight), _tensor(node.bias)
    stride, dilation = (int(np.asarray(value).reshape(())) for value in (node.stride, node.dilation))
    if node.padding == "same" and stride != 1:
        raise NirError(f"node {name!r} has padding 'same' with stride {stride}; give the padding as numbers")
    padding: Any = node.padding if isinstance(node.padding, str) else int(np.asarray(node.padding).reshape(()))
    op = nn.Conv1d(
        weight.shape[1] * int(node.groups), weight.shape[0], weight.shape[2], stride, padding, dilation, int(node.groups),
        bias=bool((bias != 0).any()),
    )  # fmt: skip
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
    nir.Conv1d: _read_conv1d,
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


def _values(array: Any) -> Tensor:
    """One number where all are equal, else the array."""
    return _tensor(_uniform(array))
