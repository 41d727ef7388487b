"""Bits that weights need: the curve, which layer loses what, the mix under a number of cores; formats of a target are kept to."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from spikeprop_hardware import HardwareError, budget, lay_out, quantize
from spikeprop_hardware.targets import Generic

from spikeprop import CNN, IF, Digits, ThresholdBalancing, convert
from spikeprop.deploy import bits_curve, mixed_precision, sensitivity, to_nir
from spikeprop.snn import SpikingNetwork
from tests.hardware.random_networks import random_network

LAYERS = ("features_0", "features_3", "classifier_0", "output")


@pytest.fixture(scope="module")
def network(digits_cnn: CNN) -> SpikingNetwork:
    torch.manual_seed(0)
    images = [x for x, _ in Digits().train(128, seed=1).epoch(0)]
    return convert(digits_cnn, images[:2], IF(), ThresholdBalancing(timesteps=30, scale=0.6))


def test_accuracy_falls_with_bits_and_exponents_by_channel_lower_the_error(network: SpikingNetwork) -> None:
    x, y = next(Digits().test(150).epoch(0))
    curve = bits_curve(network, x, y, 8, formats=[8, 4, 2])
    accuracies = [row["accuracy"] for row in curve]
    assert accuracies[0] > 90
    assert accuracies[0] >= accuracies[1] - 2 > accuracies[2] - 4
    assert [row["weight_error"] for row in curve] == sorted(row["weight_error"] for row in curve)
    by_channel = quantize(to_nir(network), input_limit=1.0, bits=4, per_channel=True).report
    for ours, theirs in zip(by_channel, quantize(to_nir(network), input_limit=1.0, bits=4).report):
        assert ours.weight_error <= theirs.weight_error * 1.001


def test_a_layer_that_carries_more_loses_more_and_the_mix_is_the_best(
    network: SpikingNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With made-up cores and losses the choice is that of trying all; the measured mix keeps to the cores."""
    x, y = next(Digits().test(60).epoch(0))
    found = sensitivity(network, x, y, 8, bits=2)
    names = [row["name"] for row in found]
    assert all(row["output_error"] > 0 for row in found)
    rng = np.random.default_rng(0)
    cores = {b: {n: int(rng.integers(1, 4)) * b // 2 for n in names} for b in (8, 4, 2)}
    losses = {(n, b): float(rng.random()) * (8 - b) for n in names for b in (8, 4, 2)}
    monkeypatch.setattr(
        "spikeprop.deploy.precision._budget",
        lambda _, bits: SimpleNamespace(layers=[SimpleNamespace(name=n, cores=cores[bits][n]) for n in names]),
    )
    tried: list[Any] = []

    def run(self: Any, bits: Any) -> Any:
        tried.append(bits)
        one = isinstance(bits, dict) and len(bits) == 1
        return np.array([[1.0 + losses[next(iter(bits.items()))] if one else 1.0]]), []

    monkeypatch.setattr("spikeprop.deploy.precision._Integers.run", run)
    for most in (16, 24, 40):
        mix = mixed_precision(network, x, torch.zeros(1, dtype=torch.int64), 8, cores=most, formats=(8, 4, 2))
        mixes = [dict(zip(names, bits)) for bits in product((8, 4, 2), repeat=len(names))]
        fitting = [m for m in mixes if sum(cores[b][n] for n, b in m.items()) <= most]
        loss = [sum(losses[n, b] ** 2 * (b != 8) for n, b in m.items()) for m in fitting]
        assert sum(losses[n, b] ** 2 * (b != 8) for n, b in mix["bits"].items()) == pytest.approx(min(loss))
        assert mix["cores"] <= most
    with pytest.raises(HardwareError, match="no mix of 8, 4, 2 bits fits in 1 cores: the least is"):
        mixed_precision(network, x, torch.zeros(1, dtype=torch.int64), 8, cores=1, formats=(8, 4, 2))


def test_fewer_bits_take_fewer_cores() -> None:
    from spikeprop.deploy.precision import _budget

    plan = lay_out(to_nir(random_network(1, real=True)[0]))
    at = [sum(layer.bytes for layer in _budget(plan, b).layers) for b in (8, 4)]
    synapses = sum(layer.synapses for layer in budget(plan).layers)
    assert at[0] == sum(layer.bytes for layer in budget(plan).layers)
    assert abs(at[0] - at[1] - synapses / 2) < len(plan.populations)


def chip(**changes: Any) -> Any:
    return Generic(**{"name": "small", "per_channel": False, **changes})


def test_a_targets_widths_are_kept_to() -> None:
    graph = to_nir(random_network(1, real=True)[0])
    narrow = quantize(graph, input_limit=3.0, target=chip(weight_bits=4, state_bits=16)).network
    for p in narrow.populations:
        assert (p.state_bits, p.align, p.limit) == (16, 0, 2**15)
        assert all(np.abs(c.matrix.data + 0.5).max() <= 7.5 for c in p.connections)
        assert p.theta is None or p.theta.max() < 2**15
    assert any(
        isinstance(c.exponent, np.ndarray)
        for c in quantize(graph, target=chip(per_channel=True)).network.populations[0].connections
    )
    with pytest.raises(HardwareError, match="small has one exponent for all weights"):
        quantize(graph, target=chip(), per_channel=True)
    with pytest.raises(HardwareError, match="small has weights of 4 bits: give that or fewer"):
        quantize(graph, target=chip(weight_bits=4), bits=6)
    with pytest.raises(HardwareError, match="weights of 9 bits"):
        quantize(graph, bits=9)
    with pytest.raises(HardwareError, match=r"bits are given for \['nowhere'\]; layers with weights are c0"):
        quantize(graph, bits={"nowhere": 4})
