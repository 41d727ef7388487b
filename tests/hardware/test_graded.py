"""Graded neurons on their way to the hardware: PyTorch, NIR, the simulator in either precision, and Lava, spike for spike.

Weights, thresholds and inputs of the fifty are short binary fractions, so every sum is exact in float64 in whatever order it is
taken, and potentials meet levels. In integers all is exact where ``quantize`` finds a scale on which nothing is rounded, as its
report says; elsewhere other spikes may be right, and Lava is the judge.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from spikeprop_hardware import HardwareError, Recording, kernels, quantize, simulate
from spikeprop_hardware.chip import activity, budget
from spikeprop_hardware.graph import GradedIF as GradedNode
from spikeprop_hardware.graph import SpikingMaxPool2d
from spikeprop_hardware.network import lay_out
from spikeprop_hardware.netx import quantize_for_netx
from spikeprop_hardware.reference import Simulator
from spikeprop_hardware.targets import Loihi2
from torch import nn

from spikeprop import IF, GradedIF, SignedIF
from spikeprop.deploy import export, from_nir, read_nir, to_nir
from spikeprop.errors import NirError
from spikeprop.snn import INPUT, Direct, Layer, LayerDynamics, SpikingNetwork, Synapse
from spikeprop.snn.arithmetic import Relay, Running
from spikeprop.snn.pooling import SpikingMaxPool
from tests.hardware.random_networks import KINDS, joined_network, random_network, simulate_in_torch
from tests.hardware.test_lava import lava_or_skip

DRAWN, EXACT = 60, 50


def test_fifty_random_networks_are_the_same_everywhere(tmp_path: Path) -> None:
    exact, largest, back, below = 0, 0, 0, 0
    for seed in range(DRAWN):
        network, inputs = random_network(seed, levels=1 + seed // len(KINDS) % 4)
        export(network, tmp_path / "n.nir")
        graph = read_nir(tmp_path / "n.nir")
        spikes, potentials, output = simulate_in_torch(network, inputs)
        again = from_nir(graph)
        for name, neuron in network.neurons().items():
            other: Any = again.neurons()[name]
            assert (type(other), other.payload, other.rectify) == (type(neuron), neuron.payload, neuron.rectify)
        for found, potentials_found, output_found in (simulate_in_torch(again, inputs), _floating(graph, inputs)):
            for name, train in spikes.items():
                np.testing.assert_array_equal(found[name], train, f"seed {seed}, {name}")
                np.testing.assert_array_equal(potentials_found[name], potentials[name], f"seed {seed}, {name}")
            np.testing.assert_array_equal(output_found, output)
        made, report = quantize(graph, input_limit=float(np.abs(inputs).max()), timesteps=inputs.shape[1])
        if not any(layer.weight_error + layer.threshold_error + layer.bias_error for layer in report):
            exact += 1
            integers = simulate(made, inputs, backend="reference", precision="fixed")
            for name, train in spikes.items():
                np.testing.assert_array_equal(integers.spikes[name], train, f"seed {seed}, {name}, in integers")
        largest = max(largest, *(int(train.max()) for train in spikes.values()))
        back += sum(int((train < 0).sum()) for train in spikes.values())
        below += sum(int((train.cumsum(1) < 0).sum()) for train in spikes.values())
    assert exact >= EXACT
    assert largest == 15
    assert min(back, below) > 1000


def _floating(graph: nir.NIRGraph, inputs: np.ndarray) -> tuple[Any, Any, np.ndarray]:
    found = simulate(Simulator(lay_out(graph), threads=1), inputs, backend="reference", record=Recording(membranes=True))
    return found.spikes, found.membranes, found.output


@pytest.mark.parametrize("seed", [3, *(pytest.param(s, marks=pytest.mark.slow) for s in range(10, 80, 10))])
def test_either_precision_equals_lava_to_the_bit(tmp_path: Path, seed: int) -> None:
    """All kinds of layers beside each other, 1 to 4 levels; some neurons may also send less than nothing."""
    lava_or_skip()
    network, inputs = joined_network(seed)
    export(network, tmp_path / "n.nir")
    for precision in ("float", "fixed"):
        runs = [
            simulate(tmp_path / "n.nir", inputs, precision=precision, backend=backend, record=Recording(membranes=True))
            for backend in ("lava", "reference")
        ]
        lava, ours = runs
        assert lava.spikes.keys() == network.dynamics().keys()
        for name, train in lava.spikes.items():
            np.testing.assert_array_equal(ours.spikes[name], train, f"{precision}, {name}")
            np.testing.assert_array_equal(ours.membranes[name], lava.membranes[name], f"{precision}, {name}")
            assert train.dtype == np.int8
        np.testing.assert_allclose(
            ours.output, lava.output, rtol=1e-13 if precision == "float" else 0
        )  # seven paths, in an order
        assert ours.counts == lava.counts
        below = {name for name, train in lava.spikes.items() if (train.cumsum(1) < 0).any()}
        assert below == {name for name, neuron in network.neurons().items() if not getattr(neuron, "rectify", True)} != set()
        assert max(int(train.max()) for train in lava.spikes.values()) == 15


@pytest.mark.parametrize("numbers", [np.float64, np.int32])
@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize("levels", [1, 3, 7])
def test_the_loop_is_the_definition(levels: int, rectify: bool, numbers: Any) -> None:
    """By counting multiples of the level, also exactly on them and beside them."""
    rng = np.random.default_rng(levels)
    unit = rng.integers(1, 50, 40).astype(numbers)
    most = 2**levels - 1
    v = (rng.integers(-2 * most, 2 * most + 1, (30, 40)) * unit + rng.integers(-1, 2, (30, 40))).astype(numbers)
    sent = rng.integers(0, 2 * most, (30, 40)).astype(np.int32)
    steps = np.arange(most)
    up = (v[..., None] > (steps + 1) * unit[:, None]).sum(-1)
    down = (v[..., None] < -steps * unit[:, None]).sum(-1)
    wanted = up - (np.minimum(down, sent) if rectify else down)
    for kernel in (kernels.send_graded, kernels.send_graded_numpy):
        left, spikes, total = v.copy(), np.zeros(v.shape, np.int8), sent.copy()
        kernel(left, spikes, unit, levels, rectify, total)
        np.testing.assert_array_equal(spikes, wanted)
        np.testing.assert_array_equal(left, v - wanted * unit)
        np.testing.assert_array_equal(total, sent + wanted)


def graph_of(cell: Any, after: Any = None) -> nir.NIRGraph:
    """Neurons (2, 4, 4) that read the input, a node if given, the output."""
    nodes: dict[str, Any] = {"x": nir.Input(input_type={"input": np.array([2, 4, 4])}), "a": cell}
    nodes |= {"b": after} if after is not None else {}
    nodes["y"] = nir.Output(output_type={"output": np.array([2, 4, 4] if after is None else [2, 2, 2])})
    return nir.NIRGraph(nodes=nodes, edges=list(pairwise(nodes)), type_check=False)


ONES = np.ones((2, 4, 4))


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (GradedNode(ONES, 8, 0.5), "node 'a' has levels = 8; it is a whole number from 1 to 7"),
        (GradedNode(ONES, 0, 0.5), "levels = 0"),
        (GradedNode(ONES, 2.5, 0.5), "levels = 2.5"),  # type: ignore[arg-type]
        (GradedNode(ONES, np.array([2, 3]), 0.5), "levels"),  # type: ignore[arg-type]
        (GradedNode(ONES, 3, 0.5, 2), "rectify = 2; it is a whole number from 0 to 1"),
        (GradedNode(-ONES, 3, 0.5), "node 'a' has a threshold of -1; thresholds are positive"),
        (GradedNode(ONES * np.nan, 3, 0.5), "NaN or infinity in its v_threshold"),
        (GradedNode(ONES, 3, np.inf), "NaN or infinity in its v_init"),
        (GradedNode(np.ones((3, 4, 4)), 3, 0.5), "thresholds of shape"),
        (GradedNode(ONES, 3, np.ones(3)), "v_init of shape"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_node_out_of_bounds_is_refused_by_name(cell: GradedNode, says: str) -> None:
    with pytest.raises(NirError, match=says):
        lay_out(graph_of(cell))


def test_other_readers_refuse_the_node_and_other_writers_its_neurons(tmp_path: Path) -> None:
    for neuron in (SignedIF(), GradedIF(levels=3)):
        made = small(neuron)
        export(made, tmp_path / "n.nir")
        with pytest.raises(AssertionError):  # nir 1.0.8, and so every importer; it does not say more
            nir.read(tmp_path / "n.nir", type_check=False)
        for library in ("norse", "snntorch"):
            with pytest.raises(NirError, match=f"node 'a' sends graded spikes .* which {library} does not have"):
                export(made, tmp_path / "other.nir", library=library)
        with pytest.raises(HardwareError, match="layer 'a' sends graded spikes, and netx's neurons send ones"):
            quantize_for_netx(to_nir(made))


def small(neuron: Any, name: str = "a") -> SpikingNetwork:
    torch.manual_seed(0)
    layers = {
        name: Layer([(INPUT, Synapse([nn.Conv2d(1, 2, 3)]))], neuron),
        "out": Layer([(name, Synapse([nn.Flatten(), nn.Linear(8, 3)]))], None),
    }
    return SpikingNetwork(layers, Direct(), (1, 4, 4)).eval()


def test_a_mark_of_before_is_read() -> None:
    """Files of earlier versions have signed neurons as IF nodes that are marked."""
    metadata = {"reset": "subtract", "signed": 1, "v_init": 0.5}
    old = graph_of(nir.IF(r=ONES, v_threshold=ONES * 0.5, v_reset=ONES * 0, metadata=metadata))
    new = graph_of(GradedNode(ONES * 0.5, 1, 0.5))
    assert isinstance(from_nir(old).neurons()["a"], SignedIF)
    x = np.random.default_rng(0).standard_normal((2, 9, 2, 4, 4))
    runs = [Simulator(lay_out(graph)).run(x).spikes["a"] for graph in (old, new)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] < 0).any()


def test_max_pooling_is_of_neurons_whose_sums_are_not_negative() -> None:
    pool = SpikingMaxPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    pooled = lay_out(graph_of(GradedNode(ONES, 3, 0.5), pool)).populations[1]
    assert (pooled.levels, pooled.payload, pooled.spike_bits) == (3, 7, 4)
    with pytest.raises(NirError, match="node 'b' is a max pooling of neurons whose sums may be negative"):
        lay_out(graph_of(GradedNode(ONES, 3, 0.5, 0), pool))
    layers = {
        "a": Layer([(INPUT, Synapse([]))], GradedIF(rectify=False)),
        "m": Layer([("a", Synapse([]))], SpikingMaxPool(2)),
        "out": Layer([("m", Synapse([nn.Flatten()]))], None),
    }
    with pytest.raises(NirError, match=r"layer 'm' is a max pooling of layer 'a', whose sums may be negative"):
        to_nir(SpikingNetwork(layers, Direct(), (2, 4, 4)))


def test_layers_that_need_arithmetic_are_listed() -> None:
    layers: dict[str, LayerDynamics] = {"a": GradedIF(), "norm": Running(nn.GELU()), "b": GradedIF(), "product": Relay()}
    names = [INPUT, *layers]
    built = {name: Layer([(before, Synapse([]))], neuron) for before, (name, neuron) in zip(names, layers.items())}
    network = SpikingNetwork({**built, "out": Layer([("product", Synapse([nn.Flatten()]))], None)}, Direct(), (2, 3, 3))
    with pytest.raises(NirError, match=r"^1 of 3 layers need arithmetic on the chip.*: norm \(GELU\)\."):
        to_nir(network)


def test_the_budget_says_what_graded_spikes_take() -> None:
    """Three levels against ones: another word for what was sent, and three operations a synaptic event."""
    x = np.random.default_rng(0).standard_normal((2, 5, 1, 4, 4))
    graded = lay_out(to_nir(small(GradedIF(levels=3, v_threshold=0.5))))
    plain = lay_out(to_nir(small(SignedIF(v_threshold=0.5))))
    found = budget(graded)
    (need,) = found.needs
    assert "Loihi 2 has them and the first Loihi has not: 4 bits a spike (with its sign) of layers a;" in need
    assert [layer.spike_bits for layer in found.layers] == [4, 0]
    assert found.layers[0].bytes == 8 * (12 + 4 + 9 * 2)
    assert budget(plain).layers[0].spike_bits == 2
    assert budget(lay_out(to_nir(small(IF())))).needs == []
    first, sent = activity(graded, x)
    assert (first.payload_bits, sent.payload_bits) == (1, 3)
    spikes = Simulator(graded).run(x).spikes["a"]
    assert sent.spikes == np.count_nonzero(spikes) / 2
    assert sent.events == sent.spikes * 3
    assert sent.synops == 3 * sent.events
    pool = SpikingMaxPool2d(np.array([3, 3]), np.array([1, 1]), np.array([0, 0]))
    graph: Any = graph_of(GradedNode(ONES, 3, 0.5), pool)
    (problem,) = budget(lay_out(graph)).problems
    assert "pools windows of 9 places, and a neuron can distinguish 4 where spikes have 4 bits" in problem
    assert budget(lay_out(graph), Loihi2(places=33)).problems == []
