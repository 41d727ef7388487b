"""``SegmentGraph``: a network cut into a graph of segments; each runs forward once and can be differentiated several times.

A segment is a piece of the network with one output; a residual connection makes a graph of the chain. For segment s with output
h_s = f_s(h_a, h_b, ...; theta_s) a ``SegmentPass`` computes the vector-Jacobian products c -> (dh_s/dh_a)^T c and
c -> (dh_s/dtheta_s)^T c for any number of cotangents c. Every segment runs once, so batch statistics are updated once and dropout
masks are fixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, fx, nn

from spikeprop.errors import SegmentError
from spikeprop.learn import tracing

INPUT = "input"


@dataclass(frozen=True)
class Segment:
    """A piece of a network.

    Attributes:
        name: of its first module with weights, or of its first step.
        module: computes its output from its inputs; its modules and parameters are the network's own.
        reads: names of the segments whose outputs are its inputs, or ``INPUT``.
    """

    name: str
    module: nn.Module
    reads: tuple[str, ...]

    def parameters(self) -> list[nn.Parameter]:
        """Its trained parameters."""
        return [p for p in self.module.parameters() if p.requires_grad]


class SegmentGraph:
    """Segments in an order in which they can run.

    Args:
        segments: in that order.
        names: of the network's parameters, by id.
        outputs: segments whose outputs are the network's, in its order; default the last one.

    Attributes:
        output: the first of ``outputs``.
    """

    def __init__(self, segments: Sequence[Segment], names: dict[int, str], outputs: Sequence[str] = ()):
        self.segments = tuple(segments)
        self.by_name = {s.name: s for s in self.segments}
        self.names = names
        self.outputs = tuple(outputs) or (self.segments[-1].name,)
        self.output = self.outputs[0]
        self._readers = {name: [s for s in self.segments if name in s.reads] for name in self.by_name}

    def readers(self, name: str) -> list[Segment]:
        """Segments that read a segment's output."""
        return self._readers[name]

    def hops(self) -> dict[str, int]:
        """Longest number of segments between each segment's output and one of the network's."""
        found: dict[str, int] = {}
        for segment in reversed(self.segments):
            found[segment.name] = max((1 + found[reader.name] for reader in self.readers(segment.name)), default=0)
        return found

    @property
    def is_chain(self) -> bool:
        """Whether every segment reads only the one before it."""
        return all(s.reads == (before.name,) for before, s in pairwise(self.segments)) and self.segments[0].reads == (INPUT,)

    def shared(self) -> dict[str, list[str]]:
        """Parameters that several segments use: name to segments."""
        users: dict[int, list[str]] = {}
        for segment in self.segments:
            for p in {id(p) for p in segment.module.parameters()}:
                users.setdefault(p, []).append(segment.name)
        return {self.names.get(p, "?"): segments for p, segments in users.items() if len(segments) > 1}


def segment_graph(model: nn.Module, cuts: Sequence[str] | int | None = None, *, several_outputs: bool = False) -> SegmentGraph:
    """Cut a network into segments.

    Args:
        model: a Sequential, or whatever torch.fx can trace down to modules without children.
        cuts: None for one segment for each layer with weights; a number for that many segments with about equally many layers,
            each of which reads only the one before it; or names of the submodules to cut after (these need not be traceable
            inside).
        several_outputs: also cut a network that returns several tensors; otherwise it is refused.

    Raises:
        SegmentError: the network cannot be cut in this way, with the reason.
    """
    if isinstance(cuts, int) and cuts < 1:
        raise SegmentError(f"{cuts} segments; use at least 1")
    names = {id(p): name for name, p in model.named_parameters()}
    if isinstance(model, nn.Sequential) and (cuts is None or not isinstance(cuts, int)):
        try:
            return _traced(model, cuts, names, several_outputs)
        except SegmentError:
            children = dict(model.named_children())
            if cuts is not None and not set(cuts) < set(children):
                raise
            return SegmentGraph(_children(children, list(children) if cuts is None else list(cuts)), names)
    return _traced(model, cuts, names, several_outputs)


def _traced(model: nn.Module, cuts: Sequence[str] | int | None, names: dict[int, str], several: bool) -> SegmentGraph:
    traced = tracing.trace(model, () if cuts is None or isinstance(cuts, int) else cuts)
    (tracing.outputs_of if several else tracing.output_of)(traced.graph)
    if cuts is None:
        numbers = tracing.by_layers(traced)
    elif isinstance(cuts, int):
        numbers = tracing.by_borders(traced, tracing.even_borders(traced, cuts))
    else:
        numbers = tracing.by_borders(traced, tracing.borders_after(traced, cuts))
    modules = {id(m): name for name, m in model.named_modules()}
    split = tracing.split(model, traced, numbers)
    segments, outputs = _segments(split, modules)
    return SegmentGraph(segments, names, outputs)


def _children(children: dict[str, nn.Module], cuts: list[str]) -> list[Segment]:
    """Runs of a Sequential's children, each of which ends with a cut."""
    segments, held, before = [], [], INPUT
    for i, (name, module) in enumerate(children.items()):
        held.append(module)
        if name in cuts or i == len(children) - 1:
            segments.append(Segment(name, nn.Sequential(*held), (before,)))
            held, before = [], name
    return segments


def _segments(split: fx.GraphModule, modules: dict[int, str]) -> tuple[list[Segment], list[str]]:
    """Segments of a module that ``tracing.split`` made, and which of them are outputs; ``modules``: names of modules, by id."""
    names: dict[fx.Node, str] = {}
    segments: list[Segment] = []
    for node in split.graph.nodes:
        if node.op == "placeholder":
            names[node] = INPUT
        elif node.op == "call_module":
            module = split.get_submodule(str(node.target))
            names[node] = _name(module, modules, {s.name for s in segments} | {INPUT})
            reads = tuple(names[n] for n in node.all_input_nodes)
            segments.append(Segment(names[node], module, reads))
        elif node.op != "output":
            (source, *_) = node.all_input_nodes or [node]
            raise SegmentError(
                f"more than one value leaves the segment {names.get(source, source)!r}; a segment has one output: "
                "cut elsewhere (before a skip connection begins, or after it ends)"
            )
    outputs = [names[node] for node in tracing.outputs_of(split.graph)]
    if segments[-1].name not in outputs:
        raise SegmentError(f"the network's output is not that of its last segment, {segments[-1].name!r}; cut elsewhere")
    return segments, outputs


def _name(module: nn.Module, modules: dict[int, str], taken: set[str]) -> str:
    assert isinstance(module, fx.GraphModule)
    steps = tracing.steps_of(module)
    first = next((n for n in steps if tracing.is_layer(module, n)), steps[-1])
    name = modules[id(module.get_submodule(str(first.target)))] if first.op == "call_module" else first.name
    if name not in taken:
        return name
    return next(f"{name}#{i}" for i in range(2, len(taken) + 3) if f"{name}#{i}" not in taken)


class SegmentPass:
    """One forward pass of all segments, kept for differentiation.

    Args:
        graph: segments.
        x: the network's input (B, ...).
        context: in which every segment runs, such as a mode that replaces gradients of operations.
        at: outputs by segment that the segments read in place of each other's.
    """

    def __init__(
        self,
        graph: SegmentGraph,
        x: Tensor,
        context: AbstractContextManager | None = None,
        at: Mapping[str, Tensor] | None = None,
    ):
        self.graph = graph
        self.values: dict[str, Tensor] = {**(at or {}), INPUT: x}  # detached
        self._inputs: dict[str, list[Tensor]] = {}
        self._outputs: dict[str, Tensor] = {}
        with torch.enable_grad(), context or nullcontext():
            for segment in graph.segments:
                self._run(segment)

    @property
    def outputs(self) -> list[Tensor]:
        """The network's outputs, detached."""
        return [self.values[name] for name in self.graph.outputs]

    @property
    def output(self) -> Tensor:
        """The first of them."""
        return self.values[self.graph.output]

    def computed(self, name: str) -> Tensor:
        """What a segment computed from its inputs, detached; its value, unless ``at`` holds another one."""
        return self._outputs[name].detach()

    def vjp(self, name: str, cotangent: Tensor) -> list[Tensor | None]:
        """(d output / d input)^T cotangent for each input of a segment; None for one without a gradient, such as the image."""
        inputs = [leaf for leaf in self._inputs[name] if leaf.requires_grad]
        found = iter(self._grad(name, inputs, cotangent))
        return [next(found) if leaf.requires_grad else None for leaf in self._inputs[name]]

    def parameter_gradients(self, name: str, cotangent: Tensor) -> Sequence[Tensor | None]:
        """(d output / d parameter)^T cotangent for each of a segment's parameters."""
        return self._grad(name, self.graph.by_name[name].parameters(), cotangent)

    def add_parameter_gradients(self, name: str, cotangent: Tensor) -> None:
        """Add ``parameter_gradients`` to the parameters' ``.grad``."""
        for p, g in zip(self.graph.by_name[name].parameters(), self.parameter_gradients(name, cotangent)):
            if g is not None:
                p.grad = g if p.grad is None else p.grad + g

    def _run(self, segment: Segment) -> None:
        leaves = [self._leaf(name) for name in segment.reads]
        mutates = works_in_place(segment.module)
        out = segment.module(*(leaf.clone() if mutates else leaf for leaf in leaves))
        if not isinstance(out, Tensor):
            raise SegmentError(f"segment {segment.name!r} returns a {type(out).__name__}; a segment's output is one tensor")
        self._inputs[segment.name], self._outputs[segment.name] = leaves, out
        self.values.setdefault(segment.name, out.detach())

    def _leaf(self, name: str) -> Tensor:
        value = self.values[name].detach()
        return value.requires_grad_(name != INPUT and value.is_floating_point())

    def _grad(self, name: str, wanted: Sequence[Tensor], cotangent: Tensor) -> Sequence[Tensor | None]:
        out = self._outputs[name]
        if not wanted or not out.requires_grad:
            return [None] * len(wanted)
        return torch.autograd.grad(out, wanted, cotangent, retain_graph=True, allow_unused=True)


def works_in_place(module: nn.Module) -> bool:
    """Whether a segment may overwrite its inputs."""
    if any(getattr(m, "inplace", False) for m in module.modules()):
        return True
    nodes = module.graph.nodes if isinstance(module, fx.GraphModule) else ()
    return any(n.kwargs.get("inplace") or (n.op == "call_method" and str(n.target).endswith("_")) for n in nodes)
