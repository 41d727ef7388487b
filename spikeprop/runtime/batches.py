"""The batch protocol: what data sets provide, and what learning, conversion and evaluation consume.

``Batches`` can be started at any batch of any epoch, so that an interrupted run continues without reading what is done.
``Split`` is one split of a data set. ``Shardable`` batches can read only the examples of one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from torch import Tensor

from spikeprop.runtime.processes import Processes

Batch = tuple[Tensor, Tensor]  # examples (B, ...), and labels (B,) or (B, positions)


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


@runtime_checkable
class Shardable(Protocol):
    """Batches of which a process can read its own examples only."""

    def shard(self, processes: Processes) -> Batches:
        """The same batches with this process's examples (``Processes.rows``) beside the labels of the complete batch."""
        ...
