"""``SegmentProcess``: one segment of ``Interlocking`` in a process of its own, over torch.distributed (gloo or nccl).

Rank i holds segment i. For each micro-batch activations go up and cotangents come down. The cotangent for a segment's own loss
goes down at once; for those of losses above a segment waits while it is target - i forward passes ahead, as in the 1F1B
schedule. So nobody waits for more than the n - 1 segments above, nor for the end of a batch: a segment steps its own optimiser
as soon as its own gradients are whole, and starts on the next batch. The gradients are those of the rule in one process with as
many micro-batches, since every segment still sees the activations of segments that have made as many steps.
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

Batch = tuple[Tensor, Tensor]


@dataclass
class Clock:
    """Seconds of a segment: at work, and waiting for a neighbour."""

    busy: float = 0.0
    idle: float = 0.0

    @property
    def idle_share(self) -> float:
        """Share of the time that it waited."""
        return self.idle / max(self.idle + self.busy, 1e-12)


class SegmentProcess:
    """This rank's segment.

    Args:
        model: the whole network, the same in every process (build it after the same seed); this segment alone is trained here.
        rule: prepared for ``model``; how segments are cut, reach, heads and micro-batches.
        x: a batch as large as those to come, to see shapes by.

    Raises:
        ValueError: as many processes as segments are needed, and batches that divide by the number of micro-batches.
    """

    def __init__(self, model: nn.Module, rule: Interlocking, x: Tensor):
        self.rule, self.graph = rule, rule.graph(model)
        self.rank, self.clock = dist.get_rank(), Clock()
        if dist.get_world_size() != len(self.graph.segments):
            raise ValueError(f"{len(self.graph.segments)} segments need as many processes, and there are {dist.get_world_size()}")
        if len(x) % rule.microbatches:
            raise ValueError(f"a batch of {len(x)} does not divide into {rule.microbatches} micro-batches")
        self.place = rule.places(self.graph)[self.rank]
        self.segment = self.graph.segments[self.rank]
        shapes = output_shapes(model, self.graph, x)
        self.size = len(x) // rule.microbatches
        self.input_shape = (self.size, *(shapes[self.rank - 1] if self.rank else x.shape[1:]))
        self.output_shape = (self.size, *shapes[self.rank])
        self.like = next(model.parameters())
        self.above = rule.places(self.graph)[self.rank + 1] if self.rank + 1 < self.place.segments else None
        self._sent: deque[tuple[dist.Work, Tensor]] = deque()
        self._coming: deque[tuple[int, int]] = deque()  # (micro-batch, loss) in the order in which they are sent
        self._kept: dict[tuple[int, int], Tensor] = {}

    def parameters(self) -> list[nn.Parameter]:
        """What this process trains: its segment's parameters and its head's."""
        key = str(self.rank)
        head = list(self.rule.own[key].parameters()) if key in self.rule.own else []
        return [*self.segment.parameters(), *head]

    def step(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Leave this segment's gradient of a batch in ``.grad``; the loss of this segment, or None where it has none.

        Args:
            x: the batch, read by the first segment alone.
            y: its labels, read by the segments that have a loss.
        """
        count = self.rule.microbatches
        if len(x) != self.size * count:
            raise ValueError(
                f"the batch holds {len(x)} images; this was made for {self.size * count}: drop a last one that is smaller"
            )
        inputs, labels = x.chunk(count), y.chunk(count)
        works: dict[int, Work] = {}
        losses: list[Tensor] = []
        self._coming = deque(self.above.messages(count) if self.above is not None else ())
        for kind, m, j in self.place.order(count):
            if kind == "F":
                works[m] = self._forward(inputs[m], count)
            elif j == self.rank:
                losses.append(self._own_loss(works[m], labels[m]))
            else:
                self._backward(works[m], j, self._cotangent(m, j))
        return torch.stack(losses).sum() / count if losses else None

    def train(self, batches: Iterable[Batch], optimizer: torch.optim.Optimizer) -> list[float | None]:
        """A step of the optimiser for each batch; the losses."""
        losses: list[float | None] = []
        for x, y in batches:
            optimizer.zero_grad()
            loss = self.step(x, y)
            optimizer.step()
            losses.append(None if loss is None else float(loss))
        self.finish()
        return losses

    def finish(self) -> None:
        """Wait until what was sent has arrived."""
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
        """That of micro-batch m for loss j; what the segment above sends before it is kept for later."""
        while (m, j) not in self._kept:
            self._kept[self._coming.popleft()] = self._receive(self.rank + 1, self.output_shape)
        return self._kept.pop((m, j))

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
        self._sent.append((work, value))  # the buffer must live until it has gone
        while len(self._sent) > 2 * self.rule.microbatches * self.place.reach:
            self._wait(self._sent.popleft()[0])

    def _wait(self, work: dist.Work) -> None:
        started = time.perf_counter()
        work.wait()
        self.clock.idle += time.perf_counter() - started
