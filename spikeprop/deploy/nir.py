"""SpikingNetwork <-> NIR graph: the contract with hardware and with other libraries (Pedersen et al. 2024).

NIR's IF and LIF are continuous and reset to ``v_reset``; ours are discrete and may reset by subtraction. So each
neuron node carries in its metadata ``reset`` ("subtract" or "zero"), ``dt`` (ms), ``leak`` and ``v_init``, and ``signed`` where
spikes are taken back. In one Euler step of ``dt`` NIR's LIF is ours with leak = 1 - dt/tau and r = tau/dt, and NIR's IF with
r = 1 is ours. Max pooling of spikes is a node of a type of its own (``deploy/nir_pool.py``): read a file with ``read_nir``.
What cannot be expressed exactly is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import chain
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, nn

from spikeprop.deploy.nir_pool import SpikingMaxPool2d, is_max_pool, read_nir
from spikeprop.errors import NirError
from spikeprop.snn import (
    IF,
    INPUT,
    LIF,
    ChannelPad,
    Direct,
    Encoder,
    Gain,
    Layer,
    LayerDynamics,
    Neuron,
    Poisson,
    SampleDropout,
    SignedIF,
    SpikingNetwork,
    Surrogate,
    Synapse,
)
from spikeprop.snn.pooling import SpikingMaxPool

__all__ = ["from_nir", "layer_names", "read_nir", "to_nir"]
OUTPUT = "output"
DT_MS = 1.0
ENCODERS: dict[str, type[Encoder]] = {"Direct": Direct, "Poisson": Poisson}  # what the graph's metadata may name


def to_nir(network: SpikingNetwork, about: Mapping[str, str | int] | None = None) -> nir.NIRGraph:
    """The network as a NIR graph; dropout is left out, the output node receives the current that is to be accumulated.

    Args:
        network: left as it is.
        about: more entries for the graph's metadata, beside encoder, readout_from and writer.

    Raises:
        NirError: an operation that NIR cannot express exactly, or two nodes of one name.
    """
    if network.readout.restarts:
        raise NirError(
            f"a run beforehand of {int(network.readout.pre_run)} steps (OffsetSpike) cannot be written; use another calibrator"
        )
    shapes = network.shapes()
    nodes: dict[str, Any] = {INPUT: nir.Input(input_type={"input": np.array(network.input_shape)})}
    edges: list[tuple[str, str]] = []
    for name, layer in network.named_layers():
        end = name if layer.neuron is not None else OUTPUT
        for i, source, synapse in layer.branches():
            at, shape = source, shapes[source]
            for j, op in enumerate(synapse):
                if isinstance(op, SampleDropout):
                    continue
                node, after = _op_to_node(op, shape, name)
                label = f"{name}_synapse{i}_{j}"
                _put(nodes, label, node)
                edges.append((at, label))
                at, shape = label, after
            edges.append((at, end))
        if layer.neuron is not None:
            _put(nodes, name, _neuron_to_node(layer.neuron, shapes[name], name))
        else:
            _put(nodes, OUTPUT, nir.Output(output_type={"output": np.array(shapes[name])}))
    own = {"encoder": type(network.encoder).__name__, "writer": "spikeprop", "readout_from": int(network.readout.delay)}
    metadata = {**(about or {}), **own}
    # shapes are torch's own; nir 1.0.8 would take every kernel as square, and forget the groups in the channels
    return nir.NIRGraph(nodes=nodes, edges=edges, metadata=metadata, type_check=False)


def from_nir(
    graph: nir.NIRGraph, *, encoder: Encoder | None = None, surrogate: Surrogate | None = None, dt: float | None = None
) -> SpikingNetwork:
    """A network from a NIR graph, in float64 where its weights are, else in float32.

    Args:
        graph: feed-forward graph of linear nodes, IF/LIF and max pooling, one input and one output.
        encoder: from image to input; default what the graph's metadata names, or ``Direct()`` where it names none.
        surrogate: for training; default ``STDB()``.
        dt: time step in the unit of tau, for LIF nodes that do not record one.

    Raises:
        NirError: naming the node that is not known or cannot be expressed exactly.
    """
    try:
        return _Importer(graph, surrogate, dt).build(encoder if encoder is not None else _encoder(graph))
    except NirError:
        raise
    except Exception as error:  # fields of a file that nobody's writer wrote can be of any type and shape
        raise NirError(f"the graph does not hold what its nodes say: {type(error).__name__}: {error}") from error


def layer_names(graph: nir.NIRGraph) -> dict[str, str]:
    """What ``from_nir`` calls the layer of each node of neurons: torch forbids dots, and "input" and "output" are taken.

    Raises:
        NirError: a loop, or a node that is not connected to the input.
    """
    names: dict[str, str] = {}
    for node in _order(graph, _ends(graph)[0]):
        if _is_layer(graph.nodes[node]):
            names[node] = _layer_name(node, {*names.values(), INPUT, OUTPUT})
    return names


def _is_layer(node: Any) -> bool:
    return isinstance(node, nir.IF | nir.LIF) or is_max_pool(node)


# writing ----------------------------------------------------------------------------------------------------------------------


def _put(nodes: dict[str, Any], name: str, node: Any) -> None:
    if name in nodes:
        raise NirError(f"two nodes of the graph would be called {name!r}; rename that layer of the network")
    nodes[name] = node


@torch.no_grad()
def _op_to_node(op: nn.Module, shape: tuple[int, ...], layer: str) -> tuple[Any, tuple[int, ...]]:
    writer = _WRITERS.get(type(op))
    if writer is None:
        raise NirError(f"layer {layer!r}: NIR has no node for {type(op).__name__}")
    like = next(chain(op.parameters(), op.buffers()), torch.zeros(()))
    after = tuple(op(torch.zeros(1, *shape).to(like)).shape[1:])
    return writer(op, shape, after, layer), after


def _write_conv(op: nn.Conv2d, shape: tuple[int, ...], after: tuple[int, ...], layer: str) -> nir.Conv2d:
    if isinstance(op.padding, str):
        raise NirError(f"layer {layer!r}: give the convolution's padding as numbers, not {op.padding!r}")
    return nir.Conv2d(
        input_shape=(shape[1], shape[2]),
        weight=_array(op.weight),
        stride=_pair(op.stride),
        padding=_pair(op.padding),
        dilation=_pair(op.dilation),
        groups=op.groups,
        bias=_array(op.bias) if op.bias is not None else np.zeros_like(_array(op.weight), shape=op.out_channels),
    )


def _write_linear(op: nn.Linear, shape: tuple[int, ...], after: tuple[int, ...], layer: str) -> Any:
    if op.bias is None:
        return nir.Linear(weight=_array(op.weight))
    return nir.Affine(weight=_array(op.weight), bias=_array(op.bias))


def _write_pool(op: nn.AvgPool2d, shape: tuple[int, ...], after: tuple[int, ...], layer: str) -> nir.AvgPool2d:
    if op.ceil_mode or op.divisor_override or not (op.count_include_pad or op.padding in (0, (0, 0))):
        raise NirError(f"layer {layer!r}: NIR's AvgPool2d has no ceil_mode, divisor_override or count_include_pad=False")
    return nir.AvgPool2d(kernel_size=_pair(op.kernel_size), stride=_pair(op.stride), padding=_pair(op.padding))


def _write_adaptive(op: nn.AdaptiveAvgPool2d, shape: tuple[int, ...], after: tuple[int, ...], layer: str) -> nir.AvgPool2d:
    if shape[1] % after[1] or shape[2] % after[2]:
        raise NirError(f"layer {layer!r}: adaptive pooling from {shape[1:]} to {after[1:]} has windows of unequal size")
    kernel = np.array([shape[1] // after[1], shape[2] // after[2]])
    return nir.AvgPool2d(kernel_size=kernel, stride=kernel, padding=np.zeros(2, dtype=int))


def _write_flatten(op: nn.Flatten, shape: tuple[int, ...], after: tuple[int, ...], layer: str) -> nir.Flatten:
    return nir.Flatten(input_type={"input": np.array(shape)}, start_dim=0, end_dim=-1)


def _write_gain(op: Gain, shape: tuple[int, ...], after: tuple[int, ...], layer: str) -> nir.Scale:
    return nir.Scale(scale=np.broadcast_to(_array(op.gain), shape).copy())


def _write_place(op: ChannelPad, shape: tuple[int, ...], after: tuple[int, ...], layer: str) -> nir.Conv2d:
    """A place among concatenated channels is a convolution 1x1 that copies."""
    if len(shape) != 3:
        raise NirError(f"layer {layer!r}: a concatenation of vectors has no NIR node; concatenate before flattening")
    weight = np.zeros((after[0], shape[0], 1, 1), dtype=np.float32)
    weight[np.arange(shape[0]) + op.before, np.arange(shape[0])] = 1
    return nir.Conv2d(
        input_shape=(shape[1], shape[2]), weight=weight, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1,
        bias=np.zeros(after[0], dtype=np.float32),
    )  # fmt: skip


_WRITERS: dict[type, Callable[..., Any]] = {
    nn.Conv2d: _write_conv,
    nn.Linear: _write_linear,
    nn.AvgPool2d: _write_pool,
    nn.AdaptiveAvgPool2d: _write_adaptive,
    nn.Flatten: _write_flatten,
    ChannelPad: _write_place,
    Gain: _write_gain,
}


def _neuron_to_node(neuron: LayerDynamics, shape: tuple[int, ...], name: str) -> Any:
    if isinstance(neuron, SpikingMaxPool):
        return _write_max_pool(neuron.window)
    if not isinstance(neuron, Neuron) or type(neuron) not in (IF, LIF, SignedIF):
        raise NirError(f"layer {name!r}: {type(neuron).__name__} has no NIR node; only IF, LIF, SignedIF and SpikingMaxPool have")
    if neuron.leak.numel() != 1:
        raise NirError(f"layer {name!r}: one leak a layer can be written, not {tuple(neuron.leak.shape)}")
    threshold = np.broadcast_to(_array(neuron.v_threshold), shape).copy()
    leak = float(neuron.leak.detach())
    v_init: Any = float(neuron.v_init) if neuron.v_init.numel() == 1 else np.broadcast_to(_array(neuron.v_init), shape).copy()
    metadata = {"reset": neuron.reset, "v_init": v_init, "dt": DT_MS, "leak": leak}
    if neuron.signed:
        metadata["signed"] = 1
    ones, zeros = np.ones(shape), np.zeros(shape)
    if leak == 1:
        return nir.IF(r=ones, v_threshold=threshold, v_reset=zeros, metadata=metadata)
    tau = DT_MS / (1 - leak)
    return nir.LIF(tau=ones * tau, r=ones * tau / DT_MS, v_leak=zeros, v_threshold=threshold, v_reset=zeros, metadata=metadata)


def _write_max_pool(window: nn.MaxPool2d) -> SpikingMaxPool2d:
    sizes = (np.array(_pair(size)) for size in (window.kernel_size, window.stride, window.padding))
    return SpikingMaxPool2d(*sizes, ceil_mode=int(window.ceil_mode))


# reading ----------------------------------------------------------------------------------------------------------------------

_Branch = tuple[str, tuple[nn.Module, ...]]


class _Importer:
    """Walks a NIR graph and collects layers; the mirror image of the writer."""

    def __init__(self, graph: nir.NIRGraph, surrogate: Surrogate | None, dt: float | None):
        self.graph, self.surrogate, self.dt = graph, surrogate, dt

    def build(self, encoder: Encoder) -> SpikingNetwork:
        first, _ = _ends(self.graph)
        values: dict[str, list[_Branch]] = {first: [(INPUT, ())]}
        layers: dict[str, Layer] = {}
        names = layer_names(self.graph)
        for name in _order(self.graph, first):
            node = self.graph.nodes[name]
            branches = [b for source, target in self.graph.edges if target == name for b in values[source]]
            if _is_layer(node):
                layer = names[name]
                neuron = _read_max_pool(name, node) if is_max_pool(node) else self._read_neuron(name, node)
                layers[layer] = _layer(branches, neuron)
                values[name] = [(layer, ())]
            elif isinstance(node, nir.Output):
                layers[_layer_name(name, {*layers, INPUT})] = _layer(branches, None)
            else:
                values[name] = [self._through(name, node, branch, len(branches)) for branch in branches]
        shape = tuple(int(n) for n in self.graph.nodes[first].input_type["input"])
        network = SpikingNetwork(layers, encoder, shape).to(_dtype(self.graph)).eval()
        network.readout.set(delay=int((self.graph.metadata or {}).get("readout_from", 0)))
        return network

    def _through(self, name: str, node: Any, branch: _Branch, count: int) -> _Branch:
        reader = _READERS.get(type(node))
        if reader is None:
            known = ", ".join(t.__name__ for t in _READERS)
            raise NirError(
                f"node {name!r} is a {type(node).__name__}, which cannot be imported; known: {known}, IF, LIF, SpikingMaxPool2d"
            )
        if count > 1:
            raise NirError(f"node {name!r} reads a sum of {count} nodes; only neurons may")
        return branch[0], (*branch[1], reader(node, name))

    def _read_neuron(self, name: str, node: Any) -> Neuron:
        metadata = node.metadata or {}
        reset = metadata.get("reset", "zero")
        if reset not in ("subtract", "zero"):
            raise NirError(f"node {name!r} has reset mode {reset!r}; known: 'subtract', 'zero'")
        if np.any(np.asarray(node.v_reset) != 0):
            raise NirError(f"node {name!r} resets to v_reset = {np.ravel(node.v_reset)[0]}; only 0 can be expressed")
        common: dict[str, Any] = {"reset": reset, "surrogate": self.surrogate}
        neuron: Neuron
        if isinstance(node, nir.IF):
            if not np.allclose(node.r, 1):
                raise NirError(f"node {name!r} is an IF with r other than 1; fold r into the weights before it")
            neuron = _if(name, bool(metadata.get("signed", 0)), common)
        elif metadata.get("signed"):
            raise NirError(f"node {name!r} is signed and leaks; signed neurons do not leak")
        else:
            leak = self._leak(name, node, metadata)
            neuron = LIF(leak=leak, **common)
            neuron.leak = _tensor(leak)
        neuron.v_init = _tensor(_uniform(metadata.get("v_init", 0.0)))
        neuron.v_threshold = _tensor(_uniform(node.v_threshold))
        if not (neuron.v_threshold > 0).all():
            raise NirError(f"node {name!r} has a threshold of {float(neuron.v_threshold.min()):.4g}; thresholds are positive")
        return neuron

    def _leak(self, name: str, node: nir.LIF, metadata: dict[str, Any]) -> float:
        dt = metadata.get("dt", self.dt)
        if dt is None:
            raise NirError(f"node {name!r} is a LIF without a time step; pass dt in the unit of its tau")
        tau, r = _uniform(node.tau), _uniform(node.r)
        if tau.size != 1 or np.any(np.asarray(node.v_leak) != 0):
            raise NirError(f"node {name!r}: one tau a layer and v_leak = 0 can be expressed")
        if not np.allclose(r * dt / tau, 1):
            raise NirError(f"node {name!r} scales its current by r*dt/tau = {float(np.ravel(r * dt / tau)[0]):.4g}, not 1")
        leak = float(1 - dt / tau)
        exact = float(metadata.get("leak", leak))  # tau rounds; the writer's own number does not
        leak = exact if np.isclose(leak, exact) else leak
        if not 0 <= leak <= 1:
            raise NirError(f"node {name!r} has a leak 1 - dt/tau of {leak:.4g}; it must lie in [0, 1]")
        return leak


def _if(name: str, signed: bool, common: dict[str, Any]) -> Neuron:
    if not signed:
        return IF(**common)
    if common["reset"] != "subtract":
        raise NirError(f"node {name!r} is signed and resets to zero; signed neurons reset by subtraction")
    return SignedIF(surrogate=common["surrogate"])


def _read_max_pool(name: str, node: Any) -> SpikingMaxPool:
    try:
        kernel, stride, padding = (_pair(size) for size in (node.kernel_size, node.stride, node.padding))
    except ValueError:
        kernel = stride = padding = (0, 0)
    if min(*kernel, *stride) < 1 or min(padding) < 0 or any(2 * p > k for p, k in zip(padding, kernel)):
        raise NirError(
            f"node {name!r} has windows of {node.kernel_size}, stride {node.stride} and padding {node.padding}; windows and "
            "strides are two numbers from 1 up, padding at most half a window"
        )
    return SpikingMaxPool(kernel, stride, padding, bool(node.ceil_mode))


def _ends(graph: nir.NIRGraph) -> tuple[str, str]:
    """Names of the input and the output node."""
    inputs = [n for n, node in graph.nodes.items() if isinstance(node, nir.Input)]
    outputs = [n for n, node in graph.nodes.items() if isinstance(node, nir.Output)]
    if len(inputs) != 1 or len(outputs) != 1:
        raise NirError(f"the graph has {len(inputs)} inputs and {len(outputs)} outputs; a network has one of each")
    return inputs[0], outputs[0]


def _order(graph: nir.NIRGraph, first: str) -> list[str]:
    """All nodes but the input, each after its sources, the output last."""
    sources = {name: {a for a, b in graph.edges if b == name} for name in graph.nodes}
    order = [first]
    while len(order) < len(sources):
        ready = [n for n in sources if n not in order and sources[n] and sources[n] <= set(order)]
        if not ready:
            raise NirError(f"nodes {sorted(set(sources) - set(order))} are in a loop or not connected to the input")
        order += sorted(ready, key=lambda n: isinstance(graph.nodes[n], nir.Output))
    return order[1:]


def _encoder(graph: nir.NIRGraph) -> Encoder:
    name = (graph.metadata or {}).get("encoder", "Direct")
    if name not in ENCODERS:
        raise NirError(f"the graph was written with encoder {name!r}, which is not one of {list(ENCODERS)}; pass encoder=...")
    return ENCODERS[name]()


def _dtype(graph: nir.NIRGraph) -> torch.dtype:
    """The weights decide: r, tau and scale are float64 in many a file of a float32 network."""
    weights = [np.asarray(getattr(node, "weight", 0)).dtype for node in graph.nodes.values()]
    return torch.float64 if np.dtype(np.float64) in weights else torch.float32


def _layer_name(name: str, taken: Collection[str]) -> str:
    name = name.replace(".", "_")  # torch forbids dots in a module's name
    while name in taken:
        name += "_"
    return name


def _layer(branches: list[_Branch], neuron: LayerDynamics | None) -> Layer:
    return Layer([(source, Synapse(ops)) for source, ops in branches], neuron)


def _read_conv(node: nir.Conv2d, name: str) -> nn.Conv2d:
    weight, bias = _tensor(node.weight), _tensor(node.bias)
    padding: Any = node.padding if isinstance(node.padding, str) else _pair(node.padding)
    if padding == "same" and _pair(node.stride) != (1, 1):
        raise NirError(f"node {name!r} has padding 'same' with stride {_pair(node.stride)}; give the padding as numbers")
    op = nn.Conv2d(
        weight.shape[1] * int(node.groups),
        weight.shape[0],
        (weight.shape[2], weight.shape[3]),
        stride=_pair(node.stride),
        padding=padding,
        dilation=_pair(node.dilation),
        groups=int(node.groups),
        bias=bool((bias != 0).any()),
    )
    return _filled(op, weight, bias)


def _read_linear(node: Any, name: str) -> nn.Linear:
    weight = _tensor(node.weight)
    bias = _tensor(node.bias) if isinstance(node, nir.Affine) else None
    return _filled(nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None), weight, bias)


def _read_pool(node: nir.AvgPool2d, name: str) -> nn.AvgPool2d:
    return nn.AvgPool2d(_pair(node.kernel_size), _pair(node.stride), _pair(node.padding))


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
    nir.Flatten: _read_flatten,
    nir.Scale: _read_scale,
}


def _filled(op: Any, weight: Tensor, bias: Tensor | None) -> Any:
    op.weight = nn.Parameter(weight)
    if op.bias is not None and bias is not None:
        op.bias = nn.Parameter(bias)
    return op


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _tensor(array: Any) -> Tensor:
    """In float64, which loses nothing; the network that is built gets the graph's dtype at the end."""
    return torch.as_tensor(np.array(array), dtype=torch.float64)


def _pair(value: Any) -> Any:
    values = np.broadcast_to(np.asarray(value, dtype=int), (2,))
    return (int(values[0]), int(values[1]))


def _uniform(array: Any) -> np.ndarray:
    """A scalar where all values are equal, else the array."""
    values = np.asarray(array)
    return values.reshape(-1)[0] if values.size and np.all(values == values.flat[0]) else values
