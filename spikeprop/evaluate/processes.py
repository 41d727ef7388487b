"""The processes that torchrun started together: who does what share of the work, and waiting for one another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from spikeprop.errors import EvaluationError, SpikepropError

PATIENCE = timedelta(days=30)  # shares differ in length, and a rank that dies is noticed at once
T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among its peers.

    Attributes:
        rank: 0 to count - 1; rank 0 writes and prints what is said once.
        count: of processes.
        local_rank: its number on this machine, which picks its GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of the items, contiguous; parts differ by one item at most."""
        first, last = (len(items) * rank // self.count for rank in (self.rank, self.rank + 1))
        return items[first:last]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            distributed.barrier()

    def first(self, work: Callable[[], None]) -> None:
        """Rank 0 does the work while the others wait; if it fails, all end.

        Raises:
            EvaluationError: on other ranks, where rank 0 failed.
        """
        failure: Exception | None = None
        if self.rank == 0:
            try:
                work()
            except (SpikepropError, OSError) as error:
                failure = error
        if self.count > 1:
            failed = torch.tensor(int(failure is not None))
            distributed.broadcast(failed, 0)
            if self.rank and failed:
                raise EvaluationError(f"rank {self.rank} ends, since rank 0 could not begin")
        if failure is not None:
            raise failure


ALONE = Processes()


@contextmanager
def processes() -> Iterator[Processes]:
    """The group that torchrun started, for as long as the context lasts; ``ALONE`` without it."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    started_here = not distributed.is_initialized()
    if started_here:
        distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Processes(distributed.get_rank(), count, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        if started_here:
            distributed.destroy_process_group()
