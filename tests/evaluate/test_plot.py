"""Pictures show the numbers that they are given: bars, points and marks are read back from matplotlib's Axes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from matplotlib import pyplot
from torch import Tensor, nn

from spikeprop import (
    CNN,
    IF,
    GradedIF,
    History,
    MaxActivation,
    SignedIF,
    SpikingNetwork,
    convert,
    explain_conversion,
    plot,
    spiking,
)
from spikeprop.convert import activation_scales, relu_activations, uncalibrated
from spikeprop.errors import DataError
from spikeprop.evaluate import conversion_error
from spikeprop.report.raster import potentials
from spikeprop.snn import SpikeRecording


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def small() -> tuple[CNN, SpikingNetwork, Tensor]:
    torch.manual_seed(0)
    ann = CNN(input_shape=(1, 8, 8), classes=10, plan=[4, "A"], hidden=[8]).eval()
    x = torch.rand(12, 1, 8, 8)
    return ann, convert(ann, x, IF(v_init=0.5), MaxActivation()), x


def points(ax: Any) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for line in ax.get_lines() for a, b in zip(line.get_xdata(), line.get_ydata())]


def test_raster_marks_every_spike_of_the_sample() -> None:
    spikes_TBN = torch.zeros(4, 2, 3)
    spikes_TBN[0, 1, 2] = spikes_TBN[3, 1, 0] = 1
    spikes_TBN[2, 1, 1] = -1
    ax: Any = plot.raster(spikes_TBN, sample=1)
    assert sorted(points(ax)) == [(1, 2), (3, 1), (4, 0)]
    assert plot.raster(spikes_TBN[:, 1], ax) is ax
    assert not points(plot.raster(spikes_TBN, sample=0))


def test_raster_of_a_network_leaves_the_picture_at_the_input_out(small: tuple[CNN, SpikingNetwork, Tensor]) -> None:
    _, network, x = small
    seen = network.record(x, 5)
    labels = [tick.get_text() for tick in plot.raster(seen, neurons=16).get_yticklabels()]
    assert labels == ["features_0\n16 of 256", "classifier_1\n8 of 8"]
    with pytest.raises(DataError, match="no layer 'none'; there are input, features_0"):
        plot.raster(seen, layers=["none"])
    with pytest.raises(DataError, match="sample 12 of a batch of 12"):
        plot.raster(seen, sample=12)


def test_membrane_shows_potential_threshold_and_spikes(small: tuple[CNN, SpikingNetwork, Tensor]) -> None:
    _, network, x = small
    seen = network.record(x[:2], 6, membranes=True)
    ax: Any = plot.membrane(seen, layer="classifier_1", neuron=3, sample=1)
    trace, theta, fired = ax.get_lines()
    assert list(trace.get_ydata()) == seen.membranes["classifier_1"][:, 1, 3].tolist()
    assert theta.get_ydata()[0] == pytest.approx(float(network.neurons()["classifier_1"].v_threshold))
    assert list(fired.get_xdata()) == [t + 1 for t in range(6) if seen.spikes["classifier_1"][t, 1, 3]]
    assert len(plot.membrane(seen.membranes["classifier_1"]).get_lines()) == 5
    with pytest.raises(DataError, match="no neuron 8: the layer has 8"):
        plot.membrane(seen, layer="classifier_1", neuron=8)
    with pytest.raises(DataError, match="membranes=True"):
        plot.membrane(network.record(x[:2], 2))


def test_the_threshold_shown_is_the_potential_above_which_a_graded_neuron_fires() -> None:
    """One neuron, driven by less and by more than each level: it sends k above k thresholds, and no table differs."""
    graded = GradedIF(levels=2, v_threshold=2.0, v_init=0.0)
    network = spiking(nn.Sequential(nn.Linear(1, 1, bias=False), graded, nn.Linear(1, 1)), input_shape=(1,))
    with torch.no_grad():
        next(network.parameters()).fill_(1.0)
    (name, neuron), *_ = network.neurons().items()
    for current, payload in ((0.99, 0), (1.01, 1), (2.01, 2), (3.01, 3), (9.0, 3)):
        seen = network.record(torch.tensor([[current]]), 1, membranes=True)
        assert seen.spikes[name].flatten().tolist() == [payload]
        theta = float(seen.thresholds[name])
        assert theta == 1.0
    (row,) = [row for row in network.summary().layers if row.name == name]
    assert row.threshold == (theta, theta)
    assert points(plot.thresholds(network))[0][0] == theta
    ax: Any = plot.membrane(seen, layer=name)
    assert [line.get_ydata()[0] for line in ax.get_lines() if line.get_linestyle() in ("--", ":")] == [1.0, 3.0]
    assert [text.get_text() for text in ax.texts] == ["3"]
    (shown,) = potentials(network, torch.tensor([9.0]), 1)
    assert (shown["threshold"], shown["spikes"]) == (1.0, [[0, 3]])
    assert neuron.v_threshold == 2.0


def test_a_recording_has_no_negative_zero() -> None:
    recording = SpikeRecording()
    recording("a", torch.tensor([[-0.0, 1.0]]))
    assert not recording.spikes["a"].signbit().any()


def test_rates_are_those_recorded_and_those_of_a_summary(small: tuple[CNN, SpikingNetwork, Tensor]) -> None:
    _, network, x = small
    seen = network.record(x, 5)
    ax: Any = plot.rates({"recorded": seen, "counted": network.summary(x, 5)})
    widths = [bar.get_width() for bar in ax.patches]
    assert widths[:2] == pytest.approx([seen.rates()[name] for name in network.neurons()])
    assert widths[2:] == pytest.approx(widths[:2])
    bars: Any = plot.rates({"a": 0.25, "b": 0.5})
    assert [bar.get_width() for bar in bars.patches] == [0.25, 0.5]
    with pytest.raises(DataError, match="give it images"):
        plot.rates(network.summary())


def test_thresholds_are_points_of_every_channel(small: tuple[CNN, SpikingNetwork, Tensor]) -> None:
    ann, _, x = small
    network = convert(ann, x, SignedIF(), timesteps=4)
    shown = {value for value, _ in points(plot.thresholds(network))}
    assert {float(v) for n in network.neurons().values() for v in n.v_threshold.double().flatten()} <= shown
    with pytest.raises(DataError, match="and got a CNN"):
        plot.thresholds(ann)  # type: ignore[arg-type]


def test_accuracy_has_a_curve_a_label_and_the_anns_line() -> None:
    ax: Any = plot.accuracy_vs_T({"IF": {8: 91.0, 4: 90.0}, "SignedIF": {4: 92.0}}, ann=93.0)
    assert points(ax)[:3] == [(4, 90), (8, 91), (4, 92)]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["IF", "SignedIF", "ANN"]
    assert points(plot.accuracy_vs_T({2: 50.0})) == [(2, 50)]
    for curve, low, high in (({4: 90.0, 8: 90.4}, 85, 96), ({4: 99.6, 8: 100.0}, 90, 101.5), ({1: 0.0, 2: 0.3}, -1, 10)):
        bottom, top = plot.accuracy_vs_T(curve).get_ylim()  # a tenth of a percent is no slope
        assert low <= bottom < min(curve.values()) <= max(curve.values()) < top <= high
        assert top - bottom >= 9
    assert plot.accuracy_vs_T({1: 10.0, 8: 90.0}).get_ylim()[0] < 10 < 90 < plot.accuracy_vs_T({1: 10.0, 8: 90.0}).get_ylim()[1]
    for wrong in ({}, [90.0], {"IF": 90.0}, {"IF": {}}):
        with pytest.raises(DataError, match="snn_accuracy"):
            plot.accuracy_vs_T(wrong if wrong != {"IF": 90.0} else {"IF": "x"})  # type: ignore[arg-type]


def test_conversion_error_shows_both_forms(small: tuple[CNN, SpikingNetwork, Tensor]) -> None:
    ann, network, x = small
    why = explain_conversion(network, ann, x, [2, 4])
    assert str(why.images) in why._repr_html_()
    ax: Any = plot.conversion_error(why)
    per_layer = len(network.neurons())
    widths = torch.tensor([bar.get_width() for bar in ax.patches]).view(-1, per_layer).sum(0)
    assert widths.tolist() == pytest.approx([100 * row.own for row in why.at(4)], rel=1e-4)
    plain = uncalibrated(network, ann, x)
    with torch.no_grad():
        errors = conversion_error(network, x, relu_activations(plain, x), activation_scales(network), [2, 4])
    texts = [text.get_text() for text in plot.conversion_error(errors).texts]
    assert texts == [f"{by_t[t].total:.2f}" for by_t in errors.values() for t in (2, 4)]
    with pytest.raises(DataError, match="explain_conversion"):
        plot.conversion_error({"a": 1})


def test_confusion_counts_pairs() -> None:
    labels, predicted = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 2])
    ax: Any = plot.confusion(torch.eye(3)[predicted], labels, names=["a", "b", "c"])
    assert ax.get_title() == "75.00 % of 4"
    assert ax.images[0].get_array().tolist() == [[50, 50, 0], [0, 100, 0], [0, 0, 100]]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["a", "b", "c"]
    assert plot.confusion(predicted, labels).get_title() == "75.00 % of 4"
    assert plot.confusion(torch.arange(30), torch.arange(30)).get_title() == "100.00 % of 30"
    with pytest.raises(DataError, match=r"outside 0\.\.1"):
        plot.confusion(predicted, labels, names=["a", "b"])
    with pytest.raises(DataError, match=r"predictions \(4,\) and labels \(3,\)"):
        plot.confusion(predicted, labels[:3])


def test_history_has_loss_and_accuracy_and_is_a_table() -> None:
    rows = [{"epoch": 0, "loss": 2.0, "accuracy": 10.0}, {"epoch": 1, "loss": 1.0, "accuracy": 50.0}]
    found = History(rows)
    assert found == rows
    assert found.column("loss") == [2.0, 1.0]
    with pytest.raises(DataError, match="no 'los'; it has epoch, loss, accuracy"):
        found.column("los")
    assert "<td" in found._repr_html_()
    ax: Any = plot.history(found)
    assert points(ax) == [(1, 2), (2, 1)]
    assert points(ax.figure.axes[-1]) == [(1, 10), (2, 50)]
    assert len(plot.history([{"epoch": 0, "loss": 1.0, "accuracy": None}]).figure.axes) == 1
    with pytest.raises(DataError, match="what fit returned"):
        plot.history([])
