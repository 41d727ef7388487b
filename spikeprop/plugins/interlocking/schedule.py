"""Simulation of a pipeline of segments: the measured seconds of each segment's operations, ordered by the schedule.

A segment executes its operations in its own order (``Place.order``), one at a time: a forward pass after that of the previous
segment, a vector-Jacobian product for a later loss after that of the next segment. Transfers take no time and devices do not slow
each other down, so the result is an upper bound for the schedule. Backpropagation in micro-batches corresponds to a reach of all
segments: GPipe runs all forward passes of a batch before the first backward pass, 1F1B as few as possible.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from spikeprop.learn.segments import SegmentGraph
from spikeprop.plugins.interlocking.rule import Interlocking
from spikeprop.plugins.interlocking.work import Place

Operation = tuple[str, int, int]  # "F" (forward) or "V" (vector-Jacobian product), micro-batch, loss


@dataclass(frozen=True)
class SegmentTimes:
    """Seconds of a segment for one micro-batch: the forward pass, and the product for each loss (its own includes the head)."""

    forward: float
    backward: dict[int, float]


@dataclass(frozen=True)
class Simulated:
    """Result of the simulation.

    Attributes:
        seconds: time until the last segment has finished.
        idle: fraction of that time that each segment waits.
    """

    seconds: float
    idle: list[float]


def simulate(
    times: Sequence[SegmentTimes], places: Sequence[Place], microbatches: int, batches: int, *, all_forward_first: bool = False
) -> Simulated:
    """Run the schedule.

    Args:
        times: measured times of each segment.
        places: positions of the segments (``Interlocking.places``).
        microbatches: number per batch.
        batches: number of batches; a segment starts the next one as soon as its own gradients are complete.
        all_forward_first: run all forward passes of a batch first, as GPipe does.
    """
    queues = [_operations(place, microbatches, batches, all_forward_first) for place in places]
    end: dict[tuple[int, Operation], float] = {}
    free, position = [0.0] * len(times), [0] * len(times)
    while any(position[i] < len(queue) for i, queue in enumerate(queues)):
        for i, queue in enumerate(queues):
            while position[i] < len(queue):
                kind, m, j = queue[position[i]]
                needed = _needs(places[i], (kind, m, j))
                if needed is not None and needed not in end:
                    break
                start = max(free[i], end[needed] if needed is not None else 0.0)
                free[i] = start + (times[i].forward if kind == "F" else times[i].backward[j])
                end[i, (kind, m, j)] = free[i]
                position[i] += 1
    seconds = max(free)
    work = [batches * microbatches * (t.forward + sum(t.backward.values())) for t in times]
    return Simulated(seconds, [1 - w / seconds for w in work])


def measure_times(rule: Interlocking, model: nn.Module, x: Tensor, y: Tensor, repeats: int = 3) -> list[SegmentTimes]:
    """The shortest measured times of each segment for a micro-batch, one segment after the other in this process."""
    graph = rule.graph(model)
    found = [_measure(rule, graph, x, y) for _ in range(repeats)]
    model.zero_grad()
    rule.own.zero_grad()
    return [
        SegmentTimes(min(t.forward for t in same), {j: min(t.backward[j] for t in same) for j in same[0].backward})
        for same in zip(*found)
    ]


def _measure(rule: Interlocking, graph: SegmentGraph, x: Tensor, y: Tensor) -> list[SegmentTimes]:
    works = [rule.work(graph, i) for i in range(len(graph.segments))]
    forward, h = [], x
    for work in works:
        started = time.perf_counter()
        h = work.forward(h)
        forward.append(time.perf_counter() - started)
    times: list[SegmentTimes] = []
    received: dict[int, Tensor] = {}
    for work, seconds in zip(reversed(works), reversed(forward)):
        place, backward, passed = work.place, {}, {}
        for j in [*place.others(), *([place.segment] if place.has_loss else [])]:
            started = time.perf_counter()
            cotangent = work.own_cotangent(y)[1] if j == place.segment else received[j]
            passed[j] = work.backward(j, cotangent)
            backward[j] = time.perf_counter() - started
        received = {j: c for j, c in passed.items() if c is not None}
        times.insert(0, SegmentTimes(seconds, backward))
    return times


def _operations(place: Place, microbatches: int, batches: int, all_forward_first: bool) -> list[Operation]:
    order = place.order(microbatches, microbatches - 1 if all_forward_first else None)
    return [(kind, batch * microbatches + m, j) for batch in range(batches) for kind, m, j in order]


def _needs(place: Place, operation: Operation) -> tuple[int, Operation] | None:
    kind, _, j = operation
    if kind == "F":
        return (place.segment - 1, operation) if place.segment else None
    return (place.segment + 1, operation) if j != place.segment else None
