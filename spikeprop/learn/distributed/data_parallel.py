"""``DataParallel``: training in several processes, each on its shard of every batch; an all-reduce sums the gradients.

With n_r of a batch's n examples, rank r's gradient g_r is that of the mean loss over its shard, so the gradient of the complete
batch is

    g = sum_r w_r g_r,    w_r = n_r / n

for any rule whose gradient is that of a mean over examples. Where a batch has fewer examples than there are processes, every
process computes the complete batch, and w_r is one over their number. Losses and correct predictions are summed in the same way,
so every process has the same metrics and stops, or fails, at the same step. The gradients of backpropagation are summed while the
backward pass still runs (``DistributedDataParallel``, Li et al. 2020, arXiv:2006.15704); those of other rules, and of a network
with parameters that the loss does not reach, are summed together after the rule.

Each process draws its own random numbers for a rule. Two rules are not exactly means over examples: a relaxation that stops
early starts from activations, whose size does not follow the loss's; and Activation Relaxation's cotangents are of sums, while
batch-norm over unequal shards expects means. With a batch size that the number of processes divides, and enough sweeps, they are.
"""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from spikeprop.errors import Stopped
from spikeprop.learn.distributed.batchnorm import has_batchnorm, synchronised
from spikeprop.learn.distributed.sharding import WeightedOutput, is_sharded, is_sharded_tensor
from spikeprop.learn.rule import LearningRule
from spikeprop.runtime.heartbeat import progressing
from spikeprop.runtime.processes import Processes
from spikeprop.runtime.signals import stop_if_requested, stop_requested


class DataParallel:
    """The processes that train one network together; in a single process it does nothing.

    Args:
        processes: this process among its peers.
        model: the network, the same in all processes.
        rule: prepared; its parameters are the same in all processes.

    Attributes:
        wrapped: the network as the rule calls it.
        weight: w_r of the current batch.
    """

    def __init__(self, processes: Processes, model: nn.Module, rule: LearningRule):
        self.processes, self.model, self.rule = processes, model, rule
        self.weight, self._factor = 1.0, 1.0
        self.wrapped: nn.Module = model
        self.sharded = is_sharded(model)
        self._stop, self._save = False, False  # as all processes know since the last step
        self._overlapping: list[bool] = []  # which parameters the wrapper has been told to sum

    @property
    def several(self) -> bool:
        """Whether there is more than one process."""
        return self.processes.count > 1

    @contextmanager
    def training(self) -> Iterator[None]:
        """Within this context batch-norm is over complete batches; all processes start with rank 0's network."""
        if not self.several:
            yield
            return
        if not self.rule.complete_batches and has_batchnorm([self.model, self.rule.own]):
            raise ValueError(
                f"{type(self.rule).__name__} splits each batch, and batch-norm in several processes needs the complete batch: "
                "use microbatches=1, another normalisation, or one process"
            )
        if self.sharded:
            self.wrapped = WeightedOutput(self.model, lambda: self.weight)
        own = (value for module in (self.model, self.rule.own) for value in (*module.parameters(), *module.buffers()))
        self.processes.broadcast(value for value in own if not is_sharded_tensor(value))  # ``shard`` has broadcast the others
        with progressing(), synchronised([self.model, self.rule.own], lambda: self.weight, weighted=self.sharded):
            try:
                yield
            finally:
                self.wrapped = self.model  # the wrapper must not outlive the process group that it uses

    def announce_save(self, due: bool) -> None:
        """Before a step: whether a checkpoint is due here. The step tells all processes what rank 0 announced."""
        self._save = due and self.processes.rank == 0

    def save_due(self, here: bool) -> bool:
        """After a step: whether a checkpoint is due; the same in all processes, since each sends its shards of a network."""
        return self._save if self.several else here

    def stop_requested(self) -> bool:
        """Whether a signal had reached one of the processes before the last step; the same in all processes."""
        return self._stop if self.several else stop_requested()

    def stop_if_requested(self) -> None:
        """Stop here, where everything is saved.

        Raises:
            Stopped: a signal has arrived, here or at another process.
        """
        if self.stop_requested():
            stop_if_requested()
            raise Stopped(signal.SIGTERM)

    def shard(self, x: Any, y: Tensor) -> tuple[Any, Tensor]:
        """This process's shard of a batch, which ``reduce`` weights; ``x`` may already be this shard, ``y`` is complete."""
        if self.wrapped is not self.model and not self.sharded and self._requirements() != self._overlapping:
            self.wrapped = self.model  # a callback freezes or thaws a layer; the wrapper would wait for its old gradients
            gc.collect()  # its hooks leave the parameters with it
        size, rows = len(y), self.processes.rows(len(y))
        own = y[rows]
        repeated = size < self.processes.count
        self.weight = 1 / self.processes.count if repeated else len(own) / size
        self._factor = self.weight if repeated else 1.0
        return (x if len(x) == len(own) else x[rows]), own

    def reduce(self, totals: Tensor) -> Tensor:
        """Make every ``.grad`` that of the complete batch; returns the sums of ``totals`` over all processes.

        Args:
            totals: (K,) sums over this process's shard, float64.
        """
        if not self.several:
            return totals
        late = self._summed_here()
        flags = totals.new_tensor([float(stop_requested()), float(self._save), *(float(p.grad is not None) for p in late)])
        sums = torch.cat([totals * self._factor, flags])
        distributed.all_reduce(sums)
        stop, save, *counts = sums[len(totals) :].tolist()
        self._stop, self._save = stop > 0, save > 0
        reached = [p for p, count in zip(late, counts, strict=True) if count]
        weight = 1.0 if self.sharded else self.weight  # the output of a sharded network weights its gradients
        for dtype in sorted({p.dtype for p in reached}, key=str):
            self.processes.sum_gradients([p for p in reached if p.dtype == dtype], weight=weight)
        if not self.sharded and late and len(reached) == len(late) and self.rule.single_backward:
            self.wrapped = self._overlapped()  # from the next step on, because the loss reaches all parameters
        return sums[: len(totals)]

    def _summed_here(self) -> list[nn.Parameter]:
        """Parameters whose gradients are not summed during the backward pass."""
        trained = [p for p in (*self.model.parameters(), *self.rule.parameters()) if p.requires_grad]
        if self.sharded:
            return [p for p in trained if not is_sharded_tensor(p)]
        return [] if self.wrapped is not self.model else trained

    def _requirements(self) -> list[bool]:
        return [p.requires_grad for p in self.model.parameters()]

    def _overlapped(self) -> nn.Module:
        self._overlapping = self._requirements()
        wrapped = DistributedDataParallel(self.model)
        wrapped.broadcast_buffers = False  # they are the same, because batch-norm is over the complete batch
        wrapped.register_comm_hook(None, self._sum_weighted)
        return wrapped

    def _sum_weighted(self, _, bucket):  # torch reads annotations here, and they are strings
        """Start the weighted sum of the bucket's gradients."""
        reduced = distributed.all_reduce(bucket.buffer().mul_(self.weight), async_op=True)
        return reduced.get_future().then(lambda done: done.value()[0])
