"""Activations with a trained ceiling: hand-computed values, gradients against the papers' formulas, use in the ANNs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spikeprop import CNN, IF, VGG, Backprop, Digits, ResNet, fit
from spikeprop.ann import MLP
from spikeprop.ann.activation import QCFS, Clipped, ClippedReLU
from spikeprop.convert import LearnedCeiling, convert
from spikeprop.errors import RecipeError
from spikeprop.evaluate import ann_accuracy, snn_accuracy
from spikeprop.learn import Cosine
from spikeprop.recipe import check_component, components


def test_qcfs_equals_hand_computed_values() -> None:
    # four levels of 0.5 under a ceiling of 2, each reached half a level early
    z = torch.tensor([-3.0, -0.3, 0.2, 0.25, 0.74, 0.75, 1.7, 1.75, 2.4])
    h = QCFS(levels=4, ceiling=2.0)(z)
    assert h.tolist() == [0, 0, 0, 0.5, 0.5, 1.0, 1.5, 2.0, 2.0]


def test_qcfs_gradients_are_the_papers() -> None:
    ceiling, levels = 2.0, 4
    z = torch.linspace(-3, 4, 57, dtype=torch.float64).requires_grad_()
    activation = QCFS(levels=levels, ceiling=ceiling).double()
    h = activation(z)
    weight = torch.randn(57, dtype=torch.float64)
    (h * weight).sum().backward()
    half = ceiling / (2 * levels)
    inside = (z >= -half) & (z < ceiling - half)
    assert z.grad is not None
    assert torch.equal(z.grad, weight * inside)
    slope = torch.where(inside, (h - z) / ceiling, (z > ceiling / 2).double())
    assert activation.ceiling.grad is not None
    torch.testing.assert_close(activation.ceiling.grad, (weight * slope).sum().detach())


def test_qcfs_with_many_levels_equals_the_clipped_relu() -> None:
    z = torch.randn(1000)
    torch.testing.assert_close(QCFS(levels=10_000, ceiling=1.5)(z), ClippedReLU(ceiling=1.5)(z), atol=1e-4, rtol=0)


@pytest.mark.parametrize("levels", [1, 4, 8])
def test_qcfs_equals_the_rate_of_an_if_neuron_after_as_many_steps(levels: int) -> None:
    """Bu et al. 2022, theorem 1 with the shift: for a constant current the conversion of a layer is exact."""
    z, ceiling = torch.linspace(-1, 4, 401, dtype=torch.float64) + 1e-5, 2.5
    neuron = IF(v_threshold=ceiling, v_init=0.5).double()
    spikes, _ = neuron.run(z.expand(levels, 401), neuron.initial_state(z))
    torch.testing.assert_close(spikes.mean(0) * ceiling, QCFS(levels=levels, ceiling=ceiling).double()(z).detach())


def test_clipped_relu_and_its_gradients() -> None:
    activation = ClippedReLU(ceiling=2.0)
    z = torch.tensor([-1.0, 0.5, 1.5, 2.5, 9.0], requires_grad=True)
    h = activation(z)
    assert h.tolist() == [0, 0.5, 1.5, 2.0, 2.0]
    (h * torch.tensor([1.0, 2, 4, 8, 16])).sum().backward()
    assert z.grad is not None
    assert z.grad.tolist() == [0, 2, 4, 0, 0]
    assert float(activation.ceiling.grad) == 24  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(ClippedReLU(ceiling=1.0).double(), torch.randn(20, dtype=torch.float64, requires_grad=True))


def test_invalid_settings_are_named() -> None:
    with pytest.raises(ValueError, match="ceiling is 0"):
        ClippedReLU(ceiling=0.0)
    with pytest.raises(ValueError, match="levels is 0"):
        QCFS(levels=0)


@pytest.mark.parametrize("activation", [QCFS(levels=4), ClippedReLU()], ids=["qcfs", "tcl"])
def test_every_ann_gives_each_layer_its_own_activation(activation: Clipped) -> None:
    anns = [
        CNN(input_shape=(1, 8, 8), classes=3, plan=[4, "A", 4], hidden=[8], activation=activation),
        MLP(input_shape=(1, 8, 8), classes=3, hidden=[8, 8], activation=activation),
        ResNet(depth=8, activation=activation),
        VGG(depth=5, activation=activation),
    ]
    for ann, shape in zip(anns, [(1, 8, 8), (1, 8, 8), (3, 32, 32), (3, 32, 32)]):
        found = [m for m in ann.modules() if isinstance(m, Clipped)]
        assert len(found) >= 2
        assert all(type(m) is type(activation) and m is not activation for m in found)
        assert len({id(m.ceiling) for m in found}) == len(found)
        assert not any(isinstance(m, nn.ReLU) for m in ann.modules())
        ann.eval()(torch.rand(2, *shape)).sum().backward()
        assert all(m.ceiling.grad is not None for m in found)


@pytest.mark.parametrize("activation", [QCFS(levels=4, ceiling=1.0), ClippedReLU(ceiling=1.0)], ids=["qcfs", "tcl"])
def test_ann_trained_with_a_clipped_activation_converts_at_few_steps(activation: Clipped) -> None:
    torch.manual_seed(0)
    data = Digits()
    ann = CNN(input_shape=(1, 8, 8), classes=10, plan=[16, "A", 32, "A"], hidden=[32], dropout=0.1, activation=activation)
    optimizer = torch.optim.SGD(ann.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    fit(ann, Backprop(), data.train(32, seed=0), optimizer, epochs=20, schedule=Cosine())
    before = ann_accuracy(ann, data.test(360).epoch(0))
    images = [next(iter(data.train(256, seed=0).epoch(0)))[0]]
    network = convert(ann, images, IF(v_init=0.5), LearnedCeiling())
    first = next(m for m in ann.modules() if isinstance(m, Clipped))
    assert torch.equal(next(iter(network.neurons().values())).v_threshold, first.ceiling.detach())
    after = snn_accuracy(network, data.test(360).epoch(0), [8])[8]
    assert before > 93
    assert after > before - 2, before


def test_the_loop_keeps_ceilings_positive() -> None:
    torch.manual_seed(0)
    ann = CNN(input_shape=(1, 8, 8), classes=10, plan=[4], hidden=[8], activation=QCFS(levels=4, ceiling=0.1))
    greedy = torch.optim.SGD(ann.parameters(), lr=0.1, weight_decay=5.0)  # makes every ceiling negative
    fit(ann, Backprop(), Digits(train_limit=64).train(16, seed=0), greedy, epochs=3)
    ceilings = [float(m.ceiling.detach()) for m in ann.modules() if isinstance(m, Clipped)]
    assert all(1e-5 < ceiling < 0.1 for ceiling in ceilings)


def test_activation_is_a_component_of_a_recipe() -> None:
    settings = {"use": "VGG", "depth": 5, "activation": {"use": "QCFS", "levels": 4}}
    vgg = check_component(nn.Module, settings, "ann")
    assert vgg.describe()["activation"] == {"use": "QCFS", "levels": 4, "ceiling": 8.0}
    assert check_component(nn.Module, vgg.describe(), "ann").describe() == vgg.describe()
    built = [m for m in vgg.build().modules() if isinstance(m, QCFS)]
    assert [m.levels for m in built] == [4] * 4
    assert set(components(Clipped)) == {"QCFS", "ClippedReLU"}
    with pytest.raises(RecipeError, match=r"ann\.activation\.level: QCFS has no 'level'; did you mean 'levels'"):
        check_component(nn.Module, {**settings, "activation": {"use": "QCFS", "level": 4}}, "ann")
    with pytest.raises(RecipeError, match=r"ann\.activation: no component 'QFCS'.*did you mean 'QCFS'"):
        check_component(nn.Module, {**settings, "activation": "QFCS"}, "ann")
