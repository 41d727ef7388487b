"""Shapes: flattening, reshaping, permuting, slicing, splitting and joining the axes of a sample.

Channels are taken and joined by 1x1 convolutions and by ``ChannelPad``, which hardware has; other axes by ``Select`` and padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from spikeprop.convert import value as values
from spikeprop.convert.builder import Builder
from spikeprop.convert.known import BATCH
from spikeprop.convert.operations.sampling import pad_like
from spikeprop.convert.trace import function_name, refuse
from spikeprop.convert.value import Value
from spikeprop.convert.weights import chosen
from spikeprop.snn.synapse import Permute, Reshape, Select

FULL = slice(None)


# another shape ------------------------------------------------------------------------------------------------------------------


def _reshaped(builder: Builder, node: fx.Node, *_: Any) -> Value:
    """Flatten, view, reshape, squeeze, unsqueeze: any new shape of each sample."""
    before, after = builder.shape(node.args[0]), builder.shape(node)
    return shaped(builder, node, builder.value(node), before, after)


def shaped(builder: Builder, node: fx.Node, value: Value, before: tuple[int, ...], after: tuple[int, ...]) -> Value:
    """A value of samples of one shape as samples of another."""
    if before == after:
        return value
    if math.prod(before) != math.prod(after) or len(builder.outline[node]) != BATCH:  # type: ignore[arg-type]
        shown = "x".join(map(str, before)), "x".join(map(str, after))
        raise refuse(node, f"a new shape, {shown[0]} to {shown[1]}", "keep the images of a batch apart: axis 0 stays as it is")
    if after == (math.prod(before),):
        return values.flatten(value)
    return values.compose(value, Reshape(after))


def _permuted(builder: Builder, node: fx.Node, *_: Any) -> Value:
    """Permute, transpose, movedim, .T and the like: the order is read from what they do to the strides of a sample."""
    before, after = builder.outline[node.args[0]], builder.outline[node]  # type: ignore[index]
    assert isinstance(before, Tensor)
    assert isinstance(after, Tensor)
    probe = torch.empty(tuple(range(2, 2 + before.dim())), device="meta")  # axes of different sizes
    arguments = [builder.constant(a) for a in node.args[1:]]
    moved = getattr(torch.Tensor, function_name(node))(
        probe, *arguments, **{k: builder.constant(v) for k, v in node.kwargs.items() if k != "input"}
    )
    axes = tuple(size - 2 for size in moved.shape)
    if axes[0] != 0:
        raise refuse(node, f"a permutation to {axes}", "axis 0, the batch, stays first")
    value = builder.value(node)
    return value if axes == tuple(range(len(axes))) else values.compose(value, Permute(axes))


# parts --------------------------------------------------------------------------------------------------------------------------


def _item(builder: Builder, node: fx.Node) -> Value:
    """A part of chunk, split or unbind; or entries of any axes of a sample."""
    whole, index = node.args[0], builder.constant(node.args[1])
    assert isinstance(whole, fx.Node)
    parts = builder.outline[whole]
    if isinstance(parts, tuple | list):
        return _part(builder, node, whole, parts, index)
    shape = builder.shape(whole)
    entries = _entries(node, index if isinstance(index, tuple) else (index,), len(shape))
    value, left = taken(builder, builder.value(node), shape, entries)
    return shaped(builder, node, value, left, builder.shape(node))  # new axes


def _part(builder: Builder, node: fx.Node, whole: fx.Node, parts: Sequence[Tensor], index: Any) -> Value:
    source, shape = whole.args[0], builder.shape(whole.args[0])
    if not isinstance(index, int):
        raise refuse(node, f"several parts of {function_name(whole)}", "take its parts one by one: a, b = x.chunk(2, 1)")
    axis = _axis(builder, whole)
    if parts[0].dim() == len(shape):  # unbind takes the axis away
        entry: Any = range(len(parts))[index]
    else:
        sizes = [part.shape[axis] for part in parts]
        first = sum(sizes[: range(len(sizes))[index]])
        entry = slice(first, first + sizes[index])
    value, _ = taken(builder, builder.value_of(node, source), shape, {axis: entry})
    return value


def _entries(node: fx.Node, index: tuple[Any, ...], axes: int) -> dict[int, Any]:
    """What is taken of each axis: a number, a slice, or a list of numbers."""
    used = sum(entry is not None and entry is not Ellipsis for entry in index)
    at = next((i for i, entry in enumerate(index) if entry is Ellipsis), None)
    if at is not None:
        index = (*index[:at], *(FULL,) * (axes + 1 - used), *index[at + 1 :])
    by_axis = dict(enumerate(entry for entry in index if entry is not None))
    lists = [a for a, entry in by_axis.items() if isinstance(entry, list | tuple)]
    numbers = [a for a, entry in by_axis.items() if isinstance(entry, int) and not isinstance(entry, bool)]
    plain = all(isinstance(entry, slice | int | list | tuple) and not isinstance(entry, bool) for entry in by_axis.values())
    listed = all(type(i) is int for a in lists for i in by_axis[a])
    if by_axis.get(0, FULL) not in (FULL, slice(0, None)) or not plain or not listed or len(lists) + bool(numbers and lists) > 1:
        raise refuse(node, f"slicing with {index}", "take all images, x[:, ...], and of other axes numbers, slices or one list")
    return {a: entry for a, entry in by_axis.items() if a and entry != FULL}


def taken(builder: Builder, value: Value, shape: tuple[int, ...], entries: dict[int, Any]) -> tuple[Value, tuple[int, ...]]:
    """Entries of some axes of samples of a shape, and the shape that is left."""
    indices = {axis: _indices(entry, shape[axis - 1]) for axis, entry in entries.items()}
    whole = {axis: i for axis, i in indices.items() if i != tuple(range(shape[axis - 1]))}
    steps = _every(entries) if len(shape) == 3 and whole else None
    if steps is not None:
        return values.append(value, nn.AvgPool2d(1, steps)), tuple(-(-n // s) for n, s in zip(shape, (1, *steps)))
    left = list(shape)
    for axis in sorted(whole, reverse=True):  # later axes first, whose numbers do not change
        index = whole[axis]
        if axis == 1 and isinstance(index, tuple) and len(left) in (1, 3):
            options = {"device": builder.device, "dtype": builder.dtype}
            layer = chosen(torch.tensor(index), left[0], len(left) - 1, options)
            value = values.append_weighted(value, layer, "", len(left))
        elif axis == 1:
            value = values.compose(value, Select(axis, index))
        else:
            value = values.append(value, Select(axis, index))
        left[axis - 1 : axis] = [len(index)] if isinstance(index, tuple) else []
    return value, tuple(left)


def _indices(entry: Any, size: int) -> int | tuple[int, ...]:
    if isinstance(entry, int):
        return range(size)[entry]
    return tuple(range(size)[entry]) if isinstance(entry, slice) else tuple(range(size)[i] for i in entry)


def _every(entries: dict[int, Any]) -> tuple[int, int] | None:
    """Every k-th row and column, which pooling with windows of one pixel gives, or None."""
    plain = all(isinstance(e, slice) and e.start in (None, 0) and e.stop is None for e in entries.values())
    if not plain or 1 in entries:
        return None
    return tuple(entries.get(axis, FULL).step or 1 for axis in (2, 3))  # type: ignore[return-value]


def _parts(builder: Builder, node: fx.Node) -> Value:
    """chunk, split and unbind; each part is taken by ``_item``."""
    if _axis(builder, node) == 0:
        raise refuse(node, f"{function_name(node)} along axis 0", "the images of a batch stay together")
    if any(function_name(user) != "getitem" for user in node.users):
        raise refuse(node, function_name(node), "take its parts one by one: a, b = x.chunk(2, 1)")
    return builder.value(node)


def _axis(builder: Builder, node: fx.Node) -> int:
    """The axis that chunk, split or unbind cuts."""
    names = ("dim",) if function_name(node) == "unbind" else ("size", "dim")
    axis = builder.arguments(node, *names).get("dim", 0)
    return axis % (len(builder.shape(node.args[0])) + 1)


def _narrow(builder: Builder, node: fx.Node) -> Value:
    given = builder.arguments(node, "dim", "start", "length")
    return _along(builder, node, given["dim"], slice(given["start"], given["start"] + given["length"]))


def _select(builder: Builder, node: fx.Node) -> Value:
    given = builder.arguments(node, "dim", "index")
    return _along(builder, node, given["dim"], given["index"])


def _flip(builder: Builder, node: fx.Node) -> Value:
    dims = builder.arguments(node, "dims")["dims"]
    shape, value = builder.shape(node), builder.value(node)
    for dim in dims if isinstance(dims, tuple | list) else [dims]:
        axis = dim % (len(shape) + 1)
        value = _along(builder, node, axis, list(reversed(range(shape[axis - 1]))), value)
    return value


def _along(builder: Builder, node: fx.Node, dim: int, entry: Any, value: Value | None = None) -> Value:
    shape = builder.shape(node.args[0])
    axis = dim % (len(shape) + 1)
    if axis == 0:
        raise refuse(node, f"{function_name(node)} along axis 0", "the images of a batch stay together")
    return taken(builder, builder.value(node) if value is None else value, shape, {axis: entry})[0]


# joining ------------------------------------------------------------------------------------------------------------------------


def _concatenate(builder: Builder, node: fx.Node) -> Value:
    given: dict[str, Any] = {**dict(zip(("tensors", "dim"), node.args)), **node.kwargs}
    parts, axis = given["tensors"], given.get("dim", given.get("axis", 0))
    if isinstance(parts, fx.Node):
        raise refuse(node, f"{function_name(node)} of the parts of {parts.name!r}", "list them: torch.cat([a, b], 1)")
    shapes = [builder.shape(part) for part in parts]
    return joined(node, [builder.value_of(node, part) for part in parts], shapes, axis % (len(shapes[0]) + 1))


def _stack(builder: Builder, node: fx.Node) -> Value:
    given: dict[str, Any] = {**dict(zip(("tensors", "dim"), node.args)), **node.kwargs}
    if isinstance(given["tensors"], fx.Node):
        raise refuse(node, f"stack of the parts of {given['tensors'].name!r}", "list them: torch.stack([a, b], 1)")
    axis = given.get("dim", 0) % (len(builder.shape(node)) + 1)
    parts, shapes = [], []
    for part in given["tensors"]:
        shape = builder.shape(part)
        shapes.append((*shape[: axis - 1], 1, *shape[axis - 1 :]))
        parts.append(values.compose(builder.value_of(node, part), Reshape(shapes[-1])))
    return joined(node, parts, shapes, axis)


def joined(node: fx.Node, parts: list[Value], shapes: list[tuple[int, ...]], axis: int) -> Value:
    """Values joined along an axis: each is placed among zeros."""
    if axis == 0:
        raise refuse(node, "concatenation along axis 0", "the images of a batch stay as they are")
    sizes = [shape[axis - 1] for shape in shapes]
    if axis == 1:
        return values.concatenate(list(zip(parts, sizes)))
    if len(shapes[0]) - axis > 2:
        raise refuse(node, f"concatenation along axis {axis}", "only channels and the last three axes can be joined")
    total: Value = ()
    for i, part in enumerate(parts):
        around = [0, 0] * (len(shapes[0]) - axis) + [sum(sizes[:i]), sum(sizes[i + 1 :])]
        total = (*total, *(values.append(part, pad_like(around, "constant")) if any(around) else part))
    return total


MODULES: dict[type, Callable[[Builder, fx.Node, Any], Value]] = {
    **dict.fromkeys((nn.Flatten, nn.Unflatten), _reshaped),
    **dict.fromkeys(
        (nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.Unfold),
        lambda builder, node, op: values.compose(builder.value(node), op),
    ),
}
FUNCTIONS: dict[str, Callable[[Builder, fx.Node], Value]] = {
    **dict.fromkeys(("flatten", "unflatten", "view", "reshape", "squeeze", "unsqueeze"), _reshaped),
    **dict.fromkeys(("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"), _permuted),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concatenate),
    "stack": _stack,
    "getitem": _item,
    **dict.fromkeys(("chunk", "split", "tensor_split", "unbind"), _parts),
    "narrow": _narrow,
    "select": _select,
    "flip": _flip,
}
