"""Auxiliary heads: small networks that predict the classes from a segment's activations and are trained together with it.

``ConvHead`` is the authors' head (convolutions to 128 and 64 channels with batch-norm and ReLU, global pooling, a linear layer);
``PooledHead`` is the smallest head (pooling and a linear layer); ``TokenHead`` is for sequences of tokens with the features last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from spikeprop.errors import SegmentError


@dataclass(frozen=True, kw_only=True)
class AuxiliaryHead(ABC):
    """Builds a head for activations of a given shape."""

    @abstractmethod
    def build(self, shape: Sequence[int], classes: int) -> nn.Module:
        """Build a module from activations (B, *shape) to class scores (B, classes, ...).

        Raises:
            SegmentError: the head does not support this shape.
        """


@dataclass(frozen=True, kw_only=True)
class ConvHead(AuxiliaryHead):
    """Convolutions 3x3 with batch-norm and ReLU, global average pooling, a linear layer.

    Attributes:
        widths: channels of the convolutions; the authors' 128 and 64.
    """

    widths: list[int] = field(default_factory=lambda: [128, 64])

    def build(self, shape: Sequence[int], classes: int) -> nn.Module:
        if len(shape) != 3:
            return PooledHead().build(shape, classes)  # no feature maps left, for example after the network's own pooling
        layers: list[nn.Module] = []
        channels = shape[0]
        for width in self.widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


@dataclass(frozen=True, kw_only=True)
class PooledHead(AuxiliaryHead):
    """Average pooling of maps to ``size`` x ``size``, and a linear layer."""

    size: int = 1

    def build(self, shape: Sequence[int], classes: int) -> nn.Module:
        if len(shape) == 1:
            return nn.Linear(shape[0], classes)
        if len(shape) != 3:
            raise SegmentError(f"PooledHead reads maps (C, H, W) or features (C), not {tuple(shape)}; use TokenHead for tokens")
        side = min(self.size, *shape[1:])
        return nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.Linear(shape[0] * side**2, classes))


@dataclass(frozen=True, kw_only=True)
class TokenHead(AuxiliaryHead):
    """Layer-norm and a linear layer for each token: (B, T, C) to (B, classes, T)."""

    def build(self, shape: Sequence[int], classes: int) -> nn.Module:
        if len(shape) != 2:
            raise SegmentError(f"TokenHead reads tokens (T, C), not {tuple(shape)}; use ConvHead for images")
        return nn.Sequential(nn.LayerNorm(shape[1]), nn.Linear(shape[1], classes), TokensLast())


class TokensLast(nn.Module):
    """(B, T, C) to (B, C, T), the layout that losses expect."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)
