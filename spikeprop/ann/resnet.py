"""``ResNet`` of Rathi et al. 2020, for conversion.

Three 3x3 convolutions with 64 channels and an average pooling precede the blocks ("pre-process block"), so that the first layers
are balanced without skips. A block is conv-ReLU-dropout-conv plus its skip (identity, or a 1x1
convolution where shape changes), then ReLU and dropout; everything is bias-free. Their depth counts the pre-process
block, two a block and the head: ResNet-20 = 3 + 2*(2+2+2+2) + 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikeprop.ann.activation import Clipped, make
from spikeprop.ann.cnn import check_shape, features_out, initialise

BLOCKS = {8: (1, 1), 20: (2, 2, 2, 2), 34: (3, 4, 5, 3)}
WIDTHS = (64, 128, 256, 512)


def _conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class ResNetBlock(nn.Module):
    """conv, ReLU (or ``activation``), dropout, conv, plus skip; then ReLU and dropout."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float, activation: Clipped | None = None):
        super().__init__()
        first = (_conv(inputs, outputs, stride), make(activation), nn.Dropout(dropout))
        self.residual = nn.Sequential(*first, _conv(outputs, outputs))
        self.skip = nn.Identity() if stride == 1 and inputs == outputs else _conv(inputs, outputs, stride, kernel=1)
        self.out = nn.Sequential(make(activation), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H/stride, W/stride)."""
        return self.out(self.residual(x) + self.skip(x))


class ResNet(nn.Module):
    """Residual network of the paper.

    Args:
        depth: 8, 20 or 34.
        input_shape: (channels, height, width); the first convolution also halves images of 64 pixels and more, and
            their complete map is averaged before the head (our choice, since the paper does not say).
        classes: number of classes.
        dropout: after each ReLU.
        activation: prototype, copied for every layer; null is the paper's ReLU.
    """

    def __init__(
        self,
        *,
        depth: int,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        classes: int = 10,
        dropout: float = 0.2,
        activation: Clipped | None = None,
    ):
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f"ResNet has depths {sorted(BLOCKS)}, not {depth}")
        check_shape(input_shape)
        large = input_shape[1] >= 64
        self.preprocess = _preprocess(input_shape[0], dropout, 2 if large else 1, activation)
        blocks: list[nn.Module] = []
        width = WIDTHS[0]
        for stage, count in enumerate(BLOCKS[depth]):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(ResNetBlock(width, WIDTHS[stage], stride, dropout, activation))
                width = WIDTHS[stage]
        if large:
            blocks.append(nn.AdaptiveAvgPool2d(1))
        self.blocks = nn.Sequential(*blocks)
        size = features_out(nn.Sequential(self.preprocess, self.blocks), input_shape)
        self.head = nn.Linear(size, classes, bias=False)
        initialise(self)
        _scale_residual_paths(self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (B, classes) for images (B, C, H, W)."""
        return self.head(torch.flatten(self.blocks(self.preprocess(x)), 1))


@torch.no_grad()
def _scale_residual_paths(blocks: nn.Sequential) -> None:
    """Divide the last weights of each block's residual path by the square root of the number of blocks.

    Without batch-norm each block would double the mean square of its input: the first losses of ResNet-34 were above 10^5 and its
    training ended in NaN. With it the total growth is a factor of e (as in Fixup, Zhang et al. 2019, arXiv:1901.09321).
    """
    residual = [block.residual for block in blocks if isinstance(block, ResNetBlock)]
    for path in residual:
        last = path[-1]
        assert isinstance(last, nn.Conv2d)
        last.weight.div_(len(residual) ** 0.5)


def _preprocess(channels: int, dropout: float, stride: int, activation: Clipped | None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(3):
        layers += [_conv(channels if i == 0 else 64, 64, stride if i == 0 else 1), make(activation)]
        layers += [nn.Dropout(dropout)] if i < 2 else [nn.AvgPool2d(2)]
    return nn.Sequential(*layers)
