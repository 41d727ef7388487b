"""Our NIR files in Norse and snnTorch, by their own importers: equal spikes where they are claimed, else a refusal."""

from __future__ import annotations

import copy
import os
import subprocess
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from spikeprop_hardware import SimulatorMissing
from spikeprop_hardware.environment import Environment
from spikeprop_hardware.vendors import speck
from torch import nn

from spikeprop import CNN, IF, LIF, MLP, Direct, Percentile, Poisson, ResNet, convert
from spikeprop.deploy import export, portable, record, to_nir
from spikeprop.errors import NirError
from spikeprop.snn import ALIF, INPUT, CubaLIF, Layer, Neuron, SpikingNetwork, Synapse

pytest.importorskip("snntorch", reason="the interop extra is not installed")
pytest.importorskip("norse", reason="the interop extra is not installed")
STEPS = 12


def run_in_norse(graph: nir.NIRGraph, inputs: np.ndarray) -> torch.Tensor:
    """Output at each step of each sample, (B, T, K)."""
    from norse.torch import from_nir

    network, outputs = from_nir(graph), []
    for sample in torch.from_numpy(inputs).float():
        state: Any = None
        for x in sample:
            y, state = network(x) if state is None else network(x, state)
            outputs.append(y)
    return torch.stack(outputs).unflatten(0, inputs.shape[:2])


def run_in_snntorch(graph: nir.NIRGraph, inputs: np.ndarray) -> torch.Tensor:
    from snntorch.import_nir import import_from_nir

    outputs = []
    for sample in torch.from_numpy(inputs).float():
        network = import_from_nir(graph)  # the state lives in the modules: one network a sample
        state: Any = None
        for x in sample:
            y, state = network(x) if state is None else network(x, state)
            outputs.append(y)
    return torch.stack(outputs).unflatten(0, inputs.shape[:2])


LIBRARIES = {"norse": run_in_norse, "snntorch": run_in_snntorch}


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    return {
        "dense": (MLP(input_shape=(1, 4, 4), classes=3, hidden=[12, 8]), (1, 4, 4)),
        "conv": (CNN(input_shape=(2, 8, 8), classes=4, plan=[6, "A", 8, "A"], hidden=[16]), (2, 8, 8)),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("per", ["layer", "channel"])
@pytest.mark.parametrize("neuron", [IF(reset="zero"), LIF(leak=0.9, reset="zero")], ids=["if", "lif"])
@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_file_runs_with_equal_spikes(tmp_path: Path, library: str, kind: str, neuron: Neuron, per: str) -> None:
    """The sum of the outputs over time is the network's output; one different spike would change it by a weight."""
    ann, shape = networks()[kind]
    encoder = Poisson() if kind == "dense" else Direct()
    network = convert(ann, [torch.rand(16, *shape)], neuron, Percentile(per=per), encoder=encoder).double()  # type: ignore[arg-type]
    ours, output = record(network, torch.rand(3, *shape), STEPS)
    inputs = ours.pop(INPUT)
    assert all(0.01 < train.mean() < 0.9 for train in ours.values())
    export(network, tmp_path / "n.nir", library=library)
    theirs = LIBRARIES[library](nir.read(tmp_path / "n.nir"), inputs)
    np.testing.assert_allclose(theirs.detach().numpy().cumsum(1), output, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", LIBRARIES)
def test_groups_and_strides(library: str) -> None:
    torch.manual_seed(1)
    layers = {
        "a": Layer([(INPUT, Synapse([nn.Conv2d(2, 4, 3, padding=1, groups=2)]))], IF(reset="zero", v_threshold=0.3)),
        "b": Layer(
            [("a", Synapse([nn.Conv2d(4, 4, 2, stride=2, groups=4, bias=False)]))], LIF(leak=0.8, reset="zero", v_threshold=0.1)
        ),
        "out": Layer([("b", Synapse([nn.Flatten(), nn.Linear(36, 3)]))], None),
    }
    network = SpikingNetwork(layers, Direct(), (2, 6, 6)).double().eval()
    ours, output = record(network, torch.rand(2, 2, 6, 6), STEPS)
    assert all(0.01 < ours[name].mean() < 0.95 for name in "ab")
    theirs = LIBRARIES[library](portable(to_nir(network), library), ours[INPUT])
    np.testing.assert_allclose(theirs.detach().numpy().cumsum(1), output, rtol=1e-4, atol=1e-4)


def small(neuron: Neuron) -> SpikingNetwork:
    ann, shape = networks()["dense"]
    return convert(ann, [torch.rand(16, *shape)], neuron, Percentile())


@pytest.mark.parametrize("library", LIBRARIES)
def test_semantics_that_a_library_lacks_are_refused(tmp_path: Path, library: str) -> None:
    file = tmp_path / "n.nir"
    for neuron, says in (
        (IF(), f"resets by subtraction, which NIR cannot say: {library} would reset to zero"),
        (LIF(leak=0.9), "resets by subtraction"),
        (IF(reset="zero", v_init=0.5), f"v_init other than 0, and {library}'s neurons start at 0"),
    ):
        with pytest.raises(NirError, match=says):
            export(small(neuron), file, library=library)
    residual = convert(
        ResNet(depth=8, input_shape=(1, 8, 8), classes=3), [torch.rand(8, 1, 8, 8)], IF(reset="zero"), Percentile()
    )
    with pytest.raises(NirError, match="only a chain is written"):
        export(residual, file, library=library)
    assert not file.exists()
    with pytest.raises(NirError, match="no way to write for 'brian'; known: norse, snntorch, sinabs"):
        portable(to_nir(small(IF(reset="zero"))), "brian")


@pytest.mark.filterwarnings("ignore")
def test_snntorch_misreads_the_file_that_is_not_rewritten(tmp_path: Path) -> None:
    """Why files are rewritten: snnTorch reads our steps of 1 ms as 0.1 ms. When this fails, snnTorch has changed."""
    network = small(LIF(leak=0.9, reset="zero")).double()
    ours, output = record(network, torch.rand(3, 1, 4, 4), STEPS)
    theirs = run_in_snntorch(to_nir(network), ours[INPUT])
    assert not np.allclose(theirs.detach().numpy().cumsum(1), output, rtol=1e-2)


@pytest.mark.parametrize("library", ["norse", "snntorch"])
def test_a_delayed_readout_is_refused(library: str) -> None:
    network = convert(
        MLP(input_shape=(4,), classes=3, hidden=[6]), [torch.rand(8, 4)], IF(reset="zero"), Percentile(), encoder=Poisson()
    )
    network.readout.set(delay=5)
    with pytest.raises(NirError, match=f"counts from step 5 on .*which {library} does not have"):
        portable(to_nir(network), library)


READ_SINABS = """
import torch
from sinabs.nir import from_nir
outputs, inputs = [], torch.from_numpy(inputs)
for sample in inputs:
    network = from_nir(graph, num_timesteps=inputs.shape[1])  # the state lives in the modules: one network a sample
    outputs.append(network(sample)[0].detach())
"""
READ_ROCKPOOL = """
import torch
from rockpool.nn.modules.torch.nir import from_nir
outputs = []
for sample in torch.from_numpy(inputs):
    found = from_nir(graph)(sample[None])
    outputs.append((found[0] if isinstance(found, tuple) else found)[0].detach())
"""
READ_SPYX = """
from spyx.nir import from_nir
given = np.concatenate([inputs, np.zeros_like(inputs[:, :2])], 1)  # a step later for each of two layers
outputs = np.asarray(from_nir(graph, given.swapaxes(0, 1))[1]).swapaxes(0, 1)[:, 2:]
"""
READ = """
import sys, nir, numpy as np
graph, inputs = nir.read(sys.argv[1]), np.load(sys.argv[2]).astype(np.float32)
{reader}
np.save(sys.argv[3], np.stack(outputs))
"""
ROCKPOOL = Environment(
    "rockpool", "rockpool-3.1.0", ("numpy", "scipy"), ("torch", "rockpool"), alone=("rockpool==3.1.0",), borrowed=("torch",)
)
SPYX = Environment("spyx", "spyx-1.0.0", ("spyx==1.0.0",), ("spyx", "jax"))
ELSEWHERE = {"sinabs": (speck.ENVIRONMENT, READ_SINABS), "rockpool": (ROCKPOOL, READ_ROCKPOOL), "spyx": (SPYX, READ_SPYX)}


def bounded(neuron: Neuron, shape: tuple[int, ...] = (5,), bias: bool = True) -> SpikingNetwork:
    """Two layers whose neurons never hold two thresholds, for what arrives is less than 2 of them less a leaked one."""
    current = 1 - float(getattr(neuron, "synaptic_leak", 0.0))
    reach = (1.85 - float(getattr(neuron, "leak", 1.0))) * float(neuron.v_threshold) * current
    torch.manual_seed(3)
    first: list[nn.Module] = [nn.Linear(shape[0], 7, bias=bias)]
    if len(shape) > 1:
        first = [nn.Conv2d(2, 4, 3, groups=2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 7)]
    layers = {
        "a": Layer([(INPUT, Synapse(first))], copy.deepcopy(neuron)),
        "b": Layer([("a", Synapse([nn.Linear(7, 6, bias=bias)]))], copy.deepcopy(neuron)),
        "out": Layer([("b", Synapse([nn.Linear(6, 3)]))], None),
    }
    network = SpikingNetwork(layers, Poisson(), shape).double().eval()
    for op in (m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)):
        sizes = op.weight.data.abs().flatten(1)
        share = 0.7 if bias else 1.0  # the rest is for the bias
        sizes *= (share * reach if isinstance(op, nn.Linear) else 0.9) / sizes.sum(1, keepdim=True)
        op.weight.data = (sizes * torch.where(torch.rand_like(sizes) < 0.1, -1.0, 1.0)).reshape(op.weight.shape)
        if op.bias is not None:
            op.bias.data = torch.rand_like(op.bias.data) * 0.05 + (0.23 * reach if isinstance(op, nn.Linear) else 0)
    return network


def exported(network: SpikingNetwork, library: str, tmp_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Writes n.nir and x.npy; returns the inputs and the network's own outputs, one a step."""
    x = 0.5 + 0.5 * torch.rand(3, *network.input_shape)
    ours, output = record(network, x, STEPS)
    assert all(0.02 < train.mean() < 0.95 for name, train in ours.items() if name != INPUT)
    export(network, tmp_path / "n.nir", library=library)
    np.save(tmp_path / "x.npy", ours[INPUT])
    return ours[INPUT], output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "neuron", "shape"),
    [
        ("sinabs", LIF(leak=0.7), (5,)),
        ("sinabs", IF(v_threshold=0.97), (5,)),
        ("sinabs", LIF(leak=0.6), (2, 6, 6)),
        ("rockpool", CubaLIF(leak=0.5, synaptic_leak=0.5, v_threshold=1.6), (5,)),
        ("rockpool", CubaLIF(leak=0.4, synaptic_leak=0.3), (5,)),
        ("spyx", IF(), (5,)),
        ("spyx", LIF(leak=0.7), (5,)),
        ("spyx", CubaLIF(leak=0.6, synaptic_leak=0.5), (5,)),
    ],
    ids=str,
)
def test_libraries_elsewhere_read_the_file_with_equal_outputs(
    tmp_path: Path, library: str, neuron: Neuron, shape: tuple[int, ...]
) -> None:
    _, output = exported(bounded(neuron, shape, bias=library != "spyx"), library, tmp_path)
    environment, script = ELSEWHERE[library]
    try:
        python = environment.python(print)
    except SimulatorMissing as error:
        pytest.skip(f"{library} cannot be installed: {error}")
    (tmp_path / "read.py").write_text(READ.format(reader=script))
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    subprocess.run([python, "read.py", "n.nir", "x.npy", "y.npy"], cwd=tmp_path, env=clean, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy").cumsum(1), output, rtol=1e-4, atol=1e-4)


def test_two_spikes_in_a_step_are_refused_where_a_reader_sends_them() -> None:
    network = bounded(LIF(leak=0.7))
    portable(to_nir(network), "sinabs")
    network.neurons()["b"].v_threshold = torch.tensor(0.7)
    with pytest.raises(NirError, match=r"node 'b' may reach 2\.\d+ thresholds in a step, where sinabs sends 2 spikes"):
        portable(to_nir(network), "sinabs")
    network.encoder = Direct()
    with pytest.raises(NirError, match="node 'a' reads the network's inputs, which have no bound"):
        portable(to_nir(network), "sinabs")


@pytest.mark.parametrize(
    ("library", "neuron", "says"),
    [
        ("sinabs", IF(reset="zero"), "resets to zero, and sinabs subtracts the threshold"),
        ("sinabs", CubaLIF(), "synaptic current that outlives its step, which sinabs does not read"),
        ("norse", CubaLIF(reset="zero"), "synaptic current that outlives its step, which norse does not read"),
        ("rockpool", LIF(), "no synaptic current, and rockpool reads neurons with one"),
        ("rockpool", CubaLIF(v_init=0.5), "v_init other than 0"),
        ("spyx", LIF(reset="zero"), "resets to zero, and spyx subtracts"),
        ("spyx", LIF(), "has biases, which would work a step for each layer before its spikes arrive in spyx"),
        ("spinnaker2", LIF(), "rounds weights to whole numbers on the chip"),
        ("norse", ALIF(reset="zero"), "thresholds that adapt"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_reader_does_not_do_is_refused(library: str, neuron: Neuron, says: str) -> None:
    with pytest.raises(NirError, match=says):
        portable(to_nir(bounded(neuron)), library)


def spyx_step(node: nir.CubaLIF, x: np.ndarray, state: list[np.ndarray]) -> np.ndarray:
    """Spyx 1.0's CuBaLIF, in its order: fires from the potential before, subtracts, then takes what arrives."""
    v, i = state
    spikes = (v > node.v_threshold).astype(float)
    i = (1 - 1 / node.tau_syn) * i + x
    state[:] = [(1 - 1 / node.tau_mem) * (v - spikes * node.v_threshold) + i, i]
    return spikes


@pytest.mark.parametrize("neuron", [IF(), LIF(leak=0.7), CubaLIF(leak=0.6, synaptic_leak=0.5)], ids=str)
def test_spyx_gets_neurons_that_fire_the_same_a_step_later(tmp_path: Path, neuron: Neuron) -> None:
    """Its equations, written out here; its importer needs JAX."""
    network = bounded(neuron, bias=False)
    inputs, output = exported(network, "spyx", tmp_path)
    graph = nir.read(tmp_path / "n.nir")
    nodes = [graph.nodes[target] for _, target in graph.edges]  # as it orders them
    for sample, ours in zip(inputs, output):
        states: list[list[np.ndarray]] = [[np.zeros(7), np.zeros(7)], [np.zeros(6), np.zeros(6)]]
        late, values = 2, []
        for x in [*sample, *[np.zeros(5)] * late]:
            left = iter(states)
            for node in nodes:
                if isinstance(node, nir.CubaLIF):
                    x = spyx_step(node, x, next(left))
                elif isinstance(node, nir.Affine | nir.Linear):
                    x = node.weight @ x + getattr(node, "bias", 0)
            values.append(x)
        np.testing.assert_allclose(np.cumsum(values[late:], 0), ours, rtol=1e-4, atol=1e-4)
