"""``FastCNN``: a small convolutional network with batch-norm that trains in minutes and converts well.

A 2x2 convolution, which the callback ``Whitening`` can set to whitened patches; for each width a block

    conv 3x3, batch-norm, activation, pool 2x2, conv 3x3, batch-norm, activation          (pool: avg)
    conv 3x3, pool 2x2, batch-norm, activation, conv 3x3, batch-norm, activation          (pool: max)

then global pooling and a linear layer, whose scores are multiplied by ``score_scale``. Convolutions start as the identity where
they can (Zagoruyko & Komodakis 2017, "DiracNets"), and the gain of batch-norm is fixed at 1, so it commutes with max pooling and
a channel is never negated or lost by it. Architecture and initial values: Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a
Single GPU" (arXiv:2404.00498), with ReLU in place of GELU, because ReLU converts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from spikeprop.ann.activation import Clipped, make
from spikeprop.ann.cnn import check_shape

POOLS = {"avg": (nn.AvgPool2d, nn.AdaptiveAvgPool2d), "max": (nn.MaxPool2d, nn.AdaptiveMaxPool2d)}
PATCH = 2  # side of the patches that the first convolution reads


class FastBlock(nn.Module):
    """Two convolutions 3x3 with batch-norm, with a pooling 2x2 after the first.

    Args:
        inputs, outputs: channels.
        pool: "avg" after the activation, or "max" before batch-norm.
        momentum: weight of the newest batch in the running statistics of batch-norm.
        activation: prototype; None is ReLU.
    """

    def __init__(self, inputs: int, outputs: int, pool: Literal["avg", "max"], momentum: float, activation: Clipped | None):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs, momentum=momentum)
        self.act1 = make(activation)
        self.pool = POOLS[pool][0](2)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs, momentum=momentum)
        self.act2 = make(activation)
        for conv in (self.conv1, self.conv2):
            nn.init.dirac_(conv.weight[: conv.in_channels])
        for norm in (self.norm1, self.norm2):
            norm.weight.requires_grad_(False)  # 1, so that batch-norm commutes with max pooling

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, outputs, H // 2, W // 2) of maps (B, inputs, H, W)."""
        x = self.conv1(x)
        if self.training and isinstance(self.pool, nn.MaxPool2d):
            x = self.act1(self.norm1(self.pool(x)))  # statistics of a quarter of the values, which is also faster
        else:  # equal in evaluation, and what converts: pooling of spikes
            x = self.pool(self.act1(self.norm1(x)))
        return self.act2(self.norm2(self.conv2(x)))


class FastCNN(nn.Module):
    """The network; with widths 64, 256, 256 it has 2.0 M parameters and 118 million multiply-adds for an image of 32x32.

    Args:
        input_shape: (channels, height, width) of one image.
        classes: number of classes.
        widths: channels of each block; each halves height and width.
        pool: "avg" or "max", of every block and over all positions before the last layer.
        batch_norm_momentum: weight of the newest batch in the running statistics.
        score_scale: factor on the scores; smaller ones start with less certain predictions.
        activation: prototype, copied for every layer; null is ReLU.

    Raises:
        ValueError: images that are too small for the blocks, or no widths.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        classes: int = 10,
        widths: Sequence[int] = (64, 256, 256),
        pool: Literal["avg", "max"] = "avg",
        batch_norm_momentum: float = 0.4,
        score_scale: float = 1 / 9,
        activation: Clipped | None = None,
    ):
        super().__init__()
        check_shape(input_shape)
        if not widths or min(widths) < 1:
            raise ValueError(f"widths is {list(widths)}; give the channels of at least one block, each at least 1")
        if (min(input_shape[1:]) - PATCH + 1) >> len(widths) < 1:
            raise ValueError(f"images of shape {tuple(input_shape)} are too small for {len(widths)} poolings")
        if not score_scale > 0:
            raise ValueError(f"score_scale is {score_scale}; it must be positive")
        channels = 2 * input_shape[0] * PATCH**2  # every whitened pattern and its negative
        self.whitening = nn.Conv2d(input_shape[0], channels, PATCH)
        nn.init.zeros_(self.whitening.bias)  # type: ignore[arg-type]
        self.act = make(activation)
        sizes = [channels, *widths]
        self.blocks = nn.Sequential(*(FastBlock(i, o, pool, batch_norm_momentum, activation) for i, o in zip(sizes, widths)))
        self.pool = POOLS[pool][1](1)
        self.head = nn.Linear(widths[-1], classes, bias=False)
        self.score_scale = score_scale

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (B, classes) for images (B, C, H, W)."""
        x = self.pool(self.blocks(self.act(self.whitening(x))))
        return self.head(torch.flatten(x, 1)) * self.score_scale
