"""NIR graph -> the network as populations of neurons and the matrices between them, with the delays that Lava adds.

Every synapse of Lava delivers what it received one time step before. A population that lies ``depth`` synapses behind
the input therefore runs ``depth`` steps late; a path with fewer synapses (a skip connection) gets the difference as
an additional delay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np
from scipy import sparse

from spikeprop_hardware.errors import NirError
from spikeprop_hardware.graph import (
    NEURONS,
    SpikingMaxPool2d,
    encoder_of,
    ends,
    neurons_of,
    nir_errors,
    ordered,
    readout_from,
    timesteps_of,
)
from spikeprop_hardware.matrix import Shape, check_size, linear_of, windows_of


@dataclass
class Connection:
    """Matrix from a source (a population, or the graph's input), with extra delay in steps beyond the synapse's own one."""

    source: str
    matrix: sparse.csr_matrix
    delay: int = 0


class Sends:
    """What the spikes of a population carry; ``levels`` is 0 where they are ones.

    Attributes:
        signed: they have a sign.
        payload: the largest number.
        payload_bits: of that number, without the sign.
    """

    levels: int

    @property
    def signed(self) -> bool:
        return self.levels > 0

    @property
    def payload_bits(self) -> int:
        return max(self.levels, 1)

    @property
    def payload(self) -> int:
        return 2**self.payload_bits - 1

    @property
    def spike_bits(self) -> int:
        """Bits that say what a population sends in a step: 1, or payload and sign."""
        return self.levels + 1


@dataclass
class Population(Sends):
    """Neurons of one NIR node, flattened; the readout has no threshold. ``theta`` is what a spike of 1 takes off the potential.

    With ``pools`` they are windows of max pooling (see graph.py), which count the spikes of each source that their rows name;
    their other numbers are unused.
    """

    name: str
    shape: Shape
    connections: list[Connection]
    bias: np.ndarray
    depth: int
    theta: np.ndarray | None = None
    leak: np.ndarray | None = None
    v_init: np.ndarray | float = 0.0
    to_zero: bool = False
    levels: int = 0  # of graded neurons
    rectify: bool = True  # graded neurons take back no more than they have sent
    pools: bool = False


@dataclass
class ChipNetwork:
    """Populations in the order in which they compute, in real numbers; ``output`` names the readout (default the last one)."""

    input_shape: Shape
    input: str = "input"  # name of the input node
    populations: list[Population] = field(default_factory=list)
    readout_from: int = 0  # steps that pass before the readout counts
    encoder: str | None = None  # what made the inputs, where the graph says it
    output: str = ""
    timesteps: int | None = None  # of a simulation, where the graph says it

    @property
    def readout(self) -> Population:
        """The population that the output is read from."""
        return named(self.populations, self.output)

    @property
    def depth(self) -> int:
        """Synapses between input and readout: the latency that Lava adds, in steps."""
        return self.readout.depth


def named(populations: Sequence[Any], name: str) -> Any:
    """The population of that name; the last one where the name is empty."""
    return next(p for p in populations if p.name == name) if name else populations[-1]


@dataclass
class _Path:
    source: str
    matrix: sparse.csr_matrix
    bias: np.ndarray
    shape: Shape

    @classmethod
    def from_source(cls, source: str, shape: Shape) -> _Path:
        size = int(np.prod(shape))
        return cls(source, sparse.identity(size, format="csr"), np.zeros(size), shape)


def lay_out(graph: nir.NIRGraph) -> ChipNetwork:
    """The populations and connections of a NIR graph.

    Raises:
        NirError: a node, reset mode or topology that is not known, naming it; or fields that do not fit each other.
    """
    with nir_errors():
        return _lay_out(graph)


def _lay_out(graph: nir.NIRGraph) -> ChipNetwork:
    first, last = ends(graph)
    shape = tuple(int(n) for n in graph.nodes[first].input_type["input"])
    check_size(first, shape)
    network = ChipNetwork(
        shape, first, readout_from=readout_from(graph), encoder=encoder_of(graph), output=last, timesteps=timesteps_of(graph)
    )
    depths = {first: 0}
    paths = {first: [_Path.from_source(first, shape)]}
    for name in ordered(graph):
        node = graph.nodes[name]
        arriving = [path for source, target in graph.edges if target == name for path in paths[source]]
        _check_sum(name, arriving)
        if isinstance(node, (*NEURONS, nir.Output)):
            population = _population(name, node, arriving, depths)
        elif isinstance(node, SpikingMaxPool2d):
            population = _pooling(name, node, arriving, depths, {p.name: p for p in network.populations})
        else:
            paths[name] = _through(name, node, arriving)
            continue
        network.populations.append(population)
        depths[name] = population.depth
        paths[name] = [_Path.from_source(name, population.shape)]
    return network


def _check_sum(name: str, arriving: list[_Path]) -> None:
    shapes = {path.shape for path in arriving}
    if len(shapes) > 1:
        raise NirError(f"node {name!r} reads a sum of tensors of different shapes: {sorted(shapes)}")


def _through(name: str, node: Any, arriving: list[_Path]) -> list[_Path]:
    """The paths beyond a linear node, which reads their sum: M (sum of paths) + bias."""
    matrix, bias, shape = linear_of(node, arriving[0].shape, name)
    if matrix.shape[1] != arriving[0].matrix.shape[0]:
        raise NirError(f"node {name!r} reads {matrix.shape[1]} values, but {arriving[0].shape} arrive")
    beyond = [_Path(p.source, (matrix @ p.matrix).tocsr(), matrix @ p.bias, shape) for p in arriving]
    beyond[0].bias = beyond[0].bias + bias  # one path carries it: what reads the paths sums them
    return beyond


def _connections(arriving: list[_Path], depths: dict[str, int]) -> tuple[list[Connection], int]:
    """Connections to a population, and its depth."""
    depth = 1 + max(depths[path.source] for path in arriving)
    for path in arriving:
        path.matrix.sum_duplicates()  # sorts the columns as well: one order of summation in all simulators
    return [Connection(p.source, p.matrix, depth - 1 - depths[p.source]) for p in arriving], depth


def _pooling(name: str, node: Any, arriving: list[_Path], depths: dict[str, int], before: dict[str, Population]) -> Population:
    """Windows of max pooling, each connection's rows naming the sources that a window holds."""
    for path in arriving:
        path.matrix.sum_duplicates()
        path.matrix.eliminate_zeros()
    places = np.sum([np.diff(p.matrix.indptr) for p in arriving], axis=0)
    plain = all((p.matrix.data == 1).all() and not p.bias.any() and p.source in before for p in arriving)
    if not plain or places.max(initial=0) > 1:
        raise NirError(
            f"node {name!r} is a max pooling of what is not single spikes of neurons (it reads the graph's input, or passes "
            "weights, biases or a sum); put neurons right before it, or use average pooling"
        )
    sources = [before[path.source] for path in arriving]
    if not all(source.rectify for source in sources):
        raise NirError(
            f"node {name!r} is a max pooling of neurons whose sums may be negative (rectify: 0), and counts start from 0; pool "
            "after the ReLU, or use average pooling"
        )
    windows, shape = windows_of(node, arriving[0].shape, name)
    held = [_Path(p.source, (windows @ p.matrix).tocsr(), np.zeros(windows.shape[0]), shape) for p in arriving]
    connections, depth = _connections(held, depths)
    ones = np.ones(windows.shape[0])
    population = Population(name, shape, connections, np.zeros(len(ones)), depth, ones, ones, pools=True)
    population.levels = max(source.levels for source in sources)
    return population


def _population(name: str, node: Any, arriving: list[_Path], depths: dict[str, int]) -> Population:
    connections, depth = _connections(arriving, depths)
    bias = np.sum([p.bias for p in arriving], axis=0)
    population = Population(name, arriving[0].shape, connections, bias, depth)
    if isinstance(node, nir.Output):
        return population
    neurons, shape = neurons_of(node, name), population.shape
    population.theta = _flat(name, "thresholds", neurons.theta, shape)
    population.leak = _flat(name, "tau", neurons.leak, shape)
    population.v_init = _flat(name, "v_init", neurons.v_init, shape)
    population.to_zero = neurons.reset == "zero"
    population.levels, population.rectify = neurons.levels, neurons.rectify
    return population


def _flat(name: str, what: str, values: np.ndarray, shape: Shape) -> np.ndarray:
    try:
        return np.broadcast_to(values, shape).ravel()
    except ValueError:
        raise NirError(f"node {name!r} has {what} of shape {values.shape}, but {shape} arrives") from None
