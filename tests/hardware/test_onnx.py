"""A step as an ONNX model: spikes and outputs of onnxruntime over T steps are the simulators'; what it cannot say is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import nir
import numpy as np
import pytest
from spikeprop_hardware import HardwareError, Simulator, lay_out, quantize, run_onnx, step_model, target
from spikeprop_hardware.recording import SimulationResult, shaped

from spikeprop.deploy import export_onnx, to_nir
from tests.hardware.random_graphs import random_graph, run_nodes
from tests.hardware.random_networks import KINDS, random_network, simulate_in_torch
from tests.hardware.test_loops import chain, neurons

Precision = Literal["float", "fixed"]


def simulated(graph: nir.NIRGraph, inputs: np.ndarray, precision: Precision) -> SimulationResult:
    """By the simulator here."""
    limit = float(np.abs(inputs).max())
    made: Any = quantize(graph, input_limit=limit, timesteps=inputs.shape[1]).network if precision == "fixed" else lay_out(graph)
    return shaped(Simulator(made, threads=1).run(inputs), made)


def stepped(graph: nir.NIRGraph, inputs: np.ndarray, precision: Precision) -> SimulationResult:
    """By onnxruntime."""
    limit = float(np.abs(inputs).max())
    return run_onnx(step_model(graph, precision=precision, input_limit=limit, timesteps=inputs.shape[1]), inputs, threads=1)


def check(ours: SimulationResult, theirs: SimulationResult) -> None:
    assert sum(ours.counts.values()) > 0
    for name, train in ours.spikes.items():
        np.testing.assert_array_equal(train, theirs.spikes[name], name)
    np.testing.assert_allclose(theirs.output, ours.output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(len(KINDS)))
@pytest.mark.parametrize("levels", [0, 2])
def test_spikes_over_all_steps_are_equal(seed: int, levels: int) -> None:
    """In real numbers where each sum is exact in float32, against PyTorch; in integers with any weights."""
    pytest.importorskip("onnxruntime")
    network, inputs = random_network(seed, levels=levels)
    found = stepped(to_nir(network), inputs, "float")
    trains, _, output = simulate_in_torch(network, inputs)
    for name, train in trains.items():
        np.testing.assert_array_equal(train, found.spikes[name], name)
    np.testing.assert_allclose(found.output, output, rtol=1e-6)
    graph = to_nir(random_network(seed, real=True, levels=levels)[0])
    check(simulated(graph, inputs, "fixed"), stepped(graph, inputs, "fixed"))


def test_a_target_s_integers_are_in_the_file(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    network, inputs = random_network(0, real=True)
    limit, steps = float(np.abs(inputs).max()), inputs.shape[1]
    export_onnx(network, tmp_path / "n.onnx", precision="fixed", input_limit=limit, timesteps=steps, target="generic-3")
    made = quantize(to_nir(network), input_limit=limit, timesteps=steps, target=target("generic-3")).network
    check(shaped(Simulator(made, threads=1).run(inputs), made), run_onnx(tmp_path / "n.onnx", inputs, threads=1))
    with pytest.raises(HardwareError, match="the arithmetic of speck is not that of integers in ONNX"):
        export_onnx(network, tmp_path / "n.onnx", precision="fixed", target="speck")


def test_loops_delays_currents_and_adaptation_are_state() -> None:
    pytest.importorskip("onnxruntime")
    for seed in range(6):
        graph, inputs = random_graph(seed)
        trains, output = run_nodes(graph, inputs)
        found = stepped(graph, inputs, "float")
        for name, train in trains.items():
            np.testing.assert_array_equal(train, found.spikes[name], name)
        np.testing.assert_allclose(found.output, output, rtol=1e-5, atol=1e-5)
        graph, inputs = random_graph(seed, real=True)
        check(simulated(graph, inputs, "fixed"), stepped(graph, inputs, "fixed"))


def test_another_runtime_computes_the_same() -> None:
    """onnx's own evaluator, in numpy: the model means the same by the standard, not by what one runtime does."""
    from onnx.helper import tensor_dtype_to_np_dtype
    from onnx.reference import ReferenceEvaluator

    graph, inputs = to_nir(random_network(4, real=True, levels=2)[0]), random_network(4)[1]
    limit = float(np.abs(inputs).max())
    model = step_model(graph, precision="fixed", input_limit=limit, timesteps=inputs.shape[1])
    session, wanted = ReferenceEvaluator(model), simulated(graph, inputs, "fixed")
    names = [output.name for output in model.graph.output]
    state = {
        i.name: np.zeros(
            (len(inputs), *(d.dim_value for d in i.type.tensor_type.shape.dim[1:])),
            tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type),
        )
        for i in model.graph.input
        if i.name != "input"
    }
    for t in range(inputs.shape[1]):
        found = dict(zip(names, session.run(None, {"input": inputs[:, t].astype(np.float32), **state})))
        state = {name: found[f"{name}.next"] for name in state}
        for name, train in wanted.spikes.items():
            np.testing.assert_array_equal(train[:, t], found[f"{name}.spikes"])


def test_weights_stay_as_small_as_they_were_and_pooling_stays_apart() -> None:
    graph = to_nir(random_network(4, real=True)[0])  # average pooling before a convolution
    cases: list[tuple[Precision, int]] = [("float", 1), ("fixed", 3)]
    for precision, dtype in cases:
        kept = {tuple(c.dims) for c in step_model(graph, precision=precision).graph.initializer if c.data_type == dtype}
        nodes = graph.nodes.values()
        assert {np.shape(n.weight) for n in nodes if isinstance(n, nir.Conv2d)} <= kept
        assert {np.shape(n.weight)[::-1] for n in nodes if isinstance(n, nir.Affine | nir.Linear)} <= kept


def test_two_layers_of_weights_in_a_row_are_one_matrix_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    parts = {name: nir.Linear(weight=rng.standard_normal((3, 3))) for name in ("a", "b")}
    graph = chain({**parts, "n": neurons(), "c": nir.Linear(weight=np.eye(3))})
    inputs = 3 * rng.standard_normal((2, 6, 3))
    if pytest.importorskip("onnxruntime"):
        check(simulated(graph, inputs, "fixed"), stepped(graph, inputs, "fixed"))
    monkeypatch.setattr("spikeprop_hardware.onnx_linear.LARGEST", 8)
    with pytest.raises(HardwareError, match="layer 'n' reads a, b, whose product is neither a convolution nor"):
        step_model(graph)


def test_an_input_that_integers_were_not_made_for_makes_its_outputs_nan(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    network, inputs = random_network(1)
    inputs = np.clip(inputs, -1, 1)
    export_onnx(network, tmp_path / "n.onnx", precision="fixed", input_limit=1.0)
    inputs[0, 2].flat[0] = 1.5
    output = run_onnx(tmp_path / "n.onnx", inputs).output
    assert np.isnan(output[0, 2:]).all()
    assert np.isfinite(output[0, :2]).all()
    assert np.isfinite(output[1]).all()
