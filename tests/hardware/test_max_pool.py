"""Max pooling of spikes on its way to the hardware: windows, files, refusals, and a trained network."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
import torch
from spikeprop_hardware import HardwareError, Recording, kernels, quantize, simulate
from spikeprop_hardware.chip import budget
from spikeprop_hardware.graph import SpikingMaxPool2d
from spikeprop_hardware.matrix import windows_of
from spikeprop_hardware.network import lay_out
from spikeprop_hardware.netx import quantize_for_netx
from spikeprop_hardware.targets import Loihi2
from torch import nn

from spikeprop import IF, Backprop, Digits, SignedIF, ThresholdBalancing, convert, fit
from spikeprop.convert import LightCalibration
from spikeprop.deploy import QuantisedBPTT, RunOn, compare, encoded, export, from_nir, read_nir, record, to_nir
from spikeprop.errors import NirError
from spikeprop.learn import Cosine
from spikeprop.snn import INPUT, SpikingNetwork
from spikeprop.snn.neuron import Neuron
from spikeprop.snn.pooling import SpikingMaxPool
from tests.hardware.test_lava import lava_or_skip


def size(height: int, width: int) -> np.ndarray:
    return np.array([height, width])


def small(neuron: Neuron) -> SpikingNetwork:
    """Two convolutions with overlapping windows behind the first, on 7x7 images."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.Conv2d(4, 4, 2),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    ann = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 3))
    return convert(ann, [torch.rand(16, 1, 7, 7)], neuron, ThresholdBalancing(timesteps=20, scale=0.5))


def test_windows_are_pytorchs() -> None:
    x = torch.rand(1, 2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tried = 0
    for kernel in ((1, 2), (2, 2), (3, 2), (4, 5)):
        for stride in ((1, 1), (2, 3), (4, 4)):
            for padding in ((0, 0), (kernel[0] // 2, kernel[1] // 2)):
                for ceil_mode in (False, True):
                    node = SpikingMaxPool2d(size(*kernel), size(*stride), size(*padding), int(ceil_mode))
                    windows, shape = windows_of(node, (2, 5, 6), "p")
                    expected = nn.functional.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil_mode)[0]
                    assert shape == expected.shape
                    np.testing.assert_array_equal(windows.multiply(x.numpy().ravel()).max(1).toarray(), expected.reshape(-1, 1))
                    tried += 1
    assert tried == 48


@pytest.mark.parametrize(("side", "kernel", "stride"), [(4, 2, 2), (4, 3, 1), (5, 3, 2), (6, 5, 1), (9, 2, 2)])
def test_windows_store_ones_alone(side: int, kernel: int, stride: int) -> None:
    node = SpikingMaxPool2d(size(kernel, kernel), size(stride, stride), size(0, 0))
    windows, shape = windows_of(node, (3, side, side), "p")
    assert windows.nnz == np.prod(shape) * kernel**2
    assert (windows.data == 1).all()


def test_nir_itself_refuses_a_file_with_spiking_max_pooling(tmp_path: Path) -> None:
    network = small(IF())
    export(network, tmp_path / "n.nir")
    with pytest.raises(AssertionError):  # nir 1.0.8, and so every importer; it does not say more
        nir.read(tmp_path / "n.nir", type_check=False)
    back = from_nir(read_nir(tmp_path / "n.nir"))
    pools = [neuron for neuron in back.dynamics().values() if isinstance(neuron, SpikingMaxPool)]
    assert [(p.window.kernel_size, p.window.stride, p.window.padding, p.window.ceil_mode) for p in pools] == [
        ((3, 3), (2, 2), (1, 1), True),
        ((2, 2), (2, 2), (0, 0), False),
    ]
    x = torch.rand(3, 1, 7, 7)
    (ours, output), (theirs, their_output) = record(network, x, 15), record(back, x, 15)
    assert ours.keys() == theirs.keys()
    assert all(train.any() and (train == theirs[name]).all() for name, train in ours.items())
    np.testing.assert_array_equal(output, their_output)


def test_a_file_without_max_pooling_is_read_as_nir_reads_it(tmp_path: Path) -> None:
    nir.write(tmp_path / "n.nir", graph_with(nir.Scale(scale=np.ones((2, 4, 4)))))
    assert read_nir(tmp_path / "n.nir").nodes.keys() == nir.read(tmp_path / "n.nir", type_check=False).nodes.keys()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", ["norse", "snntorch"])
def test_export_for_other_libraries_refuses_max_pooling_as_they_do(tmp_path: Path, library: str) -> None:
    network = small(IF())  # it also resets by subtraction
    with pytest.raises(NirError, match=f"max pooling of spikes by their counts, which {library} does not have; .*average"):
        export(network, tmp_path / "n.nir", library=library)
    assert not list(tmp_path.iterdir())
    pytest.importorskip(library, reason="the interop extra is not installed")
    graph = to_nir(small(IF(reset="zero")))  # their own neurons, so that it is the pooling that they do not know
    if library == "norse":
        from norse.torch import from_nir as load
    else:
        from snntorch.import_nir import import_from_nir as load
    with pytest.raises((NotImplementedError, ValueError, RuntimeError, KeyError), match=r"_2|SpikingMaxPool2d"):
        load(graph)


def test_netx_export_refuses_max_pooling() -> None:
    network = small(IF())  # it also resets by subtraction and has biases
    with pytest.raises(
        HardwareError, match=r"is a max pooling of spikes by their counts, and netx has no neuron for it; .*average"
    ):
        quantize_for_netx(to_nir(network))


def graph_with(pool: nir.NIRNode, before: nir.NIRNode | None = None, fires: bool = True) -> nir.NIRGraph:
    """Neurons (2, 4, 4), a linear node if given, the pooling."""
    ones = np.ones((2, 4, 4))
    nodes: dict[str, Any] = {"x": nir.Input(input_type={"input": np.array([2, 4, 4])})}
    nodes |= {"a": nir.IF(r=ones, v_threshold=ones)} if fires else {}
    nodes |= {"w": before} if before is not None else {}
    nodes |= {"p": pool, "y": nir.Output(output_type={"output": np.array([2, 2, 2])})}
    names = list(nodes)
    return nir.NIRGraph(nodes=nodes, edges=list(pairwise(names)), type_check=False)


HALVES = SpikingMaxPool2d(size(2, 2), size(2, 2), size(0, 0))
COPY = nir.Conv2d((4, 4), np.eye(2).reshape(2, 2, 1, 1), (1, 1), (0, 0), (1, 1), 1, np.zeros(2))
SUM = nir.Conv2d((4, 4), np.ones((2, 2, 1, 1)), (1, 1), (0, 0), (1, 1), 1, np.zeros(2))
BIASED = nir.Conv2d((4, 4), np.eye(2).reshape(2, 2, 1, 1), (1, 1), (0, 0), (1, 1), 1, np.ones(2))


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        (graph_with(HALVES, fires=False), "'p' is a max pooling of what is not single spikes of neurons .*average pooling"),
        (graph_with(HALVES, nir.Scale(scale=np.full((2, 4, 4), 0.5))), "'p' is a max pooling of what is not single spikes"),
        (graph_with(HALVES, SUM), "'p' is a max pooling of what is not single spikes"),
        (graph_with(HALVES, BIASED), "'p' is a max pooling of what is not single spikes"),
        (
            graph_with(HALVES, nir.Flatten({"input": np.array([2, 4, 4])}, 0, -1)),
            r"pools \(channels, height, width\), but \(32,\)",
        ),
        (graph_with(SpikingMaxPool2d(size(2, 2), size(0, 2), size(0, 0))), "windows and strides are 1 or more"),
        (graph_with(SpikingMaxPool2d(size(2, 2), size(2, 2), size(2, 0))), "padding at most half a window"),
        (graph_with(SpikingMaxPool2d(size(5, 5), size(1, 1), size(0, 0))), r"which do not fit \(2, 4, 4\)"),
        (graph_with(SpikingMaxPool2d(np.ones(3), size(1, 1), size(0, 0))), "kernel_size of .*two numbers"),
    ],
    ids=["input", "scaled", "sum", "bias", "flat", "stride", "padding", "large", "three"],
)
def test_max_pooling_of_other_things_than_spikes_is_refused(graph: nir.NIRGraph, says: str) -> None:
    with pytest.raises(NirError, match=says):
        lay_out(graph)


def test_a_copy_before_it_changes_nothing() -> None:
    plain, copied = lay_out(graph_with(HALVES)), lay_out(graph_with(HALVES, COPY))
    assert abs(plain.populations[1].connections[0].matrix - copied.populations[1].connections[0].matrix).sum() == 0


@pytest.mark.parametrize("pool", [kernels.pool, kernels.pool_numpy])
def test_counts_by_hand_and_a_window_without_places(pool: Any) -> None:
    """Four sources; windows hold the first two, none, and the last three; a spike of -1 lowers the largest count."""
    first, places = np.array([0, 2, 2, 5]), np.array([0, 1, 1, 2, 3], dtype=np.int32)
    counts, v, spikes = np.zeros((1, 4), np.int32), np.zeros((1, 3), np.int32), np.zeros((1, 3), np.int8)
    sent = []
    for step in ([1, 0, 0, 0], [1, 1, 1, 0], [-1, 0, 0, 1], [-1, 0, -1, 0], [0, -1, 0, 1]):
        counts += np.array(step, np.int32)  # counts: 1 0 0 0, 2 1 1 0, 1 1 1 1, 0 1 0 1, 0 0 0 2
        pool(counts, v, spikes, first, places)
        sent.append(spikes[0].tolist())
    assert sent == [[1, 0, 0], [1, 0, 1], [-1, 0, 0], [0, 0, 0], [-1, 0, 1]]
    assert v[0].tolist() == [0, 0, 2]


def test_a_node_with_missing_fields_is_refused_by_name(tmp_path: Path) -> None:
    export(small(IF()), tmp_path / "n.nir")
    with h5py.File(tmp_path / "n.nir", "a") as file:
        nodes: Any = file["node/nodes"]
        del nodes["_2/stride"]
    with pytest.raises(NirError, match=r"node '_2' cannot be read as SpikingMaxPool2d: .*'stride'"):
        read_nir(tmp_path / "n.nir")


def test_sizes_that_pytorch_does_not_take_are_refused_on_reading() -> None:
    with pytest.raises(NirError, match=r"node 'p' has windows of .* padding at most half a window"):
        from_nir(graph_with(SpikingMaxPool2d(size(2, 2), size(2, 2), size(2, 0))))


def test_the_budget_counts_windows_and_their_counts() -> None:
    plan = lay_out(graph_with(HALVES))
    found = budget(plan)
    pool = found.layers[1]
    assert (pool.neurons, pool.synapses, pool.fan_in, pool.axons) == (8, 32, 4, 32)
    assert pool.bytes == 8 * (12 + 4 * 2 + 4 * 2)  # a neuron; four synapses of a weight and a target; four counts of two bytes
    assert found.layers[0].fan_out == 1
    assert found.problems == []
    assert budget(quantize(graph_with(HALVES)).network) == found
    (problem,) = budget(plan, Loihi2(places=3)).problems
    assert "layer 'p' pools windows of 4 places, and a neuron can distinguish 3; pool twice with smaller windows" in problem


@pytest.fixture(scope="module")
def digits_max_cnn() -> nn.Module:
    """A CNN with max pooling, trained for a few seconds on real digits."""
    torch.manual_seed(0)
    first = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    ann = nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(ann.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    fit(ann, Backprop(), Digits().train(32, seed=0), optimizer, epochs=12, schedule=Cosine())
    return ann


@pytest.mark.parametrize("neuron", [IF(v_init=0.5), SignedIF()], ids=["if", "signed"])
def test_a_trained_network_spikes_equally_in_all_simulators(tmp_path: Path, digits_max_cnn: nn.Module, neuron: Neuron) -> None:
    x = next(iter(Digits().train(512, seed=0).epoch(0)))[0]
    network = convert(digits_max_cnn, [x], neuron, LightCalibration(timesteps=16, delay=False))
    export(network, tmp_path / "n.nir")
    images, labels = next(iter(Digits().test(360).epoch(0)))
    found = compare(network, tmp_path / "n.nir", images, labels, 16, print, RunOn(backend="reference"))
    assert found["spikes_equal"]
    assert found["spikes"] > 100_000
    assert found["accuracy"]["pytorch"] > 95
    fixed = compare(network, tmp_path / "n.nir", images, labels, 16, print, RunOn(backend="reference", precision="fixed"))
    assert fixed["agreement"] > 98.5  # of predictions on the same images, whatever ANN a processor trains
    assert fixed["accuracy"]["reference"] > 95
    if isinstance(neuron, SignedIF):  # on Lava among the random networks
        return
    lava_or_skip()
    on_lava = compare(network, tmp_path / "n.nir", images[:3], labels[:3], 16, print)
    assert on_lava["spikes_equal"]
    inputs = encoded(network, images[:3], 16)
    both = [
        simulate(tmp_path / "n.nir", inputs, backend=backend, precision="fixed", record=Recording(membranes=True))
        for backend in ("lava", "reference")
    ]
    for name, train in both[0].spikes.items():
        np.testing.assert_array_equal(train, both[1].spikes[name])
        np.testing.assert_array_equal(both[0].membranes[name], both[1].membranes[name])
    np.testing.assert_array_equal(both[0].output, both[1].output)


def test_fine_tuning_at_rounded_weights_does_not_round_counts(digits_max_cnn: nn.Module) -> None:
    x, y = next(iter(Digits().train(32, seed=0).epoch(0)))
    network = convert(digits_max_cnn, [x], IF(), ThresholdBalancing(timesteps=10, scale=0.5))
    loss = QuantisedBPTT(timesteps=4).step(network, x, y)["loss"]
    assert torch.isfinite(loss)
    weights = [p for name, p in network.named_parameters() if name.endswith("weight")]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in weights)
    assert INPUT not in network.neurons()
