"""Shapes that hardware has too: flattening, channels that are taken or joined, every k-th row and column.

Channels are taken by convolutions of kernel 1 and joined by ``ChannelPad``; every k-th row and column is pooling with windows of
one pixel. All other shapes are found by ``operations/functions.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from spikeprop.convert import value as values
from spikeprop.convert.builder import Builder
from spikeprop.convert.trace import function_name, refuse
from spikeprop.convert.value import Value
from spikeprop.snn.weights import chosen

FULL = slice(None)


def _reshaped(builder: Builder, node: fx.Node, *_: Any) -> Value:
    """Flatten, view, reshape or squeeze that keeps the axes of a sample, or makes one of all of them."""
    before, after = builder.shape(node.args[0]), builder.shape(node)
    if after not in (before, (prod(before),)):
        raise refuse(node, f"a new shape, {before} to {after}")
    return builder.value(node) if after == before else values.flatten(builder.value(node))


def _item(builder: Builder, node: fx.Node) -> Value:
    """Some channels, of a tensor or as a part of chunk or split; or every k-th row and column."""
    whole, index = node.args[0], builder.constant(node.args[1])
    assert isinstance(whole, fx.Node)
    parts = builder.outline[whole]
    if isinstance(parts, tuple | list):
        return _part(builder, node, whole, parts, index)
    entries = index if isinstance(index, tuple) else (index,)
    axes, plain = len(builder.shape(whole)), all(isinstance(entry, slice) for entry in entries)
    if plain and entries[0] == FULL and all(entry == FULL for entry in entries[2:]) and axes in (1, 3):
        return _some_channels(builder, node, whole, entries[1] if len(entries) > 1 else FULL)
    whole_axes = all(entry.start in (None, 0) and entry.stop is None for entry in entries) if plain else False
    if not whole_axes or any(entry.step not in (None, 1) for entry in entries[:2]) or axes != 3:
        raise refuse(node, f"slicing with {index}")
    steps = [entry.step or 1 for entry in entries[2:]] + [1, 1]
    return values.append(builder.value(node), nn.AvgPool2d(1, (steps[0], steps[1])))


def _part(builder: Builder, node: fx.Node, whole: fx.Node, parts: Sequence[Tensor], index: Any) -> Value:
    if not isinstance(index, int):
        raise refuse(node, f"several parts of {function_name(whole)}")
    sizes = [part.shape[1] for part in parts]
    first = sum(sizes[: range(len(sizes))[index]])
    return _some_channels(builder, node, whole.args[0], slice(first, first + sizes[index]))


def _some_channels(builder: Builder, node: fx.Node, whole: Any, entry: slice) -> Value:
    count, *positions = builder.shape(whole)
    options = {"device": builder.device, "dtype": builder.dtype}
    layer = chosen(torch.arange(count)[entry], count, len(positions), options)
    return values.append_weighted(builder.value_of(node, whole), layer, "", 1 + len(positions))


def _parts(builder: Builder, node: fx.Node) -> Value:
    """chunk and split along the channels; each part is taken by ``_item``."""
    shape, taken = builder.shape(node.args[0]), all(function_name(user) == "getitem" for user in node.users)
    axis = builder.arguments(node, "size", "dim").get("dim", 0) % (len(shape) + 1)
    if axis != 1 or len(shape) not in (1, 3) or not taken:
        raise refuse(node, f"{function_name(node)} along axis {axis}")
    return builder.value(node)


def _concatenate(builder: Builder, node: fx.Node) -> Value:
    given: dict[str, Any] = {**dict(zip(("tensors", "dim"), node.args)), **node.kwargs}
    parts, axis = given["tensors"], given.get("dim", given.get("axis", 0))
    if isinstance(parts, fx.Node) or axis % (len(builder.shape(node)) + 1) != 1:
        raise refuse(node, f"concatenation along axis {axis}")
    return values.concatenate([(builder.value_of(node, part), builder.shape(part)[0]) for part in parts])


MODULES: dict[type, Callable[[Builder, fx.Node, Any], Value]] = {nn.Flatten: _reshaped}
FUNCTIONS: dict[str, Callable[[Builder, fx.Node], Value]] = {
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze"), _reshaped),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concatenate),
    "getitem": _item,
    **dict.fromkeys(("chunk", "split"), _parts),
}
