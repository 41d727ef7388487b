"""Threshold iteration: against a brute-force minimum by numerical integration, its edge cases, and a conversion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from spikeprop import CNN, IF, Digits, GradedIF, SignedIF, ThresholdIteration, convert, snn_accuracy
from spikeprop.convert import activation_scales
from spikeprop.convert.calibrators.threshold_iteration import best_range
from spikeprop.errors import ConversionError


def expected_error(mean: float, deviation: float, counts: int, largest: np.ndarray) -> np.ndarray:
    """E[(relu(x) - Q(x))^2] of x ~ N(mean, deviation^2) for each largest value: a sum over a fine grid of x."""
    x = np.linspace(max(0.0, mean - 8 * deviation), max(mean, 0.0) + 8 * deviation, 4_001)[:, None]
    density = np.exp(-(((x - mean) / deviation) ** 2) / 2) / (deviation * np.sqrt(2 * np.pi))
    unit = largest / counts
    sent = np.clip(np.round(x / unit), 0, counts) * unit
    return ((x - sent) ** 2 * density).sum(0) * (x[1, 0] - x[0, 0])


@pytest.mark.parametrize("counts", [1, 3, 8, 15, 64])  # one bit at T = 1, 2 levels, T = 8, 4 levels, T = 64
def test_it_is_the_minimum_of_the_expected_error(counts: int) -> None:
    means = [-3.0, -1.0, -0.3, 0.0, 0.2, 1.0, 2.5, 8.0]
    deviations = [1.0, 0.5, 2.0, 1.0, 0.01, 1.0, 1.0, 0.7]
    found = best_range(torch.tensor(means), torch.tensor(deviations), counts).tolist()
    for mean, deviation, largest in zip(means, deviations, found):
        tried = np.geomspace(0.02, 1, 500) * (max(mean, 0) + 6 * deviation)
        least = expected_error(mean, deviation, counts, tried).min()
        own = float(expected_error(mean, deviation, counts, np.array([largest]))[0])
        assert own <= least * 1.005 + 1e-12, (mean, deviation, counts, largest)


def test_k_is_one_where_it_ends() -> None:
    """The equation of the paper, with samples instead of integrals: E[x Q] = E[Q^2]."""
    x = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.3 + 0.4
    for counts in (1, 7, 30):
        unit = best_range(torch.tensor([0.4]), torch.tensor([1.3]), counts) / counts
        sent = (x / unit).round().clamp(0, counts) * unit
        assert float((x * sent).mean() / sent.square().mean()) == pytest.approx(1, abs=2e-3)


def test_channels_without_deviation_and_without_activity_have_finite_ranges() -> None:
    mean = torch.tensor([2.0, 0.0, -1.0, -50.0, 1e8, 1e-30, -1e-30, 5.0])
    deviation = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1e-30])
    for counts in (1, 15, 1000):
        found = best_range(mean, deviation, counts)
        assert found.isfinite().all()
        assert torch.allclose(found[[0, 5, 7]], mean[[0, 5, 7]].double())  # sent exactly
        assert float(found[4]) == pytest.approx(1e8, rel=1e-6)
        assert (found[[1, 2, 3, 6]] == 0).all()  # never active: the layer's largest is taken


def one_layer(bias: list[float]) -> nn.Sequential:
    layer: Any = nn.Conv2d(1, len(bias), 1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.weight[1] = 0.0
        layer.bias.copy_(torch.tensor(bias))
    return nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(len(bias) * 16, 2)).eval()


@pytest.mark.parametrize("neuron", [IF(v_init=0.5), SignedIF(), GradedIF(levels=3)], ids=str)
def test_each_channel_has_the_range_of_its_own_currents(neuron: IF | GradedIF) -> None:
    x = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    network = convert(one_layer([0.5, 2.0, -40.0]), [x], neuron, ThresholdIteration(timesteps=4))
    (layer,) = network.neurons().values()
    scale = layer.full_scale.flatten().tolist()
    total = x + 0.5
    wanted = best_range(total.mean().reshape(1), total.std(correction=0).reshape(1), 4 * layer.payload)
    assert scale[0] == pytest.approx(float(wanted), rel=1e-4)
    assert scale[1] == pytest.approx(2.0)  # always 2
    assert scale[2] == pytest.approx(max(scale))  # never active
    assert all((value > 0).all() and value.isfinite().all() for value in activation_scales(network).values())


def test_a_ceiling_limits_it() -> None:
    ann = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU6(), nn.Flatten(), nn.Linear(32, 2)).eval()
    x = 100 * torch.rand(16, 1, 4, 4)
    (layer,) = convert(ann, [x], IF(v_init=0.5), ThresholdIteration(timesteps=64)).neurons().values()
    assert float(layer.full_scale.max()) <= 6.0


def test_neurons_that_do_not_round_are_refused(digits_cnn: CNN) -> None:
    with pytest.raises(ConversionError, match=r"ThresholdIteration is for neurons that round: give the neuron v_init=0\.5"):
        convert(digits_cnn, [torch.rand(4, 1, 8, 8)], IF(), ThresholdIteration())


def test_digits_keep_their_accuracy(digits_cnn: CNN) -> None:
    x = next(iter(Digits().train(512, seed=0).epoch(0)))[0]
    test = list(Digits().test(360).epoch(0))
    graded = convert(digits_cnn, [x], GradedIF(levels=4), ThresholdIteration(timesteps=1))
    assert snn_accuracy(graded, test, [1])[1] > 95
    plain = convert(digits_cnn, [x], IF(v_init=0.5), ThresholdIteration(timesteps=16))
    assert snn_accuracy(plain, test, [16])[16] > 95
