"""Synapses: the linear path from one layer's spikes to the next layer's current.

A synapse is a chain of operations without a non-linearity (convolution, linear, average pooling, flatten, dropout, a
gain); time is folded into the batch axis, so the chain sees ordinary (T*B, ...) tensors. Dropout draws one mask a
sample and keeps it for all time steps (Rathi et al. 2020), so the network that is trained is one sub-network, not a
new one each step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

WEIGHTED = (nn.Conv2d, nn.Linear)


class SampleDropout(nn.Module):
    """Dropout with probability ``p`` whose mask is drawn once a sample and held for all time steps."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def draw(self, x_B: Tensor) -> Tensor:
        """A mask for one step's input (B, ...): 0 with probability p, else 1/(1-p)."""
        return torch.bernoulli(torch.full_like(x_B, 1 - self.p)).div_(1 - self.p)

    def forward(self, x: Tensor) -> Tensor:
        """Outside a simulation dropout does nothing."""
        return x

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Gain(nn.Module):
    """Multiplies by a constant: the weight of a skip connection that has no layer of its own."""

    gain: Tensor

    def __init__(self, gain: float):
        super().__init__()
        self.register_buffer("gain", torch.tensor(float(gain)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Synapse(nn.Module):
    """A chain of linear operations, applied to spikes (T, B, ...)."""

    def __init__(self, ops: Iterable[nn.Module]):
        super().__init__()
        self.ops = nn.ModuleList(ops)

    def forward(self, spikes_TB: Tensor, masks: dict[int, Tensor] | None = None) -> Tensor:
        """Current (T, B, ...) for spikes (T, B, ...); ``masks`` holds this simulation's dropout masks, drawn when first met."""
        steps = len(spikes_TB)
        x = spikes_TB.flatten(0, 1)
        for i, op in enumerate(self.ops):
            x = self._drop(op, i, x, steps, masks) if isinstance(op, SampleDropout) else op(x)
        return x.unflatten(0, (steps, -1))

    def _drop(self, op: SampleDropout, index: int, x: Tensor, steps: int, masks: dict[int, Tensor] | None) -> Tensor:
        if not self.training or op.p == 0 or masks is None:
            return x
        x_TB = x.unflatten(0, (steps, -1))
        if index not in masks:
            masks[index] = op.draw(x_TB[0])
        return (x_TB * masks[index]).flatten(0, 1)

    def weighted(self) -> list[nn.Conv2d | nn.Linear]:
        """The operations that carry weights, in order."""
        return [op for op in self.ops if isinstance(op, WEIGHTED)]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.ops)
