"""The processes that torchrun started together: who does what share of the work, and waiting for one another."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

from spikeprop.errors import ProcessError, SpikepropError, Stopped
from spikeprop.runtime.signals import stop_if_requested

PATIENCE = timedelta(days=30)  # shares differ in length, and a rank that dies is noticed at once
FAILED = 1000  # beyond the numbers of signals
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

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of the items, contiguous; parts differ by one item at most."""
        return items[self._shard(len(items))]

    def rows(self, size: int) -> slice:
        """This process's part of a batch of so many examples; all of it, where there are fewer than processes."""
        return slice(0, size) if size < self.count else self._shard(size)

    def _shard(self, size: int) -> slice:
        return slice(*(size * rank // self.count for rank in (self.rank, self.rank + 1)))

    def device(self, found: torch.device) -> torch.device:
        """``found``, or where it is CUDA without a number and there are several processes, this one's own GPU."""
        if self.count == 1 or found.type != "cuda" or found.index is not None:
            return found
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())

    def wait(self) -> None:
        """Until all processes are here.

        Raises:
            Stopped: a signal asked to; another may have stopped before it came here.
        """
        if self.count > 1:
            try:
                distributed.barrier()
            except RuntimeError:  # its connections are closed
                stop_if_requested()
                raise

    def on_rank_zero(self, work: Callable[[], object]) -> None:
        """Rank 0 does the work while the others wait; if it fails, all end.

        Raises:
            ProcessError: on other ranks, where rank 0 failed.
        """
        self.independently(work if self.rank == 0 else lambda: None)

    def collectively(self, work: Callable[[], object]) -> None:
        """All do work in which they meet, and wait for one another.

        Who fails ends at once, without a word to the others, which wait for it elsewhere: its end closes their connections to it,
        and torchrun ends what is left.
        """
        work()
        self.wait()

    def independently(self, work: Callable[[], object]) -> None:
        """All do work in which they do not meet; if one cannot, all end; if one was asked to stop, all were.

        Raises:
            ProcessError: on a rank whose own work was done.
            Stopped: a signal asked this or another process to.
        """
        failure: Exception | None = None
        try:
            work()
        except (SpikepropError, OSError) as error:
            failure = error
        worst = torch.tensor(0 if failure is None else failure.signal if isinstance(failure, Stopped) else FAILED)
        if self.count > 1:
            distributed.all_reduce(worst, distributed.ReduceOp.MAX)
        if failure is not None:
            raise failure
        if worst == FAILED:
            raise ProcessError(f"rank {self.rank} ends, since another process cannot go on; it says why")
        if worst:
            raise Stopped(int(worst))

    def broadcast(self, values: Iterable[Tensor]) -> None:
        """Rank 0's values for all, in place."""
        if self.count == 1:
            return
        for value in values:
            sent = value.detach().contiguous()  # a copy where it is a view that is not
            distributed.broadcast(sent, 0)
            value.data.copy_(sent)

    def sum_gradients(self, parameters: Sequence[Tensor], *, weight: float = 1.0, dtype: torch.dtype | None = None) -> None:
        """Make every ``.grad`` the sum over the processes, in one all-reduce; a process without one adds nothing.

        Args:
            parameters: of one type.
            weight: of this process's gradients.
            dtype: in which they are summed; default their own.
        """
        if self.count == 1:
            return
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([piece.reshape(-1).to(dtype or piece.dtype) for piece in pieces]).mul_(weight)
        distributed.all_reduce(flat)
        for p, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = gradient.view_as(p).to(p)


ALONE = Processes()


def resume_command(arguments: Sequence[str]) -> str | None:
    """The command that goes on with what this one did, under torchrun with as many processes.

    None on other ranks than 0, which have nothing to say.
    """
    asked = os.environ.get
    count = int(asked("WORLD_SIZE", "1"))
    if count == 1:
        return shlex.join(["spikeprop", *arguments])
    if asked("RANK", "0") != "0":
        return None
    torchrun = shlex.join(["torchrun", f"--nproc-per-node={count}", "-m", "spikeprop", *arguments])
    return torchrun if asked("LOCAL_WORLD_SIZE") == str(count) else f"{count} processes, started on all machines as these were"


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
