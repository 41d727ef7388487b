"""``SegmentProcess``: one segment of ``Interlocking`` in its own process, over torch.distributed (gloo or nccl).

Rank i holds segment i. For each micro-batch, activations are sent to the next segment and cotangents to the previous one. The
cotangent of a segment's own loss is sent immediately. Cotangents of later losses are delayed by target - i forward passes, as
in the 1F1B schedule. A segment therefore waits only for the n - 1 segments after it, and never for the end of a batch: it
updates its parameters as soon as its gradients are complete, and continues with the next batch. The gradients equal those of
the rule in one process with the same number of micro-batches, because all segments have made the same number of updates.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spikeprop.plugins.interlocking.rule import Interlocking, output_shapes
from spikeprop.plugins.interlocking.work import Work
from spikeprop.runtime.batches import Batch


@dataclass
class Clock:
    """Seconds that a segment computes (busy), and waits for a neighbour (idle)."""

    busy: float = 0.0
    idle: float = 0.0

    @property
    def idle_share(self) -> float:
        """Fraction of the time spent waiting."""
        return self.idle / max(self.idle + self.busy, 1e-12)


class SegmentProcess:
    """The segment of this rank.

    Args:
        model: the complete network, identical in all processes (build it with the same seed); only this segment is trained here.
        rule: prepared for ``model``; defines segments, reach, heads and micro-batches.
        x: a batch of the size used in training; it defines the shapes.

    Raises:
        ValueError: the number of processes differs from the number of segments, or the batch size is not divisible by the number
            of micro-batches.
    """

    def __init__(self, model: nn.Module, rule: Interlocking, x: Tensor):
        self.rule, self.graph = rule, rule.graph(model)
        self.rank, self.clock = dist.get_rank(), Clock()
        if dist.get_world_size() != len(self.graph.segments):
            raise ValueError(f"{len(self.graph.segments)} segments need as many processes, but there are {dist.get_world_size()}")
        if len(x) % rule.microbatches:
            raise ValueError(f"a batch of {len(x)} is not divisible into {rule.microbatches} micro-batches")
        self.place = rule.places(self.graph)[self.rank]
        self.segment = self.graph.segments[self.rank]
        shapes = output_shapes(model, self.graph, x)
        self.size = len(x) // rule.microbatches
        self.input_shape = (self.size, *(shapes[self.rank - 1] if self.rank else x.shape[1:]))
        self.output_shape = (self.size, *shapes[self.rank])
        self.like = next(model.parameters())
        self.above = rule.places(self.graph)[self.rank + 1] if self.rank + 1 < self.place.segments else None
        self._sent: deque[tuple[dist.Work, Tensor]] = deque()
        self._expected: deque[tuple[int, int]] = deque()  # (micro-batch, loss) in sending order
        self._received: dict[tuple[int, int], Tensor] = {}

    def parameters(self) -> list[nn.Parameter]:
        """Parameters trained by this process: those of its segment and of its head."""
        key = str(self.rank)
        head = list(self.rule.own[key].parameters()) if key in self.rule.own else []
        return [*self.segment.parameters(), *head]

    def step(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Write this segment's gradients for a batch to ``.grad``.

        Returns:
            the loss of this segment, or None if its loss is unused.

        Args:
            x: the batch; only the first segment reads it.
            y: the labels; only segments with a loss read them.
        """
        count = self.rule.microbatches
        if len(x) != self.size * count:
            raise ValueError(f"the batch holds {len(x)} samples, but {self.size * count} are expected: drop a smaller last batch")
        inputs, labels = x.chunk(count), y.chunk(count)
        works: dict[int, Work] = {}
        losses: list[Tensor] = []
        self._expected = deque(self.above.messages(count) if self.above is not None else ())
        for kind, m, j in self.place.order(count):
            if kind == "F":
                works[m] = self._forward(inputs[m], count)
            elif j == self.rank:
                losses.append(self._own_loss(works[m], labels[m]))
            else:
                self._backward(works[m], j, self._cotangent(m, j))
        return torch.stack(losses).sum() / count if losses else None

    def train(self, batches: Iterable[Batch], optimizer: torch.optim.Optimizer) -> list[float | None]:
        """One optimiser step per batch; returns the losses."""
        losses: list[float | None] = []
        for x, y in batches:
            optimizer.zero_grad()
            loss = self.step(x, y)
            optimizer.step()
            losses.append(None if loss is None else float(loss))
        self.finish()
        return losses

    def finish(self) -> None:
        """Wait until all sent messages have arrived."""
        while self._sent:
            self._wait(self._sent.popleft()[0])

    def _forward(self, x: Tensor, count: int) -> Work:
        work = self.rule.work(self.graph, self.rank, 1 / count)
        h = x if self.rank == 0 else self._receive(self.rank - 1, self.input_shape)
        started = time.perf_counter()
        out = work.forward(h)
        self.clock.busy += time.perf_counter() - started
        if self.rank < self.place.segments - 1:
            self._send(out, self.rank + 1)
        return work

    def _own_loss(self, work: Work, y: Tensor) -> Tensor:
        started = time.perf_counter()
        loss, cotangent = work.own_cotangent(y)
        self.clock.busy += time.perf_counter() - started
        self._backward(work, self.rank, cotangent)
        return loss

    def _backward(self, work: Work, j: int, cotangent: Tensor) -> None:
        started = time.perf_counter()
        passed = work.backward(j, cotangent)
        self.clock.busy += time.perf_counter() - started
        if passed is not None:
            self._send(passed, self.rank - 1)

    def _cotangent(self, m: int, j: int) -> Tensor:
        """The cotangent of micro-batch m for loss j; messages that arrive before it are stored for later."""
        while (m, j) not in self._received:
            self._received[self._expected.popleft()] = self._receive(self.rank + 1, self.output_shape)
        return self._received.pop((m, j))

    def _receive(self, source: int, shape: tuple[int, ...]) -> Tensor:
        buffer = torch.empty(shape, dtype=self.like.dtype, device=self.like.device)
        work = dist.irecv(buffer, source)
        assert work is not None
        self._wait(work)
        return buffer

    def _send(self, value: Tensor, target: int) -> None:
        value = value.contiguous()
        work = dist.isend(value, target)
        assert work is not None
        self._sent.append((work, value))  # the buffer must exist until it has been sent
        while len(self._sent) > 2 * self.rule.microbatches * self.place.reach:
            self._wait(self._sent.popleft()[0])

    def _wait(self, work: dist.Work) -> None:
        started = time.perf_counter()
        work.wait()
        self.clock.idle += time.perf_counter() - started
