"""What the chip's integers must stand for: scales outside the usual window, refusals, room for all steps, clipping counted."""

from __future__ import annotations

import warnings
from itertools import product
from typing import Any

import nir
import numpy as np
import pytest
import torch
from scipy import sparse
from spikeprop_hardware import HardwareError, Quantized, SimulationResult, Simulator, quantize, simulate
from spikeprop_hardware.acceptance import dropped
from spikeprop_hardware.grids import WeightErrors, _counted
from spikeprop_hardware.kernels import add_shifted_numpy
from spikeprop_hardware.network import Connection, lay_out
from spikeprop_hardware.quantization import Widths, quantize_network
from spikeprop_hardware.room import MOST_ROOM, readout_room
from torch import nn

import spikeprop as sp
from spikeprop.data import Digits
from spikeprop.deploy import encoded, to_nir
from tests.hardware.test_lava import lava_or_skip

RNG = np.random.default_rng(0)


def layer(weight: np.ndarray, bias: Any = 0.0, theta: Any = 1.0, last: np.ndarray | None = None, **neurons: Any) -> nir.NIRGraph:
    """A layer of neurons and a readout."""
    hidden, n = weight.shape
    last = RNG.normal(size=(3, hidden)) if last is None else last
    leak = neurons.pop("leak", None)
    theta = np.broadcast_to(np.asarray(theta, float), hidden).copy()
    metadata: Any = {"reset": "subtract", **neurons}
    zeros = np.zeros(hidden)
    if leak is None:
        cell: Any = nir.IF(r=zeros + 1, v_threshold=theta, v_reset=zeros, metadata=metadata)
    else:
        tau = zeros + 1 / (1 - leak)
        cell = nir.LIF(
            tau=tau, r=tau, v_leak=zeros, v_threshold=theta, v_reset=zeros, metadata=metadata | {"dt": 1.0, "leak": leak}
        )
    nodes: dict[str, Any] = {
        "input": nir.Input(input_type={"input": np.array([n])}),
        "w": nir.Affine(weight=weight, bias=np.broadcast_to(np.asarray(bias, float), hidden).copy()),
        "h": cell,
        "last": nir.Linear(weight=last),
        "output": nir.Output(output_type={"output": np.array([len(last)])}),
    }
    edges = [("input", "w"), ("w", "h"), ("h", "last"), ("last", "output")]
    return nir.NIRGraph(nodes=nodes, edges=edges, type_check=False)


def weights(hidden: int, n: int) -> np.ndarray:
    return RNG.normal(size=(hidden, n)) / n**0.5


def one_large_bias() -> np.ndarray:
    bias = np.zeros(20)
    bias[0] = 60.0
    return bias


def large_thresholds() -> np.ndarray:
    theta = np.ones(20)
    theta[:10] = 300.0
    return theta


@pytest.mark.parametrize(
    ("graph", "limit"),
    [
        (layer(weights(20, 784)), 2.8),
        (layer(weights(20, 64) / 30), 30.0),
        (layer(weights(20, 64), bias=one_large_bias()), 4.0),
        (layer(weights(20, 64), theta=large_thresholds()), 4.0),
        (layer(weights(20, 16) / 255), 255.0),
    ],
    ids=["many inputs", "large inputs", "one large bias", "large thresholds", "images of bytes"],
)
def test_a_layer_outside_the_usual_window_is_found_and_never_zero(graph: nir.NIRGraph, limit: float) -> None:
    network, report = quantize(graph, input_limit=limit)
    assert report[0].weight_error < 0.15
    real = lay_out(graph).populations[0].connections[0].matrix.toarray()
    (held,) = network.populations[0].connections
    back = (
        held.matrix.toarray()
        * 2.0 ** (held.exponent + 1)
        * network.input_scale
        / np.reshape(network.populations[0].scale, (-1, 1))
    )
    assert np.corrcoef(real.ravel(), back.ravel())[0, 1] > 0.98


def test_two_branches_of_unequal_size_are_both_held() -> None:
    graph = layer(weights(20, 8), last=RNG.normal(size=(3, 20)))
    nodes: Any = graph.nodes
    nodes["w"].weight /= 255
    nodes["small"] = nir.Linear(weight=RNG.normal(size=(3, 8)) / 255)
    graph.edges += [("input", "small"), ("small", "output")]
    for limit in (255.0, 25500.0):
        network, report = quantize(graph, input_limit=limit)
        assert report[-1].weight_error < 0.1
        real, held = lay_out(graph).readout.connections, network.readout.connections
        for ours, theirs in zip(real, held):
            assert np.corrcoef(ours.matrix.toarray().ravel(), theirs.matrix.toarray().ravel())[0, 1] > 0.9
        nodes["small"].weight /= 100


@pytest.mark.parametrize(
    ("graph", "limit", "says"),
    [
        (layer(weights(20, 64)), 1e4, "layer 'h' cannot be held.*inputs may reach 1e.04: normalise"),
        (layer(weights(20, 64), bias=one_large_bias() * 1e4), 1.0, "layer 'h' cannot be held.*largest bias is 6e.05"),
        (
            layer(weights(20, 64), theta=large_thresholds() ** 3),
            1.0,
            "layer 'h' cannot be held.*thresholds reach from 1 to 2.7e.07",
        ),
        (
            layer(np.diag([1.0, 1e-4, 1.0]), [0.0, 1e3, 0.0], [1.0, 1e-5, 1.0]),
            1.0,
            "weights of 1 of its 3 neurons .the first is number 1",
        ),
        (layer(weights(20, 8), v_init=5e4), 1.0, "layer 'h' starts at 5e.04 times its threshold"),
        (layer(weights(20, 8), leak=0.99999), 1.0, r"leak of 0.99999, which the chip would hold as 1 .*within 100000 steps"),
    ],
    ids=["inputs", "bias", "thresholds", "one neuron's weights", "start", "leak"],
)
def test_integers_that_do_not_stand_for_a_layer_are_refused_with_the_remedy(graph: nir.NIRGraph, limit: float, says: str) -> None:
    with pytest.raises(HardwareError, match=says):
        quantize(graph, input_limit=limit, timesteps=100_000 if "leak of" in says else None)


def test_a_limit_or_a_number_of_steps_that_is_none_is_refused() -> None:
    graph = layer(weights(4, 3))
    for limit in (float("nan"), float("inf"), -1.0, 1e10):
        with pytest.raises(HardwareError, match=r"input_limit is .*; it is a number from 0 to"):
            quantize(graph, input_limit=limit)
    with pytest.raises(HardwareError, match="a simulation of 0 steps"):
        quantize(graph, timesteps=0)


def test_the_error_of_every_grid_is_the_computed_one() -> None:
    """By brute force, far outside the window that is looked at first, for ordinary weights and one large one, in 8 and 2 bits."""
    kinds = RNG.normal(size=400), np.append(RNG.normal(size=4000), 300.0), np.ones(9), -np.ones(9), np.zeros(3)
    for values, (low, high) in product(kinds, ((-128, 127), (-2, 1))):
        connection: Any = Connection("x", lay_out(layer(values.reshape(1, -1))).populations[0].connections[0].matrix)
        table = WeightErrors(connection, (low, high))
        for n in range(-400, 700, 37):
            grid = 2.0 ** (n / 32)
            held = np.clip(np.rint(values * grid), low, high) / grid
            true = np.sqrt(((held - values) ** 2).sum() / ((values**2).sum() or 1.0))
            assert table.at(n) == pytest.approx(true, rel=1e-9, abs=1e-9)
        for start in (-300, 0, 160, 400):
            grids = {e: start - 32 * (e + 1) for e in range(-8, 8)}
            assert table.best(grids)[1] == pytest.approx(min(table.at(n) for n in grids.values()), rel=1e-8)


def saturated(steps: int, **given: Any) -> tuple[Quantized, SimulationResult]:
    """Every neuron fires at every step into weights of one sign."""
    made = quantize(
        layer(np.ones((40, 2)), last=np.stack([np.ones(40), -np.ones(40), np.full(40, 0.9)])), input_limit=4.0, **given
    )
    return made, Simulator(made.network).run(np.broadcast_to(np.full(2, 2.0), (2, steps, 2)))


@pytest.mark.parametrize("steps", [8, 64, 1000, 2000])
def test_the_readout_has_room_for_every_step(steps: int) -> None:
    made, result = saturated(steps, timesteps=steps)
    assert "output" not in result.clipped
    real = result.output[:, -1] * made.network.readout.unit
    np.testing.assert_allclose(real[0], np.array([40, -40, 36]) * steps, rtol=0.02)


def test_clipping_is_counted_exactly_and_warned_of() -> None:
    made, result = saturated(64)  # quantised for no number of steps: room for 16
    stopped = np.abs(result.output) == 2**23 - 1
    assert result.clipped["output"] == stopped.sum() > 0
    inputs = np.broadcast_to(np.full(2, 2.0), (2, 64, 2))
    with pytest.warns(
        UserWarning, match=r"stopped at the limits of the chip's 24 bits \d+ times, .* quantise for at least 64 steps"
    ):
        found = simulate(made.network, inputs, backend="reference", precision="fixed")
    assert found.clipped == result.clipped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = quantize(layer(np.ones((40, 2))), input_limit=2.0, timesteps=64).network
        assert "output" not in simulate(again, inputs, backend="reference", precision="fixed").clipped


def test_a_neuron_that_sinks_to_the_limit_is_counted_too() -> None:
    made = quantize(layer(np.full((1, 1), -3.0)), input_limit=1.0).network
    found = simulate(made, np.ones((1, 50, 1)), backend="reference", precision="fixed")
    assert found.clipped["h"] == 50 - int(2**23 / (3 * made.populations[0].scale * 64))


def test_lava_counts_the_same_potentials() -> None:
    lava_or_skip()
    weight = np.vstack([np.ones((9, 2)), np.full((1, 2), -3.0)])
    made = quantize(layer(weight, last=np.ones((3, 10))), input_limit=4.0).network
    inputs = np.broadcast_to(np.full(2, 2.0), (2, 40, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lava, ours = (simulate(made, inputs, backend=b, precision="fixed") for b in ("lava", "reference"))
    assert lava.clipped == ours.clipped
    assert set(ours.clipped) == {"h", "output"}
    np.testing.assert_array_equal(lava.output, ours.output)


def test_the_metadatas_steps_are_those_that_there_is_room_for() -> None:
    graph = layer(weights(9, 3))
    graph.metadata = {"timesteps": 300}
    assert quantize(graph).network.readout.scale == quantize(graph, timesteps=300).network.readout.scale
    assert quantize(graph, timesteps=16).network.readout.scale > 8 * quantize(graph).network.readout.scale
    assert readout_room(lay_out(graph).readout, [1.0], [False], 10**6) == MOST_ROOM


def test_accuracy_does_not_fall_with_the_number_of_steps() -> None:
    torch.manual_seed(0)
    data = Digits()
    ann = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(ann.parameters(), 1e-2)
    for epoch in range(6):
        for x, y in data.train(64, seed=0).epoch(epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(ann(x), y).backward()
            optimizer.step()
    images, labels = next(iter(data.test(200).epoch(0)))
    network = sp.convert(ann, [images], sp.IF(), sp.MaxActivation())
    found = []
    for steps in (32, 256, 1024):
        made = quantize(to_nir(network), input_limit=1.0, timesteps=steps).network
        result = Simulator(made).run(encoded(network, images, steps), record=False)
        assert "output" not in result.clipped
        found.append(100 * float((result.output[:, -1].argmax(1) == labels.numpy()).mean()))
    assert found[0] > 90
    assert min(found[1:]) >= found[0] - 1


# inputs -----------------------------------------------------------------------------------------------------------------------


def test_photographs_are_not_rounded_to_spikes() -> None:
    graph = layer(weights(9, 3))
    graph.metadata = {"encoder": "Poisson"}
    network = quantize(graph).network
    for wrong in (0.37, 0.5, 1e-6):
        with pytest.raises(HardwareError, match=r"inputs hold .* spikes -1, 0 and 1 of its encoder.*encode the images"):
            simulate(network, np.full((1, 4, 3), wrong), backend="reference", precision="fixed")
    simulate(network, np.full((1, 4, 3), -1.0), backend="reference", precision="fixed")


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.float16, bool])
def test_inputs_of_any_type_are_taken_at_their_value(dtype: Any) -> None:
    network = layer(weights(9, 3))
    made = quantize(network, input_limit=128.0).network
    raw = np.array([[[1, 0, 1], [0, 1, 1]]]) if dtype is bool else np.array([[[-128 if np.iinfo(np.int8).min else 0, 0, 3]]])
    values = raw.astype(dtype)
    if float(np.abs(values.astype(float)).max()) > 128:
        with pytest.raises(HardwareError, match="but the network was quantised"):
            made.encode(values)
        return
    np.testing.assert_array_equal(made.encode(values), values.astype(float) * 8)


@pytest.mark.parametrize(("limit", "factor"), [(4.0, 2.0**8), (3.7, 2.0**20), (1.0, 2.0**-10), (0.6, 2.0**-18)])
def test_the_integers_of_a_layer_do_not_depend_on_the_unit_of_its_inputs(limit: float, factor: float) -> None:
    """Images times 256 and weights over 256 are the same network, whose messages and mantissas are the same."""
    weight, x = weights(20, 30), RNG.uniform(-limit, limit, (2, 5, 30))
    ours, theirs = (quantize(layer(weight / f, last=np.ones((3, 20))), input_limit=limit * f).network for f in (1.0, factor))
    np.testing.assert_array_equal(ours.encode(x), theirs.encode(x * factor))
    for one, other in zip(ours.populations, theirs.populations):
        np.testing.assert_array_equal(one.connections[0].matrix.toarray(), other.connections[0].matrix.toarray())
        assert one.connections[0].exponent == other.connections[0].exponent
        np.testing.assert_array_equal(one.scale, other.scale)


@pytest.mark.parametrize("factor", [1.0, 255.0, 65535.0, 0.01])
def test_images_of_bytes_are_predicted_as_those_between_0_and_1(factor: float) -> None:
    """A digits classifier (each class's mean image, through two neurons for each) that reads raw pixels: nearly all equal."""
    data = Digits()
    x, y = (torch.cat(parts) for parts in zip(*data.train(256, seed=0).epoch(0)))
    x = x.flatten(1) * float(data.std) + float(data.mean)  # type: ignore[arg-type]  # pixels from 0 to 1
    mean = torch.stack([x[y == k].mean(0) for k in range(10)])
    hidden = torch.cat([mean, -mean]).double().numpy()
    graph = layer(hidden / factor, last=np.hstack([np.eye(10), -np.eye(10)]))
    images = np.broadcast_to((x[:200].double().numpy() * factor)[:, None], (200, 32, 64))
    real = simulate(Simulator(lay_out(graph)), images, backend="reference")
    held = simulate(
        Simulator(quantize(graph, input_limit=factor, timesteps=32).network), images, backend="reference", precision="fixed"
    )
    np.testing.assert_allclose(held.spikes["h"].sum(), real.spikes["h"].sum(), rtol=0.005)
    assert (held.output[:, -1].argmax(1) == real.output[:, -1].argmax(1)).mean() > 0.97


def test_bytes_are_exact_messages() -> None:
    made = quantize(layer(weights(9, 256) / 255), input_limit=255.0).network
    pixels = np.arange(256).reshape(1, 1, -1)
    np.testing.assert_array_equal(made.encode(pixels) / made.input_scale, pixels)


def test_inputs_that_are_none_are_refused() -> None:
    made = quantize(layer(weights(9, 3))).network
    for wrong, says in [
        (np.zeros((0, 4, 3)), "at least one of each"),
        (np.zeros((2, 0, 3)), "at least one of each"),
        (np.zeros((2, 4, 5)), r"the network reads \(samples, steps, \(3,\)\)"),
        (np.full((2, 4, 3), np.nan), "NaN or infinity"),
        (np.array([[["a", "b", "c"]]]), "not real numbers"),
        (np.zeros((1, 1, 3), complex), "not real numbers"),
    ]:
        with pytest.raises(HardwareError, match=says):
            simulate(made, wrong, backend="reference", precision="fixed")
    for empty in (np.zeros((0, 4, 3)), np.zeros((2, 0, 3)), np.zeros((2, 4, 5))):
        with pytest.raises(HardwareError, match="the network reads"):
            Simulator(made).run(empty)
    with pytest.raises(HardwareError, match="inputs reach nan"):
        made.encode(np.full((1, 3), np.nan))


def test_inputs_below_the_chips_steps_are_refused() -> None:
    made = quantize(layer(weights(8, 20)), input_limit=1.0).network
    made.encode(np.full((1, 2, 20), 0.01))
    made.encode(np.zeros((1, 2, 20)))
    with pytest.raises(HardwareError, match="most of them would become 0; scale the images up"):
        made.encode(np.full((1, 2, 20), 0.001))


def test_a_layer_whose_small_rows_are_lost_is_refused() -> None:
    """Where a layer has one threshold and one scale; the layer's norm hides it."""
    weight, factor = weights(64, 20), np.ones(64)
    factor[:57] = 0.01
    plan = lay_out(layer(weight * factor[:, None], theta=0.5))
    with pytest.raises(HardwareError, match="relative to their own weights"):
        quantize_network(plan, 40.0, widths=Widths(own_thresholds=False))
    assert quantize_network(plan, 40.0).report[0].weight_error < 0.02


@pytest.mark.parametrize("exponent", [-8, -3, -2, -1, 0, 3])
def test_what_a_shift_down_drops_is_counted_as_the_kernels_drop_it(exponent: int) -> None:
    """Nothing at -1, whose shift undoes the factor 2."""
    sums = np.arange(-512, 512, dtype=np.int32)
    current = np.zeros_like(sums)
    add_shifted_numpy(sums, exponent, current)
    assert dropped(exponent) == pytest.approx(float((sums * 2.0 ** (exponent + 1) - current).mean()))


def test_equal_rows_are_counted_as_often_as_they_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    kinds = [rng.integers(-50, 50, 20 + i) / 7 for i in range(5)]
    rows = [kinds[i % 5 if i % 3 else 0] for i in range(60)]
    ends = np.cumsum([0, *map(len, rows)])
    matrix = sparse.csr_matrix((np.concatenate(rows), np.concatenate([np.arange(len(r)) for r in rows]), ends), shape=(60, 30))
    wanted = np.unique(matrix.data, return_counts=True)
    monkeypatch.setattr("spikeprop_hardware.grids.MANY", 1)
    for ours, theirs in zip(_counted(matrix), wanted):
        np.testing.assert_array_equal(ours, theirs)
