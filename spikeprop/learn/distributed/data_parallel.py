"""Training in several processes: each has its share of every batch, and one all-reduce after the rule joins the gradients.

With n_r of a batch's n examples, rank r's gradient g_r is that of the mean loss over its share, so the whole batch's is

    g = sum_r w_r g_r,    w_r = n_r / n

for any rule whose gradient is that of a mean over examples. Where a batch has fewer examples than there are processes, all do the
whole batch, and w_r is one over their number. Losses and hits are summed the same way, so every process sees the same figures
and ends, or gives up, at the same step. Backpropagation's gradients travel while the backward pass still runs
(``DistributedDataParallel``, Li et al. 2020, arXiv:2006.15704); those of other rules, and of a network with parameters that the
loss does not reach, in one piece when the rule is done.

What a rule draws, each process draws for itself. Two rules are not means over examples to the end: a relaxation that stops early
starts from activations, whose size does not follow the loss's; and Activation Relaxation's cotangents are of sums, as batch-norm
over unequal shares does not expect. With a batch size that the number of processes divides, and enough sweeps, they are.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from spikeprop.errors import Stopped
from spikeprop.learn.distributed.batchnorm import has_batchnorm, synchronised
from spikeprop.learn.distributed.sharding import WeightedOutput, is_sharded, is_sharded_tensor
from spikeprop.learn.rule import LearningRule
from spikeprop.runtime.processes import Processes
from spikeprop.runtime.signals import stop_if_requested, stop_requested


class DataParallel:
    """The processes that train one network together.

    Args:
        processes: this one among its peers.
        model: the network, the same in all of them.
        rule: prepared; its parameters are the same in all.
    """

    def __init__(self, processes: Processes, model: nn.Module, rule: LearningRule):
        self.processes, self.model, self.rule = processes, model, rule
        self.weight, self.factor = 1.0, 1.0
        self.wrapped: nn.Module = model
        self.sharded = is_sharded(model)
        self.asked, self.save_asked = False, False

    @property
    def several(self) -> bool:
        """Whether there is anyone else."""
        return self.processes.count > 1

    @contextmanager
    def training(self) -> Iterator[None]:
        """Batch-norm over whole batches for as long as the context lasts; and all begin with the same network."""
        if not self.several:
            yield
            return
        if not self.rule.complete_batches and has_batchnorm([self.model, self.rule.own]):
            raise ValueError(
                f"{type(self.rule).__name__} takes a batch in parts, over which batch-norm cannot be that of the whole batch "
                "in several processes: use microbatches=1, another normalisation, or one process"
            )
        if self.sharded:
            self.wrapped = WeightedOutput(self.model, lambda: self.weight)
        self._agree()
        with synchronised([self.model, self.rule.own], lambda: self.weight, weighed=self.sharded):
            try:
                yield
            finally:
                self.wrapped = self.model  # the wrapper must not outlive the group that it speaks through

    def request_save(self, due: bool) -> None:
        """Say before a step whether a checkpoint is due here; of several processes rank 0's word is told to all in the step."""
        self.save_asked = due and not self.processes.rank

    def save_due(self, here: bool) -> bool:
        """After a step, whether one is due: all say the same, since each has its part of a sharded network to give."""
        return self.save_asked if self.several else here

    def stop_requested(self) -> bool:
        """Whether a signal has reached one of the processes by the last step: all stop after the same one."""
        return self.asked if self.several else stop_requested()

    def stop_if_requested(self) -> None:
        """Stop here, where everything is saved.

        Raises:
            Stopped: a signal has arrived, here or at another process.
        """
        if self.stop_requested():
            stop_if_requested()
            raise Stopped(signal.SIGTERM)

    def shard(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """This process's part of a batch, for ``reduce`` to weigh; of x the batches may have read that part alone."""
        size, rows = len(y), self.processes.rows(len(y))
        mine = y[rows]
        repeated = size < self.processes.count
        self.weight = 1 / self.processes.count if repeated else len(mine) / size
        self.factor = self.weight if repeated else 1.0
        return (x if len(x) == len(mine) else x[rows]), mine

    def reduce(self, totals: Tensor) -> Tensor:
        """Make every ``.grad`` the whole batch's; returns the sums of all processes.

        Args:
            totals: (K,) sums over this process's share, float64.
        """
        if not self.several:
            return totals
        late = self._late()
        present = totals.new_tensor([float(stop_requested()), float(self.save_asked), *(float(p.grad is not None) for p in late)])
        sums = torch.cat([totals * self.factor, present])
        distributed.all_reduce(sums)
        asked, due, *counts = sums[len(totals) :].tolist()
        self.asked, self.save_asked = asked > 0, due > 0
        anywhere = [p for p, count in zip(late, counts, strict=True) if count]
        weight = 1.0 if self.sharded else self.weight  # a sharded network's are weighed at its output
        for dtype in sorted({p.dtype for p in anywhere}, key=str):
            self.processes.sum_gradients([p for p in anywhere if p.dtype == dtype], weight=weight)
        if not self.sharded and late and len(anywhere) == len(late) and self.rule.single_backward:
            self.wrapped = self._overlapped()  # from the next step on, as all are reached
        return sums[: len(totals)]

    def _late(self) -> list[nn.Parameter]:
        """Parameters whose gradients nobody joins while the backward pass runs."""
        if self.sharded:
            return [p for p in self._trained() if not is_sharded_tensor(p)]
        return [] if self.wrapped is not self.model else self._trained()

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in (*self.model.parameters(), *self.rule.parameters()) if p.requires_grad]

    def _agree(self) -> None:
        """Rank 0's parameters and buffers for all: a process that was restarted may have drawn others."""
        own = (value for module in (self.model, self.rule.own) for value in (*module.parameters(), *module.buffers()))
        self.processes.broadcast(value for value in own if not is_sharded_tensor(value))  # one that is spread agreed before

    def _overlapped(self) -> nn.Module:
        wrapped = DistributedDataParallel(self.model)
        wrapped.broadcast_buffers = False  # they are the same: batch-norm is over the whole batch
        wrapped.register_comm_hook(None, self._sum_weighted)
        return wrapped

    def _sum_weighted(self, _, bucket):  # torch reads annotations here, and they are strings
        """The bucket's gradients, summed by weight, as soon as they are there."""
        reduced = distributed.all_reduce(bucket.buffer().mul_(self.weight), async_op=True)
        return reduced.get_future().then(lambda done: done.value()[0])
