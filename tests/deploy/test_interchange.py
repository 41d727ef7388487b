"""Our NIR files in Norse and snnTorch, by their own importers: equal spikes where they are claimed, else a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from torch import nn

from spikeprop import CNN, IF, LIF, MLP, Direct, Percentile, Poisson, ResNet, convert
from spikeprop.deploy import export, portable, record, to_nir
from spikeprop.errors import NirError
from spikeprop.snn import INPUT, Layer, Neuron, SpikingNetwork, Synapse

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
    export(network, tmp_path / "n.nir", target=library)
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
            export(small(neuron), file, target=library)
    residual = convert(
        ResNet(depth=8, input_shape=(1, 8, 8), classes=3), [torch.rand(8, 1, 8, 8)], IF(reset="zero"), Percentile()
    )
    with pytest.raises(NirError, match="only a chain is written"):
        export(residual, file, target=library)
    assert not file.exists()
    with pytest.raises(NirError, match="no way to write for 'brian'; known: norse, snntorch"):
        portable(to_nir(small(IF(reset="zero"))), "brian")


@pytest.mark.filterwarnings("ignore")
def test_snntorch_misreads_the_file_that_is_not_rewritten(tmp_path: Path) -> None:
    """Why files are rewritten: snnTorch reads our steps of 1 ms as 0.1 ms. When this fails, snnTorch has changed."""
    network = small(LIF(leak=0.9, reset="zero")).double()
    ours, output = record(network, torch.rand(3, 1, 4, 4), STEPS)
    theirs = run_in_snntorch(to_nir(network), ours[INPUT])
    assert not np.allclose(theirs.detach().numpy().cumsum(1), output, rtol=1e-2)


@pytest.mark.parametrize("target", ["norse", "snntorch"])
def test_a_delayed_readout_is_refused(target: str) -> None:
    network = convert(
        MLP(input_shape=(4,), classes=3, hidden=[6]), [torch.rand(8, 4)], IF(reset="zero"), Percentile(), encoder=Poisson()
    )
    network.readout.set(delay=5)
    with pytest.raises(NirError, match=f"counts from step 5 on .*which {target} does not have"):
        portable(to_nir(network), target)
