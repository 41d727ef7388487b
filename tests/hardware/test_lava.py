"""Real Lava, in its own Python 3.10: every spike and output equal to PyTorch's."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import nir
import numpy as np
import pytest
import torch
from spikeprop_hardware import HardwareError, environment, lava, simulate
from spikeprop_hardware.environment import find_python310, lava_python
from torch import nn

from spikeprop import CNN, IF, LIF, Direct, Poisson, ResNet, ThresholdBalancing, convert
from spikeprop.deploy import compare, export, from_nir, record
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


def test_a_population_may_be_called_input(tmp_path: Path) -> None:
    lava_or_skip()
    ones = np.ones(3)
    nodes = {
        "x": nir.Input(input_type={"input": np.array([3])}),
        "input": nir.IF(r=ones, v_threshold=ones),
        "b": nir.IF(r=ones, v_threshold=ones * 0.7),
        "last": nir.Linear(weight=np.eye(3)),
        "y": nir.Output(output_type={"output": np.array([3])}),
    }
    edges = [("x", "input"), ("x", "b"), ("input", "b"), ("b", "last"), ("last", "y")]
    nir.write(tmp_path / "n.nir", nir.NIRGraph(nodes=nodes, edges=edges))
    ours, _ = record(from_nir(nir.read(tmp_path / "n.nir")), torch.rand(2, 3), 12)
    lava = simulate(tmp_path / "n.nir", ours.pop(INPUT))
    assert (lava.spikes["b"] == ours["b"]).all()
    assert (lava.spikes["input"] == ours["input_"]).all()


def test_compare_reports_a_network_that_differs(tmp_path: Path, digits_cnn: CNN) -> None:
    """The comparison can fail: a file whose thresholds differ gives other spikes, and says so by layer."""
    lava_or_skip()
    network = network_of(digits_cnn, IF(), (1, 8, 8), Direct())
    export(network, tmp_path / "n.nir")
    images, labels = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    same = compare(network, tmp_path / "n.nir", images, labels, 10, lambda _: None)
    assert same["spikes_equal"]
    assert same["agreement"] == 100
    assert same["samples"] == 4
    assert same["output_error"] < 1e-9
    last = list(network.neurons().values())[-1]
    last.v_threshold = last.v_threshold * 0.7
    other = compare(network, tmp_path / "n.nir", images, labels, 10, lambda _: None)
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


def export_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cnn: CNN, script: str) -> None:
    """Write a network, and replace Lava's Python by a shell script."""
    export(network_of(cnn, IF(), (1, 8, 8), Direct()), tmp_path / "n.nir")
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(lava, "lava_python", lambda notify: python)


def test_a_worker_that_dies_is_reported_with_its_output(tmp_path: Path, digits_cnn: CNN, monkeypatch: pytest.MonkeyPatch) -> None:
    export_for(tmp_path, monkeypatch, digits_cnn, "echo the board is on fire\nexit 3")
    with pytest.raises(HardwareError, match=r"exit status 3(?s:.*)the board is on fire"):
        simulate(tmp_path / "n.nir", np.zeros((1, 2, 1, 8, 8)))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_that_hangs_is_ended_with_its_children(tmp_path: Path, digits_cnn: CNN, monkeypatch: pytest.MonkeyPatch) -> None:
    chatter = "while true; do echo still here; sleep 0.05; done"  # output alone is no progress
    script = f"sleep 60 & echo $! > {tmp_path}/child; echo progress 1 20; {chatter}"
    export_for(tmp_path, monkeypatch, digits_cnn, script)
    told: list[tuple[int, int]] = []
    where = r"worker \(process \d+\) made no progress for 0\.5 s after step 1 of 20 and was ended: run it again"
    with pytest.raises(HardwareError, match=rf"{where}.* backend reference(?s:.*)still here"):
        simulate(tmp_path / "n.nir", np.zeros((1, 2, 1, 8, 8)), progress=lambda *steps: told.append(steps), patience=0.5)
    assert told == [(1, 20)]
    child, deadline = int((tmp_path / "child").read_text()), time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)


def test_a_worker_that_never_starts_is_ended_too(tmp_path: Path, digits_cnn: CNN, monkeypatch: pytest.MonkeyPatch) -> None:
    export_for(tmp_path, monkeypatch, digits_cnn, "sleep 60")
    with pytest.raises(HardwareError, match=r"no progress for 0\.2 s before its first step(?s:.*)Its last output:\nnone"):
        simulate(tmp_path / "n.nir", np.zeros((1, 2, 1, 8, 8)), patience=0.2)


def stand_in(python: Path, script: str) -> None:
    """A shell script as a Python."""
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)


@pytest.mark.parametrize("damage", ["no python", "its base is gone", "no lava", "half-made"])
def test_a_broken_environment_is_made_again_and_a_complete_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    made: list[str] = []
    told: list[str] = []

    def make(command: list[str]) -> None:
        made.append("venv" if "venv" in command else "pip")
        if "venv" in command:
            (Path(command[-1]) / "bin").mkdir(parents=True)  # fails where the old one was not cleared away
            stand_in(Path(command[-1]) / "bin" / "python", "exit 0")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(environment, "_must", make)
    monkeypatch.setattr(environment, "find_python310", lambda: Path("python3.10"))
    python = lava_python(told.append)
    assert lava_python(told.append) == python
    assert made == ["venv", "pip"]
    assert len(told) == 1
    if damage == "no python":
        python.unlink()
    elif damage == "its base is gone":
        python.unlink()
        python.symlink_to(tmp_path / "gone" / "python3.10")
    elif damage == "no lava":
        stand_in(python, "exit 1")
    else:
        (python.parents[1] / ".ready").unlink()
    assert lava_python(told.append) == python
    assert lava_python(told.append) == python
    assert made == ["venv", "pip"] * 2
    assert len(told) == 2
    assert ("is broken, so it is made again" in told[1]) == (damage != "half-made")


def test_two_processes_at_once_make_the_environment_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both, made, told, found = threading.Barrier(2), [], [], []

    def make(command: list[str]) -> None:
        if "venv" in command:
            made.append(command[-1])
            (Path(command[-1]) / "bin").mkdir(parents=True)  # fails if another is making it
            stand_in(Path(command[-1]) / "bin" / "python", "exit 0")
        time.sleep(0.1)

    def find() -> Path:
        both.wait(timeout=10)  # neither has found an environment
        return Path("python3.10")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(environment, "_must", make)
    monkeypatch.setattr(environment, "find_python310", find)
    threads = [threading.Thread(target=lambda: found.append(lava_python(told.append))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert made == [str(tmp_path / "spikeprop" / "lava-0.10.0")]
    assert found == [Path(made[0]) / "bin" / "python"] * 2
    assert sum("waiting for another process" in words for words in told) == 1
