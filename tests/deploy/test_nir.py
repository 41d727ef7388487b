"""NIR: a round trip keeps every spike (biases, reset mode, leak, start potential included); unknown things are refused."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from spikeprop_hardware import StepLIF
from torch import nn

from spikeprop import CNN, IF, LIF, Direct, Poisson, ResNet, ThresholdBalancing, convert
from spikeprop.deploy import export, from_nir, read_nir, record, to_nir
from spikeprop.errors import NirError
from spikeprop.snn import INPUT, CubaLIF, Layer, Neuron, SpikingNetwork, Synapse
from tests.convert.test_calibrate import Skips

NEURONS = [IF(), IF(reset="zero"), LIF(leak=0.93), LIF(leak=0.7, reset="zero", v_init=0.5)]


def network_of(ann: nn.Module, neuron: Neuron, shape: tuple[int, ...]) -> SpikingNetwork:
    torch.manual_seed(0)
    return convert(ann, [torch.rand(16, *shape)], neuron, ThresholdBalancing(timesteps=30, scale=0.5))


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_a_round_trip_through_a_file_keeps_every_spike(tmp_path: Path, neuron: Neuron) -> None:
    assert_round_trip(tmp_path, network_of(Skips(), neuron, (1, 4, 4)))  # biases and an identity skip with its gain
    cnn = CNN(input_shape=(1, 8, 8), classes=4, plan=[4, "A", 6, "A"], hidden=[8], batch_norm=True)
    assert_round_trip(tmp_path, network_of(cnn, neuron, (1, 8, 8)))


def test_a_round_trip_keeps_every_spike_of_a_resnet(tmp_path: Path) -> None:
    assert_round_trip(tmp_path, network_of(ResNet(depth=8, input_shape=(2, 8, 8), classes=3), IF(), (2, 8, 8)))


def assert_round_trip(tmp_path: Path, network: SpikingNetwork) -> None:
    export(network, tmp_path / "n.nir")
    back = from_nir(read_nir(tmp_path / "n.nir"))
    x = torch.rand(3, *network.input_shape)
    (ours, output), (theirs, their_output) = record(network, x, 15), record(back, x, 15)
    assert sum(train.sum() for name, train in ours.items() if name != "input") > 50
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)
    np.testing.assert_allclose(output, their_output, rtol=1e-12)


def one_layer(neuron: Neuron) -> SpikingNetwork:
    layers = {"a": Layer([(INPUT, Synapse([nn.Linear(3, 3)]))], neuron), "out": Layer([("a", Synapse([nn.Linear(3, 2)]))], None)}
    return SpikingNetwork(layers, Direct(), (3,)).eval()


def test_a_standard_node_means_what_nir_says_and_another_neuron_has_a_node_of_its_own(tmp_path: Path) -> None:
    node = to_nir(one_layer(LIF(leak=0.9, reset="zero"))).nodes["a"]
    assert isinstance(node, nir.LIF)
    assert node.metadata == {"dt": 1.0, "leak": pytest.approx(0.9)}  # no reader needs them that knows its time step
    np.testing.assert_allclose(node.tau, 10.0, rtol=1e-5)
    np.testing.assert_allclose(node.r * node.metadata["dt"] / node.tau, 1.0)
    assert isinstance(to_nir(one_layer(IF(reset="zero"))).nodes["a"], nir.IF)
    for neuron in (IF(), LIF(leak=0.9), CubaLIF(), LIF(leak=0.9, reset="zero", v_init=0.25)):
        network = one_layer(neuron)
        node = to_nir(network).nodes["a"]
        assert isinstance(node, StepLIF)
        assert node.to_zero == (neuron.reset == "zero")
        export(network, tmp_path / "n.nir")
        with pytest.raises(AssertionError):  # nir 1.0.8, and so every importer, which would overlook a mark
            nir.read(tmp_path / "n.nir")
    back = from_nir(read_nir(tmp_path / "n.nir")).neurons()["a"]
    assert (back.reset, float(back.v_init), float(back.leak)) == ("zero", 0.25, pytest.approx(0.9))


def test_marks_of_older_files_are_still_read() -> None:
    old = lif(metadata={"reset": "subtract", "v_init": 0.5, "dt": 1.0, "leak": 0.9})
    (neuron,) = from_nir(graph_with(old)).neurons().values()
    assert (neuron.reset, float(neuron.v_init), float(neuron.leak)) == ("subtract", 0.5, pytest.approx(0.9))


@pytest.mark.parametrize(
    ("field", "says"),
    [({"leak": 1.2}, "has leak = 1.2"), ({"synaptic_leak": -0.1}, "synaptic_leak"), ({"to_zero": 3}, "to_zero")],
)
def test_factors_of_our_node_are_checked(field: dict[str, float], says: str) -> None:
    with pytest.raises(NirError, match=says):
        from_nir(graph_with(StepLIF(np.ones(3), **field)))  # type: ignore[arg-type]


def test_biases_are_kept_and_absent_ones_stay_absent() -> None:
    back = from_nir(to_nir(network_of(Skips(), IF(), (1, 4, 4))))
    assert all(m.bias is not None for m in back.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    bias_free = network_of(CNN(input_shape=(1, 8, 8), classes=4, plan=[4]), IF(), (1, 8, 8))
    assert all(m.bias is None for m in from_nir(to_nir(bias_free)).modules() if isinstance(m, nn.Conv2d | nn.Linear))


def graph_with(node: nir.NIRNode) -> nir.NIRGraph:
    nodes = {
        "input": nir.Input(input_type={"input": np.array([3])}),
        "x": node,
        "last": nir.Linear(weight=np.eye(3)),
        "output": nir.Output(output_type={"output": np.array([3])}),
    }
    return nir.NIRGraph(nodes=nodes, edges=[("input", "x"), ("x", "last"), ("last", "output")])


def lif(**changes: Any) -> nir.LIF:
    ones = np.ones(3)
    given: dict[str, Any] = {"tau": ones * 10, "r": ones * 10, "v_leak": ones * 0, "v_threshold": ones, "v_reset": ones * 0}
    return nir.LIF(**(given | changes))


@pytest.mark.parametrize(
    ("node", "says"),
    [
        (nir.Threshold(threshold=np.ones(3)), "'x' is a Threshold"),
        (nir.IF(r=np.ones(3), v_threshold=np.ones(3), metadata={"reset": "bounce"}), "reset mode 'bounce'"),
        (nir.IF(r=np.ones(3), v_threshold=np.ones(3), v_reset=np.full(3, 0.5)), "v_reset = 0.5"),
        (nir.IF(r=np.full(3, -2.0), v_threshold=np.ones(3)), "scales its current by r = -2"),
        (lif(), "without a time step"),
        (lif(metadata={"dt": 1.0}, r=np.zeros(3)), "scales its current by r.dt/tau = 0"),
        (lif(metadata={"dt": 1.0}, v_leak=np.full(3, 0.1)), "v_leak = 0"),
        (lif(metadata={"dt": 20.0}, r=np.full(3, 0.5)), "node 'x' has a leak"),
        (nir.IF(r=np.ones(3), v_threshold=np.array([1.0, 1.0, 0.0])), "node 'x' has a threshold of 0"),
        (nir.IF(r=np.ones(3), v_threshold=np.full(3, -2.0)), "node 'x' has a threshold of -2"),
        (nir.IF(r=np.ones(3), v_threshold=np.full(3, np.nan)), "node 'x' holds NaN or infinity in its v_threshold"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_cannot_be_expressed_is_refused(node: nir.NIRNode, says: str) -> None:
    with pytest.raises(NirError, match=says):
        from_nir(graph_with(node))


def test_a_foreign_lif_is_read_with_a_given_time_step() -> None:
    network = from_nir(graph_with(lif()), dt=1.0)
    (neuron,) = network.neurons().values()
    assert neuron.reset == "zero"  # NIR's own meaning
    assert float(neuron.leak) == pytest.approx(0.9)


def test_what_nir_has_no_node_for_is_refused_on_writing() -> None:
    ann = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(18, 2))
    with pytest.raises(NirError, match="ceil_mode"):
        to_nir(network_of(ann, IF(), (1, 7, 7)))


def test_each_neuron_may_have_a_leak_of_its_own() -> None:
    network = network_of(Skips(), LIF(), (1, 4, 4))
    network.neurons()["a"].leak = torch.rand(3, 4, 4)
    assert torch.equal(from_nir(to_nir(network)).neurons()["a"].leak, network.neurons()["a"].leak)


def dense(name: str) -> SpikingNetwork:
    flat, first, last = nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2)
    layers: OrderedDict[str, nn.Module] = OrderedDict({"flat": flat, name: first, "relu": nn.ReLU(), "last": last})
    return network_of(nn.Sequential(layers), IF(), (1, 2, 2))


@pytest.mark.parametrize("name", ["input", "output"])
def test_a_hidden_layer_may_be_called_as_the_input_and_output_nodes_are(tmp_path: Path, name: str) -> None:
    network = dense(name)
    assert list(network.neurons()) == [f"{name}_2"]
    export(network, tmp_path / "n.nir")
    assert from_nir(read_nir(tmp_path / "n.nir")).neurons().keys() == network.neurons().keys()


@pytest.mark.parametrize("name", ["output", "last_synapse0_0"])
def test_two_nodes_of_one_name_are_refused_on_writing(name: str) -> None:
    hidden = Layer([(INPUT, Synapse([nn.Linear(3, 3)]))], IF())
    last = Layer([(name, Synapse([nn.Linear(3, 3)]))], None)
    with pytest.raises(NirError, match=f"two nodes of the graph would be called '{name}'"):
        to_nir(SpikingNetwork({name: hidden, "last": last}, Direct(), (3,)))


def test_neurons_of_a_foreign_graph_keep_apart_from_its_input() -> None:
    graph = graph_with(nir.IF(r=np.ones(3), v_threshold=np.ones(3)))
    renamed = {"input": "image", "x": "input", "last": "last", "output": "output"}
    nodes = {renamed[name]: node for name, node in graph.nodes.items()}
    network = from_nir(nir.NIRGraph(nodes=nodes, edges=[(renamed[a], renamed[b]) for a, b in graph.edges]))
    assert list(network.layers) == ["input_", "output"]
    to_nir(network)


def test_the_encoder_is_restored_from_the_file(tmp_path: Path) -> None:
    network = dense("first")
    network.encoder = Poisson()
    export(network, tmp_path / "n.nir")
    graph = read_nir(tmp_path / "n.nir")
    assert from_nir(graph).encoder == Poisson()
    assert from_nir(graph, encoder=Direct()).encoder == Direct()
    graph.metadata["encoder"] = "Delta"  # has a threshold, which the file does not hold
    with pytest.raises(NirError, match=r"encoder 'Delta'.*pass encoder="):
        from_nir(graph)
    assert from_nir(graph, encoder=Direct()).encoder == Direct()
    del graph.metadata["encoder"]
    assert from_nir(graph).encoder == Direct()


def test_a_second_output_is_refused() -> None:
    graph = graph_with(nir.IF(r=np.ones(3), v_threshold=np.ones(3)))
    nodes = {**graph.nodes, "second": nir.Output(output_type={"output": np.array([3])})}
    with pytest.raises(NirError, match="1 inputs and 2 outputs"):
        from_nir(nir.NIRGraph(nodes=nodes, edges=[*graph.edges, ("last", "second")]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_graphs_precision_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    network = network_of(Skips(), LIF(leak=0.93), (1, 4, 4)).to(dtype)
    for tensor in (*network.parameters(), *(n.v_threshold for n in network.neurons().values())):
        tensor.data.mul_(1 + 1e-9)  # float64 values that float32 does not have
    export(network, tmp_path / "n.nir")
    back = from_nir(read_nir(tmp_path / "n.nir"))
    ours, theirs = network.state_dict(), back.state_dict()
    assert len(ours) == len(theirs)
    for (name, value), read in zip(ours.items(), theirs.values()):  # the output stage's name alone differs
        if name.endswith("scale"):  # of the ANN that it came from, which the file does not know
            continue
        assert read.dtype == value.dtype
        assert (read == value).all(), name


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_padding_in_words_is_written_as_numbers_where_its_sides_are_equal(tmp_path: Path) -> None:
    written: Any = [(nn.Conv2d(1, 4, 3, padding="same", dilation=2), (2, 2), (1, 6, 6)),
                    (nn.Conv2d(1, 4, (2, 3), padding="same"), "same", (1, 6, 6)),
                    (nn.Conv2d(1, 4, 3, padding="valid"), (0, 0), (1, 8, 8)),
                    (nn.Conv1d(1, 4, 4, padding="same"), "same", (1, 36))]  # fmt: skip
    for conv, held, shape in written:
        readout = Layer([("a", Synapse([nn.Flatten(), nn.Linear(144, 3)]))], None)
        layers = {"a": Layer([(INPUT, Synapse([conv]))], IF(v_threshold=0.25)), "out": readout}
        network = SpikingNetwork(layers, Direct(), shape).eval()
        node: Any = next(node for node in to_nir(network).nodes.values() if type(node).__name__.startswith("Conv"))
        assert node.padding == held
        assert network.fits("loihi2")
        assert_round_trip(tmp_path, network)
        unequal = [f.what for f in network.fits("speck").findings if f.what == "a padding of unequal sides"]
        assert len(unequal) == (held == "same" and len(shape) == 3)


def test_padding_same_is_read_unless_it_is_strided() -> None:
    def graph(stride: int) -> nir.NIRGraph:
        conv = nir.Conv2d(
            input_shape=(4, 4), weight=np.ones((1, 1, 3, 3)), stride=stride, padding="same", dilation=1, groups=1,
            bias=np.zeros(1),
        )  # fmt: skip
        nodes = {
            "x": nir.Input(input_type={"input": np.array([1, 4, 4])}),
            "c": conv,
            "y": nir.Output(output_type={"output": np.array([1, 4, 4])}),
        }
        return nir.NIRGraph(nodes=nodes, edges=[("x", "c"), ("c", "y")], type_check=False)

    assert [m.padding for m in from_nir(graph(1)).modules() if isinstance(m, nn.Conv2d)] == ["same"]
    with pytest.raises(NirError, match="'c' has padding 'same' with stride"):
        from_nir(graph(2))
