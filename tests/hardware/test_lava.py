"""Real Lava, in its own Python 3.10: every spike and output equal to PyTorch's."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from spikeprop_hardware import HardwareError, simulate
from spikeprop_hardware.environment import find_python310
from torch import nn

from spikeprop import CNN, IF, LIF, Direct, Poisson, ResNet, ThresholdBalancing, convert
from spikeprop.deploy import compare_on_lava, export, record
from spikeprop.snn import INPUT, Encoder, Neuron, SpikingNetwork
from tests.convert.test_calibrate import Skips


def lava_or_skip() -> None:
    try:
        find_python310()
    except HardwareError as error:
        pytest.skip(f"Lava needs Python 3.10: {error}")


def network_of(ann: nn.Module, neuron: Neuron, shape: tuple[int, ...], encoder: Encoder) -> SpikingNetwork:
    torch.manual_seed(0)
    return convert(ann, [torch.rand(16, *shape)], neuron, ThresholdBalancing(timesteps=30, scale=0.5), encoder=encoder)


@pytest.mark.parametrize(
    ("ann", "shape", "neuron", "encoder"),
    [
        (CNN(input_shape=(1, 8, 8), classes=4, plan=[6, "A", 8, "A"], hidden=[16]), (1, 8, 8), IF(), Direct()),
        (CNN(input_shape=(2, 8, 8), classes=4, plan=[6, "A"], hidden=[16]), (2, 8, 8), LIF(leak=0.9), Poisson()),
        (Skips(), (1, 4, 4), LIF(leak=0.8, reset="zero", v_init=0.5), Direct()),  # biases, identity skip with a gain
        (ResNet(depth=8, input_shape=(1, 8, 8), classes=3), (1, 8, 8), IF(), Poisson()),
    ],
    ids=["cnn-if-direct", "cnn-lif-poisson", "skips-lif-zero", "resnet8-if-poisson"],
)
def test_every_spike_and_output_is_equal(
    tmp_path: Path, ann: nn.Module, shape: tuple[int, ...], neuron: Neuron, encoder: Encoder
) -> None:
    lava_or_skip()
    network = network_of(ann, neuron, shape, encoder)
    export(network, tmp_path / "n.nir")
    images = torch.rand(3, *shape) * (2 if isinstance(encoder, Poisson) else 1) - (1 if isinstance(encoder, Poisson) else 0)
    ours, output = record(network, images, 12)
    inputs = ours.pop(INPUT)
    assert encoder.constant or (inputs < 0).any()  # signed spikes reach Lava as such
    lava = simulate(tmp_path / "n.nir", inputs)
    assert lava.spikes.keys() == ours.keys()
    for name, train in ours.items():
        assert 0 < train.mean() < 1, name
        assert (train == lava.spikes[name]).all(), name
    np.testing.assert_allclose(output, lava.output, rtol=1e-9, atol=1e-9)


def test_compare_reports_a_network_that_differs(tmp_path: Path, digits_cnn: CNN) -> None:
    """The comparison can fail: a file whose thresholds differ gives other spikes, and says so by layer."""
    lava_or_skip()
    network = network_of(digits_cnn, IF(), (1, 8, 8), Direct())
    export(network, tmp_path / "n.nir")
    images, labels = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    same = compare_on_lava(network, tmp_path / "n.nir", images, labels, 10, lambda _: None)
    assert same["spikes_equal"]
    assert same["agreement"] == 100
    assert same["samples"] == 4
    assert same["output_error"] < 1e-9
    last = list(network.neurons().values())[-1]
    last.v_threshold = last.v_threshold * 0.7
    other = compare_on_lava(network, tmp_path / "n.nir", images, labels, 10, lambda _: None)
    assert not other["spikes_equal"]
    wrong = [count > 0 for count in other["mismatches"].values()]
    assert wrong == [False, False, True]


def test_bad_inputs_are_refused_before_lava_starts(tmp_path: Path, digits_cnn: CNN) -> None:
    export(network_of(digits_cnn, IF(), (1, 8, 8), Direct()), tmp_path / "n.nir")
    with pytest.raises(HardwareError, match="inputs have shape"):
        simulate(tmp_path / "n.nir", np.zeros((2, 5, 1, 7, 7)))
    with pytest.raises(HardwareError, match="NaN"):
        simulate(tmp_path / "n.nir", np.full((1, 2, 1, 8, 8), np.nan))


def test_python_310_is_looked_for_and_its_absence_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIKEPROP_LAVA_PYTHON", sys.executable if sys.version_info[:2] != (3, 10) else "/nowhere")
    with pytest.raises(HardwareError, match="SPIKEPROP_LAVA_PYTHON"):
        find_python310()
    monkeypatch.delenv("SPIKEPROP_LAVA_PYTHON")
    broken = tmp_path / "python3.10"  # as a pyenv shim is: there, but it does not run
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    with pytest.raises(HardwareError, match=r"none was found.*uv python install 3\.10"):
        find_python310()
    working = tmp_path / "versions" / "3.10.99" / "bin" / "python"
    working.parent.mkdir(parents=True)
    working.write_text("#!/bin/sh\nprintf 3.10\n")
    working.chmod(0o755)
    assert find_python310() == working


def test_a_worker_that_dies_is_reported_with_its_words(tmp_path: Path, digits_cnn: CNN, monkeypatch: pytest.MonkeyPatch) -> None:
    export(network_of(digits_cnn, IF(), (1, 8, 8), Direct()), tmp_path / "n.nir")
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\necho the board is on fire\nexit 3\n")
    dying.chmod(0o755)
    module = sys.modules["spikeprop_hardware.simulate"]  # the package's attribute of that name is the function
    monkeypatch.setattr(module, "lava_python", lambda notify: dying)
    with pytest.raises(HardwareError, match=r"exit status 3(?s:.*)the board is on fire"):
        simulate(tmp_path / "n.nir", np.zeros((1, 2, 1, 8, 8)))
    assert os.listdir(tmp_path)
