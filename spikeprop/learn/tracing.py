"""Cuts a network into segments with torch.fx; ``spikeprop.learn.segments`` builds its graph from them.

The steps of the trace (nodes that compute) are in the order of execution. ``by_layers`` and ``by_borders`` give each step the
number of its segment, and ``split`` makes a module of each segment from the network's own modules and parameters. Modules without
children are single steps, so what they do inside (control flow, dropout, custom gradients) need not be traceable.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module
from torch.nn.modules.batchnorm import _NormBase

from spikeprop.errors import SegmentError
from spikeprop.runtime.tracing import OwnTracer

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)
QUERIES = {"size", "dim"}  # methods that return numbers about a tensor's shape


class _Value(nn.Module):
    """A parameter or buffer that the network uses directly, as a module, so that it goes into the segment that uses it."""

    def __init__(self, value: Tensor):
        super().__init__()
        if isinstance(value, nn.Parameter):
            self.value = value
        else:
            self.register_buffer("value", value)

    def forward(self) -> Tensor:
        return self.value


class _Tracer(OwnTracer):
    def __init__(self, opaque: Iterable[str]):
        super().__init__()
        self.opaque = set(opaque)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        childless = next(m.children(), None) is None
        return childless or module_qualified_name in self.opaque or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, opaque: Iterable[str] = ()) -> fx.GraphModule:
    """The network as a graph; modules without children, and those named in ``opaque``, are single nodes.

    Raises:
        SegmentError: with torch.fx's reason.
    """
    try:
        graph = _Tracer(opaque).trace(model)
    except Exception as error:
        raise SegmentError(
            f"{type(model).__name__} cannot be cut into segments: torch.fx cannot trace it ({error}). Name submodules "
            "to cut after, so that what is inside them need not be traced, or write it as nn.Sequential"
        ) from error
    inputs = [n for n in graph.nodes if n.op == "placeholder" and n.users]
    if len(inputs) != 1:
        raise SegmentError(
            f"{type(model).__name__} reads {len(inputs)} inputs ({', '.join(map(str, inputs))}); segments need one"
        )
    _refuse_fixed_modes(model, graph)
    traced = fx.GraphModule(model, graph)
    _attributes_as_modules(traced)
    return traced


def _attributes_as_modules(traced: fx.GraphModule) -> None:
    for node in list(traced.graph.nodes):
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            traced.add_module(f"value_{node.name}", _Value(getattr(traced.get_submodule(owner), name)))
            for user in list(node.users):  # a call each, so that segments that share a value each have it
                with traced.graph.inserting_before(user):
                    user.replace_input_with(node, traced.graph.call_module(f"value_{node.name}"))
            traced.graph.erase_node(node)


def _refuse_fixed_modes(model: nn.Module, graph: fx.Graph) -> None:
    """Functional dropout or batch-norm would keep the mode (training or evaluation) in which it was traced."""
    for node in graph.nodes:
        if node.op == "call_function" and ("training" in node.kwargs):
            raise SegmentError(
                f"{type(model).__name__} calls {getattr(node.target, '__name__', node.target)}(training=...), whose mode a trace "
                "fixes; use the module (nn.Dropout, nn.BatchNorm2d) instead"
            )


def steps_of(traced: fx.GraphModule) -> list[fx.Node]:
    """The nodes that compute, in order of execution."""
    return [n for n in traced.graph.nodes if n.op in ("call_module", "call_function", "call_method") and n.all_input_nodes]


def is_layer(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a module with weights, other than a normalisation."""
    if node.op != "call_module":
        return False
    module = traced.get_submodule(str(node.target))
    return not isinstance(module, (*NORMS, _Value)) and next(module.parameters(), None) is not None


def is_query(node: fx.Node) -> bool:
    """Whether a node returns a tensor's shape, through which no gradient passes."""
    method = node.op == "call_method" and node.target in QUERIES
    return method or (node.op == "call_function" and node.target is getattr)


def by_layers(traced: fx.GraphModule) -> list[int]:
    """The number of its segment for each step: a layer with weights, or a join, starts a segment.

    A step continues the segment of the latest value that it reads if it is the only reader of that segment's end, and if it does
    not bring a second layer into the segment.
    """
    segment: dict[fx.Node, int] = {}
    ends: list[fx.Node] = []  # the last step of each segment
    with_layer: set[int] = set()
    for node in steps_of(traced):
        read = [n for n in node.all_input_nodes if n in segment]
        last = max(read, key=lambda n: segment[n], default=None)
        number = len(ends) if last is None else segment[last]
        if last is not None and is_query(node):
            segment[node] = number
            continue
        layer = is_layer(traced, node)
        if last is not None:
            end = ends[number]
            at_end = end in (last, *last.all_input_nodes) and _only_reader(end, node)
            if not at_end or (layer and number in with_layer):
                number = len(ends)
        ends[number : number + 1] = [node]
        segment[node] = number
        with_layer |= {number} if layer else set()
    return list(segment.values())


def _only_reader(value: fx.Node, node: fx.Node) -> bool:
    return all(user is node or is_query(user) for user in value.users)


def by_borders(traced: fx.GraphModule, borders: Sequence[int]) -> list[int]:
    """The number of its segment for each step; ``borders`` are the numbers of the steps that end a segment, except the last."""
    return [sum(i > border for border in borders) for i in range(len(steps_of(traced)))]


def borders_after(traced: fx.GraphModule, names: Sequence[str]) -> list[int]:
    """The steps that are calls of the named submodules.

    Raises:
        SegmentError: a name that is not called exactly once, or is the network's last step.
    """
    steps = steps_of(traced)
    found = []
    for name in names:
        calls = [i for i, n in enumerate(steps) if n.op == "call_module" and n.target == name]
        if len(calls) != 1:
            known = ", ".join(str(n.target) for n in steps if n.op == "call_module")
            raise SegmentError(f"cannot cut after {name!r}, which the network calls {len(calls)} times; its modules: {known}")
        if calls[0] == len(steps) - 1:
            raise SegmentError(f"cannot cut after {name!r}: it is the network's end")
        found.append(calls[0])
    return sorted(found)


def even_borders(traced: fx.GraphModule, count: int) -> list[int]:
    """Borders of ``count`` segments with about equally many layers; a single value passes from each segment to the next.

    Raises:
        SegmentError: the network has too few such places.
    """
    steps = steps_of(traced)
    number = {node: i for i, node in enumerate(steps)}
    reach = [max((number.get(user, len(steps)) for user in node.users), default=i) for i, node in enumerate(steps)]
    weight = 0
    places: list[tuple[int, int]] = []  # (border, layers before it)
    for i, node in enumerate(steps[:-1]):
        weight += is_layer(traced, node)
        single = sum(reach[j] > i for j in range(i + 1)) == 1 and reach[i] > i
        if single and weight and _layer_starts(traced, node):
            places.append((i, weight))
    total = weight + is_layer(traced, steps[-1])
    if len(places) < count - 1:
        raise SegmentError(
            f"the network can be cut at {len(places)} places, so into at most {len(places) + 1} segments, not {count}"
        )
    borders: list[int] = []
    for k in range(1, count):
        left = count - 1 - k  # places that later borders need
        free = [p for p in places[: len(places) - left] if not borders or p[0] > borders[-1]]
        borders.append(min(free, key=lambda p: abs(p[1] - k * total / count))[0])
    return borders


def _layer_starts(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a layer starts after a node; a normalisation between them belongs to the layer, unless the node is a layer."""
    before = [u for u in node.users if _is_norm(traced, u)] if not is_layer(traced, node) else []
    return bool(before) or any(is_layer(traced, user) for user in node.users)


def _is_norm(traced: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(traced.get_submodule(str(node.target)), NORMS)


def split(model: nn.Module, traced: fx.GraphModule, numbers: Sequence[int]) -> fx.GraphModule:
    """A module with one submodule for each segment; ``numbers`` are those of the steps."""
    segment = dict(zip(steps_of(traced), numbers))
    for node in traced.graph.nodes:
        if node.op == "call_module" and not node.all_input_nodes:
            segment[node] = min(segment[user] for user in node.users if user in segment)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.fx warns about attributes
        return split_module(traced, model, lambda node: segment[node], keep_original_order=True)


def output_of(graph: fx.Graph) -> fx.Node:
    """The one value that a network returns.

    Raises:
        SegmentError: it returns something else.
    """
    found = outputs_of(graph)
    if len(found) != 1:
        raise SegmentError(f"the network returns {len(found)} tensors, {', '.join(map(str, found))}; one is needed")
    return found[0]


def outputs_of(graph: fx.Graph) -> list[fx.Node]:
    """The values that a network returns: one, or those of a tuple, list or dictionary in its order.

    Raises:
        SegmentError: it returns something else.
    """
    (node,) = (n for n in graph.nodes if n.op == "output")
    given = node.args[0]
    found = list(given.values()) if isinstance(given, dict) else list(given) if isinstance(given, tuple | list) else [given]
    if not found or not all(isinstance(value, fx.Node) for value in found):
        raise SegmentError(f"the network returns {given}; segments need one tensor, or a tuple, list or dictionary of tensors")
    return found
