"""``Gradient``: the gradient of a layer's spikes, held as that of the pooled, masked values until it is needed in full."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from spikeprop.snn.engine.kernels.words import channels_first, channels_last


@dataclass
class Gradient:
    """Gradient of one piece, or chunk, of a layer's spikes.

    Attributes:
        values_KBPC: of the values after masking and average pooling.
        width: of the unpooled positions; 1 for a vector.
        pool: window and stride of the pooling, 1 for none.
        scale_BSC: the dropout mask, or None.
    """

    values_KBPC: Tensor
    width: int = 1
    pool: int = 1
    scale_BSC: Tensor | None = None

    def steps(self, first: int, last: int) -> Gradient:
        """That of the steps first..last, in the same memory."""
        return replace(self, values_KBPC=self.values_KBPC[first:last])

    def dense(self) -> Tensor:
        """Gradient of the spikes themselves, (K, B, S, C)."""
        grad = self.values_KBPC
        if self.pool > 1:
            side = self.width // self.pool
            images = channels_first(grad, (grad.shape[3], grad.shape[2] // side, side)) / self.pool**2
            images = images.repeat_interleave(self.pool, 2).repeat_interleave(self.pool, 3)
            grad = channels_last(images, len(grad))
        return grad if self.scale_BSC is None else grad * self.scale_BSC
