"""Dead ends: layers of neurons that nothing reads, of another shape than the output, before and behind it in every order.

The truth is computed here: the network's equations step by step in float64, and the law of the integers (integer.py) with the
numbers of each population found by its name. A file, the simulator in both precisions, PyTorch, and the budget must all agree.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from spikeprop_hardware import IntegerNetwork, budget, lay_out, quantize, read_nir, simulate
from spikeprop_hardware.chip import activity

from spikeprop.deploy import from_nir, to_nir
from spikeprop.deploy.comparison import record

STEPS, SAMPLES = 20, 3
SIZES = {"a": 6, "side": 9, "behind": 4, "b": 5}  # neurons of each layer; "side" and "behind" lead nowhere
READS = {"a": "input", "side": "a", "behind": "side", "b": "a", "output": "b"}
RNG = np.random.default_rng(20)
WEIGHTS = {
    name: RNG.normal(0.2, 1, (SIZES.get(name, 3), SIZES.get(source, 7))) / SIZES.get(source, 7) ** 0.5
    for name, source in READS.items()
}
THRESHOLDS = {name: RNG.uniform(0.3, 0.8, size) for name, size in SIZES.items()}
INPUTS = np.round(RNG.uniform(-1, 1, (SAMPLES, STEPS, 7)) * 256) / 256


def graph(order: tuple[str, ...], names: dict[str, str]) -> nir.NIRGraph:
    """The network with its nodes and edges listed in an order, and layers called by other names."""
    nodes: dict[str, Any] = {"input": nir.Input(input_type={"input": np.array([7])})}
    edges = []
    for name in order:
        nodes[f"w_{name}"] = nir.Linear(weight=WEIGHTS[name])
        if name == "output":
            nodes["output"] = nir.Output(output_type={"output": np.array([3])})
        else:
            zeros = np.zeros(SIZES[name])
            nodes[names[name]] = nir.IF(r=zeros + 1, v_threshold=THRESHOLDS[name], v_reset=zeros, metadata={"reset": "subtract"})
        source = READS[name]
        edges += [(names.get(source, source), f"w_{name}"), (f"w_{name}", names.get(name, name))]
    return nir.NIRGraph(nodes=nodes, edges=edges, metadata={"timesteps": STEPS}, type_check=False)


def real() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Spikes (samples, steps, neurons) by layer, and the accumulated output, in float64."""
    spikes = {name: np.zeros((SAMPLES, STEPS, size)) for name, size in SIZES.items()}
    v = {name: np.zeros((SAMPLES, size)) for name, size in SIZES.items()}
    output, total = np.zeros((SAMPLES, STEPS, 3)), np.zeros((SAMPLES, 3))
    for t in range(STEPS):
        sent = {"input": INPUTS[:, t]}
        for name in SIZES:
            v[name] += sent[READS[name]] @ WEIGHTS[name].T
            sent[name] = (v[name] > THRESHOLDS[name]).astype(float)
            v[name] -= sent[name] * THRESHOLDS[name]
            spikes[name][:, t] = sent[name]
        total += sent["b"] @ WEIGHTS["output"].T
        output[:, t] = total
    return spikes, output


def integers(network: IntegerNetwork, names: dict[str, str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The same in the chip's integers, by the law."""
    held = {p.name: p for p in network.populations}
    spikes = {name: np.zeros((SAMPLES, STEPS, size)) for name, size in SIZES.items()}
    v = {name: np.zeros((SAMPLES, SIZES.get(name, 3)), np.int64) for name in READS}
    output = np.zeros((SAMPLES, STEPS, 3))
    for t in range(STEPS):
        sent = {"input": np.rint(INPUTS[:, t] * network.input_scale).astype(np.int64)}
        for name, source in READS.items():
            p = held[names.get(name, name)]
            (c,) = p.connections
            assert c.source == names.get(source, source)
            summed = 2 * (sent[source] @ c.matrix.toarray().astype(np.int64).T)
            current = summed << c.exponent if c.exponent >= 0 else summed >> -c.exponent
            v[name] = np.clip(v[name] + (current << 6) + (p.bias.astype(np.int64) << p.bias_exponent), 1 - 2**23, 2**23 - 1)
            if p.theta is not None:
                sent[name] = (v[name] > p.theta.astype(np.int64) << 6).astype(np.int64)
                v[name] -= sent[name] * (p.theta.astype(np.int64) << 6)
                spikes[name][:, t] = sent[name]
        output[:, t] = v["output"] * held["output"].unit
    return spikes, output


ORDERS = [order for order in itertools.permutations(READS) if order[0] in ("a", "output", "behind")][::7]
NAMES = [{name: name for name in SIZES}, {"a": "z", "side": "zz", "behind": "output_2", "b": "0"}]


@pytest.mark.parametrize("names", NAMES, ids=["plain names", "names that sort behind the output"])
@pytest.mark.parametrize("order", ORDERS, ids=["-".join(order) for order in ORDERS])
def test_outputs_spikes_and_budget_with_dead_ends(order: tuple[str, ...], names: dict[str, str], tmp_path: Path) -> None:
    nir.write(tmp_path / "network.nir", graph(order, names))
    read = read_nir(tmp_path / "network.nir")
    found = lay_out(read)
    assert found.readout.name == "output"

    spikes, output = real()
    assert all(0.02 < train.mean() < 0.98 for train in spikes.values())
    simulated = simulate(tmp_path / "network.nir", INPUTS, backend="reference")
    for name, train in spikes.items():
        np.testing.assert_array_equal(simulated.spikes[names[name]], train)
    np.testing.assert_allclose(simulated.output, output, rtol=1e-12, atol=1e-12)

    made = quantize(read, input_limit=1.0).network
    spikes, output = integers(made, names)
    simulated = simulate(made, INPUTS, backend="reference", precision="fixed")
    for name, train in spikes.items():
        np.testing.assert_array_equal(simulated.spikes[names[name]], train)
    np.testing.assert_array_equal(simulated.output, output)

    for network in (found, made):
        layers = {layer.name: layer for layer in budget(network).layers}
        assert layers.keys() == {*names.values(), "output"}
        for name, weight in WEIGHTS.items():
            layer = layers[names.get(name, name)]
            assert (layer.neurons, layer.synapses, layer.fan_in) == (len(weight), weight.size, weight.shape[1])
            assert layer.fan_out == sum(len(WEIGHTS[reader]) for reader, source in READS.items() if source == name)
            assert layer.bytes == 12 * len(weight) + weight.size
        assert budget(network).cores == 5
    counted = {a.name: a for a in activity(made, INPUTS)}
    assert counted.keys() == {"input", *names.values()}
    for name, train in spikes.items():
        assert counted[names[name]].spikes == train.sum() / SAMPLES
        assert counted[names[name]].synops == train.sum() * layers[names[name]].fan_out / SAMPLES


@pytest.mark.parametrize("order", ORDERS[:3])
def test_pytorch_writes_and_reads_dead_ends(order: tuple[str, ...], tmp_path: Path) -> None:
    """There and back: the layer that nothing reads is kept, and the output is the same."""
    network = from_nir(graph(order, NAMES[0])).double()
    assert list(network.shapes())[-1] == "output"
    nir.write(tmp_path / "again.nir", to_nir(network))
    images = torch.from_numpy(INPUTS[:, 0])
    spikes, output = record(network, images, STEPS)
    found = simulate(tmp_path / "again.nir", np.broadcast_to(INPUTS[:, :1], INPUTS.shape), backend="reference")
    assert spikes.keys() - {"input"} == found.spikes.keys() == SIZES.keys()
    for name, train in found.spikes.items():
        np.testing.assert_array_equal(spikes[name], train)
    np.testing.assert_allclose(output, found.output, rtol=1e-12, atol=1e-12)
    assert {layer.name: layer.neurons for layer in budget(lay_out(read_nir(tmp_path / "again.nir"))).layers} == SIZES | {
        "output": 3
    }
