"""``Processes``: the processes that torchrun started, how work is divided among them, and how they exchange tensors.

Barriers, broadcasts and the sum of gradients after a step are methods here and nowhere else.
"""

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
from spikeprop.runtime.heartbeat import Heartbeat, limit_from_environment
from spikeprop.runtime.signals import stop_if_requested

PATIENCE = timedelta(days=30)  # shards take different times; a rank that dies is noticed immediately, one that hangs by Heartbeat
FAILED = 1000  # larger than any signal number
T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among its peers.

    Attributes:
        rank: 0 to count - 1; rank 0 writes files and prints.
        count: of processes.
        local_rank: its number on this machine, which selects its GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """This process's shard of the items, contiguous; the lengths of shards differ by at most one."""
        return items[self._shard(len(items))]

    def rows(self, size: int) -> slice:
        """This process's shard of a batch of ``size`` examples; the complete batch if it has fewer examples than processes."""
        return slice(0, size) if size < self.count else self._shard(size)

    def _shard(self, size: int) -> slice:
        return slice(*(size * rank // self.count for rank in (self.rank, self.rank + 1)))

    def device(self, found: torch.device) -> torch.device:
        """``found``; for CUDA without a number and several processes, the GPU of this process."""
        if self.count == 1 or found.type != "cuda" or found.index is not None:
            return found
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())

    def wait(self) -> None:
        """Wait until all processes have called this.

        Raises:
            Stopped: a signal asked to stop; another process may have stopped before this call.
        """
        if self.count > 1:
            try:
                distributed.barrier()
            except RuntimeError:  # the other process has closed its connections
                stop_if_requested()
                raise

    def on_rank_zero(self, work: Callable[[], object]) -> None:
        """Rank 0 does the work while the others wait; if it fails, all processes end.

        Raises:
            ProcessError: on the other ranks, if rank 0 failed.
        """
        self.independently(work if self.rank == 0 else lambda: None)

    def collectively(self, work: Callable[[], object]) -> None:
        """All processes do work that contains collective operations, and then wait for one another.

        A process that fails ends immediately and does not notify the others, which wait for it inside a collective operation: its
        end closes their connections, and torchrun ends the remaining processes.
        """
        work()
        self.wait()

    def independently(self, work: Callable[[], object]) -> None:
        """All processes do work without collective operations; if one fails, all end, and if one was asked to stop, all stop.

        Raises:
            ProcessError: on a rank whose own work succeeded, if another rank failed.
            Stopped: a signal asked this or another process to stop.
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
            raise ProcessError(f"rank {self.rank} ends because another process failed; see that process's message")
        if worst:
            raise Stopped(int(worst))

    def broadcast(self, values: Iterable[Tensor]) -> None:
        """Copy rank 0's values to all processes, in place."""
        if self.count == 1:
            return
        for value in values:
            sent = value.detach().contiguous()  # a copy if it is not contiguous
            distributed.broadcast(sent, 0)
            value.data.copy_(sent)

    def sum_gradients(self, parameters: Sequence[Tensor], *, weight: float = 1.0, dtype: torch.dtype | None = None) -> None:
        """Make every ``.grad`` the sum over the processes, in one all-reduce; a missing gradient counts as zero.

        Args:
            parameters: of one dtype.
            weight: factor of this process's gradients.
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


def is_first() -> bool:
    """Whether this process is alone or rank 0 of those that torchrun started, also before they form a group."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


def resume_command(arguments: Sequence[str]) -> str | None:
    """The command that resumes this one, under torchrun with the same number of processes; None on ranks other than 0."""
    variable = os.environ.get
    count = int(variable("WORLD_SIZE", "1"))
    if count == 1:
        return shlex.join(["spikeprop", *arguments])
    if not is_first():
        return None
    torchrun = shlex.join(["torchrun", f"--nproc-per-node={count}", "-m", "spikeprop", *arguments])
    return torchrun if variable("LOCAL_WORLD_SIZE") == str(count) else f"{count} processes, started on all machines as these were"


@contextmanager
def processes() -> Iterator[Processes]:
    """Within this context the processes that torchrun started form a group; without torchrun it is ``ALONE``.

    A process that is silent for $SPIKEPROP_PATIENCE seconds (default 600) ends the others, which name it.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    if distributed.is_initialized():
        yield _of_environment(count)
        distributed.barrier()
        return
    _prepare_group()  # before the heartbeat, since it takes seconds
    store, rank, size = next(distributed.rendezvous("env://", timeout=PATIENCE))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store keeps the addresses of ended workers
    store = distributed.PrefixStore(f"spikeprop/{attempt}", store)
    heartbeat = Heartbeat(distributed.PrefixStore("alive", store.clone()), rank, size, limit_from_environment())
    heartbeat.start()
    try:
        with group(store, rank, size):
            yield _of_environment(count)
    finally:
        heartbeat.stop()


def _of_environment(count: int) -> Processes:
    return Processes(distributed.get_rank(), count, int(os.environ.get("LOCAL_RANK", "0")))


def _prepare_group() -> None:
    """Import what DDP and FSDP would import later, and which would then keep the group and its threads alive.

    Such a thread, if it frees a tensor of Python's while Python ends, aborts the process.
    """
    import torch._dynamo  # noqa: F401


@contextmanager
def group(store: distributed.Store, rank: int, size: int, timeout: timedelta = PATIENCE) -> Iterator[Processes]:
    """Within this context ``size`` processes form a group, which leave it together; then its threads have ended.

    Without errors no process leaves before all are done.
    """
    _prepare_group()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    try:
        yield Processes(rank, size)
        distributed.barrier()  # no process leaves while another still communicates
    finally:
        distributed.destroy_process_group()
