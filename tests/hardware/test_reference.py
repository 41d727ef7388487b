"""The reference simulator against PyTorch and against Lava, in float64 and in the chip's integers, over random networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from spikeprop_hardware import Recording, kernels, quantize, reference, simulate, synapses
from spikeprop_hardware.network import lay_out
from spikeprop_hardware.recording import SimulationResult, counted_from
from spikeprop_hardware.reference import Simulator

from spikeprop.deploy import export, to_nir
from tests.hardware.random_networks import KINDS, random_network, simulate_in_torch
from tests.hardware.test_lava import lava_or_skip

ALL = Recording(membranes=True)
MANY = 20 * len(KINDS)


def shaped(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    return values.reshape(like.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_float_equals_pytorch_spike_for_spike_and_membrane_for_membrane(kind: str) -> None:
    """Weights and inputs are short binary fractions: sums are exact, ties at the threshold occur, and nothing may differ."""
    fired, back = 0, 0
    for seed in range(KINDS.index(kind), MANY, len(KINDS)):
        network, inputs = random_network(seed, levels=int(seed // len(KINDS) % 4 == 0))
        simulator = Simulator(lay_out(to_nir(network)), threads=1)
        ours = simulator.run(inputs, membranes=True)
        spikes, membranes, output = simulate_in_torch(network, inputs)
        assert ours.spikes.keys() == spikes.keys()
        for name, train in spikes.items():
            np.testing.assert_array_equal(shaped(ours.spikes[name], train), train, f"seed {seed}, {name}")
            np.testing.assert_array_equal(shaped(ours.membranes[name], train), membranes[name], f"seed {seed}, {name}")
            assert ours.counts[name] == np.count_nonzero(train)
            fired += int((train > 0).sum())
            back += int((train < 0).sum())
        np.testing.assert_array_equal(counted_from(ours.output, int(network.readout.delay)), output, f"seed {seed}")
    assert fired > 900
    assert back > 20


@pytest.mark.parametrize("kind", KINDS)
def test_float_with_real_weights_equals_pytorch_up_to_rounding(kind: str) -> None:
    """PyTorch sums in another order, so potentials may differ in the last bits; no spike did in these networks."""
    for seed in range(KINDS.index(kind), 5 * len(KINDS), len(KINDS)):
        network, inputs = random_network(seed, real=True)
        ours = Simulator(lay_out(to_nir(network)), threads=1).run(inputs, membranes=True)
        spikes, membranes, _ = simulate_in_torch(network, inputs)
        for name, train in spikes.items():
            np.testing.assert_array_equal(shaped(ours.spikes[name], train), train, f"seed {seed}, {name}")
            np.testing.assert_allclose(shaped(ours.membranes[name], train), membranes[name], rtol=0, atol=1e-12)


def against_lava(tmp_path: Path, seed: int, real: bool, levels: int = 0) -> None:
    network, inputs = random_network(seed, real, levels)
    export(network, tmp_path / "n.nir")
    for precision in ("float", "fixed"):
        lava = simulate(tmp_path / "n.nir", inputs, precision=precision, record=ALL)
        ours = simulate(tmp_path / "n.nir", inputs, precision=precision, record=ALL, backend="reference")
        for name in lava.spikes:
            where = f"seed {seed}, {precision}, {name}"
            np.testing.assert_array_equal(ours.spikes[name], lava.spikes[name], where)
            np.testing.assert_array_equal(ours.membranes[name], lava.membranes[name], where)
        np.testing.assert_array_equal(ours.output, lava.output)
        assert ours.counts == lava.counts
    spikes, _, output = simulate_in_torch(network, inputs)
    float_run = simulate(tmp_path / "n.nir", inputs, backend="reference")
    for name, train in spikes.items():
        np.testing.assert_array_equal(float_run.spikes[name], train)
    np.testing.assert_allclose(float_run.output, output, rtol=0, atol=1e-12 if real else 0)


@pytest.mark.parametrize("seed", range(len(KINDS)), ids=KINDS)
def test_either_precision_equals_lava_to_the_bit(tmp_path: Path, seed: int) -> None:
    lava_or_skip()
    against_lava(tmp_path, seed + 7 * len(KINDS), real=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(MANY))
def test_either_precision_equals_lava_on_many_networks(tmp_path: Path, seed: int) -> None:
    lava_or_skip()
    against_lava(tmp_path, seed, real=seed // len(KINDS) % 2 == 0, levels=seed % 5)


def assert_same(a: SimulationResult, b: SimulationResult) -> None:
    for name in a.spikes:
        np.testing.assert_array_equal(a.spikes[name], b.spikes[name])
        np.testing.assert_array_equal(a.membranes[name], b.membranes[name])
    np.testing.assert_array_equal(a.output, b.output)
    assert a.counts == b.counts


def without_numba(changed: pytest.MonkeyPatch) -> None:
    for module in (synapses, reference):
        changed.setattr(module, "NUMBA", False)
    for name in kernels.NAMES:
        changed.setattr(reference, name, getattr(kernels, f"{name}_numpy"))


def test_threads_batches_and_missing_numba_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(len(KINDS)):
        network, inputs = random_network(seed, real=True, levels={1: 1, 5: 3, 7: 2}.get(seed, 0))
        plan = lay_out(to_nir(network))
        inputs = np.concatenate([inputs] * 3)
        if plan.encoder != "Poisson":  # whose spikes are whole numbers
            inputs = inputs * np.linspace(0.3, 1, 6).reshape(-1, *[1] * (inputs.ndim - 1))
        for made in (plan, quantize(to_nir(network), input_limit=6.0).network):
            whole = Simulator(made, threads=1).run(inputs, membranes=True)
            with monkeypatch.context() as changed:
                changed.setattr(reference, "BATCH", 2)
                assert_same(whole, Simulator(made, threads=3).run(inputs, membranes=True))
                without_numba(changed)
                assert_same(whole, Simulator(made, threads=1).run(inputs, membranes=True))


@pytest.mark.parametrize(
    ("payload", "signed", "grouped"), [(1, False, True), (60, False, True), (70, False, False), (70, True, False)]
)
def test_sources_with_equal_columns_are_added_up_first_unless_a_byte_is_too_small(
    payload: int, signed: bool, grouped: bool
) -> None:
    rng = np.random.default_rng(0)
    columns = rng.integers(-128, 128, (37, 9)) * (rng.random((37, 9)) < 0.7)
    order = np.concatenate([np.arange(8), np.arange(8), np.arange(8), [8], np.arange(8)])  # 33 sources, 8 columns four times
    matrix = sparse.csr_matrix(columns[:, order])
    rows, sources = rng.permutation(37), rng.permutation(33)
    made = synapses.Synapses(matrix, rows, sources, np.int32, False, payload, signed)
    assert bool(len(made.groups[0])) == (grouped and kernels.NUMBA)
    sent = rng.integers(-payload if signed else 0, payload + 1, (5, 33)).astype(np.int8 if signed else np.uint8)
    sent[0] = payload  # as much as there can be
    sums = np.empty((5, 37), np.int32)
    made.deliver(sent, sums)
    np.testing.assert_array_equal(sums, sent.astype(np.int64) @ matrix.toarray()[rows][:, sources].T)


def test_a_broadcast_input_is_a_constant_one() -> None:
    network, inputs = random_network(1)
    simulator = Simulator(lay_out(to_nir(network)))
    constant = np.broadcast_to(inputs[:, :1], inputs.shape)
    told: list[tuple[int, int]] = []
    ours = simulator.run(constant, membranes=True, progress=lambda *steps: told.append(steps))
    assert_same(ours, simulator.run(constant.copy(), membranes=True))
    assert told[-1] == (20, 20)
    lean = simulator.run(constant, record=False)
    assert (lean.spikes, lean.membranes, lean.counts) == ({}, {}, ours.counts)


@pytest.mark.parametrize("levels", [0, 2])
def test_layers_one_after_the_other_compute_what_steps_do(levels: int) -> None:
    """Where nothing is fed back, a layer runs through all steps before the next begins; of input that stays or changes."""
    for seed in range(len(KINDS)):
        network, inputs = random_network(seed, real=True, levels=levels)
        given = np.broadcast_to(inputs[:, :1], inputs.shape) if seed % 2 else inputs
        made = quantize(to_nir(network), input_limit=float(np.abs(inputs).max()), per_channel=seed % 3 == 0).network
        simulator = Simulator(made, threads=1)
        assert simulator.in_turn == kernels.NUMBA
        ours, theirs = simulator.run(given), simulator.run(given, membranes=True)  # potentials are kept step by step
        assert (ours.counts, ours.clipped) == (theirs.counts, theirs.clipped)
        np.testing.assert_array_equal(ours.output, theirs.output)
        for name, train in ours.spikes.items():
            np.testing.assert_array_equal(train, theirs.spikes[name])
