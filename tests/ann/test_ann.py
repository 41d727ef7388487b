"""ANNs: the paper's rules (no bias, average pooling, positions of dropout), depths, and torchvision's models."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import pytest
import torch
from torch import nn

from spikeprop import CNN, IF, VGG, Direct, ResNet
from spikeprop.ann import TorchvisionModel
from spikeprop.convert import to_spiking
from spikeprop.deploy import to_nir
from spikeprop.errors import CheckpointError


def weighted(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("depth", [5, 9, 11, 13, 16, 19])
def test_vgg_has_the_papers_layers(depth: int) -> None:
    model = VGG(depth=depth, classes=10)
    assert len(weighted(model)) == depth
    assert all(m.bias is None for m in weighted(model))
    assert not any(isinstance(m, nn.MaxPool2d | nn.BatchNorm2d) for m in model.modules())
    layers = list(model.features)
    for before, pool in pairwise(layers):
        if isinstance(pool, nn.AvgPool2d):
            assert isinstance(before, nn.ReLU)  # the pooling replaces the dropout
    assert model.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(("depth", "layers"), [(8, 8), (20, 20), (34, 34)])
def test_resnet_has_the_papers_layers(depth: int, layers: int) -> None:
    model = ResNet(depth=depth)
    skips = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(weighted(model)) - len(skips) == layers
    assert all(m.bias is None for m in weighted(model)[:-1])
    assert model.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 10)


def test_larger_images_are_downsampled_once_more() -> None:
    assert ResNet(depth=34, input_shape=(3, 224, 224), classes=1000).head.in_features == 512
    assert VGG(depth=11, input_shape=(3, 64, 64)).classifier[1].in_features == 512 * 2 * 2


def test_initial_weights_are_the_papers() -> None:
    torch.manual_seed(0)
    model = VGG(depth=9)
    conv, linear = weighted(model)[3], weighted(model)[-2]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(linear, nn.Linear)
    assert conv.weight.std().item() == pytest.approx((2 / (9 * conv.out_channels)) ** 0.5, rel=0.02)
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.02)


def test_a_plan_may_have_max_pooling() -> None:
    ann = CNN(input_shape=(1, 8, 8), classes=2, plan=[2, "M", 3, "A", 4], dropout=0.5)
    kinds = [type(layer).__name__ for layer in ann.features]
    assert kinds == ["Conv2d", "ReLU", "MaxPool2d", "Conv2d", "ReLU", "AvgPool2d", "Conv2d", "ReLU", "Dropout"]
    assert ann(torch.rand(3, 1, 8, 8)).shape == (3, 2)


def test_invalid_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="depths"):
        VGG(depth=7)
    with pytest.raises(ValueError, match="depths"):
        ResNet(depth=18)
    with pytest.raises((ValueError, RuntimeError), match="too small"):
        CNN(input_shape=(1, 4, 4), classes=2, plan=[2, "A", "A", "A"])


def test_torchvision_by_name_and_from_a_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from torchvision import models

    donor = models.squeezenet1_1(num_classes=7)
    save_file(donor.state_dict(), tmp_path / "w.safetensors")
    torch.save(donor.state_dict(), tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        model = TorchvisionModel(name="squeezenet1_1", weights=str(tmp_path / name), classes=7)
        assert all(torch.equal(a, b) for a, b in zip(donor.parameters(), model.parameters()))
    with pytest.raises(CheckpointError, match="does not fit"):
        TorchvisionModel(name="squeezenet1_0", weights=str(tmp_path / "w.pth"), classes=7)
    with pytest.raises(CheckpointError, match="no weights file"):
        TorchvisionModel(name="squeezenet1_0", weights=str(tmp_path / "x.pth"))
    with pytest.raises(ValueError, match=r"nearest: .*resnet18"):
        TorchvisionModel(name="resnet-18")


def test_real_weights_from_a_local_file(data_root: Path) -> None:
    file = data_root / "weights" / "squeezenet1_0_imagenet.safetensors"
    if not file.exists():
        pytest.skip("squeezenet1_0_imagenet is not under SPIKEPROP_DATA/weights")
    from spikeprop.data import ImageNet
    from spikeprop.evaluate import ann_accuracy

    model = TorchvisionModel(name="squeezenet1_0", weights=str(file))
    data = ImageNet(root=str(data_root / "imagenet-sample"), workers=2, mean=0.45, std=0.225)
    assert ann_accuracy(model, data.test(50).epoch(0)) >= 45  # 55 with each channel's own statistics


def test_average_pooling_replaces_max_pooling() -> None:
    """A torchvision model with pooling is then linear between its ReLUs, so its network can be exported."""
    ann = TorchvisionModel(name="resnet18", classes=10, pooling="average").eval()
    assert not [m for m in ann.modules() if isinstance(m, nn.MaxPool2d)]
    x = torch.rand(1, 3, 32, 32)
    network = to_spiking(ann, IF, Direct(), (3, 32, 32))
    graph = to_nir(network.eval())
    assert sum(isinstance(n, nir.AvgPool2d) for n in graph.nodes.values()) == 3  # for both branches of a block, and the last
    assert ann(x).shape == (1, 10)
    with pytest.raises(ValueError, match="pooling is 'mean'; use 'max' or 'average'"):
        TorchvisionModel(name="vgg11", pooling="mean")  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", [8, 20, 34])
@torch.no_grad()
def test_a_deep_residual_network_starts_with_outputs_of_order_one(depth: int) -> None:
    torch.manual_seed(0)
    net = ResNet(depth=depth, classes=10).eval()
    x = torch.randn(8, 3, 32, 32)
    before = net.preprocess(x).square().mean()
    assert 0.1 < float(net.blocks(net.preprocess(x)).square().mean() / before) < 3


@pytest.mark.parametrize("shape", [(0, 28, 28), (-1, 28, 28), (1, 0, 28), (28, 28)])
def test_shape_of_no_image_is_refused(shape: Any) -> None:
    for make in (lambda: CNN(input_shape=shape, classes=3, plan=["A", 4]), lambda: VGG(depth=5, input_shape=shape)):
        with pytest.raises(ValueError, match="give channels, height and width, each at least 1"):
            make()


def test_image_that_poolings_leave_nothing_of_is_refused() -> None:
    with pytest.raises(ValueError, match=r"images of shape \(1, 2, 2\) are too small for this network's poolings"):
        VGG(depth=5, input_shape=(1, 2, 2))
