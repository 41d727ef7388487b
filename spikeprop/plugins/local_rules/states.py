"""A network as states: what ``EquilibriumPropagation`` relaxes.

A network with the activations sigma_1, ..., sigma_N in a chain is cut after each of them. Then s_n = sigma_n(A_n(s_(n-1))), where
A_n is all that it computes between two activations (convolution, pooling, ...), and one more A reads out s_N.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from spikeprop.errors import SegmentError
from spikeprop.learn.segments import Segment, SegmentGraph, segment_graph
from spikeprop.learn.tracing import steps_of

MONOTONE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.ELU, nn.CELU, nn.SELU,
)  # fmt: skip


@dataclass
class States:
    """A network as states: the segments compute A_n, the last one reads out, and ``activations`` are the sigma_n by name."""

    graph: SegmentGraph
    activations: dict[str, nn.Module]


def states_of(model: nn.Module) -> States:
    """Cut a network after each of its activations; one that is no module, or not monotone, becomes a part of the A_n.

    Raises:
        SegmentError: it has none that can be a state.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, MONOTONE)]
    if not names:
        raise SegmentError(
            "EquilibriumPropagation makes a state of each activation, and found none: it needs modules that are monotone and "
            f"have no parameters ({', '.join(kind.__name__ for kind in MONOTONE)}); use PredictiveCoding for others"
        )
    graph = segment_graph(model, names)
    cut, activations = [], {}
    for segment in graph.segments[:-1]:
        module, activations[segment.name] = _split(segment)
        cut.append(Segment(segment.name, module, segment.reads))
    return States(SegmentGraph([*cut, graph.segments[-1]], graph.names), activations)


def forward_states(states: States, x: Tensor) -> dict[str, Tensor]:
    """States of the forward pass, without feedback."""
    values: dict[str, Tensor] = {}
    with torch.no_grad():
        for segment in states.graph.segments[:-1]:
            values[segment.name] = x = states.activations[segment.name](segment.module(x.clone()))
    return values


def _split(segment: Segment) -> tuple[nn.Module, nn.Module]:
    """What a segment computes before the activation that ends it, and that activation; both hold the network's own modules."""
    if not isinstance(segment.module, fx.GraphModule):
        raise SegmentError(
            f"EquilibriumPropagation cannot see what segment {segment.name!r} computes before its activation: it cannot be "
            "traced, or an activation of this network is called twice or is its end; give each place a module of its own, or use "
            "PredictiveCoding"
        )
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    last = steps_of(segment.module)[-1]
    activation = segment.module.get_submodule(str(last.target))
    for node in segment.module.graph.nodes:
        if node is last:
            values[node] = values[last.all_input_nodes[0]]
        else:
            values[node] = graph.node_copy(node, lambda n: values[n])
    return fx.GraphModule(segment.module, graph), activation
