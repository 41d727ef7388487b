"""Random NIR graphs with loops, and a loop over their nodes that runs them: a witness without matrices, paths and orders."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
from spikeprop_hardware.graph import ALIF

STEPS = 12
Trains = dict[str, np.ndarray]


def random_graph(seed: int, real: bool = False, inputs: int = 5) -> tuple[nir.NIRGraph, np.ndarray]:
    """A graph of two to four layers of every kind of neuron with feedback of every kind, and inputs (2 samples, steps, values).

    Numbers are short binary fractions unless ``real``; see random_networks.py.
    """
    return _Maker(seed, real).make(inputs)


class _Maker:
    def __init__(self, seed: int, real: bool):
        self.rng, self.real = np.random.default_rng(seed), real
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.sizes: dict[str, int] = {}

    def make(self, inputs: int) -> tuple[nir.NIRGraph, np.ndarray]:
        self.nodes["input"] = nir.Input(input_type={"input": np.array([inputs])})
        self.sizes["input"] = inputs
        layers = [f"n{i}" for i in range(int(self.rng.integers(2, 5)))]
        for before, name in zip(["input", *layers], layers):
            self.sizes[name] = int(self.rng.integers(3, 7))
            self.nodes[name] = self.neurons(self.sizes[name])
            self.weights(before, name)
        first = int(self.rng.integers(len(layers)))
        self.weights(layers[first], layers[first])  # itself
        if self.chance(0.6):
            self.weights(layers[-1], layers[0])  # over all layers
        if self.chance(0.5):  # a delayed skip, or a loop beside another, which says its delay
            source, target = (str(name) for name in self.rng.choice(layers, 2))
            self.weights(source, target, delay=int(self.rng.integers(1, 3)))
        self.sizes["output"] = 3
        read = self.pick(["sum", "mean", "last", "max"])
        if self.chance(0.6):
            self.nodes["read"] = self.integrator(3)
            self.sizes["read"] = 3
            self.weights(layers[-1], "read")
            self.edges.append(("read", "output"))
        else:
            self.weights(layers[-1], "output")
        self.nodes["output"] = nir.Output(output_type={"output": np.array([3])})
        full = (2, STEPS, inputs)
        given = self.rng.standard_normal(full) if self.real else self.rng.integers(-8, 17, full) / 8
        graph = nir.NIRGraph(nodes=self.nodes, edges=self.edges, metadata={"read": read}, type_check=False)
        return graph, given

    def weights(self, source: str, target: str, delay: int = 0) -> None:
        n, m = self.sizes[target], self.sizes[source]
        scale = 0.7 if source == target else 1.2
        weight = self.numbers((n, m), -12, 16) * scale / (1 if self.real else scale)
        bias = self.numbers((n,), -4, 6)
        node = nir.Affine(weight, bias) if self.chance(0.5) else nir.Linear(weight)
        name = f"w{len(self.nodes)}"
        self.nodes[name] = node
        if delay:
            self.nodes[f"d{name}"] = nir.Delay(delay=np.full(m, 0.5 * delay), metadata={"dt": 0.5})
            self.edges += [(source, f"d{name}"), (f"d{name}", name)]
        else:
            self.edges.append((source, name))
        self.edges.append((name, target))

    def neurons(self, size: int) -> Any:
        theta, zeros = self.numbers((size,), 8, 33), np.zeros(size)
        metadata = {"reset": self.pick(["subtract", "zero"]), "v_init": self.pick([0.0, 0.5]), "dt": 0.5}
        tau = np.full(size, 0.5 / (1 - self.leak()))
        kind = self.pick(["if", "lif", "cuba", "cuba", "alif", "alif"])
        if kind == "if":
            return nir.IF(r=np.ones(size), v_threshold=theta, metadata=metadata)
        if kind == "lif":
            return nir.LIF(tau=tau, r=tau / 0.5, v_leak=zeros, v_threshold=theta, metadata=metadata)
        if kind == "alif":
            to_zero = int(metadata["reset"] == "zero")
            return ALIF(theta, self.leak(), self.numbers((size,), 0, 17), self.leak(), metadata["v_init"], to_zero)
        syn = np.full(size, 0.5 / (1 - self.leak()))
        factors = {"r": tau / 0.5, "w_in": syn / 0.5}
        return nir.CubaLIF(tau_syn=syn, tau_mem=tau, v_leak=zeros, v_threshold=theta, metadata=metadata, **factors)

    def integrator(self, size: int) -> Any:
        tau, syn, zeros = (np.full(size, 0.5 / (1 - self.leak())) for _ in range(3))
        zeros = np.zeros(size)
        kind = self.pick(["I", "LI", "CubaLI"])
        if kind == "I":
            return nir.I(r=np.full(size, 2.0))
        if kind == "LI":
            return nir.LI(tau=tau, r=tau, v_leak=zeros, metadata={"dt": 0.5})
        return nir.CubaLI(tau_syn=syn, tau_mem=tau, r=tau / 0.5, v_leak=zeros, w_in=syn / 0.5, metadata={"dt": 0.5})

    def numbers(self, shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
        drawn = self.rng.uniform(low, high, shape) if self.real else self.rng.integers(low, high, shape)
        return np.asarray(drawn) / 16

    def leak(self) -> float:
        return self.pick([0.9, 0.77] if self.real else [0.5, 0.75])

    def pick(self, choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)


def run_nodes(graph: nir.NIRGraph, inputs: np.ndarray) -> tuple[Trains, np.ndarray]:
    """Spikes by node (samples, steps, n) and the output (samples, steps, K): node after node, in the order they were made.

    What a node reads of one that comes later, or of itself, is of the step before.
    """
    found = [_run_sample(graph, sample) for sample in inputs]
    return {name: np.stack([trains[name] for trains, _ in found]) for name in found[0][0]}, np.stack([out for _, out in found])


def _run_sample(graph: Any, sample: np.ndarray) -> tuple[Trains, np.ndarray]:
    into = {name: [s for s, t in graph.edges if t == name] for name in graph.nodes}
    senders = [n for n, node in graph.nodes.items() if isinstance(node, nir.Input | nir.IF | nir.LIF | nir.CubaLIF | ALIF)]
    sizes = {name: np.asarray(sample[0] if name == "input" else graph.nodes[name].v_threshold).shape for name in senders}
    sent: dict[str, list[np.ndarray]] = {name: [] for name in senders}
    state: dict[str, Any] = {}
    values: list[np.ndarray] = []

    def read(name: str, t: int, reader: int) -> np.ndarray:
        node = graph.nodes[name]
        if name in senders:
            step = t - (senders.index(name) >= reader)
            return sent[name][step] if step >= 0 else np.zeros(sizes[name])
        if isinstance(node, nir.Delay):  # says its delay, and takes no other step
            step = t - round(float(node.delay[0]) / 0.5)
            (source,) = into[name]
            return sent[source][step] if step >= 0 else np.zeros(sizes[source])
        x = np.sum([read(source, t, reader) for source in into[name]], axis=0)
        return node.weight @ x + (node.bias if isinstance(node, nir.Affine) else 0)

    for t, x in enumerate(sample):
        sent["input"].append(x)
        for i, name in enumerate(senders[1:], 1):
            current = np.sum([read(source, t, i) for source in into[name]], axis=0)
            sent[name].append(_fire(graph.nodes[name], current, state.setdefault(name, {})))
        (last,) = into["output"]
        node = graph.nodes[last]
        if isinstance(node, nir.LI | nir.I | nir.CubaLI):
            current = np.sum([read(source, t, len(senders)) for source in into[last]], axis=0)
            values.append(_integrate(node, current, state.setdefault(last, {})))
        else:
            values.append(read(last, t, len(senders)))
    return {name: np.stack(train) for name, train in sent.items() if name != "input"}, _read_out(values, graph.metadata["read"])


def _fire(node: Any, current: np.ndarray, state: dict[str, Any]) -> np.ndarray:
    adaptive = isinstance(node, ALIF)
    metadata = {"v_init": node.v_init, "reset": "zero" if node.to_zero else "subtract"} if adaptive else node.metadata
    v = state.get("v", metadata["v_init"] * node.v_threshold)
    leak = node.leak if adaptive else 1 - 0.5 / getattr(node, "tau_mem", getattr(node, "tau", np.inf))
    if isinstance(node, nir.CubaLIF):
        current = state["i"] = (1 - 0.5 / node.tau_syn) * state.get("i", 0.0) + current
    u = leak * v + current
    raised = node.adaptation_leak * state.get("a", 0.0) + state.get("o", 0.0) if adaptive else 0.0
    spikes = (u > node.v_threshold + (node.adaptation * raised if adaptive else 0.0)).astype(float)
    state["v"] = u * (1 - spikes) if metadata["reset"] == "zero" else u - node.v_threshold * spikes
    state["a"], state["o"] = raised, spikes
    return spikes


def _integrate(node: Any, current: np.ndarray, state: dict[str, Any]) -> np.ndarray:
    """By the equations in nir's documentation, dt = 0.5, the current first."""
    if isinstance(node, nir.CubaLI):
        i = state.get("i", 0.0)
        current = state["i"] = i + 0.5 / node.tau_syn * (node.w_in * current - i)
    v = state.get("v", np.zeros(len(current)))
    if isinstance(node, nir.I):
        state["v"] = v + node.r * current
    else:
        tau = node.tau_mem if isinstance(node, nir.CubaLI) else node.tau
        state["v"] = v + 0.5 / tau * (node.r * current - v)
    return state["v"]


def _read_out(values: list[np.ndarray], read: str) -> np.ndarray:
    ends = [np.stack(values[: t + 1]) for t in range(len(values))]
    return np.stack([{"sum": v.sum(0), "mean": v.mean(0), "last": v[-1], "max": v.max(0)}[read] for v in ends])
