"""A scale for each channel: exact where its weights are on a grid of its own, better than one for all where they are not."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import nir
import numpy as np
import pytest
from scipy import sparse
from spikeprop_hardware import channels, quantize
from spikeprop_hardware.network import ChipNetwork, Connection, lay_out
from spikeprop_hardware.quantization import Quantized, Widths, quantize_network
from spikeprop_hardware.reference import Simulator

from tests.hardware.test_acceptance import layer

RNG = np.random.default_rng(1)
ONE = Widths(own_thresholds=False)


def unequal(hidden: int = 40, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Rows and thresholds whose sizes differ, and not by the same factors: neither fixes the other's."""
    weight = RNG.normal(size=(hidden, n)) / n**0.5
    return weight * np.exp(RNG.normal(size=(hidden, 1))), np.exp(RNG.normal(size=hidden) / 2)


def reads_spikes(graph: nir.NIRGraph) -> nir.NIRGraph:
    """Then no exponent undoes an input's scale, which would drop bits."""
    graph.metadata["encoder"] = "Poisson"
    return graph


def test_rows_on_grids_of_their_own_are_exact() -> None:
    """Whole numbers of 8 bits over another odd number in each row: no one scale holds two of them."""
    odd = np.array([3.0, 5.0, 7.0, 11.0, 13.0, 17.0])
    whole = RNG.integers(-120, 128, (6, 30))
    whole[:, 0] = 127
    plan = lay_out(reads_spikes(layer(whole / odd[:, None], theta=50 / odd)))
    own, one = quantize_network(plan, 1.0), quantize_network(plan, 1.0, widths=ONE)
    np.testing.assert_array_equal(own.network.populations[0].connections[0].matrix.toarray(), whole)
    assert own.report[0].weight_error < 1e-9 < 1e-3 < one.report[0].weight_error
    assert own.report[0].threshold_error < 1e-9


@pytest.mark.parametrize("target", ["loihi2", "generic", "generic-4"])
def test_neurons_scaled_by_powers_of_two_have_the_same_integers(target: str) -> None:
    """The same network, whatever its neurons' units; one scale for all has other integers."""
    weight, theta = unequal()
    factor = 2.0 ** RNG.integers(-9, 9, len(theta))
    graphs = layer(weight, 0.1 * theta, theta), layer(weight * factor[:, None], 0.1 * theta * factor, theta * factor)
    one, other = (quantize(g, input_limit=1.0, timesteps=8, bits=4 if target[-1] == "4" else None).network for g in graphs)
    for name in ("theta", "bias", "v_init"):
        np.testing.assert_array_equal(getattr(one.populations[0], name), getattr(other.populations[0], name))
    first, second = (m.populations[0].connections[0].matrix.toarray() for m in (one, other))
    np.testing.assert_array_equal(first, second)


def test_currents_and_spikes_are_nearer_than_with_one_scale() -> None:
    weight, theta = unequal()
    plan = lay_out(layer(weight, 0.05 * theta, theta))
    x = RNG.uniform(-1, 1, (50, 60))
    wrong = {}
    real = Simulator(plan, threads=1).run(np.broadcast_to(x[:, None], (50, 16, 60))).spikes["h"]
    for name, widths in (("own", Widths()), ("one", ONE)):
        made = quantize_network(plan, 1.0, 16, widths)
        held = made.network.populations[0]
        back = held.connections[0].real() * made.network.input_scale
        currents = x @ back.toarray().T / held.scale
        error = np.linalg.norm(currents - x @ weight.T, axis=0) / np.linalg.norm(x @ weight.T, axis=0)
        spikes = Simulator(made.network, threads=1).run(np.broadcast_to(x[:, None], (50, 16, 60))).spikes["h"]
        wrong[name] = float(error.mean()), int((spikes != real).sum()), made.report[0].threshold_error
    assert wrong["own"][0] < 0.5 * wrong["one"][0]
    assert wrong["own"][1] < 0.7 * wrong["one"][1]
    assert wrong["own"][2] < 1e-9 < wrong["one"][2]


def test_no_channel_can_wrap_and_large_biases_are_held() -> None:
    """A scale for weights alone would clip a bias: mantissas have 13 bits, and exponents end at 7."""
    weight, theta = unequal()
    bias = np.zeros(len(theta))
    bias[:5] = 40 * theta[:5]
    made: Quantized = quantize_network(lay_out(layer(0.01 * weight, bias, theta)), 1.0)
    report, held = made.report[0], made.network.populations[0]
    assert report.load <= 1
    assert report.bias_error < 0.05
    np.testing.assert_allclose(held.bias * 2.0**held.bias_exponent * held.unit, bias, atol=0.05 * theta.min(), rtol=0.01)


def test_a_scale_that_rounds_nothing_is_kept_for_the_layer_and_the_readout_has_one() -> None:
    whole = RNG.integers(-120, 128, (6, 30)) / 128
    made = quantize(reads_spikes(layer(whole, theta=0.5))).network
    assert all(isinstance(p.scale, float) for p in made.populations)
    weight, theta = unequal()
    made = quantize(layer(weight, theta=theta), input_limit=1.0).network
    assert np.shape(made.populations[0].scale) == theta.shape
    assert isinstance(made.readout.scale, float)


def test_exponents_of_a_channel_are_its_own_where_the_chip_has_them() -> None:
    weight, theta = unequal()
    theta *= 2.0 ** RNG.integers(0, 12, len(theta))  # silent ones, whose thresholds need other exponents
    plan: ChipNetwork = lay_out(layer(weight, theta=theta))
    by_channel = quantize_network(plan, 1.0, widths=Widths(per_channel=True))
    shared = quantize_network(plan, 1.0, widths=replace(Widths(), exponents=range(-8, 8)))
    (own,), (one,) = (made.network.populations[0].connections for made in (by_channel, shared))
    assert len(np.unique(own.exponent)) > 1
    assert isinstance(one.exponent, int | np.integer)
    assert by_channel.report[0].weight_error <= shared.report[0].weight_error * 1.001


def spike_counts(network: Any, x: np.ndarray) -> np.ndarray:
    return Simulator(network, threads=1).run(x).spikes["h"].sum(1, dtype=int)


@pytest.mark.parametrize(
    ("start", "raise_by", "leak"),
    [(8.0, None, None), (-30.0, None, None), (0.0, 20.0, 0.9), (0.0, 1.3, 0.999)],
    ids=["far above the threshold", "far below it", "large adaptation", "adaptation that adds up"],
)
def test_states_beyond_currents_have_room_in_each_channel(start: float, raise_by: float | None, leak: float | None) -> None:
    """A scale by weights and threshold alone would refuse the start or clip thresholds that one scale for all holds."""
    weight, theta = unequal(12, 30)
    plan = lay_out(layer(weight, 0.1 * theta, theta))
    given: dict[str, Any] = {"v_init": np.full(12, start)}
    if raise_by is not None and leak is not None:
        given |= {"adaptation": raise_by * theta, "adaptation_leak": np.full(12, leak)}
    plan.populations[0] = replace(plan.populations[0], **given)
    x = np.repeat(RNG.uniform(-1, 1, (6, 1, 30)), 60, 1)
    found = quantize_network(plan, 1.0, 60).network
    assert np.shape(found.populations[0].scale) == (12,)
    real = spike_counts(plan, x)
    assert real.sum() > 200
    assert np.abs(spike_counts(found, x) - real).sum() < 0.02 * real.sum()


def test_a_tiny_threshold_of_one_channel_leaves_the_others_their_integers() -> None:
    """A channel that is dead in the ANN; what shifts drop is next to nothing of its currents, whatever of its threshold."""
    weight, theta = unequal(12, 30)
    tiny = theta.copy()
    tiny[3] = 1e-12
    (one,), (other,) = (quantize(layer(weight, theta=t), input_limit=1.0).network.populations[:1] for t in (theta, tiny))
    rest = np.arange(12) != 3
    assert one.connections[0].exponent == other.connections[0].exponent
    np.testing.assert_array_equal(one.connections[0].matrix.toarray()[rest], other.connections[0].matrix.toarray()[rest])
    np.testing.assert_array_equal(one.theta[rest], other.theta[rest])  # type: ignore[index]


@pytest.mark.parametrize("kind", ["dense", "heavy tails", "conv"])
def test_large_layers_are_searched_by_some_of_their_weights(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "conv":
        graph = reads_spikes(convolution(16, 40))
    else:
        weight, theta = unequal(20, 3000)
        weight = weight**3 if kind == "heavy tails" else weight
        graph = layer(weight, theta=theta)
    plan = lay_out(graph)
    complete = quantize_network(plan, 1.0)
    monkeypatch.setattr(channels, "READ", 2**12)
    monkeypatch.setattr(channels, "SAMPLE", 2**11)
    some = quantize_network(plan, 1.0)
    (ours, _), (theirs, _) = some.report, complete.report
    assert not np.array_equal(some.network.populations[0].scale, complete.network.populations[0].scale)
    assert ours.weight_error < 1.05 * theirs.weight_error
    assert ours.threshold_error < 1e-9


@pytest.mark.parametrize("rows", [1, 5], ids=["dense", "rows that differ"])
def test_a_channel_of_few_weights_is_searched_by_all_of_them(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside large channels, of which some are taken: its largest weight decides on its scale."""
    monkeypatch.setattr(channels, "READ", 2**10)
    monkeypatch.setattr(channels, "SAMPLE", 2**9)
    monkeypatch.setattr(channels, "LEAST", 16)
    weight = RNG.normal(size=(6, rows, 900)) * (RNG.uniform(size=(6, rows, 900)) < np.geomspace(0.01, 1, 6)[:, None, None])
    weight[3] = 0
    weight[4, :-1] = 0  # only in one row
    matrix = sparse.csr_matrix(weight.reshape(6 * rows, 900))
    values, times = channels._sampled(Connection("input", matrix), 6)
    for found, count, channel in zip(values, times, weight.reshape(6, -1)):
        real, some = channel[channel != 0], found[count > 0]
        assert count.sum() == pytest.approx(len(real))
        if rows == 1 and len(real) <= 2**9 // 6:
            np.testing.assert_array_equal(np.sort(some), np.sort(real))
        if len(real):
            assert (some.min(), some.max()) == (real.min(), real.max())


def convolution(inputs: int, outputs: int) -> nir.NIRGraph:
    weight = RNG.normal(size=(outputs, inputs, 3, 3)) * np.exp(RNG.normal(size=(outputs, 1, 1, 1)))
    theta = np.broadcast_to(np.exp(RNG.normal(size=(outputs, 1, 1))), (outputs, 8, 8)).copy()
    nodes: dict[str, Any] = {
        "input": nir.Input(input_type={"input": np.array([inputs, 8, 8])}),
        "w": nir.Conv2d(input_shape=(8, 8), weight=weight, stride=1, padding=1, dilation=1, groups=1, bias=np.zeros(outputs)),
        "h": nir.IF(r=np.ones_like(theta), v_threshold=theta, v_reset=0 * theta, metadata={"reset": "subtract"}),
        "pool": nir.AvgPool2d(kernel_size=np.array([8, 8]), stride=np.array([8, 8]), padding=np.array([0, 0])),
        "flat": nir.Flatten(input_type={"input": np.array([outputs, 1, 1])}, start_dim=0),
        "last": nir.Linear(weight=RNG.normal(size=(3, outputs))),
        "output": nir.Output(output_type={"output": np.array([3])}),
    }
    names = list(nodes)
    return nir.NIRGraph(nodes=nodes, edges=list(pairwise(names)), type_check=False)
