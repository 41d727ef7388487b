"""``StageProcess``: one stage of ``Interlocking`` in a process of its own, over torch.distributed (gloo or nccl).

Rank i holds stage i. For each micro-batch activations go up and cotangents come down; a stage runs min(n - 1, K - 1 - i)
forward passes ahead, as in the 1F1B schedule, which is as far as it must. Nothing waits for the end of a batch: a stage steps
its own optimiser as soon as its own gradients are whole, and starts on the next batch. The gradients are those of the rule in
one process with as many micro-batches, since every stage still sees the activations of stages that have made as many steps.
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
    """Seconds of a stage: at work, and waiting for a neighbour."""

    busy: float = 0.0
    idle: float = 0.0

    @property
    def idle_share(self) -> float:
        """Share of the time that it waited."""
        return self.idle / max(self.idle + self.busy, 1e-12)


class StageProcess:
    """This rank's stage.

    Args:
        model: the whole network, the same in every process (build it after the same seed); this stage alone is trained here.
        rule: prepared for ``model``; how stages are cut, reach, heads and micro-batches.
        x: a batch as large as those to come, to see shapes by.

    Raises:
        ValueError: as many processes as stages are needed, and batches that divide by the number of micro-batches.
    """

    def __init__(self, model: nn.Module, rule: Interlocking, x: Tensor):
        self.rule, self.graph = rule, rule.graph(model)
        self.rank, self.clock = dist.get_rank(), Clock()
        if dist.get_world_size() != len(self.graph.stages):
            raise ValueError(f"{len(self.graph.stages)} stages need as many processes, and there are {dist.get_world_size()}")
        if len(x) % rule.microbatches:
            raise ValueError(f"a batch of {len(x)} does not divide into {rule.microbatches} micro-batches")
        self.place = rule.places(self.graph)[self.rank]
        self.stage = self.graph.stages[self.rank]
        shapes = output_shapes(model, self.graph, x)
        self.size = len(x) // rule.microbatches
        self.input_shape = (self.size, *(shapes[self.rank - 1] if self.rank else x.shape[1:]))
        self.output_shape = (self.size, *shapes[self.rank])
        self.like = next(model.parameters())
        self._sent: deque[tuple[dist.Work, Tensor]] = deque()

    def parameters(self) -> list[nn.Parameter]:
        """What this process trains: its stage's parameters and its head's."""
        key = str(self.rank)
        head = list(self.rule.own[key].parameters()) if key in self.rule.own else []
        return [*self.stage.parameters(), *head]

    def step(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Leave this stage's gradient of a batch in ``.grad``; the loss of this stage, or None where it has none.

        Args:
            x: the batch, read by the first stage alone.
            y: its labels, read by the stages that have a loss.
        """
        count = self.rule.microbatches
        inputs, labels = x.chunk(count), y.chunk(count)
        ahead = min(self.place.reach - 1, self.place.stages - 1 - self.place.stage, count - 1)
        running: deque[tuple[int, Work]] = deque()
        losses: list[Tensor] = []
        for m in range(count + ahead):
            if m < count:
                running.append((m, self._forward(m, inputs[m], count)))
            if m >= ahead:
                losses += self._backward(*running.popleft(), labels)
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

    def _forward(self, m: int, x: Tensor, count: int) -> Work:
        work = self.rule.work(self.graph, self.rank, 1 / count)
        h = x if self.rank == 0 else self._receive(self.rank - 1, self.input_shape)
        started = time.perf_counter()
        out = work.forward(h)
        self.clock.busy += time.perf_counter() - started
        if self.rank < self.place.stages - 1:
            self._send(out, self.rank + 1)
        return work

    def _backward(self, m: int, work: Work, labels: tuple[Tensor, ...]) -> list[Tensor]:
        started = time.perf_counter()
        loss, cotangents = work.own_cotangent(labels[m])
        self.clock.busy += time.perf_counter() - started
        for j in self.place.received():
            cotangents[j] = self._receive(self.rank + 1, self.output_shape)
        started = time.perf_counter()
        passed = work.backward(cotangents)
        self.clock.busy += time.perf_counter() - started
        for j in self.place.sent():
            self._send(passed[j], self.rank - 1)
        return [] if loss is None else [loss]

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
