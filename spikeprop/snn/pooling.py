"""Max pooling of spikes: of what was sent so far, which is exact for rates, and of each step alone.

    N[t] = N[t-1] + s[t];   o[t] = max(N[t]) - max(N[t-1])

The largest count of a window grows by at most one a step, so the difference is a spike. On real-valued input that stays the same
it is the ordinary maximum. (Rueckauer et al. 2017, sec. 2.2.6, let the most active input through instead, which may send more
spikes than any input has sent.)

Of each step alone, o[t] = max(s[t]): what ``nn.MaxPool2d`` computes in a module that runs step after step. Of spikes of 0 and 1
it is a neuron without memory behind their mean, o[t] = 1 where mean(s[t]) > 1 / (2 n) for windows of n.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spikeprop.snn.dynamics import LayerDynamics, NeuronState

WINDOWS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}  # by number of axes of positions


class _MaxPool(LayerDynamics):
    """Windows of the largest."""

    passes_on: ClassVar[bool] = True

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, *, axes: int = 2):
        super().__init__()
        self.window = WINDOWS[axes](kernel_size, stride, padding, ceil_mode=ceil_mode)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.window(torch.empty(shape, device="meta")).shape)

    def activation(self, total: Tensor, ceiling: Tensor | None) -> Tensor:
        """Sources are rectified and clipped already."""
        return self.window(total)

    def connected(self, values: Tensor) -> Tensor:
        """Each spike is compared once in every window."""
        return window_sums(values.flatten(0, 1), self.window).unflatten(0, values.shape[:2])


class SpikingMaxPool(_MaxPool):
    """The number of spikes sent so far is the largest of its window.

    Args:
        kernel_size, stride, padding, ceil_mode: as of ``torch.nn.MaxPool2d``.
        axes: of positions: 1 of a signal, 2 of an image, 3 of a video or a volume.
    """

    def run(self, currents: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        counts_TB = torch.cumsum(torch.cat([state.v.unsqueeze(0), currents]), 0)
        largest_TB = self.window(counts_TB.flatten(0, 1)).unflatten(0, (len(counts_TB), -1))
        return largest_TB[1:] - largest_TB[:-1], NeuronState(counts_TB[-1], None)


class StepMaxPool(_MaxPool):
    """The largest of its window at each step.

    Args:
        kernel_size, stride, padding, ceil_mode: as of ``torch.nn.MaxPool2d``.
        axes: of positions: 1 of a signal, 2 of an image, 3 of a video or a volume.
    """

    def run(self, currents: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        return self.window(currents.flatten(0, 1)).unflatten(0, (len(currents), -1)), state

    def initial_state(self, current: Tensor) -> NeuronState:
        """It remembers nothing."""
        return NeuronState(current.new_zeros(()), None)


def window_sums(x: Tensor, pool: Any) -> Tensor:
    """The sum over each window of a pooling, of values (B, C, ...)."""
    sizes: Any = (pool.kernel_size, pool.stride, pool.padding)
    axes = x.dim() - 2
    if axes == 1:  # torch's own sums need two axes
        kernel, stride, padding = (size if isinstance(size, int) else size[0] for size in sizes)
        sizes, x = ((1, kernel), (1, stride), (0, padding)), x.unsqueeze(-2)
    kind: Any = nn.AvgPool3d if axes == 3 else nn.AvgPool2d
    summed = kind(*sizes, pool.ceil_mode, divisor_override=1)(x)
    return summed.squeeze(-2) if axes == 1 else summed
