"""A NIR graph that another library's own importer reads correctly: rewritten exactly where possible, else refused with a reason.

NIR's LIF is tau dv/dt = (v_leak - v) + r*I; a factor on a layer's current may be in r or in the weights before it. The importers
of these versions do the following, according to their code:

- Norse 1.1 (``norse.torch.from_nir(graph)``) ignores r, has no average pooling, misreads the channels of a grouped
  convolution, and steps by 1 ms: r goes into the weights, pooling becomes a convolution, groups are filled with zeros, and
  tau is in s.
- snnTorch 1.0 (``snntorch.import_nir.import_from_nir(graph)``) reads an IF as a leaky neuron that then cannot run, needs one
  threshold a layer, and steps by 0.1 ms: IF is written as a LIF whose leak rounds to none, thresholds that differ go into the
  weights.

Both reset to zero and start at zero whatever the file says, so reset by subtraction and other start potentials are refused; so
are graded neurons and max pooling of spikes, which neither has, networks that are not one chain, and other readings than the sum.
Inputs are given one sample at a time, (C, H, W) without a batch; the network's output is the sum of its outputs over all steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import nir
import numpy as np
from spikeprop_hardware.graph import GradedIF, SpikingMaxPool2d, pair, read_of, readout_from
from spikeprop_hardware.matrix import linear_of, places_of
from spikeprop_hardware.neurons import neurons_of

from spikeprop.errors import NirError

NORSE_DT = 1e-3
SNNTORCH_DT = 1e-4
NO_LEAK = 1e16  # steps of a time constant beside which 1 / NO_LEAK vanishes in float64
WEIGHTED = (nir.Affine, nir.Linear, nir.Conv2d)
Shape = tuple[int, ...]


def portable(graph: nir.NIRGraph, target: str) -> nir.NIRGraph:
    """The graph as ``target``'s importer understands it, with the same spikes but for the last bits of float32.

    Args:
        graph: what ``to_nir`` makes, or another chain of linear nodes and IF/LIF; left as it is.
        target: "norse" or "snntorch".

    Raises:
        NirError: the library does not have the semantics; names the node.
    """
    if target not in _NEURONS:
        raise NirError(f"there is no way to write for {target!r}; known: {', '.join(_NEURONS)}")
    for name, node in graph.nodes.items():  # first, since no other change would help
        if isinstance(node, SpikingMaxPool2d):
            raise NirError(
                f"node {name!r} is a max pooling of spikes by their counts, which {target} does not have; train with average "
                "pooling in its place (TorchvisionModel: pooling: average; a plan of CNN: A)"
            )
        if isinstance(node, nir.IF | GradedIF) and neurons_of(node, name).levels:
            raise NirError(
                f"node {name!r} sends graded spikes (SignedIF, GradedIF), which {target} does not have; convert with IF, reset: "
                "zero"
            )
    if read_of(graph) != "sum":
        raise NirError(
            f"the network's output is the {read_of(graph)} of its values, which {target} does not read from a file: set "
            "network.read = 'sum' before, and take it of the values that it returns"
        )
    delay = readout_from(graph)
    if delay:
        raise NirError(
            f"the network's output counts from step {delay} on (a delayed readout), which {target} does not have: its output "
            "would count all steps. Convert with delay: false, or call network.readout.set()"
        )
    names = _chain(graph, target)
    first, last = graph.nodes[names[0]], graph.nodes[names[-1]]
    shape: Shape = tuple(int(n) for n in first.input_type["input"])
    nodes: dict[str, Any] = {names[0]: nir.Input(input_type={"input": np.array(shape)})}
    weighted: str | None = None  # the last weights before the next neurons
    for name in names[1:-1]:
        node = graph.nodes[name]
        if isinstance(node, nir.IF | nir.LIF):
            neuron, factor = _NEURONS[target](*_neurons(name, node, target))
            if weighted is None and np.any(factor != 1):
                raise NirError(f"node {name!r} scales its current, and there are no weights before it to take the factor")
            if weighted is not None:
                nodes[weighted] = _scaled(nodes[weighted], factor, name)
            nodes[name], weighted = neuron, None
            continue
        nodes[name], shape = _linear(name, node, shape, target)
        weighted = name if isinstance(node, WEIGHTED) else weighted
    nodes[names[-1]] = nir.Output(output_type={"output": np.array(last.output_type["output"])})
    return nir.NIRGraph(nodes=nodes, edges=list(pairwise(names)), metadata=dict(graph.metadata or {}), type_check=False)


def _chain(graph: nir.NIRGraph, target: str) -> list[str]:
    """Node names from input to output."""
    names = [name for name, node in graph.nodes.items() if isinstance(node, nir.Input)][:1]
    while names and not isinstance(graph.nodes[names[-1]], nir.Output):
        after = [b for a, b in graph.edges if a == names[-1]]
        if len(after) != 1 or after[0] in names or sum(b == after[0] for _, b in graph.edges) != 1:
            raise NirError(
                f"node {names[-1]!r} is not followed by one node that reads it alone; only a chain is written for {target}, "
                "not skip connections, sums or loops"
            )
        names += after
    if len(names) != len(graph.nodes):
        raise NirError(f"the graph is not one chain from input to output, and only that is written for {target}")
    return names


def _neurons(name: str, node: Any, target: str) -> tuple[np.ndarray, float]:
    """Thresholds, and the factor on the potential in each step; what neither library does is refused."""
    neurons = neurons_of(node, name)
    if neurons.reset != "zero":
        raise NirError(
            f"node {name!r} resets by subtraction, which NIR cannot say: {target} would reset to zero, and its spikes "
            "would differ without a warning. Convert with reset: zero, or use spikeprop.snn.interop.rebuild, which maps more"
        )
    if np.any(neurons.v_init != 0):
        raise NirError(f"node {name!r} starts at v_init other than 0, and {target}'s neurons start at 0; convert with v_init: 0")
    if np.any(neurons.leak != neurons.leak.flat[0]):
        raise NirError(f"node {name!r} has several time constants; one leak a layer is written for {target}")
    return neurons.theta.astype(np.asarray(node.v_threshold).dtype), float(neurons.leak.flat[0])


def _for_norse(theta: np.ndarray, leak: float) -> tuple[Any, np.ndarray]:
    if leak == 1:
        return nir.IF(r=np.ones_like(theta), v_threshold=theta, v_reset=np.zeros_like(theta)), np.ones(())
    tau = np.full_like(theta, NORSE_DT / (1 - leak))
    zeros = np.zeros_like(theta)
    neuron = nir.LIF(tau=tau, r=np.ones_like(theta), v_leak=zeros, v_threshold=theta, v_reset=zeros)
    return neuron, np.asarray(1 / (1 - leak))


def _for_snntorch(theta: np.ndarray, leak: float) -> tuple[Any, np.ndarray]:
    theta, factor = theta.astype(np.float64), np.ones(())
    if np.any(theta != theta.flat[0]):
        factor, theta = 1 / theta, np.ones_like(theta)
    steps = 1 / (1 - leak) if leak < 1 else NO_LEAK
    theta = theta.astype(np.float32)  # a leak in float64 would meet weights in float32
    zeros, r = np.zeros_like(theta), np.full_like(theta, steps)
    return nir.LIF(tau=r * SNNTORCH_DT, r=r, v_leak=zeros, v_threshold=theta, v_reset=zeros), factor


_NEURONS: dict[str, Callable[[np.ndarray, float], tuple[Any, np.ndarray]]] = {"norse": _for_norse, "snntorch": _for_snntorch}


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


def _linear(name: str, node: Any, shape: Shape, target: str) -> tuple[Any, Shape]:
    """A node without neurons as the target knows it, and the shape after it."""
    if isinstance(node, nir.Affine | nir.Linear):
        return node, (len(node.weight),)
    if isinstance(node, nir.Flatten):
        after = linear_of(node, shape, name)[2]
        if len(after) != 1:
            raise NirError(
                f"node {name!r} flattens axes {node.start_dim} to {node.end_dim}; only all axes are written for {target}"
            )
        return nir.Flatten(input_type={"input": np.array(shape)}, start_dim=0, end_dim=-1), (int(np.prod(shape)),)
    if isinstance(node, nir.Conv2d) and not isinstance(node.padding, str):
        full = _ungrouped(np.asarray(node.weight), int(node.groups))
        return _conv(node, full, np.asarray(node.bias), shape, pair(node.dilation)), places_of(node, shape, name).after
    if isinstance(node, nir.AvgPool2d):
        after = places_of(node, shape, name).after
        if target == "snntorch":
            return node, after
        kernel = pair(node.kernel_size)
        weight = np.zeros((shape[0], shape[0], *kernel))
        weight[np.arange(shape[0]), np.arange(shape[0])] = 1 / (kernel[0] * kernel[1])
        return _conv(node, weight, np.zeros(shape[0]), shape, (1, 1)), after
    raise NirError(f"node {name!r} is a {type(node).__name__} (or has padding in words), which is not written for {target}")


def _conv(node: Any, weight: np.ndarray, bias: np.ndarray, shape: Shape, dilation: tuple[int, int]) -> nir.Conv2d:
    return nir.Conv2d((shape[1], shape[2]), weight, pair(node.stride), pair(node.padding), dilation, 1, bias)


def _ungrouped(weight: np.ndarray, groups: int) -> np.ndarray:
    outputs, inputs = len(weight), weight.shape[1]
    full = np.zeros((outputs, inputs * groups, *weight.shape[2:]), weight.dtype)
    for o in range(outputs):
        start = o // (outputs // groups) * inputs
        full[o, start : start + inputs] = weight[o]
    return full
