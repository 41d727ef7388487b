"""Flags for calls with problematic numbers: dead, silent, saturated, vanishing, exploding, stopped.

The thresholds are conventions; a page states them (``MEANINGS``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikeprop.plugins.explain.local import cotangent_of
from spikeprop.plugins.explain.trace import Node, Trace

SHARE = 0.5  # minimum fraction of units for a flag
FLAT = 0.01  # a derivative below this fraction of its maximum counts as saturated
ON_FEATURES = ("affine", "matmul", "layer_norm")  # the last axis of their outputs is that of the features
ENTRYWISE = ("add", "sub", "rsub", "mul", "div", "factor", "where", "relu", "tanh", "sigmoid", "silu", "gelu")  # keep the axes
RATIO = 1e3  # ratio of the sizes of cotangents
MEANINGS = {
    "dead": f"at least {SHARE:.0%} of the units of a ReLU are zero for every sample shown",
    "silent": f"at least {SHARE:.0%} of the neurons of a spiking layer do not fire in any step of any sample shown",
    "saturated": f"at least {SHARE:.0%} of the entries have a derivative below {FLAT:.0%} of the largest possible one",
    "vanishing": f"the cotangent's root mean square is less than 1/{RATIO:.0f} of that of the network's scores",
    "stopped": "the cotangent is exactly zero, because a call above multiplies by weights that are all zero, as those of a new "
    "head; the first updates of these weights change it",
    "exploding": f"the cotangent's root mean square is more than {RATIO:.0f} times that of the network's scores",
}


def flags_of(trace: Trace, kinds: dict[int, str]) -> dict[int, list[str]]:
    """Flags of each call, by its number."""
    found: dict[int, list[str]] = {node.index: [] for node in trace.nodes}
    scores = _rms(cotangent_of(trace, trace.nodes[-1].inputs[0]))
    stopped = _stopped(trace)
    for node in trace.nodes:
        axis = unit_axis(node, trace, kinds) if kinds[node.index] == "relu" else 0
        found[node.index] += _by_activation(node, trace, kinds[node.index], axis)
        found[node.index] += ["stopped"] if node.outputs[0] in stopped else _by_cotangent(node, trace, scores)
    for nodes in _layers(trace, kinds).values():
        spikes = torch.stack([trace.values[n.outputs[0]].tensor for n in nodes])
        if float((spikes == 0).all(0).all(0).double().mean()) >= SHARE:
            for node in nodes:
                found[node.index].append("silent")
    return found


def unit_axis(node: Node, trace: Trace, kinds: dict[int, str]) -> int:
    """The axis of a ReLU's units: the last behind a layer on features, also through entrywise calls, else the channels'."""
    shape, makers = trace.values[node.outputs[0]].tensor.shape, {i: n for n in trace.nodes for i in n.outputs}
    maker = makers.get(node.inputs[0])
    while maker is not None and kinds[maker.index] in ENTRYWISE:
        above = [makers[i] for i in maker.inputs if i in makers and trace.values[i].tensor.shape == shape]
        maker = above[0] if above else None
    before = None if maker is None else kinds[maker.index]
    return len(shape) - 1 if before in ON_FEATURES else min(1, len(shape) - 1)


def _by_activation(node: Node, trace: Trace, kind: str, axis: int) -> list[str]:
    out = trace.values[node.outputs[0]].tensor
    if kind == "relu":
        dead = (out <= 0).movedim(axis, 0).flatten(1).all(1) if out.dim() > 1 else out <= 0
        return ["dead"] if float(dead.double().mean()) >= SHARE else []
    slopes = {"tanh": lambda: 1 - out**2, "sigmoid": lambda: 4 * out * (1 - out)}
    if kind in slopes and float((slopes[kind]() < FLAT).double().mean()) >= SHARE:
        return ["saturated"]
    return []


def _by_cotangent(node: Node, trace: Trace, scores: float) -> list[str]:
    if node.outputs[0] == trace.loss or scores == 0 or trace.values[node.outputs[0]].cotangent is None:
        return []  # the loss does not depend on this call
    size = _rms(cotangent_of(trace, node.outputs[0]))
    return ["vanishing"] if size * RATIO < scores else ["exploding"] if size > RATIO * scores else []


def _stopped(trace: Trace) -> set[int]:
    """Values with a cotangent of exactly zero because every path from the loss ends at weights that are all zero."""
    found: set[int] = set()
    uses = trace.consumers()
    for value in reversed(trace.values):
        if value.needs_grad and value.index in uses and not cotangent_of(trace, value.index).any():
            readers = [
                trace.nodes[node] for node, _ in uses[value.index] if trace.values[trace.nodes[node].outputs[0]].needs_grad
            ]
            if all(reader.outputs[0] in found or _multiplies_by_zeros(reader, trace) for reader in readers):
                found.add(value.index)
    return found


def _multiplies_by_zeros(node: Node, trace: Trace) -> bool:
    parameters = [trace.values[i] for i in node.inputs if trace.values[i].role == "parameter"]
    arrives = any(bool(cotangent_of(trace, output).any()) for output in node.outputs)
    return arrives and bool(parameters) and not parameters[0].tensor.any()


def _layers(trace: Trace, kinds: dict[int, str]) -> dict[str, list[Node]]:
    """The "fire" calls of each spiking layer."""
    found: dict[str, list[Node]] = {}
    for node in trace.nodes:
        if kinds[node.index] == "fire":
            found.setdefault(node.module, []).append(node)
    return found


def _rms(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt()) if tensor.numel() else 0.0
