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

from spikeprop.errors import ProcessError, SpikepropError

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
        return items[self._part(len(items))]

    def rows(self, size: int) -> slice:
        """This process's part of a batch of so many examples; all of it, where there are fewer than processes."""
        return slice(0, size) if size < self.count else self._part(size)

    def _part(self, size: int) -> slice:
        return slice(*(size * rank // self.count for rank in (self.rank, self.rank + 1)))

    def device(self, found: torch.device) -> torch.device:
        """``found``, or where it is CUDA without a number and there are several processes, this one's own GPU."""
        if self.count == 1 or found.type != "cuda" or found.index is not None:
            return found
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            distributed.barrier()

    def first(self, work: Callable[[], object]) -> None:
        """Rank 0 does the work while the others wait; if it fails, all end.

        Raises:
            ProcessError: on other ranks, where rank 0 failed.
        """
        self.together(work if self.rank == 0 else lambda: None)

    def abreast(self, work: Callable[[], object]) -> None:
        """All do work in which they meet, and wait for one another.

        Who fails ends at once, without a word to the others, which wait for it elsewhere: its end closes their connections to it,
        and torchrun ends what is left.
        """
        work()
        self.wait()

    def together(self, work: Callable[[], object]) -> None:
        """All do work in which they do not meet; if one cannot, all end.

        Raises:
            ProcessError: on a rank whose own work was done.
        """
        failure: Exception | None = None
        try:
            work()
        except (SpikepropError, OSError) as error:
            failure = error
        failed = torch.tensor(int(failure is not None))
        if self.count > 1:
            distributed.all_reduce(failed, distributed.ReduceOp.MAX)
        if failure is not None:
            raise failure
        if failed:
            raise ProcessError(f"rank {self.rank} ends, since another process cannot go on; it says why")


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
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store, rank, size = next(distributed.rendezvous("env://", timeout=PATIENCE))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # addresses of workers that are gone stay in torchrun's store
        store = distributed.PrefixStore(f"spikeprop/{attempt}", store)
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield Processes(distributed.get_rank(), count, int(os.environ.get("LOCAL_RANK", "0")))
        distributed.barrier()  # nobody leaves while another still speaks
    finally:
        if started_here:
            distributed.destroy_process_group()
