"""Max pooling of spikes, exact for rates.

    N[t] = N[t-1] + s[t];   o[t] = max(N[t]) - max(N[t-1])

The largest count of a window grows by at most one a step, so the difference is a spike. On real-valued input that stays the same
it is the ordinary maximum. (Rueckauer et al. 2017, sec. 2.2.6, let the most active input through instead, which may send more
spikes than any input has sent.)
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spikeprop.snn.dynamics import LayerDynamics, NeuronState


class SpikingMaxPool(LayerDynamics):
    """The number of spikes sent so far is the largest of its window.

    Args:
        kernel_size, stride, padding, ceil_mode: as of ``torch.nn.MaxPool2d``.
    """

    passes_on: ClassVar[bool] = True

    def __init__(self, kernel_size: int | tuple[int, int], stride: Any = None, padding: Any = 0, ceil_mode: bool = False):
        super().__init__()
        self.window = nn.MaxPool2d(kernel_size, stride, padding, ceil_mode=ceil_mode)

    def run(self, currents: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        counts_TB = torch.cumsum(torch.cat([state.v.unsqueeze(0), currents]), 0)
        largest_TB = self.window(counts_TB.flatten(0, 1)).unflatten(0, (len(counts_TB), -1))
        return largest_TB[1:] - largest_TB[:-1], NeuronState(counts_TB[-1], None)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.window(torch.empty(shape, device="meta")).shape)

    def activation(self, total: Tensor, ceiling: Tensor | None) -> Tensor:
        """Sources are rectified and clipped already."""
        return self.window(total)

    def connected(self, values: Tensor) -> Tensor:
        """Each spike is compared once in every window."""
        pool = self.window
        summed = nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, divisor_override=1)  # type: ignore[arg-type]
        return summed(values.flatten(0, 1)).unflatten(0, values.shape[:2])
