"""Fine-tuning in integers: the rounded network is the chip's, gradients pass straight through, accuracy is kept."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from spikeprop_hardware import Simulator, quantize
from spikeprop_hardware.grids import mantissas
from torch import nn

from spikeprop import (
    BPTT,
    CNN,
    IF,
    LIF,
    PLIF,
    Digits,
    Direct,
    Frames,
    GradedIF,
    MaxActivation,
    Poisson,
    SignedIF,
    ThresholdBalancing,
    convert,
    fit,
    spiking,
)  # fmt: skip
from spikeprop.deploy import encoded, record, to_nir
from spikeprop.deploy.quantised import QuantisedBPTT, find_grids, rounded
from spikeprop.errors import HardwareError
from spikeprop.recipe import load_recipe
from spikeprop.runtime.batches import Sequences
from spikeprop.snn import INPUT, Encoder, Gain, Layer, SpikingNetwork, Synapse
from tests.convert.test_calibrate import Skips


def converted(ann: nn.Module, neuron: IF | LIF, shape: tuple[int, ...], poisson: bool = False) -> SpikingNetwork:
    torch.manual_seed(0)
    encoder = Poisson() if poisson else Direct()
    return convert(ann, [torch.rand(16, *shape)], neuron, ThresholdBalancing(timesteps=30, scale=0.5), encoder=encoder)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_spikes_of_the_rounded_network_are_the_chips(seed: int, reset: str) -> None:
    torch.manual_seed(seed)
    ann = CNN(input_shape=(2, 8, 8), classes=4, plan=[6, "A", 8, "A"], hidden=[16])
    network = converted(ann, IF(reset=reset, v_init=0.0), (2, 8, 8), poisson=seed % 2 == 1)  # type: ignore[arg-type]
    chip = quantize(to_nir(network), input_limit=4.0).network
    low = {int(e) for p in chip.populations for c in p.connections for e in np.atleast_1d(c.exponent) if e < -1}
    grids = find_grids(network, 4.0)
    images = torch.rand(4, 2, 8, 8) * 2 - 1
    with rounded(network, grids):
        ours, output = record(network, grids.round_input(network, images), 12)
        inputs = ours.pop(INPUT)
    theirs = Simulator(chip).run(inputs)
    wrong = total = 0
    for name, train in ours.items():
        assert train.mean() > 0.01, name
        wrong += int((train.astype(bool).reshape(theirs.spikes[name].shape) != theirs.spikes[name]).sum())
        total += train.size
    assert wrong == 0 or (low and wrong < 0.02 * total)
    if not wrong:
        np.testing.assert_allclose(theirs.output * chip.populations[-1].unit, output, atol=0.05 if low else 1e-4)


@pytest.mark.parametrize("neuron", [SignedIF(), GradedIF(levels=3, v_init=0.3)], ids=["signed", "graded"])
def test_graded_neurons_are_rounded_as_the_chip_has_them(neuron: SignedIF | GradedIF) -> None:
    torch.manual_seed(0)
    ann = CNN(input_shape=(2, 4, 4), classes=4, plan=[6, "A"], hidden=[8])
    network = convert(ann, [torch.rand(16, 2, 4, 4)], neuron, MaxActivation(per="channel"))
    chip = quantize(to_nir(network), input_limit=4.0).network
    populations = {p.name: p for p in chip.populations}
    grids = find_grids(network, 4.0)
    images, y = torch.rand(16, 2, 4, 4) * 2 - 1, torch.randint(0, 4, (16,))
    with rounded(network, grids):
        for name, own in network.neurons().items():
            theirs, shape = populations[name], network.shapes()[name]
            assert isinstance(own, GradedIF)
            assert torch.equal(own.spike_size.expand(shape).flatten(), torch.tensor(theirs.theta).flatten().float())
            start = (own.v_init * own.spike_size * 64).expand(shape).flatten()
            np.testing.assert_allclose(start.numpy(), np.broadcast_to(theirs.v_init.flatten(), start.shape), atol=1e-2)
        ours, _ = record(network, grids.round_input(network, images), 6)
        inputs = ours.pop(INPUT)
    simulated = Simulator(chip).run(inputs)
    wrong = sum(
        int((train.reshape(simulated.spikes[name].shape) != simulated.spikes[name]).sum()) for name, train in ours.items()
    )
    assert wrong < 0.02 * sum(train.size for train in ours.values())  # connections with an exponent below -1 drop bits
    found = []
    for rule in (QuantisedBPTT(timesteps=6, input_limit=4.0), BPTT(timesteps=6)):
        network.zero_grad()
        rule.step(network, images, y)
        found.append({name: p.grad.flatten() for name, p in network.named_parameters() if p.grad is not None})
    for name, plain in found[1].items():
        assert torch.nn.functional.cosine_similarity(found[0][name], plain, 0) > 0.6, name
        assert 0.5 < found[0][name].norm() / plain.norm() < 2, name


def test_values_come_back_and_gradients_pass_straight_through() -> None:
    torch.manual_seed(0)
    network = converted(Skips(), LIF(leak=0.9, v_init=0.5), (1, 4, 4))
    assert any(
        not list(synapse) for _, layer in network.named_layers() for _, _, synapse in layer.branches()
    )  # spikes handed on as they are
    before = {k: v.clone() for k, v in network.state_dict().items()}
    x, y = torch.rand(8, 1, 4, 4), torch.randint(0, 3, (8,))
    rule = QuantisedBPTT(timesteps=6, input_limit=1.0)
    rule.step(network, x, y)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    ours = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    BPTT(timesteps=6).step(network, x, y)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert torch.nn.functional.cosine_similarity(ours[name].flatten(), parameter.grad.flatten(), 0) > 0.6, name
        assert 0.5 < ours[name].norm() / parameter.grad.norm() < 2, name


def test_a_clipped_weight_gets_no_gradient() -> None:
    network = converted(CNN(input_shape=(1, 4, 4), classes=3, plan=[4], hidden=[]), IF(), (1, 4, 4))
    grids = find_grids(network, 1.0)
    layer = next(iter(network.layers.values()))
    weight = layer.synapses[0].weighted()[0].weight  # type: ignore[union-attr]
    with torch.no_grad():
        weight[0, 0, 0, 0] = weight.abs().max() * 5
    with rounded(network, grids):
        BPTT(timesteps=4).step(network, torch.rand(8, 1, 4, 4), torch.randint(0, 3, (8,)))
    assert weight.grad is not None
    assert weight.grad[0, 0, 0, 0] == 0
    assert (weight.grad != 0).any()


def test_scales_are_searched_again_after_so_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    network = converted(CNN(input_shape=(1, 4, 4), classes=3, plan=[4], hidden=[]), IF(), (1, 4, 4))
    searched = []
    monkeypatch.setattr("spikeprop.deploy.quantised.find_grids", lambda *a: searched.append(1) or find_grids(*a))
    rule = QuantisedBPTT(timesteps=2, refresh=2)
    for _ in range(5):
        rule.step(network, torch.rand(2, 1, 4, 4), torch.tensor([0, 1]))
    assert len(searched) == 3


def test_weights_that_cannot_be_rounded_one_by_one_are_refused_by_name() -> None:
    def network(*ops: nn.Module) -> SpikingNetwork:
        layers = {
            "a": Layer([(INPUT, Synapse(ops))], IF()),
            "out": Layer([("a", Synapse([nn.Flatten(), nn.Linear(32, 3)]))], None),
        }
        return SpikingNetwork(layers, Direct(), (2, 4, 4))

    for ops in (
        (nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)),
        (nn.AvgPool2d(3, stride=1, padding=1), nn.Conv2d(2, 2, 3, padding=1)),
        (nn.Conv2d(2, 2, 1), Gain(0.5)),
    ):
        with pytest.raises(HardwareError, match="layer 'a' cannot be fine-tuned in integers"):
            find_grids(network(*ops), 1.0)
    find_grids(network(nn.Conv2d(2, 2, 3, padding=1)), 1.0)


def test_a_recipe_can_name_the_rule() -> None:
    recipe = load_recipe("digits_cnn_stdb", ["finetune.rule={use: spikeprop.deploy.QuantisedBPTT, refresh: 7}"])
    rule = recipe.experiment.finetune.build_rule()
    assert isinstance(rule, QuantisedBPTT)
    assert (rule.timesteps, rule.refresh) == (8, 7)


def fixed_accuracy(network: SpikingNetwork, timesteps: int, images: torch.Tensor, labels: torch.Tensor) -> float:
    chip = quantize(to_nir(network), input_limit=1.0).network
    output = Simulator(chip).run(encoded(network, images, timesteps), record=False).output
    return 100 * float((output[:, -1].argmax(1) == labels.numpy()).mean())


def test_fine_tuning_on_digits_loses_nothing_in_fixed_point(digits_cnn: CNN) -> None:
    torch.manual_seed(0)
    data = Digits()
    images = [x for x, _ in data.train(256, seed=1).epoch(0)]
    network = convert(digits_cnn, images, IF(), ThresholdBalancing(timesteps=50, scale=0.6))
    tuned = copy.deepcopy(network)
    optimizer = torch.optim.Adam(tuned.parameters(), lr=1e-4)
    fit(tuned, QuantisedBPTT(timesteps=8, input_limit=1.0), data.train(32, seed=2), optimizer, epochs=2)
    x, y = next(data.test(360).epoch(0))
    before, after = fixed_accuracy(network, 8, x, y), fixed_accuracy(tuned, 8, x, y)
    assert after >= before
    assert after > 93


def test_neurons_whose_leak_is_computed_are_refused() -> None:
    """PLIF's leak could not be rounded, and would stay as it is without a word."""
    network = spiking(nn.Sequential(nn.Linear(4, 5), PLIF(tau=3.0), nn.Linear(5, 2)), 4)
    with pytest.raises(HardwareError, match="'1' has PLIF"):
        find_grids(network, 1.0)


@pytest.mark.parametrize("encoder", [Direct(), Frames()])
def test_sequences_are_rounded_as_the_chip_receives_them(encoder: Encoder) -> None:
    network = spiking(nn.Sequential(nn.Linear(4, 5), IF(), nn.Linear(5, 2)), 4, encoder=encoder)
    x, grids = torch.rand(3, 6, 4), find_grids(network, 1.0)
    wanted = torch.round(x * grids.input_scale) / grids.input_scale
    assert not torch.equal(wanted, x)
    assert torch.equal(grids.round_input(network, x), wanted)
    given = Sequences(x, torch.tensor([2, 6, 1]))
    assert torch.equal(grids.round_input(network, given).values, wanted)
    QuantisedBPTT().step(network, given, torch.tensor([0, 1, 1]))


@pytest.mark.parametrize("shared", [LIF(v_threshold=0.7), nn.Linear(5, 5)], ids=lambda module: type(module).__name__)
def test_what_layers_share_is_refused(shared: nn.Module) -> None:
    """A threshold that two layers share would be rounded in the units of the second, and the first compute with that."""
    neurons = [shared if isinstance(shared, LIF) else LIF() for _ in range(2)]
    weights = [shared if isinstance(shared, nn.Linear) else nn.Linear(5, 5) for _ in range(2)]
    network = spiking(nn.Sequential(weights[0], neurons[0], weights[1], neurons[1], nn.Linear(5, 2)), 5)
    with pytest.raises(HardwareError, match=r"'(3|1_2)' shares"):
        find_grids(network, 1.0)


@pytest.mark.parametrize("bits", [6, 4, 2, "ternary"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_every_format_is_rounded_as_the_chip_has_it(bits: Any, per_channel: bool) -> None:
    """``find_grids`` compares every number; here also the spikes, and that mantissas keep to their range."""
    ann = CNN(input_shape=(2, 6, 6), classes=3, plan=[6, "A", 8], hidden=[])
    network = converted(ann, IF(v_init=0.0), (2, 6, 6))
    chip = quantize(to_nir(network), input_limit=4.0, bits=bits, per_channel=per_channel).network
    least, most = mantissas(bits)
    data = np.concatenate([c.matrix.data for p in chip.populations for c in p.connections])
    assert (data.min(), data.max()) in {(least, most), (least + 1, most)}
    assert any(isinstance(c.exponent, np.ndarray) for p in chip.populations for c in p.connections) == per_channel
    low = [c.exponent for p in chip.populations for c in p.connections if np.min(c.exponent) < -1]
    grids = find_grids(network, 4.0, bits=bits, per_channel=per_channel)
    with rounded(network, grids):
        ours, _ = record(network, grids.round_input(network, torch.rand(3, 2, 6, 6)), 8)
        inputs = ours.pop(INPUT)
    theirs = Simulator(chip, threads=1).run(inputs)
    wrong = sum(int((train.astype(bool).reshape(len(train), 8, -1) != theirs.spikes[n]).sum()) for n, train in ours.items())
    assert sum(theirs.counts.values()) > 50
    assert wrong == 0 or (low and wrong < 50)


def test_training_goes_on_to_the_bit_after_an_interruption() -> None:
    """Between two searches of the scales: a resumed run must take the old ones, not those of its weights."""
    data = [(torch.rand(8, 1, 4, 4), torch.randint(0, 3, (8,))) for _ in range(5)]
    ann = CNN(input_shape=(1, 4, 4), classes=3, plan=[4], hidden=[])
    start = converted(ann, IF(), (1, 4, 4))

    def rule() -> QuantisedBPTT:
        return QuantisedBPTT(timesteps=3, refresh=4, input_limit=1.0, bits=4)

    def steps(network: SpikingNetwork, rule: QuantisedBPTT, optimizer: torch.optim.Optimizer, batches: Any) -> None:
        for x, y in batches:
            optimizer.zero_grad()
            rule.step(network, x, y)
            optimizer.step()

    whole, parts = copy.deepcopy(start), copy.deepcopy(start)
    steps(whole, rule(), torch.optim.SGD(whole.parameters(), lr=0.1), data)
    first = rule()
    steps(parts, first, torch.optim.SGD(parts.parameters(), lr=0.1), data[:2])
    assert not torch.equal(next(parts.parameters()), next(start.parameters()))
    again, second = copy.deepcopy(parts), rule()
    assert set(second.state_dict()) == set(first.state_dict())  # the checkpoint's names are the same before any step
    second.load_state_dict(first.state_dict())
    steps(again, second, torch.optim.SGD(again.parameters(), lr=0.1), data[2:])
    for ours, theirs in zip(again.parameters(), whole.parameters()):
        assert torch.equal(ours, theirs)
    forgotten = copy.deepcopy(parts)
    steps(forgotten, rule(), torch.optim.SGD(forgotten.parameters(), lr=0.1), data[2:])
    assert any(not torch.equal(ours, theirs) for ours, theirs in zip(forgotten.parameters(), whole.parameters()))
