"""torchvision's families with norms, gates and attention convert: tiny members here, the published ones as slow tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig
from torchvision.models.maxvit import MaxVit
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

from spikeprop import Direct, GradedIF, MaxActivation, convert
from spikeprop.convert import relu_activations, to_spiking

SCALES = ("layer_scale", "gamma")


def lively(ann: nn.Module) -> nn.Module:
    """Statistics, scales and weights with which the image matters in the last layer."""
    torch.manual_seed(0)
    for module in ann.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.1)
        for name, parameter in module.named_parameters(recurse=False):
            if name in SCALES:
                nn.init.uniform_(parameter, 0.3, 0.7)
    return ann.double().eval()


@torch.no_grad()
def normalised(ann: nn.Module, size: int) -> nn.Module:
    """Batch-norms with the statistics of a few images: in a deep network with gates the signal fades without them.

    Their gains are a quarter, since residual blocks of full strength and random weights enlarge every rounding.
    """
    for module in ann.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean of what is seen
            nn.init.constant_(module.weight, 0.25)
    ann.train()(torch.randn(8, 3, size, size, dtype=torch.float64))
    return ann.eval()


def swin(second: bool) -> nn.Module:
    kinds = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2} if second else {}
    return SwinTransformer([4, 4], 8, [2, 1], [2, 4], [2, 2], num_classes=5, **kinds)


def efficient(fused: bool) -> nn.Module:
    first = FusedMBConvConfig(4, 3, 1, 8, 8, 1) if fused else MBConvConfig(1, 3, 1, 8, 8, 1, 1.0, 1.0)
    return EfficientNet([first, MBConvConfig(2, 3, 2, 8, 12, 2, 1.0, 1.0)], 0.2, num_classes=5, last_channel=24)


def mobile() -> nn.Module:
    settings = [
        InvertedResidualConfig(16, 3, 16, 16, True, "RE", 1, 1, 1),
        InvertedResidualConfig(16, 3, 24, 16, True, "HS", 2, 1, 1),
    ]
    return MobileNetV3(settings, 24, num_classes=5)


TINY: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "vision transformer": (16, partial(models.VisionTransformer, 16, 4, 2, 2, 16, 32, num_classes=5)),
    "swin": (16, partial(swin, False)),
    "swin, second version": (16, partial(swin, True)),
    "ConvNeXt": (16, lambda: ConvNeXt([CNBlockConfig(8, 12, 1), CNBlockConfig(12, None, 1)], num_classes=5)),
    "EfficientNet": (16, partial(efficient, False)),
    "EfficientNet, second version": (16, partial(efficient, True)),
    "MobileNet, third version": (16, mobile),
    "RegNet": (16, lambda: RegNet(BlockParams([1, 1], [8, 16], [4, 8], [1.0, 1.0], [2, 2], 1.0), 5, stem_width=8)),
    "MaxViT": (16, lambda: MaxVit((16, 16), 8, 2, [8, 16], [1, 1], 4, 0.2, num_classes=5)),
}


@torch.no_grad()
def assert_converts(ann: nn.Module, size: int, steps: tuple[int, int], levels: int = 4, within: float = 2) -> None:
    """The network computes what the ANN computes, and the error of graded spikes falls like 1/T, within a factor."""
    x = torch.randn(3, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = ann(x)
    assert float(expected.std(0).mean()) > 1e-3 * float(expected.abs().mean())
    plain = to_spiking(ann, GradedIF, Direct(), (3, size, size), images=x)
    output = list(relu_activations(plain, x).values())[-1]
    torch.testing.assert_close(output, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))
    network = convert(ann, [x], GradedIF(levels=levels), MaxActivation(per="channel"))
    scale = list(network.named_layers())[-1][1].scale
    few, many = (float((network(x, t, chunk=min(t, 8)) * scale / t - expected).abs().mean()) for t in steps)
    size_of_output = float((expected - expected.mean(0)).abs().mean())
    assert few < 0.5 * size_of_output
    assert many < max(within * few * steps[0] / steps[1], 1e-6 * size_of_output)


@pytest.mark.parametrize("name", TINY)
def test_tiny_members_of_families_convert(name: str) -> None:
    size, made = TINY[name]
    torch.manual_seed(0)
    assert_converts(lively(made()), size, (4, 32))


PUBLISHED = {
    "vit_b_16": 32, "swin_t": 32, "swin_v2_t": 64, "convnext_tiny": 32, "efficientnet_b0": 32, "efficientnet_v2_s": 32,
    "mobilenet_v3_small": 32, "regnet_y_400mf": 32, "shufflenet_v2_x0_5": 32, "maxvit_t": 224,
}  # fmt: skip


GATED = {"efficientnet_b0", "efficientnet_v2_s", "mobilenet_v3_small"}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_members_convert(name: str) -> None:
    torch.manual_seed(0)
    options = {"image_size": PUBLISHED[name]} if name == "vit_b_16" else {}
    ann, size = lively(models.get_model(name, weights=None, num_classes=10, **options)), PUBLISHED[name]
    if name in GATED:
        assert_converts(normalised(ann, size), size, (8, 64), levels=7, within=3)  # gates round their inputs and their outputs
    else:
        assert_converts(ann, size, (8, 64))
