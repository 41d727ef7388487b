"""Thresholds: by hand on a two-layer network, the units that go with them, and rates that approach the ANN."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spikeprop import CNN, IF, LIF, Digits, MaxActivation, Percentile, Poisson, ThresholdBalancing, convert, snn_accuracy
from spikeprop.convert import ConversionError, ThresholdCalibrator, relu_activations, to_spiking
from spikeprop.snn import Direct, SpikingNetwork

CALIBRATORS = [MaxActivation(), Percentile(percentile=99.0), ThresholdBalancing(timesteps=60), ThresholdBalancing(scale=0.7)]


def two_layers() -> nn.Sequential:
    """Two inputs, two hidden neurons, one hidden neuron, one output; weights chosen by hand."""
    ann = nn.Sequential(
        nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)
    )
    for layer, weight in zip((ann[0], ann[2], ann[4]), ([[1.0, 0.5], [0.25, 1.5]], [[2.0, 1.0]], [[1.0]])):
        layer.weight.data = torch.tensor(weight)
    return ann


def test_balancing_by_hand() -> None:
    """Direct input (1, 0.5): currents of layer 1 are 1.25 and 1.0, so theta_1 = 1.25 (scale 1).

    Neuron 1 gets 1.25 = theta a step: u > theta is strict, so it fires from the second step on, once a step. Neuron 2 gets
    1.0: u = 1, 2*, 1.75*, 1.5*, 1.25, 2.25*, ... When both fire the current of layer 2 is 2 + 1 = 3, its maximum: theta_2 = 3.
    """
    network = convert(two_layers(), [torch.tensor([[1.0, 0.5]])], IF(), ThresholdBalancing(timesteps=8))
    first, second = network.neurons().values()
    assert float(first.v_threshold) == pytest.approx(1.25)
    assert float(second.v_threshold) == pytest.approx(3.0)


def test_balancing_uses_spikes_below_not_activations() -> None:
    """Of two steps only the second can hold a spike; of one step none: layer 2 is then never active, and that is an error."""
    with pytest.raises(ConversionError, match="never active"):
        convert(two_layers(), [torch.tensor([[1.0, 0.5]])], IF(), ThresholdBalancing(timesteps=1))


def test_scale_acts_on_every_threshold_and_on_later_layers() -> None:
    """Scale 0.5: theta_1 = 0.625, so both neurons fire from the first step; theta_2 = 0.5 * 3."""
    network = convert(two_layers(), [torch.tensor([[1.0, 0.5]])], IF(), ThresholdBalancing(timesteps=1, scale=0.5))
    assert [float(n.v_threshold) for n in network.neurons().values()] == pytest.approx([0.625, 1.5])


def test_balancing_keeps_the_weights_of_a_chain_without_biases(digits_cnn: CNN) -> None:
    network = convert(digits_cnn, [torch.rand(16, 1, 8, 8)], LIF(leak=0.9), ThresholdBalancing(timesteps=20))
    weights = [p for p in network.parameters() if p.dim() > 1]
    assert len(weights) == 4
    assert all(torch.equal(a, b) for a, b in zip(weights, (p for p in digits_cnn.parameters() if p.dim() > 1)))
    assert all(float(n.leak) == pytest.approx(0.9) for n in network.neurons().values())


def test_max_activation_by_hand() -> None:
    """Activations are 1.25 and 1.0, then 3.5: thresholds in units of the layer before are 1.25 and 3.5/1.25."""
    network = convert(two_layers(), [torch.tensor([[1.0, 0.5], [0.1, 0.1]])], IF(), MaxActivation())
    assert [float(n.v_threshold) for n in network.neurons().values()] == pytest.approx([1.25, 2.8])


def test_percentile_is_an_order_statistic() -> None:
    first = nn.Linear(1, 1, bias=False)
    first.weight.data.fill_(1.0)
    ann = nn.Sequential(first, nn.ReLU(), nn.Linear(1, 1))
    x = torch.arange(1.0, 101).view(100, 1) / 100
    network = convert(ann, [x], IF(), Percentile(percentile=90))
    (neuron,) = network.neurons().values()
    assert float(neuron.v_threshold) == pytest.approx(0.9)


class Skips(nn.Module):
    """Biases, an identity skip and a convolution: every kind of unit that calibration has to fold."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.Linear(48, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.a(x))
        return self.head(torch.relu(self.b(y) + y).flatten(1))


@pytest.mark.parametrize("calibrator", [MaxActivation(), ThresholdBalancing(timesteps=60)], ids=str)
def test_rates_approach_the_anns_activations(calibrator: ThresholdCalibrator) -> None:
    """After many steps the accumulated output is T times the ANN's, up to one positive factor; biases and skips included.

    (A percentile, or a scale below 1, clips the largest activations on purpose: the next test checks their accuracy.)
    """
    torch.manual_seed(3)
    ann, x = Skips().double(), torch.rand(64, 1, 4, 4, dtype=torch.float64)
    ann.head.bias.data.zero_()
    network = convert(ann, [x], IF(v_init=0.5), calibrator).double()
    with torch.no_grad():
        rates, expected = network(x, 3000) / 3000, ann(x)
    factor = float((rates * expected).sum() / (expected * expected).sum())
    torch.testing.assert_close(rates, factor * expected, atol=0.02 * float(rates.abs().max()), rtol=0)


@pytest.mark.parametrize("calibrator", CALIBRATORS, ids=str)
@pytest.mark.parametrize("encoder", [Direct(), Poisson()], ids=["direct", "poisson"])
def test_converted_accuracy_nears_the_ann(digits_cnn: CNN, calibrator: ThresholdCalibrator, encoder: Direct | Poisson) -> None:
    data = Digits()
    images = [x for x, _ in data.train(256, seed=0).epoch(0)][:1]
    torch.manual_seed(0)
    network = convert(digits_cnn, images, IF(), calibrator, encoder=encoder)
    with torch.no_grad():
        correct = sum(int((digits_cnn(x).argmax(1) == y).sum()) for x, y in data.test(360).epoch(0))
    accuracy = snn_accuracy(network, data.test(360).epoch(0), [100])[100]
    assert accuracy >= 100 * correct / 360 - 2.5


@pytest.mark.parametrize("calibrator", CALIBRATORS, ids=str)
def test_calibration_is_deterministic_under_a_seed(digits_cnn: CNN, calibrator: ThresholdCalibrator) -> None:
    thresholds = []
    for _ in range(2):
        torch.manual_seed(5)
        network = convert(digits_cnn, [torch.rand(16, 1, 8, 8)], IF(), calibrator, encoder=Poisson())
        thresholds.append([float(n.v_threshold) for n in network.neurons().values()])
    assert thresholds[0] == thresholds[1]


def test_a_checkpoint_holds_the_thresholds(digits_cnn: CNN) -> None:
    network = convert(digits_cnn, [torch.rand(8, 1, 8, 8)], IF(), MaxActivation())
    names = [name for name in network.state_dict() if name.endswith("neuron.v_threshold")]
    assert len(names) == len(network.neurons()) == 3


def test_a_dead_layer_and_no_images_are_errors(digits_cnn: CNN) -> None:
    with pytest.raises(ConversionError, match="never active"):
        convert(digits_cnn, [torch.zeros(4, 1, 8, 8)], IF(), MaxActivation())
    with pytest.raises(ConversionError, match="no calibration images"):
        convert(digits_cnn, [], IF(), MaxActivation())
    with pytest.raises(ConversionError, match="NaN"):
        convert(digits_cnn, [torch.full((4, 1, 8, 8), float("nan"))], IF(), MaxActivation())


def test_images_beyond_the_range_of_poisson_cause_a_warning(digits_cnn: CNN) -> None:
    with pytest.warns(UserWarning, match="saturates beyond 1"):
        convert(digits_cnn, [3 * torch.rand(4, 1, 8, 8)], IF(), MaxActivation(), encoder=Poisson())


@torch.no_grad()
def test_relu_activations_follow_gains() -> None:
    """A calibrated network, computed as an ANN, is the ANN up to the units of its layers."""
    torch.manual_seed(0)
    ann, x = Skips(), torch.rand(8, 1, 4, 4)
    plain = relu_activations(to_spiking(ann, IF, Direct(), (1, 4, 4)), x)
    network: SpikingNetwork = convert(ann, [x], IF(), MaxActivation())
    calibrated = relu_activations(network, x)
    torch.testing.assert_close(calibrated["a"], plain["a"])
    unit = float(network.neurons()["a"].v_threshold)
    assert float(network.neurons()["b"].v_threshold) * unit == pytest.approx(float(plain["b"].max()), rel=1e-5)


def definition(network: SpikingNetwork, x: torch.Tensor, timesteps: int, scale: float) -> list[float]:
    """Balancing by its definition: for each layer, run the network from the input up to it, on the plain reference."""
    network.packed = False
    found: list[float] = []
    names = list(network.neurons())
    for name, neuron in network.neurons().items():
        peaks = []
        trains: dict[str, list[torch.Tensor]] = {}
        for later in names[names.index(name) :]:
            network.neurons()[later].v_threshold.fill_(1e30)
        network(x, timesteps, observe=lambda layer, s, trains=trains: trains.setdefault(layer, []).append(s.clone()))
        measured = dict(network.named_layers())[name]
        for t in range(timesteps):
            currents = [synapse(torch.stack([trains[source][t][0]])) for _, source, synapse in measured.branches()]
            peaks.append(float(torch.stack(currents).sum(0).max()))
        neuron.v_threshold.fill_(max(peaks) * scale)
        found.append(max(peaks) * scale)
    return found


@torch.no_grad()
@pytest.mark.parametrize("neuron", [IF(), IF(v_init=0.5), LIF(leak=1.0, reset="zero")], ids=str)
def test_balancing_is_its_definition(neuron: IF | LIF) -> None:
    torch.manual_seed(0)
    ann = CNN(input_shape=(2, 8, 8), classes=4, plan=[6, "A", 7, 8, "A"], hidden=[9]).double()
    x = torch.rand(5, 2, 8, 8, dtype=torch.float64)
    balancing = ThresholdBalancing(timesteps=17, scale=0.6)
    network = convert(ann, [x], neuron.double(), balancing)
    ours = [float(n.v_threshold) for n in network.neurons().values()]
    assert ours == pytest.approx(definition(network, x, 17, 0.6), rel=1e-12)
