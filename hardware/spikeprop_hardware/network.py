"""NIR graph -> the network as populations of neurons and the matrices between them, with the delays that Lava adds.

Every synapse of Lava delivers what it received one time step before. A population that lies ``depth`` synapses behind the input
therefore runs ``depth`` steps late; a path with fewer synapses (a skip connection) gets the difference as an additional delay. A
feedback connection (``lag``: steps of the network by which it delivers later) has its step for nothing where neurons read
themselves. A loop over n layers needs n time steps of Lava, so a step of the network then takes ``stride`` of them, the least
with which every delay is possible:

    delay = depth(target) - 1 - depth(source) + lag * stride >= 0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import nir
import numpy as np
from scipy import sparse

from spikeprop_hardware.errors import NirError
from spikeprop_hardware.graph import (
    INTEGRATORS,
    NEURONS,
    SpikingMaxPool2d,
    encoder_of,
    nir_errors,
    read_of,
    readout_from,
    timesteps_of,
)
from spikeprop_hardware.matrix import Linear, Shape, check_size, linear_of, windows_of
from spikeprop_hardware.neurons import integrator_of, neurons_of
from spikeprop_hardware.topology import ends, flat, ordered


@dataclass
class Connection:
    """Matrix from a source (a population, or the graph's input).

    Attributes:
        delay: in time steps of Lava, beyond the synapse's own one.
        lag: steps of the network by which it delivers later than a connection forward, 0; zeros before the first.
        through: names of the linear nodes that the matrix is the product of, in the order in which values pass them.
    """

    source: str
    matrix: sparse.csr_matrix
    delay: int = 0
    lag: int = 0
    through: tuple[str, ...] = ()


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

    neurons.py has the equations. Without ``leak`` the potential does not leak, without ``synaptic_leak`` the current does not
    outlive its step, without ``adaptation`` the threshold stays.

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
    synaptic_leak: np.ndarray | None = None
    adaptation: np.ndarray | None = None
    adaptation_leak: np.ndarray | None = None


class Timed:
    """What both kinds of networks say of their output and of time.

    Attributes:
        readout: the population that the output is read from.
        depth: synapses between input and readout: the latency that Lava adds, in steps.
        gap: steps between two samples in which nothing happens, so that no spike of one is fed back into the next.
    """

    populations: list[Any]
    output: str

    @property
    def readout(self) -> Any:
        return named(self.populations, self.output)

    @property
    def depth(self) -> int:
        return self.readout.depth

    @property
    def gap(self) -> int:
        return max((c.lag for p in self.populations for c in p.connections), default=0)


@dataclass
class ChipNetwork(Timed):
    """Populations in the order in which they compute, in real numbers; ``output`` names the readout (default the last one)."""

    input_shape: Shape
    input: str = "input"  # name of the input node
    populations: list[Population] = field(default_factory=list)
    readout_from: int = 0  # steps that pass before the readout counts
    encoder: str | None = None  # what made the inputs, where the graph says it
    output: str = ""
    timesteps: int | None = None  # of a simulation, where the graph says it
    read: str = "sum"  # how the values at the output make the output of a simulation
    accumulates: bool = True  # the readout's potential is the sum of these values, else a value
    stride: int = 1  # time steps of Lava in a step of the network


def named(populations: Sequence[Any], name: str) -> Any:
    """The population of that name; the last one where the name is empty."""
    return next(p for p in populations if p.name == name) if name else populations[-1]


@dataclass
class _Path:
    source: str
    matrix: sparse.csr_matrix
    bias: np.ndarray
    lag: int = 0
    through: tuple[str, ...] = ()


def lay_out(graph: nir.NIRGraph, dt: float | None = None) -> ChipNetwork:
    """The populations and connections of a NIR graph.

    Args:
        graph: left as it is.
        dt: time step in the unit of tau, for nodes that do not record one (files of other libraries).

    Raises:
        NirError: a node, reset mode or topology that is not known, naming it; or fields that do not fit each other.
    """
    with nir_errors():
        return _Layout(flat(graph), dt).network()


class _Layout:
    """The paths from neurons to neurons of a graph without subgraphs."""

    def __init__(self, graph: nir.NIRGraph, dt: float | None):
        self.graph, self.dt = graph, dt
        self.first, self.last = ends(graph)
        self.order = ordered(graph)
        self.sources: dict[str, list[str]] = {name: [] for name in graph.nodes}
        for source, target in graph.edges:
            self.sources[target].append(source)
        shape = tuple(int(n) for n in graph.nodes[self.first].input_type["input"])
        check_size(self.first, shape)
        self.shapes: dict[str, Shape] = {self.first: shape}
        self.linears: dict[str, Linear] = {}
        self.paths: dict[str, list[_Path]] = {}
        for name in self.order.connected:
            self.shapes[name] = self._shape(name)
        for name in self.order.names:
            shapes = {self._reads(name), *(self.shapes[source] for source in self.sources[name])}
            if len(shapes) > 1:
                raise NirError(f"node {name!r} reads a sum of tensors of different shapes: {sorted(shapes)}")

    def network(self) -> ChipNetwork:
        """All populations, with their places in time."""
        graph, read = self.graph, read_of(self.graph)
        integrator = self._integrator()
        network = ChipNetwork(
            self.shapes[self.first], self.first, readout_from=readout_from(graph), encoder=encoder_of(graph),
            output=integrator or self.last, timesteps=timesteps_of(graph), read=read,
            accumulates=integrator is None and read in ("sum", "mean"),
        )  # fmt: skip
        for name in self.order.names:
            node = graph.nodes[name]
            if isinstance(node, SpikingMaxPool2d):
                network.populations.append(self._pooling(name, node, {p.name: p for p in network.populations}))
            elif isinstance(node, NEURONS):
                network.populations.append(self._neurons(name, node))
            elif name == network.output:
                network.populations.append(self._readout(name, node, network.accumulates))
        network.stride = set_time(network.populations, self.first)
        return network

    def _reads(self, name: str) -> Shape:
        return next(self.shapes[source] for source in self.sources[name] if source in self.shapes)

    def _shape(self, name: str) -> Shape:
        """The shape of what a node makes; of a linear node also its matrix."""
        node, shape = self.graph.nodes[name], self._reads(name)
        if isinstance(node, SpikingMaxPool2d):
            return windows_of(node, shape, name)[1]
        if isinstance(node, (*NEURONS, *INTEGRATORS, nir.Output)):
            return shape
        self.linears[name] = linear_of(node, shape, name)
        if self.linears[name][0].shape[1] != int(np.prod(shape)):
            raise NirError(f"node {name!r} reads {self.linears[name][0].shape[1]} values, but {shape} arrive")
        return self.linears[name][2]

    def _paths_from(self, name: str) -> list[_Path]:
        """The paths that end behind a node, which reads their sum: M (sum of paths) + bias."""
        if name not in self.paths:
            if name in self.linears:
                matrix, bias, _ = self.linears[name]
                found = [
                    _Path(p.source, (matrix @ p.matrix).tocsr(), matrix @ p.bias, p.lag, (*p.through, name))
                    for p in self._arriving(name)
                ]
                found[0].bias = found[0].bias + bias  # one path carries it: what reads the paths sums them
            else:
                size = int(np.prod(self.shapes[name]))
                found = [_Path(name, sparse.identity(size, format="csr"), np.zeros(size))]
            self.paths[name] = found
        return self.paths[name]

    def _arriving(self, name: str) -> list[_Path]:
        lags = [self.order.lags.get((source, name), 0) for source in self.sources[name]]
        paths = zip(lags, map(self._paths_from, self.sources[name]))
        return [replace(path, lag=path.lag + lag) for lag, found in paths for path in found]

    def _integrator(self) -> str | None:
        """Name of the integrator that the output reads, where it does."""
        found = [name for name in self.order.names if isinstance(self.graph.nodes[name], INTEGRATORS)]
        for name in found:
            if self.sources[self.last] != [name] or [t for s, t in self.graph.edges if s == name] != [self.last]:
                raise NirError(
                    f"node {name!r} is an integrator without spikes ({type(self.graph.nodes[name]).__name__}), which can be run "
                    "where it and the output are each other's only reader and source; put spiking neurons in its place"
                )
        return found[0] if found else None

    def _neurons(self, name: str, node: Any) -> Population:
        population = self._population(name)
        found, shape = neurons_of(node, name, self.dt), population.shape
        population.theta = _flat(name, "thresholds", found.theta, shape)
        population.leak = _flat(name, "tau", found.leak, shape)
        population.v_init = _flat(name, "v_init", found.v_init, shape)
        population.to_zero = found.reset == "zero"
        population.levels, population.rectify = found.levels, found.rectify
        for what in ("synaptic_leak", "adaptation", "adaptation_leak"):
            values = getattr(found, what)
            setattr(population, what, None if values is None else _flat(name, what, values, shape))
        return population

    def _readout(self, name: str, node: Any, accumulates: bool) -> Population:
        population = self._population(name)
        if isinstance(node, nir.Output):
            population.leak = None if accumulates else np.zeros(len(population.bias))
            return population
        found = integrator_of(node, name, self.dt)
        population.leak = _flat(name, "tau", found.leak, population.shape)
        if found.synaptic_leak is not None:
            population.synaptic_leak = _flat(name, "tau_syn", found.synaptic_leak, population.shape)
        if found.factor is not None:
            factor = _flat(name, "r", found.factor, population.shape)
            population.bias = population.bias * factor
            for c in population.connections:
                c.matrix = (sparse.diags(factor) @ c.matrix).tocsr()
        return population

    def _population(self, name: str) -> Population:
        arriving = self._arriving(name)
        bias = np.sum([p.bias for p in arriving], axis=0)
        return Population(name, self.shapes[name], _connections(arriving), bias, depth=0)

    def _pooling(self, name: str, node: Any, before: dict[str, Population]) -> Population:
        """Windows of max pooling, each connection's rows naming the sources that a window holds."""
        arriving = self._arriving(name)
        for path in arriving:
            path.matrix.sum_duplicates()
            path.matrix.eliminate_zeros()
        places = np.sum([np.diff(p.matrix.indptr) for p in arriving], axis=0)
        plain = all((p.matrix.data == 1).all() and not p.bias.any() and p.source in before and not p.lag for p in arriving)
        if not plain or places.max(initial=0) > 1:
            raise NirError(
                f"node {name!r} is a max pooling of what is not single spikes of neurons (it reads the graph's input, or passes "
                "weights, biases, a delay or a sum); put neurons right before it, or use average pooling"
            )
        sources = [before[path.source] for path in arriving]
        if not all(source.rectify for source in sources):
            raise NirError(
                f"node {name!r} is a max pooling of neurons whose sums may be negative (rectify: 0), and counts start from 0; "
                "pool after the ReLU, or use average pooling"
            )
        windows, shape = windows_of(node, self._reads(name), name)
        ones = np.ones(windows.shape[0])
        held = [_Path(p.source, (windows @ p.matrix).tocsr(), 0 * ones, through=p.through) for p in arriving]
        population = Population(name, shape, _connections(held), np.zeros(len(ones)), 0, ones, ones, pools=True)
        population.levels = max(source.levels for source in sources)
        return population


def _connections(arriving: list[_Path]) -> list[Connection]:
    for path in arriving:
        path.matrix.sum_duplicates()  # sorts the columns as well: one order of summation in all simulators
    return [Connection(p.source, p.matrix, lag=p.lag, through=p.through) for p in arriving]


def set_time(populations: list[Population], first: str) -> int:
    """Give populations their depths and connections their delays; returns the least stride with which there are any.

    A loop over n layers with lags L in it needs n <= L * stride; with a smaller one its depths would grow for ever.
    """
    for stride in count(1):
        depths = {first: 0, **{p.name: 1 for p in populations}}
        for _ in range(len(populations) + 1):
            least = {p.name: max(1 + depths[c.source] - c.lag * stride for c in p.connections) for p in populations}
            higher = {name: depth for name, depth in least.items() if depth > depths[name]}
            depths |= higher
            if not higher:
                break
        else:
            continue
        for p in populations:
            p.depth = depths[p.name]
            for c in p.connections:
                c.delay = p.depth - 1 - depths[c.source] + c.lag * stride
        return stride
    raise AssertionError


def _flat(name: str, what: str, values: np.ndarray, shape: Shape) -> np.ndarray:
    try:
        return np.broadcast_to(values, shape).ravel()
    except ValueError:
        raise NirError(f"node {name!r} has {what} of shape {values.shape}, but {shape} arrives") from None
