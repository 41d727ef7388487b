"""Random networks of every kind of neuron, of which each vendor's chip computes some: what the 200 of test_vendors.py are.

Kinds alternate: those of random_networks.py (convolutions, pooling, skip connections, graded neurons), loops of random_graphs.py,
and chains that a chip computes, of CubaLIF that subtract (Xylo), of IF that subtract (Speck), and of neurons that reset to zero
(Loihi 1), some of which read themselves.
"""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
import torch
from spikeprop_hardware.graph import ALIF, GradedIF, StepLIF
from spikeprop_hardware.topology import back_edges, flat
from torch import nn

from spikeprop.deploy import to_nir
from spikeprop.snn import IF, INPUT, LIF, PLIF, CubaLIF, Direct, Layer, Neuron, SpikingNetwork, Synapse
from tests.hardware.random_graphs import random_graph
from tests.hardware.random_networks import random_network

STEPS = 14
KINDS = ("general", "graded", "loops", "xylo", "speck", "loihi1", "recurrent")


def drawn(seed: int) -> tuple[nir.NIRGraph, np.ndarray, np.ndarray]:
    """A graph, real inputs for it, and numbers of spikes, both (2 samples, steps, ...)."""
    kind, rng = KINDS[seed % len(KINDS)], np.random.default_rng(seed)
    if kind in ("general", "graded"):
        network, inputs = random_network(seed // len(KINDS), levels=1 + seed % 4 if kind == "graded" else 0)
        graph = to_nir(network)
    elif kind == "loops":
        graph, inputs = random_graph(seed)
    else:
        graph = _recurrent(rng) if kind == "recurrent" else to_nir(_chain(kind, rng))
        inputs = rng.integers(-8, 17, (2, STEPS, *graph.nodes["input"].input_type["input"])) / 8
    return graph, inputs, rng.integers(0, 3, inputs.shape)


def parametric(seed: int) -> tuple[SpikingNetwork, np.ndarray]:
    """A network of random_networks.py whose neurons are PLIF, of leaks that are halves, and inputs."""
    network, inputs = random_network(seed)
    for layer in dict(network.named_layers()).values():
        if isinstance(layer.neuron, IF | LIF):
            neuron = PLIF(tau=2.0, decay_input=bool(seed % 2), reset=layer.neuron.reset).double()
            neuron.v_threshold, neuron.v_init = layer.neuron.v_threshold, layer.neuron.v_init
            layer.neuron = neuron
    return network, inputs


def computed(graph: nir.NIRGraph) -> set[str]:
    """What a graph holds of all that is drawn: kinds of nodes, resets, biases and loops."""
    found = {"loop"} if back_edges(flat(graph)) else set()
    for node in graph.nodes.values():
        found.add(type(node).__name__)
        if isinstance(node, GradedIF):
            found.add("several levels" if int(node.levels) > 1 else "one level")
        elif isinstance(node, StepLIF | ALIF):
            found.add("reset to zero" if int(node.to_zero) else "reset by subtraction")
            found |= {"synaptic current"} if np.any(getattr(node, "synaptic_leak", 0)) else set()
        found |= {"bias"} if np.any(getattr(node, "bias", 0)) else set()
    return found


def _chain(kind: str, rng: np.random.Generator) -> SpikingNetwork:
    """Two or three dense layers, or of Speck two convolutions with pooling between them."""
    shape = (2, 6, 6) if kind == "speck" and rng.random() < 0.5 else (int(rng.integers(3, 8)),)
    ops: list[Any] = [nn.Flatten()] if len(shape) > 1 else []
    layers: dict[str, Layer] = {}
    source, before = INPUT, int(np.prod(shape))
    if len(shape) > 1:
        layers["c"] = Layer([(INPUT, Synapse([_filled(nn.Conv2d(2, 3, 3, padding=1), rng, True)]))], _neuron(kind, rng))
        source, ops, before = "c", [nn.AvgPool2d(2), nn.Flatten()], 27
    for i in range(int(rng.integers(2, 4))):
        size = int(rng.integers(4, 9))
        weights = _filled(nn.Linear(before, size, bias=kind != "xylo"), rng, rng.random() < 0.5)
        layers[f"d{i}"] = Layer([(source, Synapse([*ops, weights]))], _neuron(kind, rng))
        source, before, ops = f"d{i}", size, []
    layers["out"] = Layer([(source, Synapse([_filled(nn.Linear(before, 3), rng, False)]))], None)  # the host's on Xylo and Speck
    return SpikingNetwork(layers, Direct(), shape).double().eval()


def _neuron(kind: str, rng: np.random.Generator) -> Neuron:
    if kind == "xylo":
        neuron: Neuron = CubaLIF(leak=float(rng.choice([0.5, 0.75, 0.9])), synaptic_leak=float(rng.choice([0.5, 0.75])))
    elif kind == "speck":
        neuron = IF(v_init=float(rng.choice([0.0, 0.5])))
    else:
        neuron = LIF(leak=float(rng.choice([0.5, 0.75, 0.9])), reset="zero") if rng.random() < 0.7 else IF(reset="zero")
        neuron.v_init = torch.tensor(float(rng.choice([0.0, 0.5])))
    neuron.v_threshold = torch.tensor(float(rng.integers(12, 40) / 16))
    return neuron


def _filled(op: Any, rng: np.random.Generator, biased: bool) -> Any:
    op.double()
    scale = 2 / np.sqrt(op.weight[0].numel())
    op.weight.data = torch.from_numpy(np.round(rng.normal(0.25, 1, op.weight.shape) * scale * 32) / 32)
    if op.bias is not None:
        op.bias.data = torch.from_numpy(rng.integers(-2, 4, op.bias.shape) / 32 * biased)
    return op


def _recurrent(rng: np.random.Generator) -> nir.NIRGraph:
    """A hidden layer that reads itself, and output neurons: of Xylo, or of Loihi 1."""
    inputs, hidden, outputs = (int(n) for n in rng.integers(3, 8, 3))
    zero, leak, synaptic = int(rng.random() < 0.5), float(rng.choice([0.5, 0.75])), float(rng.choice([0.5, 0.75]))

    def weights(rows: int, columns: int, scale: float) -> nir.Linear:
        return nir.Linear(np.round(rng.normal(0.1, scale, (rows, columns)) * 32) / 32)

    nodes: dict[str, Any] = {
        "input": nir.Input(input_type={"input": np.array([inputs])}), "into": weights(hidden, inputs, 0.8),
        "h": StepLIF(rng.integers(16, 40, hidden) / 16, leak, synaptic, 0.0, zero), "among": weights(hidden, hidden, 0.4),
        "out": weights(outputs, hidden, 0.6), "o": StepLIF(rng.integers(16, 40, outputs) / 16, leak, synaptic, 0.0, zero),
        "output": nir.Output(output_type={"output": np.array([outputs])}),
    }  # fmt: skip
    edges = [("input", "into"), ("into", "h"), ("h", "among"), ("among", "h"), ("h", "out"), ("out", "o"), ("o", "output")]
    return nir.NIRGraph(nodes=nodes, edges=edges, metadata={}, type_check=False)
