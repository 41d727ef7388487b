"""Loops, delays, subgraphs, synaptic currents, adaptive thresholds and integrators, against a loop over the nodes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import snntorch
import torch
from snntorch.export_nir import export_to_nir
from spikeprop_hardware import ALIF, HardwareError, NirError, Recording, budget, lay_out, quantize, read_nir, simulate
from spikeprop_hardware.environment import lava_python
from spikeprop_hardware.integer import load, save
from spikeprop_hardware.matrix import linear_of
from spikeprop_hardware.netx import quantize_for_netx
from spikeprop_hardware.recording import SimulationResult, shaped
from spikeprop_hardware.reference import Simulator
from torch import nn

from tests.hardware.random_graphs import random_graph, run_nodes
from tests.hardware.test_lava import lava_or_skip
from tests.hardware.test_quantization import STOCK
from tests.hardware.test_reference import assert_same, without_numba

ALL = Recording(membranes=True)
ONES = np.ones(3)


def run(graph: nir.NIRGraph, inputs: np.ndarray) -> SimulationResult:
    network = lay_out(graph)
    return shaped(Simulator(network, threads=1).run(inputs), network)


def test_graphs_with_loops_spike_as_their_nodes_do() -> None:
    fired, strides = 0, set[int]()
    for seed in range(50):
        graph, inputs = random_graph(seed)
        spikes, output = run_nodes(graph, inputs)
        ours = run(graph, inputs)
        assert ours.spikes.keys() == spikes.keys()
        for name, train in spikes.items():
            np.testing.assert_array_equal(ours.spikes[name], train, f"seed {seed}, {name}")
            fired += int(train.sum())
        np.testing.assert_allclose(ours.output, output, rtol=0, atol=1e-9, err_msg=f"seed {seed}")
        strides.add(lay_out(graph).stride)
    assert fired > 3000
    assert {1, 2, 3} <= strides


def test_the_order_in_which_a_file_lists_its_nodes_does_not_matter(tmp_path: Path) -> None:
    """HDF5 sorts them by name; subgraphs, delays and our own nodes come back too."""
    for seed in range(12):
        graph, inputs = random_graph(seed)
        nir.write(str(tmp_path / "n.nir"), graph)
        ours, read = run(graph, inputs), simulate(tmp_path / "n.nir", inputs, backend="reference")
        for name, train in ours.spikes.items():
            np.testing.assert_array_equal(read.spikes[name], train)
        np.testing.assert_allclose(read.output, ours.output, rtol=0, atol=1e-12)


def test_integers_are_saved_and_do_not_depend_on_numba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    close = []
    for seed in range(8):
        graph, inputs = random_graph(seed, real=True)
        made, report = quantize(graph, timesteps=inputs.shape[1])
        assert max(layer.load for layer in report) <= 1
        assert max(layer.leak_error for layer in report) < 1 / 4000
        whole = Simulator(made, threads=1).run(inputs, membranes=True)
        save(made, tmp_path / "n.npz")
        assert_same(whole, Simulator(load(tmp_path / "n.npz"), threads=2).run(inputs, membranes=True))
        exact = run(graph, inputs)
        with monkeypatch.context() as changed:
            without_numba(changed)
            assert_same(whole, Simulator(made, threads=1).run(inputs, membranes=True))
            again = run(graph, inputs)
        np.testing.assert_array_equal(again.output, exact.output)
        fixed = shaped(whole, made)
        close.append(
            np.mean(
                [(fixed.spikes[name] == train.reshape(fixed.spikes[name].shape)).mean() for name, train in exact.spikes.items()]
            )
        )
    assert np.mean(close) > 0.97, close


def against_lava(tmp_path: Path, seed: int) -> None:
    graph, inputs = random_graph(seed, real=True)
    nir.write(str(tmp_path / "n.nir"), graph)
    for precision in ("float", "fixed"):
        lava = simulate(tmp_path / "n.nir", inputs, precision=precision, record=ALL)
        ours = simulate(tmp_path / "n.nir", inputs, precision=precision, record=ALL, backend="reference")
        assert_same(ours, lava)
        assert ours.clipped == lava.clipped


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_loops_run_on_lava_as_in_the_simulator(tmp_path: Path, seed: int) -> None:
    lava_or_skip()
    against_lava(tmp_path, seed)


def test_a_loop_over_three_layers_runs_on_lava_as_in_the_simulator(tmp_path: Path) -> None:
    lava_or_skip()
    against_lava(tmp_path, 1)  # CubaLIF, CubaLIF and ALIF, with a stride of 3


@pytest.mark.slow
def test_synaptic_currents_are_lavas_own_bit_accurate_lif(tmp_path: Path) -> None:
    """Not our Lava model but the stock one, which has a hard reset."""
    lava_or_skip()
    rng = np.random.default_rng(0)
    neurons = nir.CubaLIF(
        tau_syn=np.full(8, 3.0), tau_mem=np.full(8, 7.0), r=np.full(8, 7.0), v_leak=np.zeros(8), v_threshold=np.ones(8),
        w_in=np.full(8, 3.0), metadata={"dt": 1.0},
    )  # fmt: skip
    graph = chain({"w": nir.Linear(rng.standard_normal((8, 5)) / 2), "n": neurons}, 5, 8)
    inputs = rng.standard_normal((1, 60, 5))
    made = quantize(graph, input_limit=4.0, timesteps=60).network
    save(made, tmp_path / "n.npz")
    np.save(tmp_path / "x.npy", inputs)
    script = STOCK.replace("du=4095", "du=int(layer.synaptic_decay[0]) - 1")
    folder = Path(lay_out.__code__.co_filename).parents[1]
    command = [lava_python(print), "-c", script, tmp_path / "n.npz", tmp_path / "x.npy", tmp_path / "y.npy"]
    subprocess.run([str(part) for part in command], check=True, env={"PYTHONPATH": str(folder)})
    ours = simulate(made, inputs, backend="reference", precision="fixed").spikes["n"][0]
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy").astype(bool), ours)
    assert 0.05 < ours.mean() < 0.95


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["leaky", "synaptic"])
def test_recurrent_networks_of_snntorch_are_read_as_they_run(tmp_path: Path, kind: str) -> None:
    """snnTorch writes a recurrent layer as a subgraph, and no time step (its own is 0.1 ms)."""
    torch.manual_seed(0)
    own: dict[str, Any] = {"beta": 0.8, "reset_mechanism": "zero"} | ({"alpha": 0.6} if kind == "synaptic" else {})
    made, cell = (snntorch.RLeaky, snntorch.Leaky) if kind == "leaky" else (snntorch.RSynaptic, snntorch.Synaptic)
    weights = nn.Linear(6, 12), nn.Linear(12, 12)
    layers: Any = [made(**own, init_hidden=True, linear_features=12) for _ in range(2)]
    theirs = nn.Sequential(weights[0], layers[0], weights[1], layers[1])
    # as NIR says, a reset in the step of the spike; RSynaptic's own (1.0) takes the spike of the step before for it
    cells: Any = [cell(**own, reset_delay=False) for _ in range(2)]
    x_TB, train = torch.randn(40, 4, 6) * 4, []
    sent, states = [torch.zeros(4, 12)] * 2, [[torch.zeros(4, 12)] * (1 + (kind == "synaptic"))] * 2
    with torch.no_grad():
        for x_B in x_TB:
            for i in range(2):
                current = weights[i](sent[0] if i else x_B) + layers[i].recurrent(sent[i])
                sent[i], *states[i] = cells[i](current, *states[i])
            train.append(sent[1])
    out = torch.stack(train, 1)
    graph = export_to_nir(theirs, x_TB[0, 0])
    nir.write(str(tmp_path / "n.nir"), graph)
    network = lay_out(read_nir(tmp_path / "n.nir"), dt=1e-4)
    ours = Simulator(network, threads=1).run(x_TB.transpose(0, 1).numpy())
    np.testing.assert_array_equal(ours.spikes[network.populations[1].name], out)
    np.testing.assert_array_equal(ours.output, out.cumsum(1))
    assert 0.02 < float(out.mean()) < 0.95
    assert [sorted(c.lag for c in p.connections) for p in network.populations] == [[0, 1], [0, 1], [0]]
    assert network.stride == 1


def neurons(**metadata: Any) -> nir.IF:
    return nir.IF(r=ONES, v_threshold=ONES, metadata=metadata)


def chain(nodes: dict[str, Any], inputs: int = 3, outputs: int = 3, **metadata: Any) -> nir.NIRGraph:
    given = nir.Input(input_type={"input": np.array([inputs])})
    taken = nir.Output(output_type={"output": np.array([outputs])})
    all_nodes = {"x": given, **nodes, "y": taken}
    edges = list(zip(list(all_nodes), list(all_nodes)[1:]))
    return nir.NIRGraph(nodes=all_nodes, edges=edges, metadata=metadata, type_check=False)


def with_edges(graph: nir.NIRGraph, *edges: tuple[str, str]) -> nir.NIRGraph:
    return nir.NIRGraph(nodes=graph.nodes, edges=[*graph.edges, *edges], metadata=graph.metadata, type_check=False)


EYE = nir.Linear(np.eye(3))
LI = nir.LI(tau=ONES * 2, r=ONES * 2, v_leak=ONES * 0, metadata={"dt": 1.0})
PAIR = chain({"a": neurons(), "b": neurons()})
INNER = chain({"n": neurons()})


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        (with_edges(PAIR, ("x", "b"), ("b", "a")), r"\['a', 'b', 'y'\] are in a loop with several entrances.*put a Delay node"),
        (with_edges(chain({"v": EYE, "w": EYE}), ("w", "v")), r"\['v', 'w'\] are in a loop without neurons"),
        (with_edges(chain({"v": EYE, "n": neurons()}), ("n", "x")), "ends in the graph's input"),
        (with_edges(chain({"n": neurons()}), ("y", "n")), "begins in the graph's output"),
        (chain({"d": nir.Delay(delay=ONES)}), "'d' is a Delay without a time step"),
        (chain({"d": nir.Delay(delay=ONES * 1.5, metadata={"dt": 1.0})}), r"'d' delays by \[1.5\] steps of 1"),
        (chain({"d": nir.Delay(delay=np.arange(3.0), metadata={"dt": 1.0})}), "one whole number of steps"),
        (chain({"l": LI, "n": neurons()}), "'l' is an integrator without spikes .LI., which can be run where it and the output"),
        (with_edges(chain({"n": neurons(), "l": LI}), ("n", "y")), "'l' is an integrator"),
        (chain({"l": nir.LI(tau=ONES, r=ONES, v_leak=ONES)}), "'l' leaks to v_leak = 1"),
        (chain({"l": nir.LI(tau=ONES, r=ONES, v_leak=ONES * 0)}), "'l' is a LI without a time step"),
        (chain({"n": ALIF(ONES, 0.5, -0.1, 0.5, 0.0)}), r"'n' has adaptation = -0.1; it must lie in \[0, inf\]"),
        (chain({"n": ALIF(ONES, 0.5, 0.1, 1.5, 0.0)}), r"'n' has adaptation_leak = 1.5; it must lie in \[0, 1\]"),
        (chain({"n": neurons()}, read="median"), "read = 'median'; known: sum, mean, last, max"),
        (chain({"s": with_edges(INNER, ("x", "y"))}), "subgraph 's' passes its input on"),
        (chain({"s": INNER, "s.n": neurons()}), "two nodes of the graph would be called 's.n'"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_what_does_not_say_what_it_means_is_refused(graph: nir.NIRGraph, says: str) -> None:
    with pytest.raises(NirError, match=says):
        lay_out(graph)


def test_a_delay_in_a_loop_with_several_entrances_says_where_the_step_is() -> None:
    """Two neurons that read the input and each other: a reads what b sent before, or b what a did."""
    inputs = np.zeros((1, 4, 3))
    inputs[0, 0] = 2.0
    delay = nir.Delay(delay=ONES, metadata={"dt": 1.0})
    nodes: dict[str, Any] = {
        "x": PAIR.nodes["x"],
        "v": nir.Linear(np.diag([1.0, 0, 0])),
        "a": neurons(),
        "b": neurons(),
        "d": delay,
        "y": PAIR.nodes["y"],
    }
    half, edges = nir.Linear(np.eye(3) * 0.75), [("x", "v"), ("v", "a"), ("x", "h"), ("h", "b"), ("b", "y")]
    trains = {}
    for late, early in (("a", "b"), ("b", "a")):
        loop = [(early, "d"), ("d", "w1"), ("w1", late), (late, "w2"), ("w2", early)]
        all_nodes: dict[str, Any] = nodes | {"h": half, "w1": nir.Linear(np.eye(3) * 2), "w2": nir.Linear(np.eye(3) * 2)}
        graph = nir.NIRGraph(nodes=all_nodes, edges=[*edges, *loop], type_check=False)
        assert lay_out(graph).stride == 2
        trains[late] = run(graph, inputs).spikes
    np.testing.assert_array_equal(trains["a"]["b"][0, :, 0], [1, 1, 1, 1])
    np.testing.assert_array_equal(trains["a"]["a"][0, :, 0], [1, 1, 1, 1])
    np.testing.assert_array_equal(trains["b"]["a"][0, :, 1], [1, 1, 1, 1])


def test_the_readings_of_an_output_are_what_their_names_say() -> None:
    """Three steps of currents 1, 4 and 2 into an output, and into a leaky integrator before it."""
    inputs = np.array([1.0, 4.0, 2.0]).reshape(1, 3, 1)
    tau = np.full(1, 2.0)
    leaky = {"l": nir.LI(tau=tau, r=tau, v_leak=np.zeros(1), metadata={"dt": 1.0})}  # potentials 1, 4.5, 4.25
    wanted = {
        "sum": ([1, 5, 7], [1, 5.5, 9.75]),
        "mean": ([1, 2.5, 7 / 3], [1, 2.75, 3.25]),
        "last": ([1, 4, 2], [1, 4.5, 4.25]),
        "max": ([1, 4, 4], [1, 4.5, 4.5]),
    }
    for read, expected in wanted.items():
        for nodes, values in zip(({"w": nir.Linear(np.eye(1))}, {"w": nir.Linear(np.eye(1)), **leaky}), expected):
            graph = chain(nodes, 1, 1, read=read)
            np.testing.assert_allclose(run(graph, inputs).output[0, :, 0], values, rtol=1e-12)
            made = quantize(graph, input_limit=4.0, timesteps=3).network
            fixed = simulate(made, inputs, backend="reference", precision="fixed")
            np.testing.assert_allclose(fixed.output[0, :, 0], values, rtol=0.01)
    delayed = run(chain({"w": nir.Linear(np.eye(1))}, 1, 1, read="mean", readout_from=1), inputs)
    np.testing.assert_allclose(delayed.output[0, :, 0], [1, 4, 3])


def test_convolutions_of_signals_are_torchs() -> None:
    kinds: list[dict[str, Any]] = [
        {"kernel_size": 3},
        {"kernel_size": 4, "stride": 2, "padding": 1, "groups": 2},
        {"kernel_size": 3, "dilation": 2},
    ]
    for settings in kinds:
        conv, x = nn.Conv1d(4, 6, **settings).double(), torch.randn(4, 11, dtype=torch.float64)
        node = nir.Conv1d(
            11, conv.weight.detach().numpy(), conv.stride[0], conv.padding[0], conv.dilation[0], conv.groups,  # type: ignore[arg-type]
            conv.bias.detach().numpy(),  # type: ignore[union-attr]
        )  # fmt: skip
        matrix, bias, shape = linear_of(node, (4, 11), "c")
        expected = conv(x[None])[0].detach().numpy()
        assert shape == expected.shape
        np.testing.assert_allclose(matrix @ x.numpy().ravel() + bias, expected.ravel(), atol=1e-12)
    with pytest.raises(NirError, match=r"'c' has weights with 3 axes and slides over signals \(C, N\), but \(4,\) arrives"):
        linear_of(nir.Conv1d(None, np.ones((1, 4, 3)), 1, 0, 1, 1, np.zeros(1)), (4,), "c")


def test_the_budget_counts_states_and_recurrent_synapses() -> None:
    cuba = nir.CubaLIF(tau_syn=ONES * 2, tau_mem=ONES * 2, r=ONES, v_leak=ONES * 0, v_threshold=ONES, metadata={"dt": 1.0})
    nodes = {"a": cuba, "w": nir.Linear(np.ones((3, 3))), "b": ALIF(ONES, 0.5, 0.5, 0.5, 0.0), "v": nir.Linear(np.ones((3, 3)))}
    graph = with_edges(chain(nodes), ("v", "a"))
    graph.edges = [edge for edge in graph.edges if edge != ("v", "y")] + [("b", "y")]
    network = lay_out(graph)
    found = budget(network)
    a, b, out = found.layers
    assert (a.synapses, a.fan_in, a.fan_out, b.fan_out) == (3 + 9, 4, 3, 3 + 1)
    assert (a.bytes, b.bytes, out.bytes) == (3 * 16 + 6 + 9, 3 * 16 + 9, 3 * 12 + 6)
    assert [need.split(":")[0][:40] for need in found.needs] == [
        "synaptic currents of layers a", "adaptive thresholds of layers b", "2 time steps for each step of the networ"
    ]  # fmt: skip
    assert network.stride == 2
    with pytest.raises(HardwareError, match="layer 'a' has feedback or a delay, which is not written for netx"):
        quantize_for_netx(graph)
    with pytest.raises(HardwareError, match="layer 'a' has a synaptic current, which is not written for netx"):
        quantize_for_netx(chain({"a": cuba}))
    with pytest.raises(HardwareError, match="the output is no sum over the steps"):
        quantize_for_netx(chain({"a": neurons(), "l": LI}))


def test_leaks_and_adaptations_that_integers_cannot_hold_are_refused() -> None:
    slow = nir.CubaLIF(
        tau_syn=ONES * 1e5, tau_mem=ONES * 2, r=ONES, v_leak=ONES * 0, v_threshold=ONES * 1e-4, metadata={"dt": 1.0}
    )
    with pytest.raises(HardwareError, match=r"layer 'n' has a synaptic leak of 0\.99999, which the chip would hold as 0\.99975"):
        quantize(chain({"w": EYE, "n": slow}), timesteps=4000)
    with pytest.raises(HardwareError, match=r"layer 'n' raises its thresholds by up to 1e.06, 1e.06 times themselves"):
        quantize(chain({"w": EYE, "n": ALIF(ONES, 0.5, 1e6, 0.5, 0.0)}))
