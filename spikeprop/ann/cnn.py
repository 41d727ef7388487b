"""Convolutional ANNs that convert well: ``CNN`` from a list of layers (the plan), and the paper's ``VGG`` family.

Rathi et al. 2020: convolutions 3x3 and linear layers without bias, ReLU, average pooling, dropout after each ReLU
except where a pooling follows (the pooling replaces it), no batch-norm, no max-pooling (which a custom plan may have). An
``activation`` of ``spikeprop.ann.activation`` can replace every ReLU. Weights start from N(0,
sqrt(2 / (k^2 * C_out))) for convolutions and N(0, 0.01) for linear layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from spikeprop.ann.activation import Clipped, make

Pool = Literal["A", "M"]
POOLS: dict[Pool, type[nn.Module]] = {"A": nn.AvgPool2d, "M": nn.MaxPool2d}
LayerPlan = Sequence[int | Pool]

# "A" is a 2x2 average pooling. For CIFAR's 32x32 the classifier reads 8x8 or 2x2 maps; larger images have one more pooling.
VGG_PLANS: dict[int, LayerPlan] = {
    5: [64, "A", 128, 128, "A"],
    9: [64, "A", 128, 256, "A", 256, 512, "A", 512, "A", 512],
    11: [64, "A", 128, 256, "A", 512, 512, "A", 512, "A", 512, 512],
    13: [64, 64, "A", 128, 128, "A", 256, 256, "A", 512, 512, "A", 512, 512],
    16: [64, 64, "A", 128, 128, "A", 256, 256, 256, "A", 512, 512, 512, "A", 512, 512, 512],
    19: [64, 64, "A", 128, 128, "A", 256, 256, 256, 256, "A", 512, 512, 512, 512, "A", 512, 512, 512, 512],
}
VGG_HIDDEN = {5: (1024,), 9: (1024,)}  # two linear layers; the deeper ones have three


def initialise(model: nn.Module, linear_std: float | None = 0.01) -> None:
    """The paper's initial weights; with ``linear_std=None`` linear layers have He's sqrt(2 / inputs)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, linear_std or math.sqrt(2 / module.in_features))


def features(plan: LayerPlan, channels: int, dropout: float, batch_norm: bool, activation: Clipped | None) -> nn.Sequential:
    """Convolution 3x3, (batch-norm,) activation, dropout for each number of the plan; pooling replaces the dropout before it."""
    layers: list[nn.Module] = []
    for i, entry in enumerate(plan):
        if not isinstance(entry, int):
            layers.append(POOLS[entry](2))
            continue
        layers.append(nn.Conv2d(channels, entry, 3, padding=1, bias=False))
        layers += [nn.BatchNorm2d(entry)] if batch_norm else []
        layers.append(make(activation))
        if not any(following in POOLS for following in plan[i + 1 : i + 2]):
            layers.append(nn.Dropout(dropout))
        channels = entry
    return nn.Sequential(*layers)


def classifier(inputs: int, hidden: Sequence[int], classes: int, dropout: float, activation: Clipped | None) -> nn.Sequential:
    """Linear, activation, dropout for each hidden width, then a linear layer; no biases."""
    layers: list[nn.Module] = [nn.Flatten()]
    for width in hidden:
        layers += [nn.Linear(inputs, width, bias=False), make(activation), nn.Dropout(dropout)]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, classes, bias=False))


def features_out(extractor: nn.Module, input_shape: Sequence[int]) -> int:
    """Number of values that ``extractor`` returns for one image of ``input_shape``.

    Raises:
        ValueError: the extractor's poolings leave nothing of such an image.
    """
    training = extractor.training
    try:
        with torch.no_grad():
            size = extractor.eval()(torch.zeros(1, *input_shape)).numel()
    except RuntimeError:
        size = 0
    extractor.train(training)
    if size == 0:
        raise ValueError(f"images of shape {tuple(input_shape)} are too small for this network's poolings")
    return size


def check_shape(input_shape: Sequence[int]) -> None:
    """Raise ValueError if no image has this shape."""
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ValueError(f"input_shape is {list(input_shape)}; give channels, height and width, each at least 1")


class CNN(nn.Module):
    """A convolutional network from a plan.

    Args:
        input_shape: (channels, height, width) of one image.
        classes: number of classes.
        plan: widths of 3x3 convolutions, "A" for a 2x2 average pooling, "M" for max pooling, for example [32, "A", 64, "A"].
        hidden: widths of the hidden linear layers.
        dropout: after convolutions.
        hidden_dropout: after hidden linear layers.
        batch_norm: after each convolution; conversion folds it into the weights.
        activation: prototype, copied for every layer; null is ReLU.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        plan: list[int | Pool],
        hidden: list[int] | None = None,
        dropout: float = 0.2,
        hidden_dropout: float = 0.5,
        batch_norm: bool = False,
        activation: Clipped | None = None,
    ):
        super().__init__()
        check_shape(input_shape)
        self.features = features(list(plan), input_shape[0], dropout, batch_norm, activation)
        inputs = features_out(self.features, input_shape)
        self.classifier = classifier(inputs, hidden or [], classes, hidden_dropout, activation)
        initialise(self, linear_std=None)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (B, classes) for images (B, C, H, W)."""
        return self.classifier(self.features(x))


class VGG(nn.Module):
    """VGG as in Rathi et al. 2020: bias-free, average pooling, dropout.

    Args:
        depth: 5, 9, 11, 13, 16 or 19 layers with weights.
        input_shape: (channels, height, width) of one image; images of 64 pixels and more get a fifth pooling.
        classes: number of classes.
        dropout: after convolutions (0.2 for ANNs in the authors' code); 0.5 after linear layers.
        batch_norm: after each convolution; not in the paper.
        activation: prototype, copied for every layer; null is the paper's ReLU.
    """

    def __init__(
        self,
        *,
        depth: int,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        classes: int = 10,
        dropout: float = 0.2,
        batch_norm: bool = False,
        activation: Clipped | None = None,
    ):
        super().__init__()
        check_shape(input_shape)
        if depth not in VGG_PLANS:
            raise ValueError(f"VGG has depths {sorted(VGG_PLANS)}, not {depth}")
        plan = list(VGG_PLANS[depth])
        if input_shape[1] >= 64:
            plan.append("A")
        self.features = features(plan, input_shape[0], dropout, batch_norm, activation)
        hidden = VGG_HIDDEN.get(depth, (4096, 4096))
        self.classifier = classifier(features_out(self.features, input_shape), hidden, classes, 0.5, activation)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (B, classes) for images (B, C, H, W)."""
        return self.classifier(self.features(x))
