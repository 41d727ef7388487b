"""``BasicResNet``: the network of the interlocking paper, with an adjustable width.

The authors call it ResNet-32: torchvision's basic blocks, 3, 4, 6 and 3 of them with 64, 128, 256 and 512 channels after a 3x3
convolution, for images of 32x32 pixels. It is not the CIFAR ResNet-32 of He et al. 2016, which has 16, 32 and 64 channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from spikeprop.ann.cnn import check_shape


class ResidualBlock(nn.Module):
    """relu(residual(x) + skip(x)); skip is the identity, or a 1x1 convolution with batch-norm where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.residual = nn.Sequential(*_conv(inputs, outputs, 3, stride), nn.ReLU(), *_conv(outputs, outputs, 3, 1))
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else nn.Sequential(*_conv(inputs, outputs, 1, stride))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H/stride, W/stride)."""
        return self.relu(self.residual(x) + self.skip(x))


class BasicResNet(nn.Module):
    """Residual network of basic blocks.

    Args:
        input_shape: (channels, height, width) of one image.
        classes: number of classes.
        width: channels of the first blocks; doubled three times. The paper uses 64.
        blocks: number of blocks of each width.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        classes: int = 10,
        width: int = 64,
        blocks: tuple[int, int, int, int] = (3, 4, 6, 3),
    ):
        super().__init__()
        check_shape(input_shape)
        layers: list[nn.Module] = [*_conv(input_shape[0], width, 3, 1), nn.ReLU()]
        channels = width
        for i, count in enumerate(blocks):
            for j in range(count):
                layers.append(ResidualBlock(channels, width * 2**i, 2 if i and j == 0 else 1))
                channels = width * 2**i
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (B, classes) for images (B, C, H, W)."""
        return self.head(self.features(x))


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs)]
