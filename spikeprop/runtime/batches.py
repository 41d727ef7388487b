"""The batch protocol: what data sets provide, and what learning, conversion and evaluation consume.

``Batches`` can be started at any batch of any epoch, so that an interrupted run continues without reading what is done.
``Split`` is one split of a data set. ``Shardable`` batches can read only the examples of one process. ``Sequences`` are examples
in time whose lengths differ; examples in time of one length are a tensor (B, T, ...).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from spikeprop.errors import DataError
from spikeprop.runtime.processes import Processes


@dataclass(frozen=True, eq=False)
class Sequences:
    """A batch of sequences of unequal length, examples first, each padded to the longest.

    Attributes:
        values: (B, T, ...), zeros after an example's own steps.
        lengths: (B,) int64, the number of steps of each example, 1 to T; on the device of ``values``.
    """

    values: Tensor
    lengths: Tensor

    def __post_init__(self) -> None:
        if self.values.dim() < 2 or self.lengths.dtype != torch.int64 or self.lengths.shape != self.values.shape[:1]:
            raise DataError(
                f"sequences have values {tuple(self.values.shape)} and lengths {tuple(self.lengths.shape)} of "
                f"{self.lengths.dtype}; give values (B, T, ...) and lengths (B,) int64"
            )
        if len(self.lengths) and not 1 <= int(self.lengths.min()) <= int(self.lengths.max()) <= self.values.shape[1]:
            raise DataError(
                f"lengths run from {int(self.lengths.min())} to {int(self.lengths.max())}; a sequence has 1 to "
                f"{self.values.shape[1]} steps here, the size of the second dimension of its values"
            )

    @classmethod
    def of(cls, examples: Sequence[Tensor]) -> Sequences:
        """The batch of these examples (T_i, ...), padded with zeros."""
        lengths = torch.tensor([len(x) for x in examples], dtype=torch.int64)
        return cls(torch.nn.utils.rnn.pad_sequence(list(examples), batch_first=True), lengths)

    def __len__(self) -> int:
        """Examples in the batch."""
        return len(self.lengths)

    def __getitem__(self, rows: Any) -> Sequences:
        """The examples of these rows (a slice, a mask or a tensor of numbers), with the same padding."""
        return Sequences(self.values[rows], self.lengths[rows])

    def to(self, *args: Any, **kwargs: Any) -> Sequences:
        """The same on another device or with another dtype of the values, as ``Tensor.to``."""
        values = self.values.to(*args, **kwargs)
        return Sequences(values, self.lengths.to(values.device))

    @property
    def shape(self) -> torch.Size:
        """Shape of the values."""
        return self.values.shape

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype


Batch = tuple[Any, Tensor]  # examples, a tensor (B, ...) or Sequences; and labels (B,) or (B, positions)


@runtime_checkable
class Batches(Protocol):
    """Batches that can be read from any position."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from batch number ``start`` on; the same epoch always gives the same batches."""
        ...


class Split(Batches, Protocol):
    """Batches of one split of a data set."""

    @property
    def batch_size(self) -> int:
        """Examples in a batch; the last one may have fewer."""
        ...

    def fingerprint(self) -> str:
        """A hash of the examples, their order and their labels: two splits with the same hash have the same content."""
        ...


class CompleteBatches:
    """Batches without an incomplete last one; the examples left out are others in every epoch of shuffled batches.

    Args:
        batches: of ``batch_size`` examples, except perhaps the last, of which one epoch's is read.
        batch_size: of complete batches.
    """

    def __init__(self, batches: Batches, batch_size: int):
        self.batches, self._count = batches, len(batches)
        last = next(batches.epoch(0, self._count - 1), None) if self._count else None
        if last is not None and len(last[1]) < batch_size:
            self._count -= 1
        if self._count == 0:
            raise DataError(f"there is no complete batch of {batch_size} examples: use a smaller batch_size")

    def __len__(self) -> int:
        return self._count

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The complete batches of one epoch, from batch number ``start`` on."""
        return islice(self.batches.epoch(epoch, start), self._count - start)

    def shard(self, processes: Processes) -> Batches:
        """The same batches, of which a process reads its own examples only, if it can."""
        if not isinstance(self.batches, Shardable):
            return self
        shard = copy.copy(self)
        shard.batches = self.batches.shard(processes)
        return shard


@runtime_checkable
class Shardable(Protocol):
    """Batches of which a process can read its own examples only."""

    def shard(self, processes: Processes) -> Batches:
        """The same batches with this process's examples (``Processes.rows``) beside the labels of the complete batch."""
        ...
