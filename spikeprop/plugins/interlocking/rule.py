"""``Interlocking``: learning rule of Gomez et al. 2022, "Interlocking backpropagation: improving depthwise model-parallelism".

The network is cut into K segments, each with an auxiliary head. Segment i sees its own loss and those of the next n - 1
segments, and follows the mean of them, their sum, or only the furthest: n = 1 is local learning, null is backpropagation.
``work`` has the definition. Here all segments run in one process, one after the other, which is slower than backpropagation; the
advantage is in separate processes, which wait less for each other (``parallel``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from spikeprop.errors import SegmentError
from spikeprop.learn import CrossEntropy, LearningRule, Loss
from spikeprop.learn.segments import Segment, SegmentGraph, segment_graph
from spikeprop.plugins.interlocking.heads import AuxiliaryHead, ConvHead
from spikeprop.plugins.interlocking.work import Combine, Place, Work, reach_of
from spikeprop.runtime.checks import one_of
from spikeprop.runtime.modes import evaluating


@dataclass(frozen=True, kw_only=True)
class Interlocking(LearningRule):
    """Gradients of the losses a few segments ahead.

    Attributes:
        cuts: a number of segments, or names of the submodules to cut after.
        reach: n; 1 is local, 2 pairwise, and so on; null is global: backpropagation of the network's own loss, without heads.
        combine: what a segment follows of the n losses that it sees: their "mean", their "sum", or the "furthest" alone, as in
            the authors' code for residual networks. With "furthest" no loss reads the output of the first segments itself, so
            that of a residual stream can grow without bound, and pairwise learning ends below local learning.
        head: builds the auxiliary heads; unused heads (with "furthest" those of the first n - 1 segments) are not built.
        loss: loss of all heads and of the network.
        microbatches: number of micro-batches per batch; their gradients are accumulated.
    """

    cuts: int | list[str]
    reach: int | None = 2
    combine: Combine = "mean"
    head: AuxiliaryHead = field(default_factory=ConvHead)
    loss: Loss = field(default_factory=CrossEntropy)
    microbatches: int = 1
    _graphs: WeakKeyDictionary[nn.Module, SegmentGraph] = field(
        init=False, default_factory=WeakKeyDictionary, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        one_of(self, "combine", *get_args(Combine))
        for name in ("reach", "microbatches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; use at least 1")

    def graph(self, model: nn.Module) -> SegmentGraph:
        """The network's segments.

        Raises:
            SegmentError: the network cannot be cut there, a segment reads more than the previous segment, or segments share
                parameters.
        """
        if model not in self._graphs:
            graph = segment_graph(model, self.cuts)
            if not graph.is_chain:
                crossing = next(s for s in graph.segments if len(s.reads) != 1 or s.reads[0] not in _before(graph, s))
                raise SegmentError(
                    f"segment {crossing.name!r} reads {', '.join(crossing.reads)}; a segment may only read the previous one"
                )
            for name, users in graph.shared().items():
                raise SegmentError(
                    f"weight sharing: {name} is used in the segments {' and '.join(users)}, which follow different losses: "
                    "do not share it, or cut the network so that one segment contains all its uses"
                )
            self._graphs[model] = graph
        return self._graphs[model]

    def prepare(self, model: nn.Module, x: Tensor) -> None:
        """Cut the network and build a head for each segment whose loss is used."""
        graph = self.graph(model)
        shapes = output_shapes(model, graph, x)
        classes = shapes[-1][0]
        for place in self.places(graph)[:-1]:
            if place.has_loss:
                self.own[str(place.segment)] = self.head.build(shapes[place.segment], classes).to(next(model.parameters()))

    def places(self, graph: SegmentGraph) -> list[Place]:
        """Position of each segment."""
        count = len(graph.segments)
        combine = "furthest" if self.reach is None else self.combine
        return [Place(i, count, reach_of(self.reach, count), combine) for i in range(count)]

    def work(self, graph: SegmentGraph, segment: int, share: float = 1.0) -> Work:
        """The computation of a segment on a micro-batch that is the fraction ``share`` of the batch.

        Raises:
            ValueError: the rule has not been prepared.
        """
        place, key = self.places(graph)[segment], str(segment)
        needs = place.has_loss and segment < len(graph.segments) - 1
        if needs and key not in self.own:
            raise ValueError("the auxiliary heads do not exist yet: call rule.prepare(model, x) before training")
        return Work(place, graph.segments[segment], self.own[key] if needs else None, self.loss, share)

    @property
    def complete_batches(self) -> bool:
        return self.microbatches == 1

    def step(self, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        graph = self.graph(model)
        results = [self._micro_step(graph, a, b, len(x)) for a, b in zip(x.chunk(self.microbatches), y.chunk(self.microbatches))]
        losses = {name: torch.stack([found[name] for found, _ in results]).sum() for name in results[0][0]}
        last = losses.pop(graph.output)
        return {
            "loss": last,
            "scores": torch.cat([scores for _, scores in results]),
            **{f"loss.{n}": v for n, v in losses.items()},
        }

    def _micro_step(self, graph: SegmentGraph, x: Tensor, y: Tensor, batch: int) -> tuple[dict[str, Tensor], Tensor]:
        share = len(x) / batch
        works = [self.work(graph, i, share) for i in range(len(graph.segments))]
        h = x
        for work in works:
            h = work.forward(h)
        losses: dict[str, Tensor] = {}
        received: dict[int, Tensor] = {}
        for work, segment in zip(reversed(works), reversed(graph.segments)):
            if work.place.has_loss:
                loss, received[work.place.segment] = work.own_cotangent(y)
                losses[segment.name] = loss * share
            passed = {j: work.backward(j, cotangent) for j, cotangent in received.items()}
            received = {j: cotangent for j, cotangent in passed.items() if cotangent is not None}
        return losses, h


def output_shapes(model: nn.Module, graph: SegmentGraph, x: Tensor) -> list[tuple[int, ...]]:
    """Shape of each segment's output for one sample; the network is not changed."""
    shapes, h = [], x[:1]
    with evaluating(model), torch.no_grad():
        for segment in graph.segments:
            h = segment.module(h.clone())
            shapes.append(tuple(h.shape[1:]))
    return shapes


def _before(graph: SegmentGraph, segment: Segment) -> tuple[str, ...]:
    index = graph.segments.index(segment)
    return (graph.segments[index - 1].name,) if index else ("input",)
