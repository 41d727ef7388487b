"""NIR graph -> plan: populations of neurons and the matrices between them, with the delays that Lava adds.

Every synapse of Lava delivers what it received one time step before. A population that lies ``depth`` synapses behind
the input therefore runs ``depth`` steps late; a path with fewer synapses (a skip connection) gets the difference as
extra delay.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np
from scipy import sparse

from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.matrix import Shape, check_size, linear_of
from spikeprop_hardware.pool import is_max_pool, windows_of


@dataclass
class Connection:
    """Matrix from a source (a population, or the graph's input), with extra delay in steps beyond the synapse's own one."""

    source: str
    matrix: sparse.csr_matrix
    delay: int = 0


@dataclass
class Population:
    """Neurons of one NIR node, flattened; the readout has no threshold.

    With ``pools`` they are windows of max pooling, which count the spikes of each source that their rows name (see pool.py); the
    rest of their numbers says nothing.
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
    signed: bool = False  # also fires -1, below 0, as long as it has sent more spikes than it took back
    pools: bool = False


@dataclass
class Plan:
    """Populations in the order in which they compute; the last one is the readout."""

    input_shape: Shape
    input: str = "input"  # name of the input node
    populations: list[Population] = field(default_factory=list)
    readout_from: int = 0  # steps that pass before the readout counts
    encoder: str | None = None  # what made the inputs, where the graph says it

    @property
    def depth(self) -> int:
        """Synapses between input and readout: the latency that Lava adds, in steps."""
        return self.populations[-1].depth


@dataclass
class _Path:
    source: str
    matrix: sparse.csr_matrix
    bias: np.ndarray
    shape: Shape


def make_plan(graph: nir.NIRGraph) -> Plan:
    """Lay out a NIR graph.

    Raises:
        HardwareError: a node, reset mode or topology that is not known, naming it; or fields that do not fit each other.
    """
    try:
        return _make_plan(graph)
    except HardwareError:
        raise
    except Exception as error:  # a graph from elsewhere can hold anything in its fields
        raise HardwareError(f"the graph does not hold what its nodes say: {type(error).__name__}: {error}") from error


def _make_plan(graph: nir.NIRGraph) -> Plan:
    inputs = [n for n, node in graph.nodes.items() if isinstance(node, nir.Input)]
    outputs = [n for n, node in graph.nodes.items() if isinstance(node, nir.Output)]
    if len(inputs) != 1 or len(outputs) != 1:
        raise HardwareError(f"the graph has {len(inputs)} inputs and {len(outputs)} outputs; this simulator runs one of each")
    shape = tuple(int(n) for n in graph.nodes[inputs[0]].input_type["input"])
    check_size(inputs[0], shape)
    plan = Plan(shape, inputs[0])
    metadata = graph.metadata or {}
    plan.readout_from, plan.encoder = int(metadata.get("readout_from", 0)), metadata.get("encoder")
    depths = {inputs[0]: 0}
    size = int(np.prod(shape))
    paths = {inputs[0]: [_Path(inputs[0], sparse.identity(size, format="csr"), np.zeros(size), shape)]}
    for name in _topological(graph):
        if name == inputs[0]:
            continue
        node = graph.nodes[name]
        _check_numbers(name, node)
        arriving = [path for source, target in graph.edges if target == name for path in paths[source]]
        _check_sum(name, arriving)
        if isinstance(node, nir.IF | nir.LIF | nir.Output):
            population = _population(name, node, arriving, depths)
        elif is_max_pool(node):
            population = _pooling(name, node, arriving, depths, {p.name: p.signed for p in plan.populations})
        else:
            paths[name] = _through(name, node, arriving)
            continue
        plan.populations.append(population)
        depths[name] = population.depth
        count = len(population.bias)
        paths[name] = [_Path(name, sparse.identity(count, format="csr"), np.zeros(count), population.shape)]
    return plan


def _check_numbers(name: str, node: Any) -> None:
    for key, value in {**vars(node), **(node.metadata or {})}.items():
        if isinstance(value, np.ndarray | float) and np.asarray(value).dtype.kind == "f" and not np.isfinite(value).all():
            raise HardwareError(f"node {name!r} holds NaN or infinity in its {key}")


def _check_sum(name: str, arriving: list[_Path]) -> None:
    if not arriving:
        raise HardwareError(f"nothing is connected to node {name!r}")
    shapes = {path.shape for path in arriving}
    if len(shapes) > 1:
        raise HardwareError(f"node {name!r} reads a sum of tensors of different shapes: {sorted(shapes)}")


def _through(name: str, node: Any, arriving: list[_Path]) -> list[_Path]:
    """The paths beyond a linear node, which reads their sum: M (sum of paths) + bias."""
    matrix, bias, shape = linear_of(node, arriving[0].shape, name)
    if matrix.shape[1] != arriving[0].matrix.shape[0]:
        raise HardwareError(f"node {name!r} reads {matrix.shape[1]} values, but {arriving[0].shape} arrive")
    beyond = [_Path(p.source, (matrix @ p.matrix).tocsr(), matrix @ p.bias, shape) for p in arriving]
    beyond[0].bias = beyond[0].bias + bias  # one path carries it: what reads the paths sums them
    return beyond


def _connections(arriving: list[_Path], depths: dict[str, int]) -> tuple[list[Connection], int]:
    """Connections to a population, and its depth."""
    depth = 1 + max(depths[path.source] for path in arriving)
    for path in arriving:
        path.matrix.sum_duplicates()  # sorts the columns as well: one order of summation for all who simulate the plan
    return [Connection(p.source, p.matrix, depth - 1 - depths[p.source]) for p in arriving], depth


def _pooling(name: str, node: Any, arriving: list[_Path], depths: dict[str, int], signed: dict[str, bool]) -> Population:
    """Windows of max pooling, each connection's rows naming the sources that a window holds."""
    for path in arriving:
        path.matrix.sum_duplicates()
        path.matrix.eliminate_zeros()
    places = np.sum([np.diff(p.matrix.indptr) for p in arriving], axis=0)
    plain = all((p.matrix.data == 1).all() and not p.bias.any() and p.source in signed for p in arriving)
    if not plain or places.max(initial=0) > 1:
        raise HardwareError(
            f"node {name!r} is a max pooling of what is not single spikes of neurons (it reads the graph's input, or passes "
            "weights, biases or a sum); put neurons right before it, or use average pooling"
        )
    windows, shape = windows_of(node, arriving[0].shape, name)
    held = [_Path(p.source, (windows @ p.matrix).tocsr(), np.zeros(windows.shape[0]), shape) for p in arriving]
    connections, depth = _connections(held, depths)
    ones = np.ones(windows.shape[0])
    population = Population(name, shape, connections, np.zeros(len(ones)), depth, ones, ones, pools=True)
    population.signed = any(signed[path.source] for path in arriving)
    return population


def _population(name: str, node: Any, arriving: list[_Path], depths: dict[str, int]) -> Population:
    connections, depth = _connections(arriving, depths)
    bias = np.sum([p.bias for p in arriving], axis=0)
    population = Population(name, arriving[0].shape, connections, bias, depth)
    if isinstance(node, nir.Output):
        return population
    metadata = node.metadata or {}
    reset = metadata.get("reset", "zero")  # NIR's own meaning: to v_reset
    if reset not in ("subtract", "zero"):
        raise HardwareError(f"node {name!r} has reset mode {reset!r}; this simulator knows 'subtract' and 'zero'")
    if np.any(np.asarray(node.v_reset) != 0):
        raise HardwareError(f"node {name!r} resets to v_reset other than 0, which is not supported")
    shape = population.shape
    population.theta = _flat(name, "thresholds", node.v_threshold, shape)
    if population.theta.min() <= 0:
        raise HardwareError(f"node {name!r} has a threshold of {population.theta.min():.4g}; thresholds are positive")
    leak = _leak(name, node, metadata)
    population.leak = _flat(name, "tau", leak if leak.size == 1 else leak.reshape(np.shape(node.tau)), shape)
    population.v_init = _flat(name, "v_init", metadata.get("v_init", 0.0), shape)
    population.to_zero = reset == "zero"
    population.signed = bool(metadata.get("signed", False))
    if population.signed and (population.to_zero or (population.leak != 1).any()):
        raise HardwareError(f"node {name!r} is signed, but leaks or resets to zero; signed neurons do neither")
    return population


def _leak(name: str, node: Any, metadata: dict[str, Any]) -> np.ndarray:
    """Factor on the potential a step: 1 - dt/tau for LIF, 1 for IF; the current must come in with factor one."""
    if isinstance(node, nir.IF):
        if not np.allclose(node.r, 1):
            raise HardwareError(f"node {name!r} is an IF with r other than 1; fold r into the weights before it")
        return np.ones(1)
    if np.any(np.asarray(node.v_leak) != 0):
        raise HardwareError(f"node {name!r} leaks to v_leak other than 0, which is not supported")
    dt = metadata.get("dt")
    if dt is None:
        raise HardwareError(f"node {name!r} is a LIF without a time step; record metadata dt in the unit of tau")
    tau, r = np.asarray(node.tau, dtype=np.float64).ravel(), np.asarray(node.r, dtype=np.float64).ravel()
    if not np.allclose(r * dt / tau, 1):
        raise HardwareError(f"node {name!r} scales its current by r*dt/tau other than 1; fold the factor into the weights")
    leak = 1 - dt / tau
    exact = metadata.get("leak")  # tau rounds; the exporter's own number does not
    return np.full(1, float(exact)) if exact is not None and np.allclose(leak, exact) else leak


def _flat(name: str, what: str, value: Any, shape: Shape) -> np.ndarray:
    values = np.asarray(value, dtype=np.float64)
    try:
        return np.broadcast_to(values, shape).ravel()
    except ValueError:
        raise HardwareError(f"node {name!r} has {what} of shape {values.shape}, but {shape} arrives") from None


def _topological(graph: nir.NIRGraph) -> list[str]:
    sources = {name: {a for a, b in graph.edges if b == name} for name in graph.nodes}
    order: list[str] = []
    while len(order) < len(sources):
        ready = [n for n in graph.nodes if n not in order and sources[n] <= set(order)]
        if not ready:
            raise HardwareError(f"the graph has a loop through {sorted(set(sources) - set(order))}; recurrence is not supported")
        order += ready
    return order
