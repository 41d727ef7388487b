"""``SegmentRule``: what the rules of this folder share: a network as segments, its loss, its refusals.

A rule is given one forward pass of all segments and the error dL/d output, and leaves a gradient in ``.grad`` of each parameter.
Loss and scores are those of the network's own forward pass, which is the network that is tested and converted.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from spikeprop.errors import SegmentError
from spikeprop.learn import CrossEntropy, LearningRule, Loss
from spikeprop.learn.segments import Segment, SegmentGraph, SegmentPass, segment_graph
from spikeprop.plugins.activation_relaxation.overrides import BackwardOverrides
from spikeprop.plugins.activation_relaxation.rule import CHANGING


@dataclass
class ForwardPass:
    """What a rule computes gradients from.

    Attributes:
        model: the network.
        graph: its segments.
        run: the forward pass.
        x, y: examples (B, ...) and labels.
        error: dL/d output (B, K), of the mean loss.
        mode: in which the forward pass ran, of rules that have one.
    """

    model: nn.Module
    graph: SegmentGraph
    run: SegmentPass
    x: Tensor
    y: Tensor
    error: Tensor
    mode: BackwardOverrides | None = None

    def hidden(self) -> list[Segment]:
        """Segments before the output's."""
        return [*self.graph.segments[:-1]]


@dataclass(frozen=True, kw_only=True)
class SegmentRule(LearningRule):
    """A rule that computes gradients segment by segment.

    Attributes:
        loss: any loss of scores and labels.
    """

    knows: ClassVar[str]  # what the gradient of a weight is computed from, for comparisons
    chain: ClassVar[bool] = False  # whether each segment must read only the one before it
    loss: Loss = field(default_factory=CrossEntropy)
    _graphs: WeakKeyDictionary[nn.Module, SegmentGraph] = field(
        init=False, default_factory=WeakKeyDictionary, repr=False, compare=False
    )
    _steady: WeakSet[nn.Module] = field(init=False, default_factory=WeakSet, repr=False, compare=False)  # that have no noise

    @property
    def reruns(self) -> bool:
        """Whether segments run several times for one batch, so that they must compute the same each time."""
        return False

    @abstractmethod
    def gradients(self, batch: ForwardPass) -> dict[str, Tensor]:
        """Add the gradient to ``.grad`` of each parameter; returns metrics ()."""

    def overrides(self, model: nn.Module) -> BackwardOverrides | None:
        """A mode in which the forward pass runs; None for an ordinary one."""
        return None

    def prepare(self, model: nn.Module, x: Tensor) -> None:
        self.graph(model)

    def graph(self, model: nn.Module) -> SegmentGraph:
        """The network's segments.

        Raises:
            SegmentError: a network that this rule cannot train, with the reason and a remedy.
        """
        if model not in self._graphs:
            graph = segment_graph(model, several_outputs=True)  # which check refuses, and names this rule
            self.check(model, graph)
            self._graphs[model] = graph
        return self._graphs[model]

    def check(self, model: nn.Module, graph: SegmentGraph) -> None:
        """Refuse a network that this rule cannot train."""
        name = type(self).__name__
        if len(graph.outputs) > 1:
            raise SegmentError(
                f"{name} takes networks of one output, and this one has {len(graph.outputs)} ({', '.join(graph.outputs)}): use "
                "ActivationRelaxation or Backprop with a loss of several outputs"
            )
        if self.chain and not graph.is_chain:
            joins = next(s for s in graph.segments if len(s.reads) != 1 or len(graph.readers(s.name)) > 1)
            raise SegmentError(
                f"{name} needs a chain of segments, and at {joins.name!r} this network branches or joins (a skip connection): "
                "use PredictiveCoding, ActivationRelaxation or DirectFeedbackAlignment, or a network without skips"
            )
        for path, module in model.named_modules() if self.reruns else ():
            if isinstance(module, CHANGING) and getattr(module, "p", 1) != 0:
                raise SegmentError(
                    f"{path} is {type(module).__name__}, whose output or statistics change each time it runs, and {name} runs "
                    "it several times for a batch: use a network without it (dropout: 0.0, batch_norm: false), or a rule that "
                    "runs it once (PredictiveCoding with fixed_prediction: true, DirectFeedbackAlignment)"
                )

    def step(self, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        graph, mode = self.graph(model), self.overrides(model)
        run = SegmentPass(graph, x, mode)
        if self.reruns and model not in self._steady:
            _refuse_noise(type(self).__name__, graph, x, run)
            self._steady.add(model)
        scores = run.output.detach().requires_grad_()
        with torch.enable_grad():
            loss = self.loss.for_batch(x)(scores, y)
            (error,) = torch.autograd.grad(loss, scores)
        metrics = self.gradients(ForwardPass(model, graph, run, x, y, error, mode))
        return {"loss": loss.detach(), "scores": run.output, **metrics}

    def held(self, name: str) -> nn.Module:
        """A module of the rule's own, by the name of a segment or module.

        Raises:
            ValueError: ``prepare`` has not been called.
        """
        key = own_key(name)
        if key not in self.own:
            raise ValueError(
                f"{type(self).__name__} makes what it holds for {name!r} in prepare: call rule.prepare(model, x) first"
            )
        return self.own[key]


def own_key(name: str) -> str:
    """A name without dots, which ``nn.ModuleDict`` does not take."""
    return name.replace(".", "/")


def fixed(value: Tensor) -> nn.ParameterList:
    """A tensor that no optimiser changes, as a module of the rule's own."""
    return nn.ParameterList([nn.Parameter(value, requires_grad=False)])


def add_gradients(parameters: Iterable[nn.Parameter], gradients: Iterable[Tensor | None]) -> None:
    """Add to the parameters' ``.grad``."""
    for p, g in zip(parameters, gradients):
        if g is not None:
            p.grad = g if p.grad is None else p.grad + g


def norm(values: Mapping[str, Tensor]) -> Tensor:
    """Euclidean norm of all values together; 0 for none."""
    return torch.stack([v.norm() for v in values.values()]).norm() if values else torch.zeros(())


def _refuse_noise(name: str, graph: SegmentGraph, x: Tensor, run: SegmentPass) -> None:
    again = SegmentPass(graph, x)
    for segment in graph.segments:
        both = run.values[segment.name], again.values[segment.name]
        if not torch.allclose(*both, rtol=1e-4, atol=1e-5, equal_nan=True):  # NaN twice is no noise
            raise SegmentError(
                f"segment {segment.name!r} computes something else each time it runs, and {name} runs it several times for a "
                "batch: use a network without noise, or Backprop"
            )
