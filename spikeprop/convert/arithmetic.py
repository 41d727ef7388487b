"""Layers that compute (``snn/arithmetic.py``) in a conversion, and the neurons that make spikes of what they send.

A function that is neither linear nor a ReLU becomes a layer that computes it. What such a layer sends are real numbers; before
the next operation with weights, and on the operands of a matrix product, a layer of neurons that stands for the identity makes
spikes of them: graded or signed neurons with ``rectify=False``, of other neurons two layers, one for each sign. A sum with
weights that several operations read becomes a relay, so that it is computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import fx, nn

from spikeprop.convert.builder import NEGATIVE, Builder, may_be_negative
from spikeprop.convert.trace import function_name, refuse
from spikeprop.convert.value import LinearBranch, Value, scale
from spikeprop.snn import ChannelPad, Gain
from spikeprop.snn.arithmetic import Joined, Relay, Running
from spikeprop.snn.gather import Gather
from spikeprop.snn.synapse import WEIGHTED

SHAPED = (Gather, nn.Flatten, nn.Unflatten, ChannelPad)


def computed(builder: Builder, node: fx.Node, function: nn.Module, operands: Sequence[tuple[Value, tuple[int, ...]]]) -> Value:
    """A layer that computes a function of values, each with the shape of a sample."""
    if builder.builds:
        what = "a function that is neither linear nor a neuron"
        raise refuse(node, what, "put neurons in its place, such as spikeprop.LIF(), or leave it to the loss or the encoder")
    if len(operands) == 1:
        value = operands[0][0]
    else:
        function = Joined(function, [shape for _, shape in operands])
        ends, branches = list(function.sizes), []
        for i, (operand, _) in enumerate(operands):
            place = ChannelPad(sum(ends[:i]), sum(ends[i + 1 :]))
            branches += [b.then(nn.Flatten()).then(place) for b in operand]
        value = tuple(branches)
    builder.arithmetic = True
    return (LinearBranch(builder.close(node, value, Running(function))),)


def sends_numbers(builder: Builder, source: str) -> bool:
    """Whether a source sends real numbers that were computed, rather than spikes or the image."""
    layer = builder.layers.get(source)
    if layer is None:
        return False
    passed_on = layer.dynamics.passes_on and any(sends_numbers(builder, s) for s in layer.sources)
    return layer.dynamics.arithmetic or passed_on


def encoded(builder: Builder, node: fx.Node, value: Value, axis: int, *, product: bool = False) -> Value:
    """The value as spikes, times what is linear without weights.

    Args:
        builder: of the network.
        node: whose operation reads the value.
        value: to encode.
        axis: of its channels, the batch counted.
        product: whether a matrix product reads it, so that spikes are needed even where no function was before.
    """
    if not (builder.arithmetic or product):
        return value  # a network of ReLUs: weights upon weights are one linear operation
    if all(not b.label and not sends_numbers(builder, b.source) for b in value):
        return value
    inner, after = _without_shapes(value)
    if len(after) and isinstance(inner[0].last, nn.Linear):
        axis = -1
    elif len(after):
        axis = 1
    if _key(inner) not in builder.encoders:
        builder.encoders[_key(inner)] = inner, _fired(builder, node, inner, axis)
    _, spikes = builder.encoders[_key(inner)]
    for op in after:
        spikes = tuple(b.then(op) for b in spikes)
    return spikes


def _fired(builder: Builder, node: fx.Node, value: Value, axis: int) -> Value:
    neuron = builder.neuron()
    if may_be_negative(neuron):
        neuron.rectify = False
        names = [builder.close(node, value, neuron, suffix="_spikes")]
        fired: Value = (LinearBranch(names[0]),)
    else:  # one layer for each sign
        names = [
            builder.close(node, scale(value, sign), builder.rectifying(), suffix=f"_spikes{side}")
            for sign, side in ((1.0, ""), (-1.0, NEGATIVE))
        ]
        fired = (LinearBranch(names[0]), LinearBranch(names[1], (Gain(torch.tensor(-1.0, dtype=torch.float64)),)))
    for name in names:
        builder.layers[name].channel_axis, builder.layers[name].may_rest = axis, True
    return fired


def _without_shapes(value: Value) -> tuple[Value, list[nn.Module]]:
    """A value of one branch without shapes and factors after its weights, and these; the value as it is if there are none."""
    if len(value) != 1 or not value[0].label:
        return value, []
    ops = list(value[0].ops)
    while ops and (isinstance(ops[-1], SHAPED) or (isinstance(ops[-1], Gain) and ops[-1].gain.numel() == 1)):
        ops.pop()
    if not ops or not isinstance(ops[-1], WEIGHTED):
        return value, []
    branch = value[0]
    return (LinearBranch(branch.source, tuple(ops), branch.label),), list(branch.ops[len(ops) :])


def _key(value: Value) -> tuple[object, ...]:
    return tuple((b.source, *map(id, b.ops)) for b in value)


@contextmanager
def encoded_operand(builder: Builder, node: fx.Node) -> Iterator[None]:
    """Meanwhile the first argument of an operation with weights is spikes; other readers get the value itself."""
    source = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(source, fx.Node) or not isinstance(builder.values.get(source), tuple):
        yield
        return
    before = builder.values[source]
    linear = isinstance(builder.modules.get(str(node.target)), nn.Linear) or function_name(node) == "linear"
    builder.values[source] = encoded(builder, node, before, -1 if linear else 1)
    try:
        yield
    finally:
        builder.values[source] = before


def relayed(builder: Builder, node: fx.Node, value: Value, readers: int) -> Value:
    """The value, computed once if several operations read it and it has weights."""
    if not builder.arithmetic or readers < 2 or not any(b.label for b in value):
        return value
    return (LinearBranch(builder.close(node, value, Relay(), suffix="_sum")),)
