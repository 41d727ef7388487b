"""Any function, any product: networks with attention, norms and gates keep their function; the error falls like 1/T."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop import IF, Direct, GradedIF, SignedIF, convert, explain_conversion
from spikeprop.convert import (
    AdvancedCalibration,
    ConversionError,
    LeastError,
    LightCalibration,
    MaxActivation,
    ThresholdBalancing,
    ThresholdIteration,
    relu_activations,
    to_spiking,
)
from spikeprop.convert.calibrator import ThresholdCalibrator
from spikeprop.evaluate.activity import ActivityMeter
from spikeprop.snn import INPUT, DifferentialIF, Neuron, SpikingNetwork
from spikeprop.snn.arithmetic import Relay, Running


class Block(nn.Module):
    """A block of a vision transformer, with attention written in one of three ways."""

    def __init__(self, width: int, heads: int, way: str) -> None:
        super().__init__()
        self.way, self.heads = way, heads
        self.norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=way == "module")
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.scale = nn.Parameter(0.5 + torch.rand(width))

    def attended(self, x: Tensor) -> Tensor:
        if self.way == "module":
            return self.attention(x, x, x, need_weights=False)[0]
        if self.way == "tokens first":
            x = x.transpose(0, 1)
            return self.attention(x, x, x)[0].transpose(0, 1)
        images, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(images, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.way == "fused":
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(images, tokens, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale * self.attended(self.norm(x))
        return x + self.mlp(self.second_norm(x))


class Transformer(nn.Module):
    """A small vision transformer with a class token and positional embeddings, on images that it normalises itself."""

    def __init__(self, way: str, width: int = 16) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.rand(3, 1, 1))
        self.std = nn.Buffer(0.5 + torch.rand(3, 1, 1))
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 5, width))
        self.blocks = nn.Sequential(Block(width, 2, way), Block(width, 2, way))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches((x - self.mean) / self.std).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


WAYS = ("module", "tokens first", "fused", "by hand")


def transformer(way: str) -> nn.Module:
    torch.manual_seed(0)
    return Transformer(way).double().eval()


IMAGES = torch.randn(9, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def assert_same_function(ann: nn.Module, x: Tensor, neuron: Callable[[], Neuron] = GradedIF) -> SpikingNetwork:
    network = to_spiking(ann, neuron, Direct(), tuple(x.shape[1:]), images=x)
    expected = ann(x)
    output = list(relu_activations(network, x).values())[-1]
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    return network


@torch.no_grad()
def errors(ann: nn.Module, network: SpikingNetwork, x: Tensor, steps: tuple[int, ...]) -> list[float]:
    """Of the output, relative to its mean size."""
    expected, scale = ann(x), list(network.named_layers())[-1][1].scale
    return [float((network(x, t, chunk=t) * scale / t - expected).abs().mean() / expected.abs().mean()) for t in steps]


@pytest.mark.parametrize("way", WAYS)
def test_what_travels_to_weights_and_into_products_of_attention_are_spikes(way: str) -> None:
    network = assert_same_function(transformer(way), IMAGES)
    layers = dict(network.named_layers())
    for layer in layers.values():
        for _, source, synapse in layer.branches():
            carries = any(isinstance(op, nn.Linear | nn.Conv2d) for op in synapse)
            assert not carries or source == INPUT or isinstance(layers[source].neuron, GradedIF)
    spikes = [layer.neuron for layer in layers.values() if isinstance(layer.neuron, Neuron)]
    assert len(spikes) in (13, 17)  # a block: into Q K V (one layer, or three), Q K V, softmax, out, two of the MLP; the head
    assert not any(neuron.rectify for neuron in spikes if isinstance(neuron, GradedIF))
    readers = [
        name for name, layer in layers.items() for _, _, s in layer.branches() if any(isinstance(op, nn.Conv2d) for op in s)
    ]
    assert len(readers) == 2  # the first norm and the sum that everything later reads
    assert sum(isinstance(layer.neuron, Relay) for layer in layers.values()) >= 3


def test_networks_of_differential_neurons_are_built_again_without_calibration_as_checkpoints_are() -> None:
    ann = transformer("fused")
    network = convert(ann, IMAGES, DifferentialIF(levels=3), timesteps=4)
    again = to_spiking(ann, lambda: DifferentialIF(levels=3), Direct(), (3, 8, 8))
    rectify = {name: neuron.rectify for name, neuron in network.neurons().items() if isinstance(neuron, DifferentialIF)}
    assert {name: getattr(neuron, "rectify", None) for name, neuron in again.neurons().items()} == rectify
    assert len(explain_conversion(network, ann, IMAGES, (4,)).rows) > len(rectify)


@pytest.mark.parametrize("way", WAYS)
def test_ordinary_neurons_are_two_layers_one_for_each_sign(way: str) -> None:
    network = assert_same_function(transformer(way), IMAGES, IF)
    assert sum(name.endswith("_spikes_negative") for name in dict(network.named_layers())) >= 6


@pytest.mark.parametrize("neuron", [GradedIF(levels=4), SignedIF(), IF(v_init=0.5)], ids=["graded", "signed", "IF"])
def test_the_error_of_a_transformer_falls_like_one_over_t(neuron: Neuron) -> None:
    ann = transformer("fused")
    network = convert(ann, [IMAGES], neuron, MaxActivation(per="channel"))
    few, many = errors(ann, network, IMAGES, (8, 128))
    assert few < (0.02 if isinstance(neuron, GradedIF) and neuron.levels > 1 else 0.3)
    assert many < few / 5


CALIBRATORS: list[ThresholdCalibrator] = [
    LightCalibration(timesteps=8),
    LightCalibration(timesteps=8, search="spikes"),
    AdvancedCalibration(timesteps=8, iterations=10),
    LeastError(timesteps=8),
    ThresholdIteration(timesteps=8),
    ThresholdBalancing(timesteps=8),
]


@pytest.mark.parametrize("calibrator", CALIBRATORS, ids=lambda c: type(c).__name__)
def test_calibrators_know_neurons_of_both_signs(calibrator: ThresholdCalibrator) -> None:
    ann = transformer("module")
    network = convert(ann, [IMAGES], GradedIF(levels=3), calibrator)
    assert errors(ann, network, IMAGES, (8,))[0] < 0.04


def test_activity_and_chunks_of_a_transformer() -> None:
    network = convert(transformer("fused"), [IMAGES], GradedIF(levels=3), LeastError(timesteps=4))
    meter = ActivityMeter(network, 5)
    with torch.no_grad():
        one = network(IMAGES, 5, chunk=1, observe=meter.start(len(IMAGES)))
        torch.testing.assert_close(network(IMAGES, 5, chunk=3), one)
    assert min(meter.synops().values()) > 0


class Parts(nn.Module):
    """Layers for every case."""

    def __init__(self, forward: Callable[[Parts, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = forward
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.down, self.up, self.head = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1), nn.Linear(4, 5)
        self.norm, self.channels, self.mix = nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.Linear(64, 64)
        self.gain, self.tokens_norm = nn.Parameter(torch.tensor(0.3)), nn.BatchNorm1d(4)
        self.tokens_norm.running_mean = torch.rand(4)
        self.mask = nn.Buffer(torch.zeros(4, 16, 16).masked_fill(torch.rand(4, 16, 16) > 0.7, -100.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def _windows(m: Parts, x: Tensor) -> Tensor:
    """Attention within shifted windows of 4 x 4, with a mask, as swin has it: windows lie on the batch's axis."""
    x = m.a(x).permute(0, 2, 3, 1)
    x = torch.roll(x, (-2, -2), (1, 2))
    images, height, width, channels = x.shape
    x = x.view(images, height // 4, 4, width // 4, 4, channels).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, channels)
    x = m.norm(x)
    scores = m.head(x)[..., 1:] @ x.transpose(-2, -1)
    scores = scores.view(images, 4, 16, 16) + m.mask.unsqueeze(0)
    x = scores.view(-1, 16, 16).softmax(-1) @ x
    x = x.view(images, 2, 2, 4, 4, channels).permute(0, 1, 3, 2, 4, 5).reshape(images, height, width, channels)
    return m.head(torch.roll(x, (2, 2), (1, 2)).mean((1, 2)))


def _squeezed(m: Parts, x: Tensor) -> Tensor:
    x = F.silu(m.a(x))
    return m.head((x * torch.sigmoid(m.up(F.silu(m.down(x.mean((2, 3), keepdim=True)))))).mean((2, 3)))


def _standardised(m: Parts, x: Tensor) -> Tensor:
    weight = (m.b.weight - m.b.weight.mean((1, 2, 3), keepdim=True)) / m.b.weight.std((1, 2, 3), keepdim=True)
    x = torch.relu(m.a(x))
    return m.head((F.conv2d(x, weight, m.b.bias, padding=1) * m.gain + x * torch.exp(m.gain)).mean((2, 3)))


CASES: dict[str, Callable[[Parts, Tensor], Tensor]] = {
    "shifted windows": _windows,
    "squeeze and excitation": _squeezed,
    "standardised weights": _standardised,
    "channels last": lambda m, x: m.head(m.norm(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).mean((2, 3))),
    "GroupNorm, then a ReLU": lambda m, x: m.head(m.b(torch.relu(m.channels(m.a(x)))).mean((2, 3))),
    "RMS norm by hand": lambda m, x: m.head((y := m.a(x).mean((2, 3))) * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)),
    "a norm by vector norm": lambda m, x: m.head(F.normalize(m.a(x).mean((2, 3)), dim=-1)),
    "mixing tokens": lambda m, x: m.head(F.gelu(m.mix(m.a(x).flatten(2))).mean(2)),
    "max pooling without ReLU": lambda m, x: m.head(F.max_pool2d(m.a(x), 2).mean((2, 3))),
    "max pooling of GELU": lambda m, x: m.head(m.b(F.max_pool2d(F.gelu(m.a(x)), 2)).mean((2, 3))),
    "a ReLU of a norm": lambda m, x: m.head(torch.relu(m.channels(m.a(x))).mean((2, 3))),
    "windows by unfold": lambda m, x: m.head(F.unfold(torch.relu(m.a(x)), 2, stride=2).unflatten(1, (4, 4)).mean((2, 3))),
    "padding with a number": lambda m, x: m.head(m.b(F.pad(torch.relu(m.a(x)), (1, 0, 0, 2), value=0.7)).mean((2, 3))),
    "positions and masks": lambda m, x: m.head((m.a(x).flatten(2)[:, :, :16] + m.mask[:, 0].clamp(min=-1) * m.gain).mean(2)),
    "a constant before weights": lambda m, x: m.head(m.b(torch.relu(m.a(x)) + m.mask[:, :8, :8] * 0.01).mean((2, 3))),
    "batch-norm of tokens": lambda m, x: m.head(m.tokens_norm(m.a(x).permute(0, 2, 3, 1).flatten(0, 2)).view(-1, 64, 4).mean(1)),
    "an einsum": lambda m, x: m.head(torch.einsum("bchw,bdhw->bc", m.a(x), torch.sigmoid(m.a(x)))),
    "SiLU by hand, in place": lambda m, x: m.head((y := m.a(x)).mul_(torch.sigmoid(y.clone())).mean((2, 3))),
    "one less a gate": lambda m, x: m.head(((1 - torch.sigmoid(y := m.a(x))) * y / (2 + y.abs())).mean((2, 3))),
    "stacked and taken apart": lambda m, x: m.head(torch.stack([m.a(x), m.b(torch.tanh(m.a(x)))], 1).amax(1).mean((2, 3))),
    "repeated and flipped": lambda m, x: m.head(m.a(x).repeat(1, 1, 2, 1).flip(2)[:, :, 1::3, ..., None].mean((2, 3, 4))),
    "sums over axes": lambda m, x: m.head(torch.tanh(m.a(x)).sum(3).cumsum(2).mean(-1)),
    "clamped above 0": lambda m, x: m.head(m.a(x).clamp(0.1, 0.4).mean((2, 3))),
    "a layer without weights in between": lambda m, x: m.head(m.b(m.b(torch.sigmoid(m.a(x)))).mean((2, 3))),
}


@pytest.mark.parametrize("name", CASES)
def test_operations_keep_their_function_and_rates_approach_it(name: str) -> None:
    torch.manual_seed(0)
    ann = Parts(CASES[name]).double().eval()
    assert_same_function(ann, IMAGES, IF)
    network = convert(ann, [IMAGES], GradedIF(levels=4), MaxActivation(per="channel"))
    few, many = errors(ann, network, IMAGES, (4, 64))
    assert many < max(few / 5, 1e-5)


def test_functions_are_named_after_their_nodes_and_listed() -> None:
    network = assert_same_function(transformer("by hand"), IMAGES)
    names = [name for name, layer in network.named_layers() if isinstance(layer.neuron, Running)]
    assert {"blocks_0_norm", "blocks_0_mlp_1", "norm"} <= set(names)
    assert network.arithmetic_layers() == [name for name, d in network.dynamics().items() if d.arithmetic]


class ByHand(nn.Module):
    """A layer norm over channels, as ConvNeXt writes it: sums of a value and its mean, which has one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + 1e-6)
        return self.head(F.gelu(x).mean((2, 3)))


def test_sums_of_values_of_different_shapes_are_expanded() -> None:
    assert_same_function(ByHand().double().eval(), IMAGES)


def test_a_network_without_weights_takes_its_type_from_the_images() -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - x.mean(-1, keepdim=True)).flatten(1)

    x = IMAGES.float()
    network = convert(Centred(), x, timesteps=4)
    torch.testing.assert_close(network.estimate(network(x, 4), 4), Centred()(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_functions_with_weights_of_their_own_run_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3)).eval()
    x = torch.rand(16, 8)
    wanted = ann(x)
    network = convert(ann.to(dtype), x.to(dtype), GradedIF(levels=7), timesteps=4)
    torch.testing.assert_close(network.estimate(network(x.to(dtype), 4), 4).float(), wanted, rtol=0, atol=0.03)


def test_scores_that_are_masked_with_infinity_stay_out() -> None:
    class Masked(nn.Module):
        def __init__(self, way: int) -> None:
            super().__init__()
            self.way, self.a, self.head = way, nn.Linear(8, 8), nn.Linear(8, 3)
            self.mask = nn.Buffer(torch.arange(8) > 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            x = x.masked_fill(self.mask, -math.inf) if self.way == 0 else torch.where(self.mask, -math.inf, x)
            return self.head(torch.softmax(x, -1))

    torch.manual_seed(0)
    x = torch.rand(32, 8)
    for way in (0, 1):
        ann = Masked(way).eval()
        network = convert(ann, x, GradedIF(levels=7), timesteps=8)
        torch.testing.assert_close(network.estimate(network(x, 8), 8), ann(x), rtol=0, atol=1e-3)


def test_a_function_whose_values_are_infinite_is_refused() -> None:
    class Logarithm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(torch.log(torch.relu(x - 0.5)))

    with pytest.raises(ConversionError, match="computes numbers that are not finite"):
        convert(Logarithm(), torch.rand(8, 6), timesteps=4)


@pytest.mark.parametrize("norm_first", [False, True])
def test_torchs_own_encoder_layers_convert(norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first, activation="gelu")
    ann = nn.Sequential(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Flatten(), nn.Linear(32, 3)).eval()
    x = torch.randn(6, 4, 8)
    network = convert(ann, [x], GradedIF(levels=4), MaxActivation())
    with torch.no_grad():
        torch.testing.assert_close(network.estimate(network(x, 64), 64), ann(x), atol=0.02, rtol=0)


@pytest.mark.parametrize("window", [[2, 2], torch.Size((2, 2))])
@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
def test_windows_may_be_lists(pool: Any, window: Any) -> None:
    torch.manual_seed(0)
    x, parts = torch.rand(6, 1, 8, 8), (nn.Conv2d(1, 2, 3, padding=1), nn.ReLU())
    found = [convert(nn.Sequential(*parts, pool(size), nn.Flatten()), [x], IF(), MaxActivation())(x, 8) for size in (2, window)]
    assert torch.equal(*found)


class Learnt(nn.Module):
    """Constants that training changes, each with the value with which networks usually begin."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(1, 4, 4, stride=4), nn.Linear(4, 3)
        self.token, self.gain = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.ones(1))
        self.divisor, self.zero_gain = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(1))
        self.norm, self.mask = nn.LayerNorm(4, eps=1e-6), nn.Parameter(torch.zeros(1, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.mask
        x = x + self.gain * torch.relu(x) + self.zero_gain * torch.tanh(x)
        return self.head((self.norm(x) / self.divisor).roll(1, 1).mean(1))


def test_the_layers_do_not_depend_on_the_values_of_constants_that_training_changes() -> None:
    """A checkpoint is loaded into the network of a fresh ANN, so both must have the same tensors."""
    torch.manual_seed(0)
    ann = Learnt()
    fresh = to_spiking(ann, SignedIF, Direct(), (1, 8, 8))
    with torch.no_grad():
        for parameter in ann.parameters():
            parameter.add_(0.1 + torch.rand_like(parameter))
    trained = to_spiking(ann, SignedIF, Direct(), (1, 8, 8), images=torch.rand(2, 1, 8, 8))
    shapes = [{name: tensor.shape for name, tensor in network.state_dict().items()} for network in (fresh, trained)]
    assert shapes[0] == shapes[1]
