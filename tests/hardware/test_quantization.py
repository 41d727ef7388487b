"""Quantisation: what the integers stand for, the search's bounds, its report, the file that carries a network, refusals."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from spikeprop_hardware import HardwareError, NirError, Recording, quantize, simulate
from spikeprop_hardware.environment import lava_python
from spikeprop_hardware.integer import IntegerNetwork, load, save
from spikeprop_hardware.network import lay_out
from spikeprop_hardware.quantization import Widths, quantize_network
from spikeprop_hardware.reading import read_nir
from spikeprop_hardware.reference import Simulator

from spikeprop import CNN, IF, LIF, Direct
from spikeprop.deploy import export, to_nir
from tests.hardware.random_networks import KINDS, random_network
from tests.hardware.test_lava import lava_or_skip, network_of

SEEDS = range(2 * len(KINDS))


def test_two_bits_are_minus_two_to_one_and_a_sign_and_a_size_are_minus_one_to_one() -> None:
    weights = np.random.default_rng(0).choice([-2.0, -1.0, 0.0, 1.0], (6, 40))
    shape = {"input": np.array([40])}, {"output": np.array([6])}
    nodes = {"x": nir.Input(shape[0]), "w": nir.Linear(weights), "y": nir.Output(shape[1])}
    graph = nir.NIRGraph(nodes, [("x", "w"), ("w", "y")], type_check=False)
    whole, (report,) = quantize(graph, bits=2)
    assert np.array_equal(whole.populations[0].connections[0].matrix.toarray(), weights)
    assert (report.weight_error, report.saturated, report.bits) == (0, 0, 2)
    symmetric = quantize_network(lay_out(graph), widths=Widths(bits=2, symmetric=True)).network
    assert set(symmetric.populations[0].connections[0].matrix.data.tolist()) == {-1, 1}  # as many -2 as -1: no zeros


@pytest.mark.parametrize("seed", SEEDS)
def test_integers_stand_for_the_networks_numbers(seed: int) -> None:
    network, _ = random_network(seed, real=True)
    graph = to_nir(network)
    plan, (integers, report) = lay_out(graph), quantize(graph, input_limit=2.0)
    assert [layer.name for layer in report] == [p.name for p in plan.populations]
    for real, chip, layer in zip(plan.populations, integers.populations, report):
        if real.pools:  # counts spikes, whatever the precision
            assert all(abs(c.matrix - held.matrix).sum() == 0 for c, held in zip(real.connections, chip.connections))
            assert (chip.pools, chip.unit, layer.weight_error) == (True, 1, 0)
            continue
        for connection, held in zip(real.connections, chip.connections):
            x = integers.input_scale if held.source == integers.input else 1.0
            mantissas = held.matrix.toarray()
            assert -128 <= mantissas.min() <= mantissas.max() <= 127
            grid = np.broadcast_to(2.0 ** (held.exponent + 1) * x / chip.scale, len(mantissas))[:, None]
            error = np.abs(mantissas * grid - connection.matrix.toarray())
            assert (error <= grid * (0.5 + 1e-9)).mean() > 0.97  # the rest is clipped
            assert -8 <= held.exponent <= 7
        assert layer.weight_error < 0.02
        assert layer.bits == 8
        assert layer.load <= 1
        assert layer.bias_error < 0.01
        if chip.theta is not None and real.theta is not None:
            np.testing.assert_allclose(chip.theta / chip.scale, real.theta, rtol=layer.threshold_error + 1e-12)
            assert (np.abs(chip.v_init * chip.unit - real.v_init * real.theta) <= chip.unit).all()
            assert layer.threshold_error < 0.01
            assert chip.theta.max() < 2**17
        assert layer.leak_error <= 1 / 8192
        assert chip.bias.min() >= -4096
        assert chip.bias.max() <= 4095


def test_no_spikes_can_make_a_current_wrap_and_fixed_runs_are_deterministic() -> None:
    """All inputs at their limit at once, both signs; the simulator would wrap silently, so compare with numbers that cannot."""
    for seed in range(len(KINDS)):
        network, inputs = random_network(seed, real=True)
        integers, report = quantize(to_nir(network), input_limit=3.0)
        assert max(layer.load for layer in report) <= 1
        extreme = 3.0 * np.sign(inputs)
        first = Simulator(integers, threads=1).run(extreme, membranes=True)
        second = Simulator(integers).run(extreme, membranes=True)
        for name, trace in first.membranes.items():
            np.testing.assert_array_equal(trace, second.membranes[name])
            assert np.abs(trace).max() < 2**23


def test_pooling_costs_no_accuracy_and_keeps_few_values() -> None:
    torch.manual_seed(0)
    cnn = CNN(input_shape=(1, 8, 8), classes=4, plan=[4, "A", 6], hidden=[])
    network = network_of(cnn, IF(), (1, 8, 8), Direct())
    quantized, report = quantize(to_nir(network))
    folded = quantized.populations[1].connections[0].matrix
    assert len(np.unique(folded.data)) <= 4 * 6 * 9
    weights = network.layers["features_3"].synapses[0].weighted()[0].weight.detach().numpy().ravel()  # type: ignore[union-attr]
    weights = weights.astype(np.float64)
    grid = 127 / np.abs(weights).max()
    plain = np.sqrt(((np.rint(weights * grid) / grid - weights) ** 2).sum() / (weights**2).sum())
    assert report[1].weight_error < 1.3 * plain


def test_a_network_is_equal_after_saving_and_loading(tmp_path: Path) -> None:
    network, inputs = random_network(5, real=True)
    integers = quantize(to_nir(network), input_limit=8.0).network
    save(integers, tmp_path / "n.npz")
    back = load(tmp_path / "n.npz")
    assert isinstance(back, IntegerNetwork)
    for field in dataclasses.fields(IntegerNetwork):
        if field.name != "populations":
            assert getattr(back, field.name) == getattr(integers, field.name)
    for one, other in zip(back.populations, integers.populations):
        np.testing.assert_array_equal(one.scale, other.scale)
        assert type(one.scale) is type(other.scale)
    ours = simulate(integers, inputs, backend="reference", precision="fixed")
    theirs = simulate(back, inputs, backend="reference", precision="fixed")
    np.testing.assert_array_equal(ours.output, theirs.output)
    assert ours.counts == theirs.counts


def test_inputs_beyond_the_limit_and_unknown_settings_are_refused(tmp_path: Path) -> None:
    network, inputs = random_network(1)
    export(network, tmp_path / "n.nir")
    integers = quantize(to_nir(network), input_limit=0.5).network
    with pytest.raises(HardwareError, match=r"reach 2, but the network was quantised for up to 0\.5"):
        simulate(integers, inputs, backend="reference", precision="fixed")
    with pytest.raises(HardwareError, match="there are lava, reference; and float, fixed"):
        simulate(tmp_path / "n.nir", inputs, backend="loihi")  # type: ignore[arg-type]
    with pytest.raises(HardwareError, match="is in integers"):
        simulate(integers, inputs, backend="reference")


def damaged(tmp_path: Path, **changes: object) -> Path:
    """A NIR file of a small network, some attributes of whose hidden neurons or weights are replaced."""
    network, _ = random_network(1)
    graph = to_nir(network)
    for key, value in changes.items():
        setattr(graph.nodes["c0" if key != "weight" else "c0_synapse0_0"], key, value)
    nir.write(str(tmp_path / "n.nir"), graph)
    return tmp_path / "n.nir"


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    _, inputs = random_network(1)
    whole = damaged(tmp_path).read_bytes()
    (tmp_path / "cut.nir").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NirError, match=r"cut\.nir is not a NIR file, or only a part"):
        simulate(tmp_path / "cut.nir", inputs, backend="reference")
    with pytest.raises(NirError, match="there is no file"):
        read_nir(tmp_path / "missing.nir")
    graph = read_nir(damaged(tmp_path))
    nodes: Any = graph.nodes
    weight, threshold = nodes["c0_synapse0_0"].weight.copy(), nodes["c0"].v_threshold
    weight[0, 0, 0, 0] = np.nan
    for changes, says in [
        ({"weight": weight}, "'c0_synapse0_0' holds NaN or infinity in its weight"),
        ({"weight": np.ones((4, 3, 1, 1))}, "'c0_synapse0_0' has weights (4, 3, 1, 1) in 1 groups, which do not fit"),
        ({"v_threshold": np.ones(7)}, "'c0' has thresholds of shape (7,), but (4, 6, 8) arrives"),
        ({"v_threshold": np.ones(7), "v_reset": np.zeros(7), "r": np.ones(7)}, "'c0' has thresholds of shape (7,)"),
        ({"v_threshold": -threshold}, "thresholds are positive"),
    ]:
        with pytest.raises(NirError) as caught:
            simulate(damaged(tmp_path, **changes), inputs, backend="reference")
        assert says in str(caught.value)


STOCK = """
import sys
import numpy as np
from pathlib import Path
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.proc.io.sink import RingBuffer as Sink
from lava.proc.io.source import RingBuffer
from lava.proc.lif.process import LIF
from spikeprop_hardware.build import _synapse
from spikeprop_hardware.integer import load

network, (data, sink_file) = load(Path(sys.argv[1])), sys.argv[2:]
layer = network.populations[0]
inputs = network.encode(np.load(data))[0].reshape(len(np.load(data)[0]), -1).T
source, synapse = RingBuffer(data=np.ascontiguousarray(inputs)), _synapse(layer.connections[0])
neurons = LIF(shape=layer.bias.shape, du=4095, dv=int(layer.decay[0]), vth=int(layer.theta[0]),
              bias_mant=layer.bias, bias_exp=np.full(layer.bias.shape, layer.bias_exponent))
sink = Sink(shape=layer.bias.shape, buffer=inputs.shape[1] + 1)
source.s_out.connect(synapse.s_in)
synapse.a_out.connect(neurons.a_in)
neurons.s_out.connect(sink.a_in)
neurons.run(condition=RunSteps(num_steps=inputs.shape[1] + 1), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
np.save(sink_file, sink.data.get()[:, 1:].T)
neurons.stop()
"""


def test_hard_reset_is_lavas_own_bit_accurate_lif(tmp_path: Path) -> None:
    """Not our Lava model but the stock one (and Sparse), which has a hard reset and starts from zero."""
    lava_or_skip()
    network = network_of(
        CNN(input_shape=(2, 5, 5), classes=3, plan=[6], hidden=[]), LIF(leak=0.9, reset="zero"), (2, 5, 5), Direct()
    )
    inputs = np.random.default_rng(0).uniform(-1, 1, (1, 40, 2, 5, 5))
    one_threshold = Widths(own_thresholds=False)  # as the stock LIF has it
    integers = quantize_network(lay_out(to_nir(network)), 1.0, widths=one_threshold).network
    assert integers.populations[0].bias_exponent in range(8)
    save(integers, tmp_path / "n.npz")
    np.save(tmp_path / "x.npy", inputs)
    (tmp_path / "stock.py").write_text(STOCK)
    command = [lava_python(lambda _: None), "stock.py", "n.npz", "x.npy", "out.npy"]
    package = Path(__file__).parents[2] / "hardware"
    subprocess.run(command, check=True, cwd=tmp_path, env={"PYTHONPATH": str(package)}, capture_output=True, timeout=120)
    ours = simulate(integers, inputs, backend="reference", precision="fixed", record=Recording())
    train = ours.spikes[integers.populations[0].name][0].reshape(40, -1)
    assert 0.02 < train.mean() < 0.9
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy").astype(bool)[: len(train)], train)
