"""Spike trains kept as one bit a neuron a step (numpy's packbits), unpacked one step at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


class PackedSpikes:
    """A list of binary spike tensors of one shape, each stored in one bit an element."""

    def __init__(self) -> None:
        self._steps: list[np.ndarray] = []
        self._like: Tensor | None = None

    def append(self, spikes: Tensor) -> None:
        """Add one step's spikes, 0 and 1, any shape (the same each time)."""
        self._like = spikes[:0]
        self._shape = spikes.shape
        self._steps.append(np.packbits(spikes.detach().cpu().numpy().astype(bool)))

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def nbytes(self) -> int:
        """Memory held by the bits."""
        return sum(step.nbytes for step in self._steps)

    def __iter__(self) -> Iterator[Tensor]:
        assert self._like is not None or not self._steps
        for step in self._steps:
            bits = np.unpackbits(step, count=self._shape.numel())
            yield torch.from_numpy(bits).to(self._like).view(self._shape)
