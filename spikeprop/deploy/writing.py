"""SpikingNetwork -> NIR graph: the contract with hardware and with other libraries (Pedersen et al. 2024).

A layer's synapses become one node an operation, its neurons one node, whose metadata holds what NIR has no field for, or a node
of our own; ``spikeprop_hardware.graph`` says what nodes and metadata mean. Feedback becomes an edge back, which takes a step
(``spikeprop_hardware.topology``), or a Delay of one step where an edge alone would not say so. Batch-norm is folded into weights
before. What cannot be expressed exactly is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain, pairwise
from typing import Any

import nir
import numpy as np
import spikeprop_hardware.graph as own_nodes
import torch
from spikeprop_hardware.graph import SpikingMaxPool2d, pair
from spikeprop_hardware.topology import back_edges
from torch import Tensor, nn

from spikeprop.deploy.carried import check_carried, refuse_hooks
from spikeprop.deploy.reading import ENCODERS
from spikeprop.errors import NirError, SimulationError
from spikeprop.snn import (
    ALIF,
    IF,
    INPUT,
    LIF,
    PLIF,
    ChannelPad,
    CubaLIF,
    Encoder,
    Gain,
    GradedIF,
    Integrator,
    Layer,
    LayerDynamics,
    Neuron,
    SampleDropout,
    SignedIF,
    SpikingNetwork,
    Synapse,
)
from spikeprop.snn.folding import folded, needs_folding
from spikeprop.snn.layer import OUTPUT
from spikeprop.snn.pooling import SpikingMaxPool

DT_MS = 1.0
NO_LEAK = 1e-16  # 1 - NO_LEAK is 1 in float64, of a time constant that is finite
Edge = tuple[str, str]


def to_nir(network: SpikingNetwork, about: Mapping[str, str | int] | None = None) -> nir.NIRGraph:
    """The network as a NIR graph; dropout is left out, batch-norm is folded into weights. The output node receives the last
    layer's values; the graph's metadata ``read`` says how they make the output, where it is not their sum.

    Args:
        network: left as it is.
        about: more entries for the graph's metadata, beside encoder, readout_from and writer.

    Raises:
        NirError: an operation that NIR cannot express exactly, layers that need arithmetic on the chip, or two nodes of one name.
    """
    network = without_norms(network)
    _refuse_arithmetic(network)
    if network.output_form is not None:
        raise NirError(
            f"the network has several outputs ({', '.join(network.output_form.parts())}), whose structure a NIR file cannot "
            "hold; with network.output_form = None they are one vector, one after another, and can be written"
        )
    if network.readout.restarts:
        raise NirError(
            f"a run beforehand of {int(network.readout.pre_run)} steps (OffsetSpike) cannot be written; use another calibrator"
        )
    if network.readout.delay and network.read != "sum":
        raise NirError(
            f"the network's output counts from step {int(network.readout.delay)} on and is the {network.read} of its values, and "
            "only a delayed sum can be written: network.readout.set(), or network.read = 'sum'"
        )
    _check_containers(network)
    _check_pools(network)
    shapes = network.shapes()
    nodes: dict[str, Any] = {INPUT: nir.Input(input_type={"input": np.array(network.input_shape)})}
    edges: list[Edge] = []
    back: dict[Edge, tuple[str, Edge]] = {}  # of feedback, the last edge: what it reads, and its first edge
    for name, layer in network.named_layers():
        end = name if layer.neuron is not None else OUTPUT
        for i, source, synapse in chain(layer.branches(), layer.feedback_branches()):
            path = _path_to_nodes(nodes, f"{name}_synapse{i}", synapse, shapes[source], name)
            steps = list(pairwise([source, *path, end]))
            edges += steps
            if i >= len(layer.sources):
                back[steps[-1]] = source, steps[0]
        if layer.neuron is not None:
            _put(nodes, name, _neuron_to_node(layer.neuron, shapes[name], name))
        if layer.reads_out:
            _put(nodes, OUTPUT, nir.Output(output_type={"output": np.array(shapes[name])}))
            edges += [(name, OUTPUT)] if layer.neuron is not None else []
    _say_delays(nodes, edges, back, shapes)
    own = {"encoder": type(network.encoder).__name__, "writer": "spikeprop", "readout_from": int(network.readout.delay)}
    metadata = {**(about or {}), **own, **({"read": network.read} if network.read != "sum" else {})}
    # shapes are torch's own; nir 1.0.8 would take every kernel as square, and forget the groups in the channels
    return nir.NIRGraph(nodes=nodes, edges=edges, metadata=metadata, type_check=False)


def without_norms(network: SpikingNetwork) -> SpikingNetwork:
    """The network, or one that is equal to it and can be written (``spikeprop.snn.folding``).

    Raises:
        NirError: one that cannot be folded.
    """
    if not needs_folding(network):
        return network
    for path, module in network.named_modules():
        refuse_hooks(module, f"module {path!r}" if path else "the network")
    try:
        return folded(network)
    except SimulationError as error:
        raise NirError(f"the network's batch-norm cannot become part of its weights: {error}") from error


def _path_to_nodes(nodes: dict[str, Any], label: str, synapse: Synapse, shape: tuple[int, ...], layer: str) -> list[str]:
    """A synapse's operations, as nodes that follow one another; their names."""
    path = []
    for j, op in enumerate(synapse):
        if not isinstance(op, SampleDropout):
            node, shape = _op_to_node(op, shape, layer)
            path.append(f"{label}_{j}")
            _put(nodes, path[-1], node)
    return path


def _say_delays(
    nodes: dict[str, Any], edges: list[Edge], back: dict[Edge, tuple[str, Edge]], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Put a Delay of one step into feedback that a reader of edges would not take for an edge back. A Delay ends the loops that
    it is in, so others may need one then."""
    plain = dict(back)
    while unsaid := [edge for edge in plain if edge not in back_edges(nir.NIRGraph(nodes, edges, {}, type_check=False))]:
        for last in unsaid:
            source, first = plain.pop(last)
            label = f"{first[1]}_delay" if first[1] != last[1] else f"{source}_{last[1]}_delay"
            _put(nodes, label, nir.Delay(delay=np.full(shapes[source], DT_MS), metadata={"dt": DT_MS}))
            edges[edges.index(first)] = (source, label)
            edges.append((label, first[1]))


def _refuse_arithmetic(network: SpikingNetwork) -> None:
    """Layers that send real numbers which they compute: no neuron of a chip does."""
    dynamics = network.dynamics()
    found = [f"{name} ({_computed(dynamics[name])})" for name in network.arithmetic_layers()]
    if found:
        raise NirError(
            f"{len(found)} of {len(dynamics)} layers need arithmetic on the chip and send real numbers, as no neuron "
            f"of NIR or of our simulators does: {', '.join(found)}. Such a network runs in PyTorch; to export it, put ReLU, "
            "pooling and BatchNorm in place of these functions in the ANN, and train it again"
        )


def _computed(what: Any) -> str:
    """What a layer computes, by name: the innermost function or module."""
    inner = getattr(what, "module", None) or getattr(what, "function", None) if isinstance(what, nn.Module) else None
    if inner is not None:
        return _computed(inner)
    return what if isinstance(what, str) else getattr(what, "__name__", type(what).__name__)


def _check_pools(network: SpikingNetwork) -> None:
    """Counts of max pooling start from 0, also in the file; PyTorch pads with less, which shows where sums are negative."""
    layers, dynamics = dict(network.named_layers()), network.dynamics()
    for name, pool in dynamics.items():
        found = [s for s in layers[name].sources if not getattr(dynamics.get(s), "rectify", True)]
        if found and isinstance(pool, SpikingMaxPool):
            raise NirError(
                f"layer {name!r} is a max pooling of layer {found[0]!r}, whose sums may be negative (rectify=False), and a NIR "
                "file's counts start from 0; pool after the ReLU, or use average pooling"
            )


def _check_containers(network: SpikingNetwork) -> None:
    """Hooks and classes of the network, its layers, synapses and encoder; operations and neurons are checked one by one."""
    containers: Any = (SpikingNetwork, Layer, Synapse, Encoder, nn.ModuleDict, nn.ModuleList)
    for path, module in network.named_modules():
        if not isinstance(module, containers):
            continue
        what = f"module {path!r}" if path else "the network"
        refuse_hooks(module, what)
        if isinstance(module, Layer | Synapse) and type(module) not in (Layer, Synapse):
            raise NirError(f"{what} is a {type(module).__name__}, whose computation a NIR file cannot hold")
    kind = type(network.encoder)
    if kind.__name__ in ENCODERS and not kind.__module__.startswith("spikeprop."):
        raise NirError(f"the encoder is another class that is called {kind.__name__}, the name of one of spikeprop's; rename it")


def _put(nodes: dict[str, Any], name: str, node: Any) -> None:
    if "/" in name:
        raise NirError(
            f"a node would be called {name!r}, and a slash separates folders in HDF5; rename that layer of the network"
        )
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
    check_carried(op, layer, shape, after)
    return writer(op, shape, after, layer), after


def _write_conv(op: nn.Conv2d, shape: tuple[int, ...], after: tuple[int, ...], layer: str) -> nir.Conv2d:
    return nir.Conv2d(
        input_shape=(shape[1], shape[2]),
        weight=_array(op.weight),
        stride=pair(op.stride),
        padding=_padding(op) if isinstance(op.padding, str) else pair(op.padding),
        dilation=pair(op.dilation),
        groups=op.groups,
        bias=_array(op.bias) if op.bias is not None else np.zeros_like(_array(op.weight), shape=op.out_channels),
    )


def _write_conv1d(op: nn.Conv1d, shape: tuple[int, ...], after: tuple[int, ...], layer: str) -> nir.Conv1d:
    bias = _array(op.bias) if op.bias is not None else np.zeros_like(_array(op.weight), shape=op.out_channels)
    padding = _padding(op) if isinstance(op.padding, str) else op.padding
    padding = padding if isinstance(padding, str) else padding[0]
    return nir.Conv1d(shape[1], _array(op.weight), op.stride[0], padding, op.dilation[0], op.groups, bias)


def _padding(op: nn.Conv1d | nn.Conv2d) -> Any:
    """A padding in words as numbers, by axis; "same" where its sides are unequal, of which NIR has the word alone."""
    totals = [0 if op.padding == "valid" else d * (k - 1) for d, k in zip(op.dilation, op.kernel_size)]
    return "same" if any(total % 2 for total in totals) else tuple(total // 2 for total in totals)


def _write_pool1d(op: nn.AvgPool1d, shape: tuple[int, ...], after: tuple[int, ...], layer: str) -> nir.Conv1d:
    """NIR has no pooling of signals; it is a convolution within each channel."""
    size, stride, padding = (int(np.ravel(value)[0]) for value in (op.kernel_size, op.stride, op.padding))
    weight = np.full((shape[0], 1, size), 1 / size, dtype=np.float32)
    return nir.Conv1d(shape[1], weight, stride, padding, 1, shape[0], np.zeros(shape[0], dtype=np.float32))


def _write_linear(op: nn.Linear, shape: tuple[int, ...], after: tuple[int, ...], layer: str) -> Any:
    if op.bias is None:
        return nir.Linear(weight=_array(op.weight))
    return nir.Affine(weight=_array(op.weight), bias=_array(op.bias))


def _write_pool(op: nn.AvgPool2d, shape: tuple[int, ...], after: tuple[int, ...], layer: str) -> Any:
    return nir.SumPool2d(*_sizes(op)) if op.divisor_override == 1 else nir.AvgPool2d(*_sizes(op))


def _write_adaptive(op: nn.AdaptiveAvgPool2d, shape: tuple[int, ...], after: tuple[int, ...], layer: str) -> nir.AvgPool2d:
    if shape[1] % after[1] or shape[2] % after[2]:
        raise NirError(f"layer {layer!r}: adaptive pooling from {shape[1:]} to {after[1:]} has windows of unequal size")
    kernel = np.array([shape[1] // after[1], shape[2] // after[2]])
    return nir.AvgPool2d(kernel_size=kernel, stride=kernel, padding=np.zeros(2, dtype=int))


def _write_flatten(op: nn.Flatten, shape: tuple[int, ...], after: tuple[int, ...], layer: str) -> nir.Flatten:
    return nir.Flatten(input_type={"input": np.array(shape)}, start_dim=0, end_dim=-1)


def _write_gain(op: Gain, shape: tuple[int, ...], after: tuple[int, ...], layer: str) -> nir.Scale:
    return nir.Scale(scale=np.broadcast_to(_array(op.gain), shape).copy())


def _write_place(op: ChannelPad, shape: tuple[int, ...], after: tuple[int, ...], layer: str) -> Any:
    """A place among concatenated channels is a convolution 1x1 that copies; among values, a matrix."""
    weight = np.zeros((after[0], shape[0]), dtype=np.float32)
    weight[np.arange(shape[0]) + op.before, np.arange(shape[0])] = 1
    bias = np.zeros(after[0], dtype=np.float32)
    if len(shape) == 1:
        return nir.Linear(weight=weight)
    if len(shape) == 2:
        return nir.Conv1d(shape[1], weight[:, :, None], 1, 0, 1, 1, bias)
    if len(shape) != 3:
        raise NirError(f"layer {layer!r}: a concatenation of tensors of shape {shape} has no NIR node")
    return nir.Conv2d((shape[1], shape[2]), weight[:, :, None, None], (1, 1), (0, 0), (1, 1), 1, bias)


_WRITERS: dict[type, Callable[..., Any]] = {
    nn.Conv1d: _write_conv1d,
    nn.Conv2d: _write_conv,
    nn.Linear: _write_linear,
    nn.AvgPool1d: _write_pool1d,
    nn.AvgPool2d: _write_pool,
    nn.AdaptiveAvgPool2d: _write_adaptive,
    nn.Flatten: _write_flatten,
    ChannelPad: _write_place,
    Gain: _write_gain,
}


def _neuron_to_node(neuron: LayerDynamics, shape: tuple[int, ...], name: str) -> Any:
    if isinstance(neuron, SpikingMaxPool):
        if not isinstance(neuron.window, nn.MaxPool2d):
            raise NirError(f"layer {name!r}: max pooling of signals and volumes has no NIR node; only that of images has")
        check_carried(neuron.window, name)
        return _write_max_pool(neuron.window)
    if type(neuron) not in (IF, LIF, PLIF, CubaLIF, ALIF, SignedIF, GradedIF, Integrator):
        raise NirError(
            f"layer {name!r}: {type(neuron).__name__} has no NIR node; only IF, LIF, PLIF, CubaLIF, ALIF, SignedIF, GradedIF, "
            "Integrator and SpikingMaxPool have"
        )
    check_carried(neuron, name)
    if isinstance(neuron, Integrator):
        return _integrator_to_node(neuron, shape)
    assert isinstance(neuron, Neuron)
    threshold, v_init = np.broadcast_to(_array(neuron.v_threshold), shape).copy(), _numbers(neuron.v_init, shape)
    if isinstance(neuron, GradedIF):
        return own_nodes.GradedIF(threshold, neuron.levels, v_init, int(neuron.rectify))
    # PLIF computes its factors: in float64 here, as in a float64 copy of the network
    leak = _numbers(torch.sigmoid(-neuron.w.detach().double()) if isinstance(neuron, PLIF) else neuron.leak, shape)
    if isinstance(neuron, ALIF):
        raised = _numbers(neuron.adaptation, shape), _numbers(neuron.adaptation_leak, shape)
        return own_nodes.ALIF(threshold, leak, *raised, v_init, int(neuron.reset == "zero"))
    synaptic = _numbers(neuron.synaptic_leak, shape) if isinstance(neuron, CubaLIF) else 0.0
    gain = float(torch.sigmoid(neuron.w.detach().double())) if isinstance(neuron, PLIF) and neuron.decay_input else 1.0
    if neuron.reset == "subtract" or np.any(v_init):
        threshold = threshold if gain == 1 else threshold / np.float64(gain)
        return own_nodes.StepLIF(threshold, leak, synaptic, v_init, int(neuron.reset == "zero"))
    return _standard(threshold, leak, synaptic if isinstance(neuron, CubaLIF) else None, gain)


def _standard(threshold: np.ndarray, leak: Any, synaptic: Any, gain: float) -> nir.IF | nir.LIF | nir.CubaLIF:
    """NIR's own neurons, which reset to zero and start there."""
    shape, zeros = threshold.shape, np.zeros(threshold.shape)
    metadata = {"dt": DT_MS, "leak": leak}
    if synaptic is not None:
        tau, tau_syn = _tau(leak, shape), _tau(synaptic, shape)
        return nir.CubaLIF(
            tau_syn=tau_syn, tau_mem=tau, r=tau / DT_MS, v_leak=zeros, v_threshold=threshold, v_reset=zeros,
            w_in=tau_syn / DT_MS, metadata=metadata | {"synaptic_leak": synaptic},
        )  # fmt: skip
    if not isinstance(leak, np.ndarray) and leak == 1:
        return nir.IF(r=np.ones(shape) * gain, v_threshold=threshold, v_reset=zeros, metadata=metadata)
    tau = _tau(leak, shape)
    return nir.LIF(tau=tau, r=gain * tau / DT_MS, v_leak=zeros, v_threshold=threshold, v_reset=zeros, metadata=metadata)


def _integrator_to_node(neuron: Integrator, shape: tuple[int, ...]) -> nir.LI | nir.I:
    leak = float(neuron.leak.detach().double())
    if leak == 1:
        return nir.I(r=np.ones(shape))
    tau = _tau(leak, shape)
    return nir.LI(tau=tau, r=tau / DT_MS, v_leak=np.zeros(shape), metadata={"dt": DT_MS, "leak": leak})


def _tau(leak: float | np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Time constants of a leak, in ms."""
    return np.broadcast_to(DT_MS / np.maximum(1 - np.asarray(leak, np.float64), NO_LEAK), shape).copy()


def _numbers(values: Tensor, shape: tuple[int, ...]) -> Any:
    """One number, or one for each neuron."""
    return float(values.detach()) if values.numel() == 1 else np.broadcast_to(_array(values), shape).copy()


def _write_max_pool(window: nn.MaxPool2d) -> SpikingMaxPool2d:
    return SpikingMaxPool2d(*_sizes(window), ceil_mode=int(window.ceil_mode))


def _sizes(pool: nn.AvgPool2d | nn.MaxPool2d) -> list[np.ndarray]:
    return [np.array(pair(size)) for size in (pool.kernel_size, pool.stride, pool.padding)]


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
