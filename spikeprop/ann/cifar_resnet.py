"""``CIFARResNet``: the residual network for CIFAR of He et al. 2016, sec. 4.2, with parameter-free shortcuts.

One convolution 3x3, then three groups of n blocks with 16, 32 and 64 channels, a global average pooling and a linear layer: depth
6n + 2. Where a group halves the image its shortcut takes every second pixel and adds zero channels ("option A"), half before and
half after, as in the well-known implementation whose weights it reads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop.ann.weights import find_weights, load_weights


class Shortcut(nn.Module):
    """Every ``stride``-th pixel, with ``added`` zero channels on each side."""

    def __init__(self, stride: int, added: int):
        super().__init__()
        self.stride, self.added = stride, added

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C + 2 added, H/stride, W/stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added))


class BasicBlock(nn.Module):
    """conv, batch-norm, ReLU, conv, batch-norm, plus the shortcut; then ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 else Shortcut(stride, (outputs - inputs) // 2)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H/stride, W/stride)."""
        return self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))) + self.shortcut(x))


class CIFARResNet(nn.Module):
    """Residual network for 32x32 images.

    Args:
        depth: 6n + 2: 20, 32, 44, 56, 110.
        classes: number of classes.
        weights: a .safetensors or .pth file, or its name in the folder ``weights`` of $SPIKEPROP_DATA; None for random weights.

    Raises:
        ValueError: a depth that is not 6n + 2.
        CheckpointError: a weights file that is missing or does not fit.
    """

    def __init__(self, *, depth: int = 20, classes: int = 10, weights: str | None = None):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"CIFARResNet has depths 6n + 2 (20, 32, 44, 56, 110), not {depth}")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        blocks = (depth - 2) // 6
        self.layer1 = _group(16, 16, blocks, 1)
        self.layer2 = _group(16, 32, blocks, 2)
        self.layer3 = _group(32, 64, blocks, 2)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        if weights is not None and torch.get_default_device().type != "meta":  # whose tensors have no values
            load_weights(self, find_weights(weights))

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (B, classes) for images (B, 3, 32, 32)."""
        features = self.layer3(self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x))))))
        return self.linear(features.mean((2, 3)))


def _group(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
