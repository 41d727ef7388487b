"""Any ordinary CNN: torchvision's families and hand-made cases compute the ANN's function, and rates approach it like 1/T."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from spikeprop import IF, Direct, convert
from spikeprop.ann import CIFARResNet
from spikeprop.convert import ConversionError, MaxActivation, relu_activations, to_spiking
from spikeprop.snn import SpikingNetwork

FAMILIES = {
    "vgg11": 32,
    "vgg13_bn": 32,
    "resnet18": 32,
    "resnet50": 32,
    "squeezenet1_1": 48,
    "densenet121": 32,
    "googlenet": 32,
    "mobilenet_v2": 32,
    "alexnet": 64,
    "resnext50_32x4d": 32,
}


def lively(ann: nn.Module) -> nn.Module:
    """Batch-norm statistics that change the output, with shifts so small that the image still matters in the last layer."""
    for module in ann.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return ann.double().eval()


def torchvision_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    options = {"init_weights": False} if name == "googlenet" else {}
    return lively(narrowed(models.get_model(name, weights=None, num_classes=10, **options)))


def narrowed(ann: nn.Module, most: int = 64) -> nn.Module:
    """The same network whose hidden linear layers, 4096 wide in VGG and AlexNet, have few neurons: they take most of the time."""
    layers = [m for m in ann.modules() if isinstance(m, nn.Linear)]
    for before, after in pairwise(layers):
        if before.out_features == after.in_features > most:
            before.__init__(before.in_features, most)
            after.__init__(most, after.out_features)
    return ann


@torch.no_grad()
def assert_same_function(ann: nn.Module, shape: tuple[int, ...]) -> SpikingNetwork:
    x = torch.randn(3, *shape, dtype=torch.float64)
    network = to_spiking(ann, IF, Direct(), shape).double()
    expected = ann(x)
    output = list(relu_activations(network, x).values())[-1]
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    return network


@pytest.mark.parametrize("name", FAMILIES)
def test_torchvision_families_keep_their_function(name: str) -> None:
    assert_same_function(torchvision_model(name), (3, FAMILIES[name], FAMILIES[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg19_bn", "resnet34", "resnet101", "resnet152", "wide_resnet50_2", "densenet201"])
def test_deeper_members_keep_their_function_at_full_size(name: str) -> None:
    assert_same_function(torchvision_model(name), (3, 224, 224))


@torch.no_grad()
def errors(ann: nn.Module, shape: tuple[int, ...], checkpoints: tuple[int, ...]) -> dict[str, list[float]]:
    """By layer of neurons: mean |rate * scale - clipped activation|, relative to the mean activation, at each number of steps."""
    x = torch.randn(2, *shape, dtype=torch.float64)
    wanted = relu_activations(to_spiking(ann, IF, Direct(), shape).double(), x)
    network = convert(ann, [x], IF(v_init=0.5), MaxActivation(per="channel"))
    counts: dict[str, Tensor] = {}
    steps: dict[str, int] = {}
    found: dict[str, list[float]] = {}

    def observe(name: str, spikes_TB: Tensor) -> None:
        counts[name] = counts.get(name, 0) + spikes_TB.sum(0)
        steps[name] = steps.get(name, 0) + len(spikes_TB)
        neuron = network.neurons().get(name)
        if neuron is not None and steps[name] in checkpoints:
            scale = neuron.v_threshold * dict(network.named_layers())[name].scale  # type: ignore[union-attr]
            size = wanted[name].abs().mean().clamp(min=1e-12)
            found.setdefault(name, []).append(float((counts[name] / steps[name] * scale - wanted[name]).abs().mean() / size))

    network(x, max(checkpoints), chunk=8, observe=observe)
    return found


def assert_falls_like_one_over_t(found: dict[str, list[float]], times: float) -> None:
    """T grows ``times`` fold from the first value to the last: the error must fall by half of this factor, or be tiny."""
    assert found
    for name, (first, *_, last) in found.items():
        assert last < max(2 * first / times, 5e-4), f"{name}: {first:.4f} -> {last:.4f}"


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "squeezenet1_1", "mobilenet_v2"])  # all families: test-slow
def test_rates_of_every_layer_approach_the_activations_like_one_over_t(name: str) -> None:
    found = errors(torchvision_model(name), (3, FAMILIES[name], FAMILIES[name]), (64, 512))
    assert_falls_like_one_over_t(found, 512 / 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_rates_of_all_families_approach_the_activations_up_to_1024_steps(name: str) -> None:
    found = errors(torchvision_model(name), (3, FAMILIES[name], FAMILIES[name]), (64, 256, 1024))
    assert_falls_like_one_over_t(found, 1024 / 64)


class Case(nn.Module):
    """A network with a given forward function, and layers for every case."""

    def __init__(self, forward: Callable[[Case, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = forward
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.wide, self.grouped = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(8, 4, 3, padding=2, dilation=2, groups=4)
        self.norm, self.wide_norm = nn.BatchNorm2d(4), nn.BatchNorm2d(8)
        self.prelu, self.pool = nn.PReLU(4), nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
        self.vector_norm, self.head, self.long = nn.BatchNorm1d(4), nn.Linear(4, 5), nn.Linear(4 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


CASES: dict[str, Callable[[Case, Tensor], Tensor]] = {
    "concatenation": lambda m, x: m.long(
        torch.relu(m.wide(torch.cat([torch.relu(m.a(x)), m.b(torch.relu(m.a(x)))], 1))).flatten(1)
    ),
    "concatenation, batch-norm, groups": lambda m, x: m.long(
        torch.relu(m.grouped(torch.relu(m.wide_norm(torch.cat([torch.relu(m.a(x)), m.a(x)], dim=1))))).flatten(1)
    ),
    "a shared layer": lambda m, x: m.long(torch.relu(m.b(torch.relu(m.b(torch.relu(m.a(x)))))).flatten(1)),
    "a sum, then a layer": lambda m, x: m.long(torch.relu(m.b(torch.relu(m.a(x)) + m.b(torch.relu(m.a(x))))).flatten(1)),
    "a sum, then batch-norm": lambda m, x: m.long(torch.relu(m.norm(m.a(x) + m.b(torch.relu(m.a(x))))).flatten(1)),
    "batch-norm after ReLU": lambda m, x: m.long(torch.relu(m.b(m.norm(torch.relu(m.a(x))))).flatten(1)),
    "batch-norm of vectors": lambda m, x: m.head(torch.relu(m.vector_norm(torch.relu(m.a(x)).mean((2, 3))))),
    "max pooling after ReLU": lambda m, x: m.head(m.pool(torch.relu(m.a(x))).mean([-1, -2])),
    "max pooling before ReLU": lambda m, x: m.head(F.relu(F.max_pool2d(m.norm(m.a(x)), 2)).mean((2, 3))),
    "max pooling of a concatenation": lambda m, x: m.long(
        torch.relu(m.wide(F.max_pool2d(torch.cat([torch.relu(m.a(x)), torch.relu(m.b(torch.relu(m.a(x))))], 1), 1))).flatten(1)
    ),
    "adaptive max pooling": lambda m, x: m.head(F.adaptive_max_pool2d(torch.relu(m.a(x)), 4).mean((2, 3))),
    "max pooling after dropout": lambda m, x: m.head(m.pool(F.dropout(torch.relu(m.a(x)), 0.3, m.training)).mean((2, 3))),
    "PReLU of vectors": lambda m, x: m.head(m.prelu(m.a(x).mean((2, 3)))),
    "a leaky ReLU that never leaks": lambda m, x: m.long(F.leaky_relu(torch.relu(m.a(x)) * 2, 0.1).flatten(1)),
    "in-place product": lambda m, x: m.long(torch.relu(_in_place_product(m, x)).flatten(1)),
    "ReLU6": lambda m, x: m.long(F.relu6(9 * m.a(x)).flatten(1)),
    "clamp": lambda m, x: m.long(torch.clamp(m.a(x), 0, 0.3).flatten(1)),
    "hardtanh": lambda m, x: m.long(F.hardtanh(m.a(x), -0.2, 0.3).flatten(1)),
    "leaky ReLU": lambda m, x: m.long(F.leaky_relu(m.b(F.leaky_relu(m.a(x), 0.2)), 0.1).flatten(1)),
    "PReLU": lambda m, x: m.long(m.prelu(m.a(x)).flatten(1)),
    "in-place ReLU seen by a skip": lambda m, x: m.long(_in_place(m, x).flatten(1)),
    "in-place sum": lambda m, x: m.long(_in_place_sum(m, x).flatten(1)),
    "differences and factors": lambda m, x: m.long(torch.relu(m.b(torch.relu(m.a(x))) / 2 - 3 * m.a(x) * 0.5).flatten(1)),
    "a negated branch": lambda m, x: m.long(torch.relu(-m.a(x)).flatten(1)),
    "view and sizes": lambda m, x: m.long(torch.relu(m.a(x)).view(x.size(0), -1)),
    "pooling by a computed size": lambda m, x: m.head(F.avg_pool2d(torch.relu(m.a(x)), x.shape[3]).reshape(x.shape[0], 4)),
    "squeeze": lambda m, x: m.head(F.adaptive_avg_pool2d(torch.relu(m.a(x)), 1).squeeze(-1).squeeze(-1)),
    "zero padding": lambda m, x: m.head(torch.relu(m.a(F.pad(x, (1, 2, 0, 1)))).mean((2, 3))),
    "channel padding and every second pixel": lambda m, x: m.head(
        torch.relu(m.b(F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 0)))).mean((2, 3))
    ),
    "some channels": lambda m, x: m.long(
        torch.relu(m.b(torch.cat([m.a(x)[:, 1:3], m.a(x)[:, -1:], m.a(x)[:, 0:1]], 1))).flatten(1)
    ),
    "a channel changed and put back": lambda m, x: m.head(
        torch.relu(m.a(torch.cat([torch.unsqueeze(x[:, 0], 1) * 0.4 + 0.1, x[:, 1:] - 0.2], 1))).mean((2, 3))
    ),
    "numbers added": lambda m, x: m.long(torch.relu(m.b(torch.relu(m.a(x)) + 0.3) - 0.1 + 1).flatten(1)),
    "numbers less a value": lambda m, x: m.long(torch.relu(0.5 - torch.sub(m.a(x), m.b(torch.relu(m.a(x))), alpha=2)).flatten(1)),
    "functional layers": lambda m, x: F.linear(
        torch.relu(F.conv2d(x, m.a.weight, m.a.bias, padding=1)).flatten(1), m.long.weight, m.long.bias
    ),
    "a computed slice": lambda m, x: m.head(torch.relu(m.b(torch.relu(m.a(x[:, : x.shape[1] // 1])))).mean((2, 3))),
    "half of the channels, computed": lambda m, x: m.long(
        torch.relu(m.b(torch.cat([h := torch.relu(m.a(x)), h], 1)[:, h.shape[1] // 2 : -(h.size(1) // 2)])).flatten(1)
    ),
    "chunk": lambda m, x: m.long(_halves(m, x).flatten(1)),
    "split": lambda m, x: m.long(_pieces(m, x).flatten(1)),
    "some numbers of a vector": lambda m, x: m.head(torch.relu(m.long(torch.relu(m.a(x)).flatten(1)))[:, 1:]),
    "squeeze of both axes": lambda m, x: m.head(F.adaptive_avg_pool2d(torch.relu(m.a(x)), 1).squeeze()),
    "an output of spikes": lambda m, x: F.adaptive_avg_pool2d(torch.relu(m.a(x)), 1).flatten(1),
}


def _halves(m: Case, x: Tensor) -> Tensor:
    first, second = torch.relu(m.a(x)).chunk(2, dim=1)
    return torch.cat([second, torch.relu(first - second)], 1)


def _pieces(m: Case, x: Tensor) -> Tensor:
    parts = torch.split(torch.relu(m.a(x)), [1, 3], 1)
    return torch.cat([parts[1], parts[0]], 1)


def _changed_behind_a_part(m: Case, x: Tensor) -> Tensor:
    before = m.a(x)
    part = before.chunk(2, 1)[0]
    F.relu(part, inplace=True)
    return m.long(before.flatten(1))


def _in_place(m: Case, x: Tensor) -> Tensor:
    before = m.a(x)
    return torch.relu(m.b(F.relu(before, inplace=True)) + before)


def _changed_under_another_name(m: Case, x: Tensor) -> Tensor:
    before = m.a(x)
    same = F.dropout(before, 0.1, m.training)
    return F.relu(same, inplace=True) + before


def _changed_behind_a_view(m: Case, x: Tensor) -> Tensor:
    before = m.a(x)
    flat = before.flatten(1)
    F.relu(before, inplace=True)
    return m.long(flat)


def _in_place_product(m: Case, x: Tensor) -> Tensor:
    before = m.a(x)
    after = before.mul_(2)
    return before + after


def _in_place_sum(m: Case, x: Tensor) -> Tensor:
    total = m.a(x)
    total += m.b(torch.relu(m.a(x)))
    return torch.relu(total)


@pytest.mark.parametrize("name", CASES)
def test_common_code_keeps_its_function(name: str) -> None:
    torch.manual_seed(0)
    assert_same_function(lively(Case(CASES[name])), (3, 8, 8))


@pytest.mark.parametrize("name", [n for n in CASES if "output" not in n])
def test_rates_of_common_code_approach_the_activations_like_one_over_t(name: str) -> None:
    torch.manual_seed(0)
    assert_falls_like_one_over_t(errors(lively(Case(CASES[name])), (3, 8, 8), (64, 1024)), 16)


def test_the_shortcut_of_pretrained_cifar_resnets_keeps_its_function() -> None:
    assert_same_function(lively(CIFARResNet()), (3, 32, 32))


@pytest.mark.parametrize(
    ("forward", "says"),
    [
        (lambda m, x: nn.functional.linear(torch.relu(m.a(x)), m.a.weight[0, 0]), "cannot run"),
        (lambda m, x: torch.div(m.a(x), 2, rounding_mode="floor"), "one that is rounded"),
        (lambda m, x: torch.round(m.a(x)), "a function with jumps; near a jump"),
        (lambda m, x: m.a(x) + torch.rand_like(m.a(x)), "random numbers; leave them out"),
        (lambda m, x: (m.a(x) > 0) * m.a(x), "whole numbers or truth values"),
        (lambda m, x: m.a(x) - m.a(x).mean(0), "images must not influence one another"),
        (lambda m, x: m.a(x) - m.a(x).flip(0), "flip along axis 0; the images of a batch stay together"),
        (lambda m, x: 2 * torch.softmax(m.a(x), 0), "one image changes the result of another"),
        (lambda m, x: torch.tanh(m.a(x)).cumsum(0), "one image changes the result of another"),
        (lambda m, x: m.a(x.cumsum(0)), "one image changes the result of another"),
        (lambda m, x: _changed_under_another_name(m, x), "an in-place change of 'a'"),
        (lambda m, x: _changed_behind_a_view(m, x), "an in-place change of 'flatten'"),
        (lambda m, x: torch.cat([m.a(x), m.a(x)], 0), "an output without the images' axis"),
        (lambda m, x: m.a(x)[1:], "images must not influence one another"),
        (lambda m, x: torch.relu(m.a(x)).permute(1, 0, 2, 3), "an output without the images' axis"),
        (lambda m, x: torch.relu(m.a(x)).view(-1, 8), "an output without the images' axis"),
        (lambda m, x: {"features": torch.relu(m.a(x)), "scale": m.a.bias}, "an output that is a constant"),
        (lambda m, x: F.threshold(m.a(x), 0.1, 0.0), "a threshold at 0.1|a function with jumps"),
        (lambda m, x: _changed_behind_a_part(m, x), "an in-place change of 'a'"),
        (lambda m, x: m.head(m.a(x).flatten(1)), "cannot run on images of the given shape"),
        (lambda m, x: m.a(x) if x.sum() > 0 else x, "control flow"),
    ],
)
def test_an_operation_that_cannot_be_converted_is_refused_by_name(forward: Callable[[Case, Tensor], Tensor], says: str) -> None:
    with pytest.raises(ConversionError, match=says):
        to_spiking(Case(forward).eval(), IF, Direct(), (3, 8, 8), images=torch.randn(3, 3, 8, 8))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_models_that_normalise_the_image_keep_their_function(name: str) -> None:
    """As with pretrained weights: each channel is scaled and shifted, and auxiliary heads are left out."""
    torch.manual_seed(0)
    ann = getattr(models, name)(transform_input=True, aux_logits=True, init_weights=False, num_classes=7)
    assert_same_function(lively(ann), (3, 80, 80))
