"""Shapes as synapses: any selection and order of a sample's numbers, and a constant that is added to them.

Whatever permutes, slices, rolls, repeats, pads with zeros or cuts into windows is one map from places to places, so any chain of
such operations is one ``Gather``.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Gather(nn.Module):
    """Each number of the result is a number of the sample, or 0.

    Args:
        index: for each number of the result, its place in the flattened sample; -1 for 0. On the CPU.
        size: numbers of the sample.
    """

    index: Tensor

    def __init__(self, index: Tensor, size: int):
        super().__init__()
        flat = index.reshape(-1)
        self.size, self.shape = size, tuple(index.shape)
        self.register_buffer("index", flat, persistent=False)  # it follows from the ANN's operations
        self._places = [flat]  # in a list, so that it stays on the CPU: a network on the meta device has no numbers
        self.ordered = len(flat) == size and bool((flat == torch.arange(size)).all())
        self.pads = bool((flat < 0).any())

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to (B, *shape)."""
        if not self.ordered:
            x = x.reshape(len(x), -1)
            x = F.pad(x, (0, 1)) if self.pads else x  # -1 becomes the last place: the zero that is put there
            x = x.index_select(1, self.index % x.shape[1] if self.pads else self.index)
        return x.reshape(len(x), *self.shape)

    def after(self, other: Gather) -> Gather:
        """This one applied to the result of another, as one."""
        extended = F.pad(other._places[0], (0, 1), value=-1)
        return Gather(extended[self._places[0]].reshape(self.shape), other.size)

    def extra_repr(self) -> str:
        return f"{self.size} to {self.shape}"


class Shift(nn.Module):
    """Adds a constant, of the shape of a sample or broadcastable to it, at every step: a bias of any shape."""

    shift: Tensor

    def __init__(self, shift: Tensor):
        super().__init__()
        self.register_buffer("shift", shift.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


def same_numbers(shape: tuple[int, ...]) -> Gather:
    """A sample's numbers in their order, in another shape."""
    return Gather(torch.arange(prod(shape)).reshape(shape), prod(shape))


def places(batch: int, shape: tuple[int, ...]) -> Tensor:
    """The numbers 1, 2, .. of samples (batch, *shape): what an operation makes of them tells where each number goes."""
    return torch.arange(1, batch * prod(shape) + 1, dtype=torch.float64).reshape(batch, *shape)
