"""What a layer of the packed engine sends over a chunk of steps: packed spikes, small whole numbers, or any numbers.

Suffix legend: K steps of a chunk, B batch, S positions, C channels, W words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprop.snn.engine.buffer_pool import BufferPool
from spikeprop.snn.engine.kernels import packed_kernels
from spikeprop.snn.engine.kernels.sparse_backward import Active
from spikeprop.snn.engine.kernels.words import channels_first, channels_last


@dataclass
class SourceValues:
    """A layer's output over K steps: packed spikes, spikes with a sign or a payload as int8, or dense values (K or 1, B, ...).

    Attributes:
        shape: of a sample.
        count: number of spikes, packed or int8, that are not 0.
        active: on the way back, the neurons whose gradient is needed; None for all.
        unit: none of the int8 is beyond -1 and 1.
    """

    shape: tuple[int, ...]
    words_KBSW: Tensor | None = None
    count: int = 0
    dense_KB: Tensor | None = None
    small_KBSC: Tensor | None = None
    unit: bool = False
    active: Active | None = None

    @property
    def steps(self) -> int:
        return len(self._held)

    @property
    def _held(self) -> Tensor:
        held = next(t for t in (self.words_KBSW, self.small_KBSC, self.dense_KB) if t is not None)
        return held

    def cut(self, first: int, last: int) -> SourceValues:
        """The steps first..last; the number of spikes is estimated in proportion."""
        if (first, last) == (0, self.steps) or (self.dense_KB is not None and len(self.dense_KB) == 1):
            return self
        words, dense, small = (t if t is None else t[first:last] for t in (self.words_KBSW, self.dense_KB, self.small_KBSC))
        return SourceValues(self.shape, words, self.count * (last - first) // self.steps, dense, small, self.unit, self.active)

    @property
    def largest(self) -> float:
        """No value is larger in magnitude; infinity where the values are no whole numbers."""
        if self.small_KBSC is None or self.unit:
            return 1 if self.dense_KB is None else math.inf
        low, high = self.small_KBSC.aminmax()
        return max(-int(low), int(high))

    def channels_last(self, dtype: torch.dtype) -> Tensor:
        """The values (K or 1, B, S, C)."""
        if self.words_KBSW is not None:
            return unpacked(self.words_KBSW, self.shape[0], dtype)
        if self.small_KBSC is not None:
            return self.small_KBSC.to(dtype)
        assert self.dense_KB is not None
        return channels_last(self.dense_KB.flatten(0, 1).to(dtype), len(self.dense_KB))

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The values (K or 1, B, ...)."""
        if self.dense_KB is not None:
            return self.dense_KB.to(dtype)
        return channels_first(self.channels_last(dtype), self.shape).unflatten(0, self._held.shape[:2])


@dataclass(frozen=True)
class SourceSpec:
    """What a run reads: ``batch`` samples of ``shape``, as spikes or as values of ``dtype``; and memory for what it makes."""

    batch: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    buffers: BufferPool


def unpacked(words_KBSW: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Spikes (K, B, S, C) on the words' device."""
    return packed_kernels(words_KBSW.device).unpack(words_KBSW, channels, dtype)
