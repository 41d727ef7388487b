"""Vendors' simulators as witnesses: in a chip's integers every spike of theirs is ours; and PyTorch = NIR = simulator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
from spikeprop_hardware import HardwareError, Simulator, SimulatorMissing, environment, lay_out, read_nir
from spikeprop_hardware.environment import Environment
from spikeprop_hardware.quantization import quantize_network
from spikeprop_hardware.vendors import loihi1, speck, xylo

from spikeprop.deploy import from_nir, to_nir
from spikeprop.errors import NirError
from tests.hardware.random_chains import KINDS, computed, drawn, parametric
from tests.hardware.random_networks import simulate_in_torch

CHIPS: dict[str, Any] = {"xylo": xylo, "speck": speck, "loihi1": loihi1}
Pairs = list[tuple[Any, np.ndarray]]


def xylo_network(seed: int) -> tuple[xylo.XyloNetwork, np.ndarray]:
    """Any integers that the chip takes, a third of them so large that currents and potentials saturate."""
    rng, wild = np.random.default_rng(seed), seed % 3 == 0
    inputs, hidden, outputs = (int(rng.integers(*sizes)) for sizes in ((2, 8), (3, 9), (1, 5)))
    parts = {"into": (inputs, hidden), "among": (hidden, hidden), "out": (hidden, outputs)}
    weights: Any = {name: (rng.integers(-128, 128, s) * (rng.random(s) < 0.7)).astype(np.int8) for name, s in parts.items()}
    count, shifts = hidden + outputs, [int(n) for n in rng.integers(0, 8 if wild else 3, 3)]
    network = xylo.XyloNetwork(
        **weights, shifts=(shifts[0], shifts[1], shifts[2]), layers={"hidden": hidden, "out": outputs},
        mem=rng.integers(0, 16 if wild else 7, count), syn=rng.integers(0, 16 if wild else 6, count),
        theta=rng.integers(1, 2**15 if wild else 600, count), bias=rng.integers(-200, 300, count) * (seed % 2),
    )  # fmt: skip
    return network, rng.integers(0, 16 if wild else 4, (2, 12, inputs))


def made_or_skip(environment: Environment, make: bool) -> None:
    """Skip where a vendor's environment is not there: a test that is not slow does not make one."""
    if not make and not environment.is_ready():
        pytest.skip(f"{environment.title}'s environment is not made yet; the slow tests make it")
    try:
        environment.python(print)
    except SimulatorMissing as error:
        pytest.skip(f"by publication only: {error}")


def assert_equal(chip: str, pairs: Pairs, make: bool) -> int:
    """Our model of the chip and the vendor's simulator; returns the number of spikes."""
    module = CHIPS[chip]
    ours = [module.simulate(*pair) for pair in pairs]
    made_or_skip(module.ENVIRONMENT, make)
    for mine, theirs in zip(ours, module.run_all(pairs, print), strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], theirs[name], err_msg=f"{chip}: {name}")
    trains = [train for mine in ours for train in mine.values()]
    spikes = sum(int(np.count_nonzero(train)) for train in trains)
    print(f"{chip}: {len(pairs)} networks, {sum(train.size for train in trains):,} values equal, {spikes:,} spikes")  # noqa: T201
    return spikes


def on_chips(graph: nir.NIRGraph, counts: np.ndarray) -> dict[str, tuple[Any, np.ndarray]]:
    """The chips that compute the graph, with its integers there."""
    network, found = lay_out(graph), {}
    lowered = {"xylo": xylo.lower, "speck": speck.lower, "loihi1": lambda n: loihi1.lower(n, 2, counts.shape[1])}
    for chip, lower in lowered.items():
        try:
            pair = lower(network), counts
            CHIPS[chip].simulate(*pair)  # refuses potentials that the chip's bits do not hold
            found[chip] = pair
        except HardwareError:
            continue
    return found


def in_pytorch(graph: nir.NIRGraph) -> bool:
    """Whether it has no feedback of several steps and no integrator of a current: files and chips have, PyTorch has not."""
    try:
        from_nir(graph)
    except NirError as error:
        if "can be expressed" in str(error) or "reads feedback alone" in str(error):
            return False
        raise
    return True


def assert_round_trip(graph: nir.NIRGraph, inputs: np.ndarray, file: Path) -> tuple[int, int]:
    """PyTorch, the NIR file read again, and our simulator of it: every spike and output. Returns how many values the file's and
    the simulator's are, and how many PyTorch's, 0 where it cannot express the graph."""
    nir.write(file, graph)
    again = read_nir(file)
    simulated = Simulator(lay_out(graph), threads=1).run(inputs)
    from_file = Simulator(lay_out(again), threads=1).run(inputs)
    for name, train in simulated.spikes.items():
        np.testing.assert_array_equal(train, from_file.spikes[name])
    np.testing.assert_array_equal(simulated.output, from_file.output)
    compared = simulated.output.size + sum(train.size for train in simulated.spikes.values())
    if not in_pytorch(again):
        return compared, 0
    network = from_nir(again).double()
    trains, _, _ = simulate_in_torch(network, inputs)
    for name, train in trains.items():
        np.testing.assert_array_equal(train.reshape(*train.shape[:2], -1), simulated.spikes[name])
    return compared, sum(train.size for train in trains.values())


@pytest.mark.slow
def test_200_random_networks_are_equal_in_pytorch_in_a_file_and_in_the_vendors_simulators(tmp_path: Path) -> None:
    pairs: dict[str, Pairs] = {chip: [] for chip in CHIPS}
    held: set[str] = set()
    compared = np.zeros((200, 2), int)
    for seed in range(200):
        graph, inputs, counts = drawn(seed)
        held |= computed(graph)
        compared[seed] = assert_round_trip(graph, inputs, tmp_path / "n.nir")
        for chip, pair in on_chips(graph, counts).items():
            pairs[chip].append(pair)
    for where, values in zip(("file and simulator", "PyTorch"), compared.T):
        print(f"{where}: {np.count_nonzero(values)} networks, {values.sum():,} values equal")  # noqa: T201
    assert np.count_nonzero(compared[:, 1]) >= 140
    assert all(len(found) >= 25 for found in pairs.values()), {chip: len(found) for chip, found in pairs.items()}
    assert held >= {
        "IF", "LIF", "CubaLIF", "ALIF", "StepLIF", "synaptic current", "GradedIF", "one level", "several levels", "reset to zero",
        "reset by subtraction", "bias", "AvgPool2d", "SpikingMaxPool2d", "Conv2d", "Linear", "Affine", "Scale", "loop", "Delay",
    }  # fmt: skip
    for chip, found in pairs.items():
        assert assert_equal(chip, found, make=True) > 1000


@pytest.mark.parametrize("seeds", [range(4), pytest.param(range(4, 32), marks=pytest.mark.slow)], ids=["few", "many"])
def test_neurons_of_a_trained_time_constant_are_equal_in_a_file_and_in_the_simulator(seeds: range) -> None:
    for seed in seeds:
        network, inputs = parametric(seed)
        trains, _, _ = simulate_in_torch(network, inputs)
        simulated = Simulator(lay_out(to_nir(network)), threads=1).run(inputs)
        for name, train in trains.items():
            np.testing.assert_array_equal(train.reshape(*train.shape[:2], -1), simulated.spikes[name])
        assert sum(train.sum() for train in trains.values()) > 20


def test_a_network_of_each_kind_is_equal_in_pytorch_and_in_a_file(tmp_path: Path) -> None:
    computed: dict[str, set[str]] = {}
    for seed, kind in enumerate(KINDS):
        graph, inputs, counts = drawn(seed)
        assert_round_trip(graph, inputs, tmp_path / "n.nir")
        computed[kind] = set(on_chips(graph, counts))
    assert all(kind in computed[kind] for kind in CHIPS)


@pytest.mark.slow
def test_xylosim_has_our_integers_whatever_saturates() -> None:
    assert assert_equal("xylo", [xylo_network(seed) for seed in range(100)], make=True) > 1000


@pytest.mark.parametrize("chip", CHIPS)
def test_the_vendors_simulator_of_a_chip_has_our_spikes(chip: str) -> None:
    """A few networks, where the slow tests have made the environment."""
    drawn_for = [drawn(seed) for seed in range(KINDS.index(chip), 4 * len(KINDS), len(KINDS))]
    pairs = [found[chip] for graph, _, counts in drawn_for if chip in (found := on_chips(graph, counts))]
    assert len(pairs) >= 2
    assert assert_equal(chip, [*pairs, *([xylo_network(0), xylo_network(1)] if chip == "xylo" else [])], make=False) > 50


def test_what_a_chip_does_not_compute_is_refused_with_the_layer() -> None:
    said: dict[str, set[str]] = {chip: set() for chip in CHIPS}
    for seed in range(21):
        network = lay_out(drawn(seed)[0])
        for chip, module in CHIPS.items():
            try:
                module.lower(network)
            except HardwareError as error:
                said[chip].add(str(error))
    assert any("resets to zero, and Xylo subtracts" in message for message in said["xylo"])
    assert any("leaks, and Speck's neurons do not: use IF" in message for message in said["speck"])
    assert any("subtracts its threshold, and nengo-loihi's" in message for message in said["loihi1"])


@pytest.mark.parametrize("chip", ["xylo", "speck", "loihi1"])
def test_inputs_that_are_no_spikes_are_refused(chip: str) -> None:
    graph, _, counts = drawn(KINDS.index(chip))
    network, _ = on_chips(graph, counts)[chip]
    for wrong in (counts + 0.5, counts - 5):
        with pytest.raises(HardwareError, match=r"inputs are .*encode them"):
            CHIPS[chip].simulate(network, wrong)


def test_a_layer_on_loihi_1_is_late_by_the_synapses_before_it() -> None:
    """Without biases the chip's network is the network in integers, each layer by its depth later."""
    compared = 0
    for seed in range(KINDS.index("recurrent"), 8 * len(KINDS), len(KINDS)):
        graph, _, counts = drawn(seed)
        network, steps = lay_out(graph), counts.shape[1]
        padded = np.concatenate([counts, np.zeros_like(counts[:, : loihi1.late(network)])], 1)
        if "loihi1" not in on_chips(graph, padded):
            continue
        chip = loihi1.simulate(on_chips(graph, padded)["loihi1"][0], padded)
        plain = quantize_network(replace(network, encoder="Poisson"), 2, padded.shape[1], loihi1.WIDTHS).network
        ours = Simulator(plain, threads=1).run(counts)
        for p in network.populations:
            expected = ours.spikes.get(p.name, ours.output)
            np.testing.assert_array_equal(chip[p.name][:, p.depth : p.depth + steps], expected)
        compared += int(sum(train.sum() for train in ours.spikes.values()))
    assert compared > 100


def test_xylo_saturates_spike_by_spike() -> None:
    """By hand: 100 << 3 five times saturates at 32,767 from 32,000 on, and -100 << 3 then takes 800 off."""
    network = xylo.XyloNetwork(
        into=np.array([[127], [-127]], np.int8), among=np.zeros((1, 1), np.int8), out=np.zeros((1, 1), np.int8), shifts=(7, 0, 0),
        mem=np.array([0, 0]), syn=np.array([15, 15]), theta=np.array([32767, 32767]), bias=np.zeros(2, int),
        layers={"h": 1, "o": 1},
    )  # fmt: skip
    trains = xylo.simulate(network, np.array([[[3, 1], [0, 0]]]))
    # 3 * 16256 saturates at 32767, less 16256 is 16511, less 1 by its leak: below the threshold; a sum would stay at 32511
    assert trains["h"].ravel().tolist() == [0, 0]
    assert xylo.simulate(network, np.array([[[3, 0], [0, 0]]]))["h"].ravel().tolist() == [0, 0]  # 32766 after its leak


def test_an_environment_borrows_what_is_large_and_installs_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def make(command: list[str]) -> None:
        made.append(" ".join(command[2:]))
        if "venv" in command:
            (Path(command[-1]) / "bin").mkdir(parents=True)
            (Path(command[-1]) / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
            python = Path(command[-1]) / "bin" / "python"
            python.write_text("#!/bin/sh\nexit 0\n")
            python.chmod(0o755)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(environment, "_must", make)
    wanted = Environment("It", "it-1", ("first",), ("it",), alone=("it==1",), borrowed=("numpy", "no_such_module"))
    wanted.python(lambda _: None)
    assert made[1:] == ["pip install --quiet first no_such_module", "pip install --quiet --no-deps it==1"]
    (borrowed,) = (tmp_path / "spikeprop" / "it-1").glob("lib/*/site-packages/*.pth")
    assert Path(borrowed.read_text().strip()) == Path(np.__file__).parents[1]

    def fail(command: list[str]) -> None:
        raise RuntimeError("no wheel for this machine")

    monkeypatch.setattr(environment, "_must", fail)
    other = Environment("Other", "other-1", (), ("other",))
    with pytest.raises(SimulatorMissing, match=r"cannot make the environment .*no wheel for this machine"):
        other.python(lambda _: None)
