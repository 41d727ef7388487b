"""The operations that convert: what each module and function of the ANN makes of the values of the graph.

Tables from type or name to a small function; what is in none of them is refused. Functions of torch, methods of tensors and
modules that mean the same share one entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from spikeprop.convert import value as values
from spikeprop.convert.graph import Builder, Rectifier, function_name, refuse
from spikeprop.convert.value import Value
from spikeprop.snn import SampleDropout
from spikeprop.snn.pooling import SpikingMaxPool

# rectifiers -------------------------------------------------------------------------------------------------------------------


def module_rectifier(node: fx.Node, module: nn.Module) -> Rectifier | None:
    """A module as a rectifier, or None."""
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return _hardtanh(node, module.min_val, module.max_val)
    if hasattr(module, "ceiling"):
        return Rectifier(ceiling=module.ceiling)  # type: ignore[arg-type]
    if isinstance(module, nn.LeakyReLU):
        return Rectifier(slope=module.negative_slope)
    if isinstance(module, nn.PReLU):
        return Rectifier(slope=module.weight)
    return Rectifier() if type(module) is nn.ReLU else None


def _hardtanh(node: fx.Node, low: Any, high: Any) -> Rectifier:
    low, high = 0.0 if low is None else float(low), None if high is None else float(high)
    if low > 0 or (high is not None and high <= 0):
        raise refuse(node, f"clipping to [{low}, {high}]", "an interval that holds 0 is needed: rates are counted from 0")
    return Rectifier(ceiling=high) if low == 0 else Rectifier(ceiling=high, slope=1.0, depth=-low)


def _clamp(builder: Builder, node: fx.Node) -> Rectifier:
    given = builder.arguments(node, "min", "max")
    if given.get("min") is None:
        raise refuse(node, "clamp without a lower limit", "give min=0")
    return _hardtanh(node, given["min"], given.get("max"))


def _functional_hardtanh(builder: Builder, node: fx.Node) -> Rectifier:
    given = builder.arguments(node, "min_val", "max_val")
    return _hardtanh(node, given.get("min_val", -1.0), given.get("max_val", 1.0))


def _leaky(builder: Builder, node: fx.Node) -> Rectifier:
    return Rectifier(slope=float(builder.arguments(node, "negative_slope").get("negative_slope", 0.01)))


RECTIFIERS: dict[str, Callable[[Builder, fx.Node], Rectifier]] = {
    "relu": lambda builder, node: Rectifier(),
    "relu6": lambda builder, node: Rectifier(ceiling=6.0),
    "clamp": _clamp,
    "clip": _clamp,
    "hardtanh": _functional_hardtanh,
    "leaky_relu": _leaky,
}

# modules ----------------------------------------------------------------------------------------------------------------------


def _same(builder: Builder, node: fx.Node, *_: Any) -> Value:
    return builder.value(node)


def _weighted(builder: Builder, node: fx.Node, layer: Any) -> Value:
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        raise refuse(node, f"Conv2d with padding_mode={layer.padding_mode!r}", "use padding_mode='zeros'")
    _check_linear(builder, node, layer)
    return values.append_weighted(builder.value(node), layer, str(node.target))


def _check_linear(builder: Builder, node: fx.Node, layer: nn.Module) -> None:
    axes = len(builder.shape(node.args[0]))
    if isinstance(layer, nn.Linear) and axes != 1:
        raise refuse(node, f"Linear on samples of {axes} axes", "flatten them first, or use a Conv2d with kernel 1")


def _by_channel(builder: Builder, node: fx.Node, module: nn.Module) -> Value:
    return values.append(builder.value(node), module)


def _dropout(builder: Builder, node: fx.Node, module: Any) -> Value:
    return values.append(builder.value(node), SampleDropout(module.p))


def _batch_norm(builder: Builder, node: fx.Node, norm: Any) -> Value:
    if norm.running_var is None:
        raise refuse(node, type(norm).__name__, "it keeps no running statistics; train it with track_running_stats=True")
    gain_C = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        gain_C = gain_C * norm.weight
    shift_C = -norm.running_mean * gain_C
    if norm.bias is not None:
        shift_C = shift_C + norm.bias
    return values.affine(builder.value(node), gain_C.detach(), shift_C.detach(), builder.shape(node)[1:])


def _max_pool_module(builder: Builder, node: fx.Node, module: Any) -> Value:
    if module.return_indices:
        raise refuse(node, "max pooling that returns indices", "spikes have none; use return_indices=False")
    return _max_pool(builder, node, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)


def _max_pool(
    builder: Builder,
    node: fx.Node,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Value:
    if dilation not in (1, (1, 1)):
        raise refuse(node, f"max pooling with dilation {dilation}", "use dilation=1")
    return builder.max_pool(node, SpikingMaxPool(kernel_size, stride, padding, ceil_mode))


def _adaptive_max_pool(builder: Builder, node: fx.Node, *_: Any) -> Value:
    before, after = builder.shape(node.args[0])[1:], builder.shape(node)[1:]
    if any(b % a for a, b in zip(after, before)):
        raise refuse(node, f"adaptive max pooling from {before} to {after}", "windows must be of one size")
    return builder.max_pool(node, SpikingMaxPool((before[0] // after[0], before[1] // after[1])))


def _reshaped(builder: Builder, node: fx.Node, *_: Any) -> Value:
    """Flatten, view, reshape, squeeze: what leaves the axes alone, or makes one of all of them."""
    before, after = builder.shape(node.args[0]), builder.shape(node)
    whole = len(builder.outline[node]) == len(builder.outline[node.args[0]])  # type: ignore[arg-type, index]
    if before == after and whole:
        return builder.value(node)
    one_position = len(before) == 3 and torch.Size(before[1:]).numel() == 1 and after[0] == before[0]
    if not whole or not (after == (torch.Size(before).numel(),) or one_position):
        shown = "x".join(map(str, before)), "x".join(map(str, after))
        raise refuse(
            node,
            f"a new shape, {shown[0]} to {shown[1]}",
            "the axes of a sample can only be flattened into one, from axis 1 to -1",
        )
    return values.flatten(builder.value(node))


MODULES: dict[type, Callable[[Builder, fx.Node, Any], Value]] = {
    nn.Identity: _same,
    nn.Conv2d: _weighted,
    nn.Linear: _weighted,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.AvgPool2d: _by_channel,
    nn.AdaptiveAvgPool2d: _by_channel,
    nn.ZeroPad2d: _by_channel,
    nn.MaxPool2d: _max_pool_module,
    nn.AdaptiveMaxPool2d: _adaptive_max_pool,
    nn.Dropout: _dropout,
    nn.Dropout2d: _dropout,
    nn.Flatten: _reshaped,
}

# functions --------------------------------------------------------------------------------------------------------------------


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
    """Which of the two operands are numbers."""
    operands = enumerate([*node.args, *node.kwargs.values()][:2])
    found = {i: builder.constant(operand) for i, operand in operands}
    return {i: float(number) for i, number in found.items() if isinstance(number, int | float)}


def _shifted(builder: Builder, value: Value, node: fx.Node, number: float) -> Value:
    """A number added to each element of what ``node`` gives."""
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
        raise refuse(node, f"concatenation along axis {axis}", "only channels (axis 1) can stand side by side")
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
    """Every k-th row and column, which is a pooling of windows of one; or some channels, which is a matrix of ones and zeros."""
    index = builder.constant(node.args[1])
    index = index if isinstance(index, tuple) else (index,)
    if len(index) == 2 and index[0] == slice(None) and len(builder.shape(node.args[0])) == 3 and index[1] != slice(None):
        return _some_channels(builder, node, index[1])
    plain = all(isinstance(i, slice) and i.start in (None, 0) and i.stop is None for i in index)
    if not plain or any(i.step not in (None, 1) for i in index[:2]) or len(builder.shape(node.args[0])) != 3:
        raise refuse(node, f"the part {index} of a value", "only every k-th row and column can be taken")
    steps = [i.step or 1 for i in index[2:]] + [1, 1]
    return values.append(builder.value(node), nn.AvgPool2d(1, (steps[0], steps[1])))


def _some_channels(builder: Builder, node: fx.Node, index: Any) -> Value:
    """x[:, a:b], or x[:, i] where an unsqueeze gives the axis back."""
    if isinstance(index, int) and any(user.target not in (torch.unsqueeze, "unsqueeze") for user in node.users):
        raise refuse(node, f"the part x[:, {index}] of a value", f"keep the axis of channels: x[:, {index}:{index + 1}]")
    count = builder.shape(node.args[0])[0]
    mine = torch.arange(count)[index].reshape(-1)
    layer = nn.Conv2d(count, len(mine), 1, bias=False, device=builder.device, dtype=builder.dtype)
    chosen = torch.eye(count, dtype=builder.dtype)[mine].reshape(len(mine), count, 1, 1)
    layer.weight = nn.Parameter(chosen.to(builder.device), requires_grad=False)  # which channels is not to be trained
    return values.append_weighted(builder.value(node), layer, "")


def _unsqueeze(builder: Builder, node: fx.Node) -> Value:
    """The axis that ``x[:, i]`` took away."""
    before = node.args[0]
    given = builder.arguments(node, "dim")
    taken = isinstance(before, fx.Node) and function_name(before) == "getitem" and len(builder.shape(before)) == 2
    if given.get("dim") not in (1, -3) or not taken:
        raise refuse(node, f"unsqueeze({given.get('dim')})", "an axis can only be put back where x[:, i] took it away")
    return builder.value(node)


def _mean(builder: Builder, node: fx.Node) -> Value:
    given = builder.arguments(node, "dim", "keepdim")
    axes = given.get("dim")
    found = {a % 4 for a in (axes if isinstance(axes, tuple | list) else [axes]) if isinstance(a, int)}
    if len(builder.shape(node.args[0])) != 3 or found != {2, 3}:
        raise refuse(node, f"a mean over {axes}", "only the mean over all positions, mean((2, 3)), converts")
    value = values.append(builder.value(node), nn.AdaptiveAvgPool2d(1))
    return value if given.get("keepdim") else values.flatten(value)


def _avg_pool(builder: Builder, node: fx.Node) -> Value:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    return values.append(builder.value(node), nn.AvgPool2d(**builder.arguments(node, *names)))


def _adaptive_avg_pool(builder: Builder, node: fx.Node) -> Value:
    return values.append(builder.value(node), nn.AdaptiveAvgPool2d(builder.arguments(node, "output_size")["output_size"]))


def _functional_max_pool(builder: Builder, node: fx.Node) -> Value:
    given = builder.arguments(node, "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    return _max_pool(builder, node, **{k: v for k, v in given.items() if k != "return_indices"})


def _functional_dropout(builder: Builder, node: fx.Node) -> Value:
    return values.append(builder.value(node), SampleDropout(float(builder.arguments(node, "p").get("p", 0.5))))


def _functional_conv(builder: Builder, node: fx.Node) -> Value:
    given = {**dict(zip(("weight", "bias", "stride", "padding", "dilation", "groups"), node.args[1:])), **node.kwargs}
    weight, bias = builder.tensor(node, given.pop("weight")), builder.tensor(node, given.pop("bias", None))
    assert weight is not None
    settings = {name: builder.constant(v) for name, v in given.items() if name != "input"}
    size = (weight.shape[2], weight.shape[3])
    inputs = weight.shape[1] * settings.get("groups", 1)
    layer = nn.Conv2d(inputs, len(weight), size, **settings, bias=bias is not None, device=weight.device, dtype=weight.dtype)
    return _functional_weighted(builder, node, layer, weight, bias)


def _functional_linear(builder: Builder, node: fx.Node) -> Value:
    given = {**dict(zip(("weight", "bias"), node.args[1:])), **node.kwargs}
    weight, bias = builder.tensor(node, given["weight"]), builder.tensor(node, given.get("bias"))
    assert weight is not None
    layer = nn.Linear(weight.shape[1], len(weight), bias=bias is not None, device=weight.device, dtype=weight.dtype)
    return _functional_weighted(builder, node, layer, weight, bias)


def _functional_weighted(builder: Builder, node: fx.Node, layer: Any, weight: Tensor, bias: Tensor | None) -> Value:
    _check_linear(builder, node, layer)
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return values.append_weighted(builder.value(node), layer, node.name)


FUNCTIONS: dict[str, Callable[[Builder, fx.Node], Value]] = {
    **dict.fromkeys(("add", "iadd"), _add),
    **dict.fromkeys(("sub", "isub"), _subtract),
    **dict.fromkeys(("mul", "imul"), _multiply),
    **dict.fromkeys(("truediv", "itruediv", "div"), _divide),
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze"), _reshaped),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concatenate),
    **dict.fromkeys(("contiguous", "clone", "detach"), _same),
    "neg": _negate,
    "pad": _pad,
    "getitem": _item,
    "unsqueeze": _unsqueeze,
    "mean": _mean,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive_avg_pool,
    "max_pool2d": _functional_max_pool,
    "adaptive_max_pool2d": _adaptive_max_pool,
    **dict.fromkeys(("dropout", "dropout2d"), _functional_dropout),
    "conv2d": _functional_conv,
    "linear": _functional_linear,
}
