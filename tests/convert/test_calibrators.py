"""Calibrators for a given T: optima by hand and by search, smaller errors, delayed readout and shifted potentials."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from spikeprop import CNN, IF, Digits, GradedIF, MaxActivation, Percentile, SignedIF, ThresholdBalancing, convert, snn_accuracy
from spikeprop.ann.activation import QCFS
from spikeprop.convert import (
    AdvancedCalibration,
    ConversionError,
    LearnedCeiling,
    LeastError,
    LightCalibration,
    LocalThresholdBalancing,
    OffsetSpike,
    ThresholdCalibrator,
    activation_scales,
    relu_activations,
    to_spiking,
)
from spikeprop.convert.calibrators.advanced_calibration import LayerFit
from spikeprop.convert.calibrators.correction import delay_readout
from spikeprop.convert.calibrators.least_error import GridSearch, quantised
from spikeprop.experiment.network_checkpoint import _make_room
from spikeprop.learn import load_checkpoint, load_model, save_checkpoint
from spikeprop.snn import Direct, Gain, Layer, Neuron, NeuronState, SpikingNetwork, Synapse
from spikeprop.snn.offset import offset, shifted_start

STEPS = 2
FOR_T: list[ThresholdCalibrator] = [
    LeastError(timesteps=STEPS),
    LocalThresholdBalancing(timesteps=STEPS),
    LightCalibration(timesteps=STEPS),
    LightCalibration(timesteps=STEPS, potential=True),
    AdvancedCalibration(timesteps=STEPS, iterations=60),
]


def digits_images(count: int) -> torch.Tensor:
    return next(iter(Digits().train(count, seed=0).epoch(0)))[0]


def error(scale: torch.Tensor, activation: torch.Tensor, steps: int) -> float:
    return float((quantised(activation / scale, 0.5, steps) * scale - activation).square().mean())


def test_least_error_is_the_grids_best() -> None:
    """By brute force over the same 50 fractions, and never worse than the largest activation as threshold."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2))
    x = torch.randn(400, 6)
    activation = next(iter(relu_activations(to_spiking(ann, IF, Direct(), (6,)), x).values())).detach()
    network = convert(ann, [x], IF(v_init=0.5), LeastError(timesteps=STEPS))
    (scales,) = activation_scales(network).values()
    for channel, scale in enumerate(scales):
        a = activation[:, channel]
        grid = [float(a.max()) * k / 50 for k in range(1, 51)]
        best = min(error(torch.tensor(s), a, STEPS) for s in grid)
        assert error(scale, a, STEPS) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("counts", [16, 4 * 7])
@pytest.mark.parametrize("per", ["layer", "channel"])
def test_all_candidates_in_one_pass_have_the_errors_of_the_definition(per: Literal["layer", "channel"], counts: int) -> None:
    torch.manual_seed(0)
    current = torch.randn(3, 5000)
    target, scales = torch.relu(current + 0.1), torch.rand(7, 3) + 0.1
    found = GridSearch(counts, per, 7)._errors(current, target, scales, 0.5)
    for scale_R, error_R in zip(scales, found, strict=True):
        rates = quantised(current / scale_R[:, None], 0.5, counts)
        wanted = (rates * scale_R[:, None] - target).square().sum(1, dtype=torch.float64)
        torch.testing.assert_close(error_R, wanted, rtol=1e-14, atol=0)


@pytest.mark.parametrize("neuron", [IF(v_init=0.5), GradedIF(levels=3)], ids=["IF", "GradedIF"])
@pytest.mark.parametrize("channels", [5, 16, 37])
def test_the_fits_fused_gradients_are_those_of_its_definition(channels: int, neuron: Neuron) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    rates = {name: torch.randint(0, 17, (20, channels, 4, 6)) / 16.0 for name in ("a", "b")}
    synapses = [("a", Synapse([conv])), ("b", Synapse([Gain(torch.tensor(0.7))]))]
    layer = Layer(synapses, copy.deepcopy(neuron)).double()
    layer.neuron.set_threshold(torch.rand(channels, 1, 1) + 0.5)  # type: ignore[union-attr]
    target = torch.relu(torch.randn(20, channels, 4, 6)).double()
    fit = LayerFit(layer, target, {name: rate.double() for name, rate in rates.items()}, timesteps=16)
    some, found = torch.randperm(20)[:13], []
    for step in (
        lambda: ((fit._output(some) - target[some]).square().sum() * 0.3).backward(),
        lambda: fit._add_gradients(some, 0.3),
    ):
        for parameter in fit.trained:
            parameter.grad = None
        step()
        found.append([parameter.grad for parameter in fit.trained])
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)
    assert fit.error() == pytest.approx(float((fit._output(torch.arange(20)) - target).detach().square().sum()), rel=1e-12)


@pytest.mark.parametrize(("power", "times"), [(1, 1.2), (3, 1.6)], ids=["short tail", "long tail"])
def test_local_balancing_ends_near_the_least_error(power: int, times: float) -> None:
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2))
    x = torch.randn(4000, 6) ** power
    activation = next(iter(relu_activations(to_spiking(ann, IF, Direct(), (6,)), x).values())).detach()
    (local,) = activation_scales(convert(ann, [x], IF(v_init=0.5), LocalThresholdBalancing(timesteps=16))).values()
    for channel, scale in enumerate(local):
        a = activation[:, channel]
        assert error(scale, a, 16) < times * min(error(a.max() * k / 50, a, 16) for k in range(1, 51))


@torch.no_grad()
@pytest.mark.parametrize("calibrator", FOR_T, ids=str)
def test_scores_at_few_steps_are_nearer_to_the_anns_than_with_a_percentile(
    digits_cnn: CNN, calibrator: ThresholdCalibrator
) -> None:
    """Less than half as far, on the same images; predictions of 360 are too few for a margin, so none gets worse is all."""
    x, ((images, labels),) = digits_images(512), list(Digits().test(360).epoch(0))
    wanted = digits_cnn.eval()(images)
    off, correct = [], []
    for tried in (Percentile(), calibrator):
        scores = convert(digits_cnn, [x], IF(v_init=0.5), tried)(images, STEPS) / STEPS
        off.append(float((scores - wanted).norm()))
        correct.append(int((scores.argmax(1) == labels).sum()))
    assert off[1] < 0.5 * off[0]
    assert correct[1] >= correct[0]


@torch.no_grad()
def test_light_calibration_leaves_less_mean_error(digits_cnn: CNN) -> None:
    """The mean rate of the last hidden layer comes nearer to the mean of the ANN's activation, neuron by neuron."""
    x = digits_images(512)
    wanted = relu_activations(to_spiking(digits_cnn, IF, Direct(), (1, 8, 8)), x)
    found = {}
    for light in (False, True):
        calibrator = LightCalibration(timesteps=STEPS, bias=light, delay=False)
        network = convert(digits_cnn, [x], IF(v_init=0.5), calibrator)
        counts: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            network(x, STEPS, observe=lambda n, s, c=counts: c.__setitem__(n, c.get(n, 0) + s.sum(0)))
        last = list(network.neurons())[-1]
        missed = (counts[last] / STEPS * activation_scales(network)[last] - wanted[last].detach()).mean(0)
        found[light] = float(missed.abs().mean() / wanted[last].mean())
    assert found[True] < 0.6 * found[False]


@pytest.mark.parametrize(
    "calibrator", [LightCalibration(timesteps=STEPS), AdvancedCalibration(timesteps=STEPS, iterations=5)], ids=str
)
def test_a_checkpoint_holds_all_that_calibration_changes(
    digits_cnn: CNN, calibrator: ThresholdCalibrator, tmp_path: Path
) -> None:
    """Biases, thresholds by channel, gains, initial potentials, scales and the delay are loaded into a fresh network."""
    x = digits_images(128)
    network = convert(digits_cnn, [x], IF(v_init=0.5), calibrator)
    save_checkpoint(tmp_path / "n.safetensors", network, {})
    checkpoint = load_checkpoint(tmp_path / "n.safetensors")
    fresh = to_spiking(digits_cnn, IF, Direct(), (1, 8, 8)).eval()
    _make_room(fresh, checkpoint.section("model"))
    load_model(fresh, checkpoint)
    with torch.no_grad():
        assert torch.equal(fresh(x, 9), network(x, 9))


def ramp() -> SpikingNetwork:
    """One input, one neuron with threshold 1, and an output that counts its spikes."""
    hidden, out = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    for layer in (hidden, out):
        layer.weight.data.fill_(1.0)
    layers = {"hidden": Layer([("input", Synapse([hidden]))], IF()), "out": Layer([("hidden", Synapse([out]))], None)}
    return SpikingNetwork(layers, Direct(), (1,)).eval()


@torch.no_grad()
@pytest.mark.parametrize("packed", [True, False])
def test_a_delayed_readout_subtracts_the_first_steps(packed: bool) -> None:
    """Current 0.4: u = .4, .8, 1.2*, .6, 1.0, 1.4*, .8, 1.2*, .6, 1.0: spikes in steps 3, 6 and 8."""
    network = ramp()
    network.packed = packed
    network.readout.set(delay=6)
    x = torch.full((1, 1), 0.4)
    outputs = torch.cat([o[:, 0, 0] for o in network.unroll(x, 9, chunk=2)])
    assert outputs.tolist() == [0, 0, 1, 1, 1, 2, 0, 1, 1]
    assert float(network(x, 9)) == 1
    assert float(network(x, 5)) == 1  # within the delay: the plain sum


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 3, 20])
def test_offset_spikes_by_hand(chunk: int) -> None:
    """Current 0.45: u = .45, .9, 1.35*, and 0.35 is left: no shift, so the second run equals the first.

    Current 1.5 fires in every step and holds 1.5 after three: it starts again at 1, and still fires in every step.
    """
    network = ramp()
    network.readout.set(pre_run=3)
    outputs = torch.cat([o[:, 0, 0] for o in network.unroll(torch.tensor([[0.45]]), 8, chunk=chunk)])
    assert outputs.tolist() == [0, 0, 1, 0, 0, 1, 1, 2]
    late = torch.cat([o[:, 0, 0] for o in network.unroll(torch.tensor([[1.5]]), 5, chunk=chunk)])
    assert late.tolist() == [1, 2, 3, 1, 2]


@torch.no_grad()
def test_offset_spikes_compensate_a_late_input() -> None:
    """A neuron whose potential ends at 1.9 thresholds starts a threshold higher, one that ends below 0 a threshold lower."""
    assert offset(torch.tensor([-0.3, 0.0, 0.4, 1.0, 1.9, 2.5]), torch.tensor(1.0)).tolist() == [-1, 0, 0, 1, 1, 2]
    network = ramp()
    network.readout.set(pre_run=2)
    neuron = network.neurons()["hidden"]
    neuron.v_init = torch.tensor(0.9)  # 0.9, then current 0.65: u = 1.55*, 1.2*: two spikes, 0.2 is left: no shift
    assert [float(o) for o in torch.cat(list(network.unroll(torch.tensor([[0.65]]), 4, chunk=1)))[:, 0, 0]] == [1, 2, 1, 2]
    neuron.v_init = torch.tensor(
        2.5
    )  # current 0.1: u = 2.6*, 1.7*, and 0.7 is left: no shift; without current 1.5 is left after one
    network.readout.set(pre_run=1)
    shifted = torch.cat(list(network.unroll(torch.tensor([[0.1]]), 3, chunk=1)))[:, 0, 0]
    assert shifted.tolist() == [1, 1, 2]  # 1.6 left: starts at 2.5 + 1: u = 3.6*, 2.7*
    assert float(shifted_start(neuron, NeuronState(torch.tensor([1.6]), None)).v) == pytest.approx(3.5)
    assert float(shifted_start(neuron, NeuronState(torch.tensor([-0.1]), None)).v) == pytest.approx(1.5)


@torch.no_grad()
def test_the_readout_is_delayed_for_a_network_that_starts_late() -> None:
    """Two classes: the neuron of the correct one needs four steps to charge, the other fires immediately for a while (v_init)."""
    network = ramp()
    hidden = nn.Linear(1, 2, bias=False)
    hidden.weight.data = torch.tensor([[0.24], [0.0]])
    out = nn.Linear(2, 2, bias=False)
    out.weight.data = torch.eye(2)
    layers = {
        "hidden": Layer([("input", Synapse([hidden]))], network.neurons()["hidden"]),
        "out": Layer([("hidden", Synapse([out]))], None),
    }
    late = SpikingNetwork(layers, Direct(), (1,)).eval()
    late.neurons()["hidden"].v_init = torch.tensor([0.0, 3.0])  # the second neuron fires in steps 1 and 2, without input
    x = torch.ones(3, 1)
    chosen = delay_readout(late, x, torch.tensor([[0.24, 0.0]]).expand(3, 2) * 20, 12)
    assert chosen >= 2
    assert int(late.readout.delay) == chosen
    assert late(x, 12).argmax(1).tolist() == [0, 0, 0]


def test_the_fit_of_advanced_calibration_restores_corrupted_weights() -> None:
    """A layer with half of each weight, and the activations of the complete weights as its target."""
    torch.manual_seed(0)
    linear = nn.Linear(8, 5, bias=False)
    rates = torch.rand(256, 8)
    target = torch.relu(linear(rates)).detach()
    linear.weight.data.mul_(0.5)
    layer = Layer([("input", Synapse([linear]))], IF(v_init=0.5, v_threshold=float(target.max())))
    fit = LayerFit(layer, target, {"input": rates}, timesteps=16)
    before = fit.error()
    fit.run(iterations=300, batch_size=64, step=0.01)
    assert fit.error() < 0.2 * before


def test_a_fit_that_does_not_lower_the_error_is_undone() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(8, 5)
    rates = torch.rand(256, 8)
    target = torch.relu(linear(rates)).detach()
    layer = Layer([("input", Synapse([linear]))], IF(v_init=0.5, v_threshold=float(target.max())))
    weight = linear.weight.detach().clone()
    LayerFit(layer, target, {"input": rates}, timesteps=1000).run(iterations=3, batch_size=8, step=1.0)
    assert torch.equal(linear.weight, weight)


def rising_leaky_net(head: float = 1.0) -> nn.Module:
    """Positive weights without biases: on positive images no input of an activation is negative, so no negative side fires."""
    ann: Any = nn.Sequential(
        nn.Linear(6, 5, bias=False), nn.LeakyReLU(0.1), nn.Linear(5, 4, bias=False), nn.LeakyReLU(0.2), nn.Linear(4, 3)
    )
    for module in ann[::2]:
        module.weight.data.abs_()
    ann[4].weight.data.mul_(head)
    ann[4].bias.data.mul_(head)
    return ann.eval()


EVERY: list[ThresholdCalibrator] = [
    *FOR_T,
    AdvancedCalibration(timesteps=16, iterations=20, per="layer"),
    MaxActivation(),
    Percentile(per="channel"),
    ThresholdBalancing(timesteps=20),
    ThresholdBalancing(timesteps=20, percentile=99.0),
    OffsetSpike(calibrator=LeastError(timesteps=8)),
]


@pytest.mark.parametrize("neuron", [IF(v_init=0.5), SignedIF()], ids=["IF", "SignedIF"])
@pytest.mark.parametrize("calibrator", EVERY, ids=str)
def test_a_side_that_no_image_reaches_is_calibrated_and_stays_silent(calibrator: ThresholdCalibrator, neuron: Neuron) -> None:
    torch.manual_seed(0)
    x = torch.rand(40, 6) + 0.1
    network = convert(rising_leaky_net(), [x], neuron, calibrator)
    for name, found in network.neurons().items():
        assert (found.v_threshold > 0).all(), name
    assert all(value.isfinite().all() for value in network.state_dict().values())
    for name, rate in rates_of(network, x, 4).items():
        assert not name.endswith("_negative") or not rate.any(), name


@pytest.mark.parametrize("calibrator", EVERY, ids=str)
def test_scores_of_zero_leave_weights_that_are_numbers(calibrator: ThresholdCalibrator) -> None:
    """The head's target is zero for all images: there is nothing to relate its error to."""
    torch.manual_seed(0)
    x = torch.rand(40, 6) + 0.1
    network = convert(rising_leaky_net(head=0.0), [x], IF(v_init=0.5), calibrator)
    assert all(value.isfinite().all() for value in network.state_dict().values())
    assert not network(x, 4).any()


@pytest.mark.parametrize("calibrator", EVERY, ids=str)
def test_a_channel_that_is_never_active_gets_a_threshold(calibrator: ThresholdCalibrator) -> None:
    torch.manual_seed(0)
    ann: Any = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    for module, positive in ((ann[0], 1.0), (ann[2], 1.0)):
        module.weight.data.abs_()
        module.bias.data.fill_(positive)
        module.weight.data[1], module.bias.data[1] = 0.0, -1.0
    x = torch.rand(40, 6) + 0.1
    network = convert(ann, [x], IF(v_init=0.5), calibrator)
    assert all(value.isfinite().all() for value in network.state_dict().values())
    assert all((neuron.v_threshold > 0).all() for neuron in network.neurons().values())


@pytest.mark.parametrize("calibrator", EVERY, ids=str)
def test_a_layer_that_is_never_active_is_refused_by_name(calibrator: ThresholdCalibrator) -> None:
    torch.manual_seed(0)
    ann: Any = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    ann[0].weight.data.abs_().neg_()
    ann[0].bias.data.zero_()
    with pytest.raises(ConversionError, match=r"layer '_?\w+' is never active on the calibration images"):
        convert(ann, [torch.rand(40, 6) + 0.1], IF(v_init=0.5), calibrator)


def test_initial_potentials_compensate_each_neurons_mean_error(digits_cnn: CNN) -> None:
    x = digits_images(256)
    with torch.no_grad():
        wanted = relu_activations(to_spiking(digits_cnn, IF, Direct(), (1, 8, 8)), x)
    first = next(iter(wanted))
    left = {}
    for potential in (False, True):
        network = convert(digits_cnn, [x], IF(v_init=0.5), LightCalibration(timesteps=STEPS, bias=False, potential=potential))
        left[potential] = float(
            (rates_of(network, x, STEPS)[first] * activation_scales(network)[first] - wanted[first]).mean(0).abs().mean()
        )
    assert left[True] < 0.8 * left[False]


@torch.no_grad()
def rates_of(network: SpikingNetwork, x: torch.Tensor, steps: int) -> dict[str, torch.Tensor]:
    counts: dict[str, torch.Tensor] = {}
    network(x, steps, observe=lambda n, s: counts.__setitem__(n, counts.get(n, 0) + s.sum(0)))
    return {name: count / steps for name, count in counts.items()}


def test_offset_spike_counts_its_pre_run(digits_cnn: CNN) -> None:
    network = convert(digits_cnn, [digits_images(64)], IF(v_init=0.5), OffsetSpike(calibrator=Percentile(), pre_run=4))
    assert int(network.readout.pre_run) == 4
    test = list(Digits().test(360).epoch(0))
    accuracy = snn_accuracy(network, test, [4, 5, 40])
    assert accuracy[40] > 95
    assert accuracy[5] < accuracy[40]


def test_a_learnt_ceiling_is_the_threshold() -> None:
    torch.manual_seed(0)
    ann = CNN(input_shape=(1, 8, 8), classes=4, plan=[6, "A"], hidden=[5], activation=QCFS(levels=4, ceiling=0.7))
    network = convert(ann.eval(), [torch.rand(8, 1, 8, 8)], IF(v_init=0.5), LearnedCeiling())
    assert [float(scale) for scale in activation_scales(network).values()] == pytest.approx([0.7, 0.7])
    with pytest.raises(ConversionError, match="without a ceiling"):
        convert(CNN(input_shape=(1, 8, 8), classes=4, plan=[6]), [torch.rand(8, 1, 8, 8)], IF(), LearnedCeiling())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LeastError(timesteps=0), "timesteps is 0; it must be at least 1"),
        (lambda: LeastError(grid=0), "grid is 0; it must be at least 1"),
        (lambda: LightCalibration(timesteps=0), "timesteps is 0; it must be at least 1"),
        (lambda: LocalThresholdBalancing(step=0), "must be positive"),
        (lambda: OffsetSpike(calibrator=Percentile(), pre_run=0), "at least 1 step"),
    ],
)
def test_bad_settings_are_refused(make, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
