"""Arithmetic and shapes: additions, constant factors, concatenation, padding, slicing, flattening."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from spikeprop.convert import value as values
from spikeprop.convert.builder import Builder
from spikeprop.convert.trace import function_name, refuse
from spikeprop.convert.value import Value


def _same(builder: Builder, node: fx.Node, *_: Any) -> Value:
    return builder.value(node)


def _add(builder: Builder, node: fx.Node, sign: int = 1) -> Value:
    """The first operand and ``sign * alpha`` times the second; either may be a number."""
    factor = sign * float(builder.arguments(node, "other").get("alpha", 1))
    numbers = _numbers(builder, node)
    if 1 in numbers:
        total = _shifted(builder, builder.value(node), node, factor * numbers[1])
    elif 0 in numbers:
        total = _shifted(builder, values.scale(builder.value(node, 1), factor), node, numbers[0])
    else:
        total = builder.value(node) + values.scale(builder.value(node, 1), factor)
    return builder.changed(node, total)


def _subtract(builder: Builder, node: fx.Node) -> Value:
    return _add(builder, node, sign=-1)


def _numbers(builder: Builder, node: fx.Node) -> dict[int, float]:
    """The operands that are numbers, by position."""
    operands = enumerate([*node.args, *node.kwargs.values()][:2])
    found = {i: builder.constant(operand) for i, operand in operands}
    return {i: float(number) for i, number in found.items() if isinstance(number, int | float)}


def _shifted(builder: Builder, value: Value, node: fx.Node, number: float) -> Value:
    """A value of the shape of ``node``, plus a number."""
    channels, *positions = builder.shape(node)
    ones_C = torch.ones(channels, dtype=builder.dtype, device=builder.device)
    return values.affine(value, ones_C, number * ones_C, (*positions,))


def _multiply(builder: Builder, node: fx.Node) -> Value:
    factors = [builder.constant(a) for a in node.args[:2]]
    numbers = [f for f in factors if isinstance(f, int | float)]
    if len(numbers) != 1:
        raise refuse(node, "a product of two values", "spikes are added, not multiplied; only a constant factor converts")
    return builder.changed(node, values.scale(builder.value(node, 0 if numbers[0] is factors[1] else 1), float(numbers[0])))


def _divide(builder: Builder, node: fx.Node) -> Value:
    divisor = builder.constant(node.args[1])
    if not isinstance(divisor, int | float) or node.kwargs.get("rounding_mode") is not None:
        raise refuse(node, "a quotient of two values, or one that is rounded", "only a constant divisor converts")
    return builder.changed(node, values.scale(builder.value(node), 1 / divisor))


def _negate(builder: Builder, node: fx.Node) -> Value:
    return values.scale(builder.value(node), -1.0)


def _concatenate(builder: Builder, node: fx.Node) -> Value:
    given: dict[str, Any] = {**dict(zip(("tensors", "dim"), node.args)), **node.kwargs}
    parts, axis = given["tensors"], given.get("dim", given.get("axis", 0))
    if axis % (len(builder.shape(node)) + 1) != 1:
        raise refuse(node, f"concatenation along axis {axis}", "only channels (axis 1) can be concatenated")
    return values.concatenate([(builder.value_of(node, part), builder.shape(part)[0]) for part in parts])


def _pad(builder: Builder, node: fx.Node) -> Value:
    given = builder.arguments(node, "pad", "mode", "value")
    if given.get("mode", "constant") != "constant" or given.get("value") not in (None, 0) or min(given["pad"]) < 0:
        raise refuse(node, f"padding {given}", "only zeros can be added around a sample")
    pad = [*given["pad"], *(0,) * (6 - len(given["pad"]))]
    value = builder.value(node)
    if any(pad[:4]):
        value = values.append(value, nn.ZeroPad2d((pad[0], pad[1], pad[2], pad[3])))
    return values.pad_channels(value, pad[4], pad[5])


def _item(builder: Builder, node: fx.Node) -> Value:
    """Every k-th row and column, as pooling with windows of one pixel; or some channels, as a 1x1 convolution."""
    whole, index = node.args[0], builder.constant(node.args[1])
    parts = builder.outline[whole]  # type: ignore[index]
    if isinstance(parts, tuple | list) and isinstance(index, int) and isinstance(whole, fx.Node):  # of chunk or split
        sizes = [part.shape[1] for part in parts]
        first = sum(sizes[: index % len(sizes)])
        return _some_channels(builder, node, whole.args[0], slice(first, first + sizes[index]))
    axes = len(builder.shape(whole))
    index: tuple[Any, ...] = index if isinstance(index, tuple) else (index,)
    if len(index) == 2 and index[0] == slice(None) and axes in (1, 3) and index[1] != slice(None):
        _check_axis(builder, node, index[1])
        return _some_channels(builder, node, whole, index[1])
    plain = all(isinstance(i, slice) and i.start in (None, 0) and i.stop is None for i in index)
    if not plain or any(i.step not in (None, 1) for i in index[:2]) or axes != 3:
        raise refuse(node, f"slicing with {index}", "only every k-th row and column, or some channels (axis 1), can be taken")
    steps = [i.step or 1 for i in index[2:]] + [1, 1]
    return values.append(builder.value(node), nn.AvgPool2d(1, (steps[0], steps[1])))


def _check_axis(builder: Builder, node: fx.Node, index: Any) -> None:
    """x[:, a:b] keeps the axis of channels; x[:, i] only if an unsqueeze restores it."""
    if isinstance(index, int) and any(user.target not in (torch.unsqueeze, "unsqueeze") for user in node.users):
        raise refuse(node, f"slicing x[:, {index}]", f"keep the axis of channels: x[:, {index}:{index + 1}]")
    if not isinstance(index, int | slice):
        raise refuse(node, f"slicing with x[:, {index}]", "take channels as a slice x[:, a:b]")


def _some_channels(builder: Builder, node: fx.Node, whole: Any, index: Any) -> Value:
    """Some channels, by a 1x1 convolution or, of vectors, by a matrix."""
    count, *positions = builder.shape(whole)
    mine = torch.arange(count)[index].reshape(-1)
    options: dict[str, Any] = {"bias": False, "device": builder.device, "dtype": builder.dtype}
    layer = nn.Conv2d(count, len(mine), 1, **options) if positions else nn.Linear(count, len(mine), **options)
    chosen = torch.eye(count, dtype=builder.dtype)[mine].reshape(len(mine), count, *(1,) * len(positions))
    layer.weight = nn.Parameter(chosen.to(builder.device), requires_grad=False)  # the selection is not trained
    return values.append_weighted(builder.value_of(node, whole), layer, "")


def _parts(builder: Builder, node: fx.Node) -> Value:
    """chunk and split along the channels; each part is taken by ``_item``."""
    given = builder.arguments(node, "size", "dim")
    axis = given.get("dim", 0)
    if axis % (len(builder.shape(node.args[0])) + 1) != 1:
        raise refuse(node, f"{function_name(node)} along axis {axis}", "only channels (axis 1) can be split")
    if any(function_name(user) != "getitem" for user in node.users):
        raise refuse(node, function_name(node), "take its parts one by one: a, b = x.chunk(2, 1)")
    return builder.value(node)


def _unsqueeze(builder: Builder, node: fx.Node) -> Value:
    """Restores the axis that ``x[:, i]`` removed."""
    before = node.args[0]
    given = builder.arguments(node, "dim")
    taken = isinstance(before, fx.Node) and function_name(before) == "getitem" and len(builder.shape(before)) == 2
    if given.get("dim") not in (1, -3) or not taken:
        raise refuse(node, f"unsqueeze({given.get('dim')})", "an axis can only be restored where x[:, i] removed it")
    return builder.value(node)


def _reshaped(builder: Builder, node: fx.Node, *_: Any) -> Value:
    """Flatten, view, reshape or squeeze that keeps the axes of a sample, or makes one of all of them."""
    before, after = builder.shape(node.args[0]), builder.shape(node)
    if not after:
        raise refuse(node, "a result without an axis of outputs", "keep it: flatten(1), so that one output has the shape (B, 1)")
    same_images = len(builder.outline[node]) == len(builder.outline[node.args[0]])  # type: ignore[arg-type, index]
    if before == after and same_images:
        return builder.value(node)
    one_position = len(before) == 3 and torch.Size(before[1:]).numel() == 1 and after[0] == before[0]
    if not same_images or not (after == (torch.Size(before).numel(),) or one_position):
        shown = "x".join(map(str, before)), "x".join(map(str, after))
        raise refuse(
            node,
            f"a new shape, {shown[0]} to {shown[1]}",
            "the axes of a sample can only be flattened into one, from axis 1 to -1",
        )
    return values.flatten(builder.value(node))


MODULES: dict[type, Callable[[Builder, fx.Node, Any], Value]] = {nn.Identity: _same, nn.Flatten: _reshaped}
FUNCTIONS: dict[str, Callable[[Builder, fx.Node], Value]] = {
    **dict.fromkeys(("add", "iadd"), _add),
    **dict.fromkeys(("sub", "isub"), _subtract),
    **dict.fromkeys(("mul", "imul"), _multiply),
    **dict.fromkeys(("truediv", "itruediv", "div"), _divide),
    "neg": _negate,
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze"), _reshaped),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concatenate),
    **dict.fromkeys(("contiguous", "clone", "detach"), _same),
    "pad": _pad,
    "getitem": _item,
    **dict.fromkeys(("chunk", "split"), _parts),
    "unsqueeze": _unsqueeze,
}
