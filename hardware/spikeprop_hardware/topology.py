"""The order of a NIR graph's nodes, and the steps that an edge takes: subgraphs, loops and delays.

In a discrete step every node computes once, so a loop needs an edge that takes a step. NIR says nothing of it. Where a loop has
one entrance, it is clear: an edge s -> t goes back, and takes a step, where every path from the input to s passes t (t dominates
s). A loop with several entrances does not say which of its edges takes the step; a ``Delay`` node does, whose delay is a whole
number of dt (its metadata) and is taken as it is. A loop that holds one needs no other step. What is delayed are spikes: a linear
node on a delayed path reads zeros before the first, and its bias acts in every step. A loop without neurons is refused.

A subgraph stands for its nodes, which are called "subgraph.node"; recurrent layers of other libraries are written so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np

from spikeprop_hardware.errors import NirError
from spikeprop_hardware.graph import INTEGRATORS, NEURONS, SpikingMaxPool2d

Edge = tuple[str, str]
MOST_STEPS = 1000  # of a Delay node


@dataclass(frozen=True)
class Order:
    """How a graph computes.

    Attributes:
        names: all nodes but the input, each after those that it reads in the same step, the output last.
        connected: the same nodes, each after one that it reads.
        lags: the steps that edges take, where not 0.
    """

    names: list[str]
    connected: list[str]
    lags: dict[Edge, int]


def flat(graph: nir.NIRGraph) -> nir.NIRGraph:
    """The graph with its subgraphs' nodes in their place.

    Raises:
        NirError: a subgraph with several inputs or outputs, or two nodes of one name.
    """
    inner = {name: flat(node) for name, node in graph.nodes.items() if isinstance(node, nir.NIRGraph)}
    if not inner:
        return graph
    nodes: dict[str, Any] = {name: node for name, node in graph.nodes.items() if name not in inner}
    edges: list[Edge] = []
    into: dict[str, list[str]] = {}
    out_of: dict[str, list[str]] = {}
    for name, part in inner.items():
        first, last = ends(part, f"subgraph {name!r}")
        for node in part.nodes.keys() - {first, last}:
            if f"{name}.{node}" in nodes:
                raise NirError(f"two nodes of the graph would be called '{name}.{node}'; rename one")
        nodes |= {f"{name}.{key}": node for key, node in part.nodes.items() if key not in (first, last)}
        if (first, last) in part.edges:
            raise NirError(f"subgraph {name!r} passes its input on as its output; draw that edge around the subgraph")
        into[name] = [f"{name}.{t}" for s, t in part.edges if s == first]
        out_of[name] = [f"{name}.{s}" for s, t in part.edges if t == last]
        edges += [(f"{name}.{s}", f"{name}.{t}") for s, t in part.edges if s != first and t != last]
    for s, t in graph.edges:
        edges += [(source, target) for source in out_of.get(s, [s]) for target in into.get(t, [t])]
    return nir.NIRGraph(nodes=nodes, edges=edges, metadata=graph.metadata, type_check=False)


def ends(graph: nir.NIRGraph, what: str = "the graph") -> Edge:
    """Names of the input node and the output node.

    Raises:
        NirError: the graph has several, or none.
    """
    inputs = [name for name, node in graph.nodes.items() if isinstance(node, nir.Input)]
    outputs = [name for name, node in graph.nodes.items() if isinstance(node, nir.Output)]
    if len(inputs) != 1 or len(outputs) != 1:
        raise NirError(f"{what} has {len(inputs)} inputs and {len(outputs)} outputs; a network has one of each")
    return inputs[0], outputs[0]


def ordered(graph: nir.NIRGraph) -> Order:
    """The order of a graph without subgraphs.

    Raises:
        NirError: several inputs or outputs, a loop that has no neurons or does not say where it takes a step, a node that is not
            connected to the input, a delay that is no whole number of steps, or NaN or infinity in a node.
    """
    first, last = ends(graph)
    _check_edges(graph, first)
    for name, node in graph.nodes.items():
        _check_numbers(name, node)
    _check_loops(graph)
    connected = _reached(graph.edges, [first])[1:]
    lost = graph.nodes.keys() - {first, *connected}
    if lost:
        raise NirError(f"nodes {sorted(lost)} are not connected to the input")
    lags = {edge: steps for edge in graph.edges if (steps := _steps(graph.nodes[edge[0]], edge[0]))}
    names = _sorted(graph.nodes, [edge for edge in graph.edges if edge not in lags])
    if len(names) < len(graph.nodes):
        lags |= dict.fromkeys(_back(graph, first, lags), 1)
        names = _sorted(graph.nodes, [edge for edge in graph.edges if edge not in lags])
    if len(names) < len(graph.nodes):
        raise NirError(
            f"nodes {sorted(graph.nodes.keys() - set(names))} are in a loop with several entrances, which does not say which of "
            "its edges takes a step: put a Delay node of one dt into that edge"
        )
    return Order([*(name for name in names if name not in (first, last)), last], connected, lags)


def back_edges(graph: nir.NIRGraph) -> set[Edge]:
    """The edges of a graph without subgraphs that take a step as edges back; other loops may be left."""
    lags = {edge: steps for edge in graph.edges if (steps := _steps(graph.nodes[edge[0]], edge[0]))}
    return set(_back(graph, ends(graph)[0], lags))


def _sorted(names: Collection[str], edges: Iterable[Edge]) -> list[str]:
    """The nodes, each after those with an edge to it; without those in loops and behind them."""
    after: dict[str, list[str]] = {name: [] for name in names}
    left = dict.fromkeys(names, 0)
    for source, target in edges:
        after[source].append(target)
        left[target] += 1
    place = {name: i for i, name in enumerate(names)}
    order, ready = list[str](), [name for name, count in left.items() if not count]
    while ready:
        order += ready
        following = []
        for target in (target for name in ready for target in after[name]):
            left[target] -= 1
            following += [target] if not left[target] else []
        ready = sorted(following, key=place.__getitem__)
    return order


def _in_loops(names: Collection[str], edges: Collection[Edge]) -> set[str]:
    """The nodes in loops, and between two of them."""
    behind = set(names) - set(_sorted(names, edges))
    return behind - set(_sorted(behind, [(t, s) for s, t in edges if s in behind and t in behind]))


def _back(graph: nir.NIRGraph, first: str, lags: Mapping[Edge, int]) -> list[Edge]:
    """Edges of loops that take no step yet whose target dominates their source."""
    now = [edge for edge in graph.edges if edge not in lags]
    targets = _in_loops(graph.nodes, now)
    ahead = {target: set(_reached(now, [target])) for target in targets}
    around = {target: set(_reached(graph.edges, [first], target)) for target in targets}
    return [(s, t) for s, t in now if t in targets and s in ahead[t] and s not in around[t]]


def _reached(edges: Iterable[Edge], starts: Iterable[str], without: str | None = None) -> list[str]:
    """The nodes that edges lead to, each after one that leads to it, without passing one of them."""
    after: dict[str, list[str]] = {}
    for source, target in edges:
        after.setdefault(source, []).append(target)
    found = dict.fromkeys(starts)
    left = deque(found)
    while left:
        for name in after.get(left.popleft(), []):
            if name not in found and name != without:
                found[name] = None
                left.append(name)
    return list(found)


def _check_loops(graph: nir.NIRGraph) -> None:
    """Every loop passes neurons: without them it would be a filter that remembers real numbers."""
    plain = {name for name, node in graph.nodes.items() if not isinstance(node, (*NEURONS, *INTEGRATORS, SpikingMaxPool2d))}
    found = _in_loops(plain, [(source, target) for source, target in graph.edges if source in plain and target in plain])
    if found:
        raise NirError(f"nodes {sorted(found)} are in a loop without neurons, which cannot be run; put neurons into it")


def _steps(node: Any, name: str) -> int:
    """Steps of a Delay node; 0 of every other."""
    if not isinstance(node, nir.Delay):
        return 0
    delays, dt = np.unique(np.asarray(node.delay, dtype=np.float64)), (node.metadata or {}).get("dt")
    if dt is None or not dt > 0:
        raise NirError(f"node {name!r} is a Delay without a time step; record metadata dt, in the unit of its delay")
    steps = delays / dt
    if len(delays) != 1 or not 0 <= steps[0] <= MOST_STEPS or not np.allclose(steps, np.rint(steps)):
        raise NirError(
            f"node {name!r} delays by {steps.tolist()} steps of {dt:g}; one whole number of steps up to {MOST_STEPS} can be run"
        )
    return int(np.rint(steps[0]))


def _check_edges(graph: nir.NIRGraph, first: str) -> None:
    """NIR's edges are a set of pairs of its nodes (Pedersen et al. 2024): twice the same pair would be a weight of 2, or of 1."""
    known: set[Edge] = set()
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
            raise NirError(f"{edge} ends in the graph's input, which reads nothing; let it end in the neurons that read it")
        if isinstance(graph.nodes[source], nir.Output):
            raise NirError(f"{edge} begins in the graph's output, which sends nothing; let it begin in what the output reads")
        known.add((source, target))


def _check_numbers(name: str, node: Any) -> None:
    for key, value in {**vars(node), **(node.metadata or {})}.items():
        if isinstance(value, np.ndarray | float) and np.asarray(value).dtype.kind == "f" and not np.isfinite(value).all():
            raise NirError(f"node {name!r} holds NaN or infinity in its {key}")
