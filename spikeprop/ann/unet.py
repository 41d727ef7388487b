"""``UNet``: a class for each pixel (Ronneberger et al. 2015), small, with batch-norm.

Each level has two convolutions 3x3 with batch-norm and ReLU; on the way down levels are joined by max pooling, on the way up by a
transposed convolution 2x2, or bilinear interpolation and a convolution 1x1, and by the level's maps of the way down.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from spikeprop.ann.cnn import check_shape


class UNet(nn.Module):
    """A U-Net.

    Args:
        input_shape: (channels, height, width) of one image.
        classes: of a pixel.
        widths: channels of each level, the finest first.
        up: how maps are enlarged.

    Raises:
        ValueError: images whose sides the poolings do not divide.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        widths: list[int] | None = None,
        up: Literal["transposed", "bilinear"] = "transposed",
    ):
        super().__init__()
        check_shape(input_shape)
        widths = [16, 32, 64] if widths is None else list(widths)
        factor = 2 ** (len(widths) - 1)
        if input_shape[1] % factor or input_shape[2] % factor:
            raise ValueError(f"images of {input_shape[1]}x{input_shape[2]} pixels cannot be halved {len(widths) - 1} times")
        self.down = nn.ModuleList(_level(inputs, outputs) for inputs, outputs in pairwise([input_shape[0], *widths]))
        self.pool = nn.MaxPool2d(2)
        coarse_to_fine = list(pairwise(reversed(widths)))
        self.enlarge = nn.ModuleList(_enlarged(inputs, outputs, up) for inputs, outputs in coarse_to_fine)
        self.up = nn.ModuleList(_level(2 * outputs, outputs) for _, outputs in coarse_to_fine)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, classes, H, W) of the pixels of images (B, C, H, W)."""
        kept: list[Tensor] = []
        for i, level in enumerate(self.down):
            x = level(self.pool(x) if i else x)
            kept.append(x)
        kept.pop()
        for enlarge, level in zip(self.enlarge, self.up):
            x = level(torch.cat([kept.pop(), enlarge(x)], 1))
        return self.head(x)


def _level(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def _enlarged(inputs: int, outputs: int, up: str) -> nn.Module:
    if up == "transposed":
        return nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(inputs, outputs, 1))
