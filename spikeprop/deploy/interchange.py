"""A NIR graph that another library's own importer reads correctly: rewritten exactly where possible, else refused with a reason.

readers.py says what each of them makes of neurons. Of the other nodes, Norse has no average pooling and misreads the channels of
a grouped convolution, as sinabs does, which reads no weights without a bias either: pooling becomes a convolution, groups are
filled with zeros. Rockpool and Spyx read vectors; images are given flattened.

All of them start at zero whatever the file says, so other start potentials are refused; so are graded neurons, thresholds that
adapt and max pooling of spikes, which none has, networks that are not one chain, and other readings than the sum. Inputs are
given one sample at a time, (C, H, W) without a batch; the network's output is the sum of its outputs over all steps.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import nir
import numpy as np
from spikeprop_hardware.graph import ALIF, GradedIF, SpikingMaxPool2d, StepLIF, pair, read_of, readout_from
from spikeprop_hardware.matrix import linear_of, places_of
from spikeprop_hardware.network import lay_out
from spikeprop_hardware.neurons import neurons_of

from spikeprop.deploy.readers import Neurons, Reader, check_one_spike, reader_of
from spikeprop.errors import NirError

FIRING = (nir.IF, nir.LIF, nir.CubaLIF, StepLIF)
WEIGHTED = (nir.Affine, nir.Linear, nir.Conv2d)
Shape = tuple[int, ...]


def portable(graph: nir.NIRGraph, library: str) -> nir.NIRGraph:
    """The graph as ``library``'s importer understands it, with the same spikes but for the last bits of float32.

    Args:
        graph: what ``to_nir`` makes, or another chain of linear nodes and neurons; left as it is.
        library: "norse", "snntorch", "sinabs", "rockpool" or "spyx".

    Raises:
        NirError: the library does not have the semantics; names the node.
    """
    reader = reader_of(library)
    _refuse(graph, library)
    names = _chain(graph, library)
    laid_out = lay_out(graph) if reader.several else None
    first, last = graph.nodes[names[0]], graph.nodes[names[-1]]
    shape: Shape = tuple(int(n) for n in first.input_type["input"])
    nodes: dict[str, Any] = {names[0]: nir.Input(input_type={"input": np.array(shape)})}
    weighted: str | None = None  # the last weights before the next neurons
    layers = 0
    for name in names[1:-1]:
        node = graph.nodes[name]
        if isinstance(node, FIRING):
            neuron, factor = reader.write(_neurons(name, node, library, reader))
            if laid_out is not None:
                check_one_spike(laid_out, name, library)
            if weighted is None and np.any(factor != 1):
                raise NirError(f"node {name!r} scales its current, and there are no weights before it to take the factor")
            if weighted is not None:
                nodes[weighted] = _scaled(nodes[weighted], factor, name)
            if reader.late and layers and weighted is not None and np.any(getattr(nodes[weighted], "bias", 0)):
                raise NirError(
                    f"node {weighted!r} has biases, which would work a step for each layer before its spikes arrive in "
                    f"{library}, whose spikes leave a step late; train without biases (bias: false), but for the first weights "
                    "and the last"
                )
            nodes[name], weighted, layers = neuron, None, layers + 1
            continue
        made, after = _linear(name, node, shape, library, reader)
        if made is None and len(nodes) == 1:  # the image is given flattened
            nodes[names[0]] = nir.Input(input_type={"input": np.array(after)})
        elif made is not None:
            nodes[name] = made
        shape, weighted = after, name if isinstance(node, WEIGHTED) else weighted
    nodes[names[-1]] = nir.Output(output_type={"output": np.array(last.output_type["output"])})
    called = _names(list(nodes))
    edges = list(pairwise(called.values()))
    nodes = {called[name]: node for name, node in nodes.items()}
    return nir.NIRGraph(nodes=nodes, edges=edges, metadata=dict(graph.metadata or {}), type_check=False)


def _names(nodes: list[str]) -> dict[str, str]:
    """Spyx finds the ends of a graph by their names."""
    called = {name: f"{name}_" if name in ("input", "output") else name for name in nodes[1:-1]}
    return {nodes[0]: "input", **called, nodes[-1]: "output"}


def _refuse(graph: nir.NIRGraph, library: str) -> None:
    """What no other change would help."""
    for name, node in graph.nodes.items():
        if isinstance(node, SpikingMaxPool2d):
            raise NirError(
                f"node {name!r} is a max pooling of spikes by their counts, which {library} does not have; train with average "
                "pooling in its place (TorchvisionModel: pooling: average; a plan of CNN: A)"
            )
        if isinstance(node, nir.IF | GradedIF) and neurons_of(node, name).levels:
            raise NirError(
                f"node {name!r} sends graded spikes (SignedIF, GradedIF), which {library} does not have; convert with IF, reset: "
                "zero"
            )
        if isinstance(node, ALIF):
            raise NirError(f"node {name!r} has thresholds that adapt, which {library} does not read from a file; use LIF")
    if read_of(graph) != "sum":
        raise NirError(
            f"the network's output is the {read_of(graph)} of its values, which {library} does not read from a file: set "
            "network.read = 'sum' before, and take it of the values that it returns"
        )
    delay = readout_from(graph)
    if delay:
        raise NirError(
            f"the network's output counts from step {delay} on (a delayed readout), which {library} does not have: its output "
            "would count all steps. Convert with delay: false, or call network.readout.set()"
        )


def _chain(graph: nir.NIRGraph, library: str) -> list[str]:
    """Node names from input to output."""
    names = [name for name, node in graph.nodes.items() if isinstance(node, nir.Input)][:1]
    while names and not isinstance(graph.nodes[names[-1]], nir.Output):
        after = [b for a, b in graph.edges if a == names[-1]]
        if len(after) != 1 or after[0] in names or sum(b == after[0] for _, b in graph.edges) != 1:
            raise NirError(
                f"node {names[-1]!r} is not followed by one node that reads it alone; only a chain is written for {library}, "
                "not skip connections, sums or loops"
            )
        names += after
    if len(names) != len(graph.nodes):
        raise NirError(f"the graph is not one chain from input to output, and only that is written for {library}")
    return names


def _neurons(name: str, node: Any, library: str, reader: Reader) -> Neurons:
    """Our neurons; what the reader does not do is refused."""
    neurons = neurons_of(node, name)
    if reader.reset == "zero" and neurons.reset != "zero":
        raise NirError(
            f"node {name!r} resets by subtraction, which NIR cannot say: {library} would reset to zero, and its spikes "
            "would differ without a warning. Convert with reset: zero, or use spikeprop.snn.interop.rebuild, which maps more"
        )
    if reader.reset == "subtract" and neurons.reset != "subtract":
        raise NirError(f"node {name!r} resets to zero, and {library} subtracts the threshold; convert with reset: subtract")
    if np.any(neurons.v_init != 0):
        raise NirError(f"node {name!r} starts at v_init other than 0, and {library}'s neurons start at 0; convert with v_init: 0")
    synaptic = np.zeros(1) if neurons.synaptic_leak is None else neurons.synaptic_leak
    if np.any(neurons.leak != neurons.leak.flat[0]) or np.any(synaptic != synaptic.flat[0]):
        raise NirError(f"node {name!r} has several time constants; one leak a layer is written for {library}")
    if reader.current == "none" and synaptic.any():
        raise NirError(
            f"node {name!r} has a synaptic current that outlives its step, which {library} does not read as this network "
            "means it: a potential reads it a step earlier or not at all; use LIF"
        )
    if reader.current == "needed" and not synaptic.all():
        raise NirError(f"node {name!r} has no synaptic current, and {library} reads neurons with one (CubaLIF) alone")
    theta = np.broadcast_to(neurons.theta, np.shape(node.v_threshold)).astype(np.asarray(node.v_threshold).dtype)
    return Neurons(theta, float(neurons.leak.flat[0]), float(synaptic.flat[0]))


def _scaled(node: Any, factor: np.ndarray, reader: str) -> Any:
    """A node of weights whose outputs are multiplied by ``factor``: one number, or one for each of the reader's neurons."""
    outputs = len(node.weight)
    rows = np.full(outputs, float(factor)) if factor.ndim == 0 else factor.reshape(factor.shape[0], -1)[:, 0]
    by_row = factor if factor.ndim == 0 else rows.reshape(-1, *[1] * (factor.ndim - 1))
    if len(rows) != outputs or np.any(factor != by_row):
        raise NirError(
            f"node {reader!r} has thresholds that differ within a channel, and only a channel's can go into the weights"
        )
    weight = np.asarray(node.weight) * rows.reshape(-1, *[1] * (np.ndim(node.weight) - 1))
    if isinstance(node, nir.Linear):
        return nir.Linear(weight=weight)
    return dataclasses.replace(node, weight=weight, bias=np.asarray(node.bias) * rows)


def _linear(name: str, node: Any, shape: Shape, library: str, reader: Reader) -> tuple[Any, Shape]:
    """A node without neurons as the library knows it, None where it is left out, and the shape after it."""
    if isinstance(node, nir.Affine | nir.Linear):
        bare = reader.affine and isinstance(node, nir.Linear)
        return nir.Affine(node.weight, np.zeros_like(node.weight[:, 0])) if bare else node, (len(node.weight),)
    if reader.vectors and not (isinstance(node, nir.Flatten) and len(shape) >= 1):
        raise NirError(f"node {name!r} is a {type(node).__name__}, and {library} reads dense layers of vectors alone")
    if isinstance(node, nir.Flatten):
        after = linear_of(node, shape, name)[2]
        if len(after) != 1:
            raise NirError(
                f"node {name!r} flattens axes {node.start_dim} to {node.end_dim}; only all axes are written for {library}"
            )
        flat = None if reader.vectors else nir.Flatten(input_type={"input": np.array(shape)}, start_dim=0, end_dim=-1)
        return flat, (int(np.prod(shape)),)
    if isinstance(node, nir.Conv2d) and not isinstance(node.padding, str):
        full = _ungrouped(np.asarray(node.weight), int(node.groups))
        return _conv(node, full, np.asarray(node.bias), shape, pair(node.dilation)), places_of(node, shape, name).after
    if isinstance(node, nir.AvgPool2d):
        after = places_of(node, shape, name).after
        if reader.average:
            return node, after
        kernel = pair(node.kernel_size)
        weight = np.zeros((shape[0], shape[0], *kernel))
        weight[np.arange(shape[0]), np.arange(shape[0])] = 1 / (kernel[0] * kernel[1])
        return _conv(node, weight, np.zeros(shape[0]), shape, (1, 1)), after
    raise NirError(f"node {name!r} is a {type(node).__name__} (or has padding in words), which is not written for {library}")


def _conv(node: Any, weight: np.ndarray, bias: np.ndarray, shape: Shape, dilation: tuple[int, int]) -> nir.Conv2d:
    return nir.Conv2d((shape[1], shape[2]), weight, pair(node.stride), pair(node.padding), dilation, 1, bias)


def _ungrouped(weight: np.ndarray, groups: int) -> np.ndarray:
    outputs, inputs = len(weight), weight.shape[1]
    full = np.zeros((outputs, inputs * groups, *weight.shape[2:]), weight.dtype)
    for o in range(outputs):
        start = o // (outputs // groups) * inputs
        full[o, start : start + inputs] = weight[o]
    return full
