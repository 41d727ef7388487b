"""What a NIR graph means: the order of its nodes, the neurons and windows that a node stands for, and what is refused.

NIR's neurons are continuous (tau dv/dt = v_leak - v + r*I) and reset to ``v_reset``. One Euler step of length dt is

    LIF: v = leak * v + f*I with leak = 1 - dt/tau, f = r*dt/tau;    IF: v = v + f*I with f = r;    a spike where v > v_threshold

so that is what they are taken for. A factor f other than 1 goes into the threshold: v/f obeys v = leak * v + I and fires above
v_threshold / f. A neuron node's metadata holds what NIR has no field for: ``reset`` ("zero", NIR's own, or
"subtract"), ``dt`` in the unit of tau, ``leak`` (exact, where tau is rounded), and ``v_init`` (start potential as a fraction of
the threshold). The graph's metadata may name the ``encoder`` that makes its inputs, and the step from which the output counts
(``readout_from``).

Two kinds of nodes are our own. ``GradedIF`` are integrate-and-fire neurons whose spikes carry whole numbers of both signs: with
q = v_threshold / 2^(levels-1), the smallest level, and most = 2^levels - 1,

    u = v + I;   k = the largest of 0..most with k q < u;   below 0, k = -(the least of 0..most that lifts u to 0);   v = u - k q

a spike of k, where k is not 0. With ``rectify`` a neuron takes back no more than it has sent, so that the sum it has sent is
never below 0. It starts at v_init q. A synapse multiplies by k.

Max pooling of spikes is ``SpikingMaxPool2d``:

    N[t] = N[t-1] + s[t] for each place;   o[t] = max(N[t]) - max(N[t-1]) over each window

The number of spikes that a window has sent is the largest count of its places: with rates, it is the ordinary maximum. Counts
never fall below 0, so padding and places that never fire count 0, and a window's spike is 0 or 1, or a whole number of either
sign, no larger than theirs, where the neurons before it are graded. NIR 1.0.8 has no such nodes, and no composition of its nodes
is equal. An importer that does not know a mark in the metadata of a standard node would ignore it and run another network; a
node type that it does not know it refuses. (Files of before have neurons of one level as IF nodes marked ``signed``.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import nir
import numpy as np

from spikeprop_hardware.errors import NirError


@dataclass(eq=False)
class SpikingMaxPool2d(nir.NIRNode):
    """Windows over (C, H, W) that pass on by how much the largest spike count of their places grows.

    Attributes:
        kernel_size, stride, padding: (height, width), as of ``torch.nn.MaxPool2d``.
        ceil_mode: 1 where a last window may reach over the edge.
    """

    kernel_size: np.ndarray
    stride: np.ndarray
    padding: np.ndarray
    ceil_mode: int = 0

    def __post_init__(self) -> None:
        self.input_type: Any = {"input": None}
        self.output_type: Any = {"output": None}


@dataclass(eq=False)
class GradedIF(nir.NIRNode):
    """Integrate-and-fire neurons without leak whose spikes carry whole numbers of both signs; see the module.

    Attributes:
        v_threshold: the largest level, positive, of the neurons' shape.
        levels: 1 to 7; a spike carries -(2^levels - 1) to 2^levels - 1.
        v_init: potential before the first step, as a fraction of the smallest level; one number, or of the neurons' shape.
        rectify: 1 where a neuron takes back no more than it has sent, else 0.
    """

    v_threshold: np.ndarray
    levels: int
    v_init: np.ndarray | float
    rectify: int = 1

    def __post_init__(self) -> None:
        shape = np.array(np.shape(self.v_threshold))
        self.input_type: Any = {"input": shape}
        self.output_type: Any = {"output": shape}


NEURONS = (nir.IF, nir.LIF, GradedIF)
OWN = {kind.__name__: kind for kind in (GradedIF, SpikingMaxPool2d)}  # by the name of their type in a file
MOST_LEVELS = 7  # a payload with its sign is a byte


class NeuronParameters(NamedTuple):
    """Neurons of a node; arrays are float64, of the layer's shape or of one number for all.

    Attributes:
        theta: what a spike of 1 takes off the potential, positive: the threshold, or the smallest level.
        leak: factor on the potential in each step, from 0 to 1.
        v_init: start potential as a fraction of theta.
        reset: "subtract" or "zero".
        levels: of graded neurons; 0 of others, which send ones.
        rectify: no more is taken back than was sent.
    """

    theta: np.ndarray
    leak: np.ndarray
    v_init: np.ndarray
    reset: str = "subtract"
    levels: int = 0
    rectify: bool = True


class Window(NamedTuple):
    """Windows of a ``SpikingMaxPool2d`` node: three pairs (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    ceil_mode: bool


@contextmanager
def nir_errors() -> Iterator[None]:
    """Within the block every error becomes a ``NirError``: a graph from elsewhere can hold anything in its fields."""
    try:
        yield
    except NirError:
        raise
    except Exception as error:
        raise NirError(f"the graph does not hold what its nodes say: {type(error).__name__}: {error}") from error


def ends(graph: nir.NIRGraph) -> tuple[str, str]:
    """Names of the input node and the output node.

    Raises:
        NirError: the graph has several, or none.
    """
    inputs = [name for name, node in graph.nodes.items() if isinstance(node, nir.Input)]
    outputs = [name for name, node in graph.nodes.items() if isinstance(node, nir.Output)]
    if len(inputs) != 1 or len(outputs) != 1:
        raise NirError(f"the graph has {len(inputs)} inputs and {len(outputs)} outputs; a network has one of each")
    return inputs[0], outputs[0]


def ordered(graph: nir.NIRGraph) -> list[str]:
    """All nodes but the input, each after the nodes that it reads, the output last.

    Raises:
        NirError: several inputs or outputs, a loop, a node that is not connected to the input, or NaN or infinity in a node.
    """
    first, last = ends(graph)
    _check_edges(graph, first)
    sources: dict[str, set[str]] = {name: set() for name in graph.nodes if name != first}
    for source, target in graph.edges:
        if target in sources:
            sources[target].add(source)
    order, done = [], {first}
    while len(order) < len(sources):
        ready = [name for name, read in sources.items() if name not in done and name != last and read and read <= done]
        if not ready and len(order) == len(sources) - 1 and sources[last] and sources[last] <= done:
            ready = [last]
        if not ready:
            raise NirError(f"nodes {sorted(sources.keys() - done)} are in a loop or not connected to the input")
        order += ready
        done |= set(ready)
    for name in order:
        _check_numbers(name, graph.nodes[name])
    return order


def _check_edges(graph: nir.NIRGraph, first: str) -> None:
    """NIR's edges are a set of pairs of its nodes (Pedersen et al. 2024): twice the same pair would be a weight of 2, or of 1."""
    known: set[tuple[str, str]] = set()
    for source, target in graph.edges:
        edge = f"the edge from {source!r} to {target!r}"
        if (source, target) in known:
            raise NirError(
                f"{edge} is listed twice; a NIR graph's edges are a set: list it once, and put a factor into the weights"
            )
        missing = [name for name in (source, target) if name not in graph.nodes]
        if missing:
            raise NirError(f"{edge} names {missing[0]!r}, which is no node of the graph")
        if target == first:
            raise NirError(f"{edge} ends in the graph's input, which reads nothing; feedback cannot be expressed")
        known.add((source, target))


def _check_numbers(name: str, node: Any) -> None:
    for key, value in {**vars(node), **(node.metadata or {})}.items():
        if isinstance(value, np.ndarray | float) and np.asarray(value).dtype.kind == "f" and not np.isfinite(value).all():
            raise NirError(f"node {name!r} holds NaN or infinity in its {key}")


def readout_from(graph: nir.NIRGraph) -> int:
    """Steps that pass before the output counts."""
    return int((graph.metadata or {}).get("readout_from", 0))


def timesteps_of(graph: nir.NIRGraph) -> int | None:
    """Steps of a simulation, where the graph says them.

    Raises:
        NirError: a number of steps that is none.
    """
    said = (graph.metadata or {}).get("timesteps")
    try:
        steps = None if said is None else int(said)
    except (TypeError, ValueError, OverflowError) as error:
        raise NirError(f"the graph's metadata says timesteps = {said!r}, and it must be a whole number") from error
    if steps is not None and steps < 1:
        raise NirError(f"the graph's metadata says timesteps = {steps}; a simulation has at least 1 step")
    return steps


def encoder_of(graph: nir.NIRGraph) -> str | None:
    """Name of the encoder that makes the graph's inputs, where the graph says it."""
    return (graph.metadata or {}).get("encoder")


def neurons_of(node: nir.IF | nir.LIF | GradedIF, name: str, dt: float | None = None) -> NeuronParameters:
    """The neurons that a node stands for.

    Args:
        node: IF, LIF or GradedIF.
        name: of the node, for errors.
        dt: time step in the unit of tau, for a LIF node that does not record one.

    Raises:
        NirError: something that these neurons do not do.
    """
    theta = np.asarray(node.v_threshold, dtype=np.float64)
    if not (theta > 0).all():
        raise NirError(f"node {name!r} has a threshold of {theta.min():.4g}; thresholds are positive")
    if isinstance(node, GradedIF):
        levels, rectify = _graded(node, name)
        return NeuronParameters(
            theta / 2 ** (levels - 1), np.ones(()), np.asarray(node.v_init, np.float64), levels=levels, rectify=rectify
        )
    metadata = node.metadata or {}
    reset = metadata.get("reset", "zero")
    if reset not in ("subtract", "zero"):
        raise NirError(f"node {name!r} has reset mode {reset!r}; known: 'subtract', 'zero'")
    if np.any(np.asarray(node.v_reset) != 0):
        raise NirError(f"node {name!r} resets to v_reset = {_first(node.v_reset)}; only v_reset = 0 can be expressed")
    leak, factor = _leak(node, name, metadata.get("dt", dt))
    theta = theta if factor is None else theta / factor
    levels = int(bool(metadata.get("signed", False)))
    if levels and (reset != "subtract" or (leak != 1).any()):
        raise NirError(f"node {name!r} is signed, but leaks or resets to zero; signed neurons do neither")
    return NeuronParameters(theta, leak, np.asarray(metadata.get("v_init", 0.0), dtype=np.float64), reset, levels)


def _graded(node: GradedIF, name: str) -> tuple[int, bool]:
    """Levels, and whether no more is taken back than was sent."""
    for what, least, most in (("levels", 1, MOST_LEVELS), ("rectify", 0, 1)):
        value = np.asarray(getattr(node, what))
        if value.shape or value.dtype.kind not in "iub" or not least <= value <= most:
            raise NirError(f"node {name!r} has {what} = {getattr(node, what)!r}; it is a whole number from {least} to {most}")
    return int(node.levels), bool(node.rectify)


def _leak(node: nir.IF | nir.LIF, name: str, dt: float | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The leak, and the factor on the current where it is not 1."""
    if isinstance(node, nir.IF):
        return np.ones(()), _factor(name, np.asarray(node.r, dtype=np.float64), "r")
    if np.any(np.asarray(node.v_leak) != 0):
        raise NirError(f"node {name!r} leaks to v_leak = {_first(node.v_leak)}; only v_leak = 0 can be expressed")
    if dt is None:
        raise NirError(f"node {name!r} is a LIF without a time step; record metadata dt, or pass dt, in the unit of its tau")
    tau = np.asarray(node.tau, dtype=np.float64)
    factor = _factor(name, np.asarray(node.r, dtype=np.float64) * dt / tau, "r*dt/tau")
    leak = 1 - dt / tau
    exact = (node.metadata or {}).get("leak")
    if exact is not None and np.allclose(leak, exact):
        leak = np.asarray(float(exact))
    if not ((leak >= 0) & (leak <= 1)).all():
        raise NirError(f"node {name!r} has a leak 1 - dt/tau of {_first(leak):.4g}; it must lie in [0, 1]")
    return leak, factor


def _factor(name: str, factor: np.ndarray, what: str) -> np.ndarray | None:
    if not (np.isfinite(factor) & (factor > 0)).all():
        wrong = factor[~(np.isfinite(factor) & (factor > 0))]
        raise NirError(
            f"node {name!r} scales its current by {what} = {_first(wrong):.4g}; only a positive factor can be expressed"
        )
    return None if np.allclose(factor, 1) else factor


def _first(values: Any) -> Any:
    return np.ravel(values)[0]


def window_of(node: SpikingMaxPool2d, name: str) -> Window:
    """The windows of a node of max pooling.

    Raises:
        NirError: sizes that are not sizes, or that PyTorch does not take.
    """
    kernel, stride, padding = (_size(name, what, getattr(node, what)) for what in ("kernel_size", "stride", "padding"))
    if min(*kernel, *stride) < 1 or min(padding) < 0 or any(2 * p > k for p, k in zip(padding, kernel)):
        raise NirError(
            f"node {name!r} has windows of {kernel}, stride {stride} and padding {padding}; windows and strides are 1 or more, "
            "and padding at most half a window"
        )
    return Window(kernel, stride, padding, bool(node.ceil_mode))


def _size(name: str, what: str, value: Any) -> tuple[int, int]:
    try:
        return pair(value)
    except (TypeError, ValueError):
        raise NirError(f"node {name!r} has a {what} of {value!r}; it is two numbers, (height, width)") from None


def pair(value: Any) -> tuple[int, int]:
    """(height, width) of a size that may be given as one number."""
    values = np.broadcast_to(np.asarray(value, dtype=int), (2,))
    return int(values[0]), int(values[1])
