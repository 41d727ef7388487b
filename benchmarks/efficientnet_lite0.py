"""EfficientNet-Lite0 (Tan & Le 2019; the variant without squeeze-and-excitation, with ReLU6) for published weights.

An inverted residual is expand 1x1 - depthwise k x k - project 1x1, batch-norm after each, ReLU6 after the first two; where
stride and channels allow, its input is added. Padding is TensorFlow's "same": of an even side at stride 2, one more on the right.
Tensors have the names of the PyPI package efficientnet-lite-pytorch, so that its weights load.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

STAGES = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320)]  # blocks, kernel, stride of the first, expansion, channels  # fmt: skip


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    padding = kernel // 2 if stride == 1 else 0
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)


def _pad(kernel: int, stride: int) -> nn.Module:
    before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
    return nn.Identity() if stride == 1 else nn.ZeroPad2d((before, after, before, after))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """An inverted residual."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide, self.expands, self.adds = inputs * expansion, expansion > 1, stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv, self._bn0 = _conv(inputs, wide, 1), _norm(wide)
        self.pad = _pad(kernel, stride)
        self._depthwise_conv, self._bn1 = _conv(wide, wide, kernel, stride, wide), _norm(wide)
        self._project_conv, self._bn2 = _conv(wide, outputs, 1), _norm(outputs)
        self.relu6 = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self.relu6(self._bn1(self._depthwise_conv(self.pad(y))))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """From images (B, 3, 224, 224), normalised by mean and deviation 0.5, to the scores of ImageNet's 1000 classes.

    Args:
        weights: safetensors.
    """

    def __init__(self, weights: Path):
        super().__init__()
        self.pad, self._conv_stem, self._bn0, self.relu6 = _pad(3, 2), _conv(3, 32, 3, 2), _norm(32), nn.ReLU6()
        self._blocks, inputs = nn.Sequential(), 32
        for count, kernel, stride, expansion, outputs in STAGES:
            for number in range(count):
                self._blocks.append(Block(inputs, outputs, kernel, stride if number == 0 else 1, expansion))
                inputs = outputs
        self._conv_head, self._bn1, self._fc = _conv(320, 1280, 1), _norm(1280), nn.Linear(1280, 1000)
        missing, unused = self.load_state_dict(load_file(weights), strict=False)
        odd = [name for name in (*missing, *unused) if not name.endswith("num_batches_tracked")]
        if odd:
            raise ValueError(f"{weights} does not fit: {', '.join(odd[:5])}")

    def forward(self, x: Tensor) -> Tensor:
        x = self._blocks(self.relu6(self._bn0(self._conv_stem(self.pad(x)))))
        return self._fc(self.relu6(self._bn1(self._conv_head(x))).mean((2, 3)))
