"""Operations that act on the positions of each channel: pooling, padding, interpolation; of one, two or three axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn

from spikeprop.convert import value as values
from spikeprop.convert.builder import Builder
from spikeprop.convert.operations.rectifiers import rectifier_of
from spikeprop.convert.trace import refuse
from spikeprop.convert.value import LinearBranch, Value
from spikeprop.snn import INPUT, SampleDropout
from spikeprop.snn.pooling import SpikingMaxPool
from spikeprop.snn.synapse import WEIGHTED

MEANS: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
ADAPTIVE: dict[int, Any] = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
PADS: dict[str, dict[int, Any]] = {
    "constant": {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d},
    "reflect": {1: nn.ReflectionPad1d, 2: nn.ReflectionPad2d, 3: nn.ReflectionPad3d},
    "replicate": {1: nn.ReplicationPad1d, 2: nn.ReplicationPad2d, 3: nn.ReplicationPad3d},
    "circular": {1: nn.CircularPad1d, 2: nn.CircularPad2d, 3: nn.CircularPad3d},
}
BORDERS = tuple(kind for kinds in PADS.values() for kind in kinds.values())
CONSTANT = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)


def _axes(builder: Builder, node: fx.Node) -> int:
    """Number of axes of positions."""
    return len(builder.shape(node.args[0])) - 1


def _by_channel(builder: Builder, node: fx.Node, module: nn.Module) -> Value:
    return values.append(builder.value(node), module)


# average pooling ----------------------------------------------------------------------------------------------------------------


def _avg_pool(builder: Builder, node: fx.Node) -> Value:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    return values.append(builder.value(node), MEANS[_axes(builder, node)](**builder.arguments(node, *names)))


def _adaptive_avg_pool(builder: Builder, node: fx.Node) -> Value:
    pool = ADAPTIVE[_axes(builder, node)](builder.arguments(node, "output_size")["output_size"])
    return values.append(builder.value(node), pool)


def _mean(builder: Builder, node: fx.Node) -> Value:
    given = builder.arguments(node, "dim", "keepdim")
    axes, count = given.get("dim"), len(builder.shape(node.args[0]))
    found = {a % (count + 1) for a in (axes if isinstance(axes, tuple | list) else [axes]) if isinstance(a, int)}
    if count < 2 or found != set(range(2, count + 1)):
        raise refuse(node, f"a mean over {axes}", "only the mean over all positions, mean((2, 3)), converts")
    value = values.append(builder.value(node), ADAPTIVE[count - 1](1))
    return value if given.get("keepdim") else values.flatten(value)


# max pooling --------------------------------------------------------------------------------------------------------------------


def _max_pool_module(builder: Builder, node: fx.Node, module: Any) -> Value:
    if module.return_indices:
        raise refuse(node, "max pooling that returns indices", "spikes have none; use return_indices=False")
    return _max_pool(builder, node, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)


def _functional_max_pool(builder: Builder, node: fx.Node) -> Value:
    given = builder.arguments(node, "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    return _max_pool(builder, node, **{k: v for k, v in given.items() if k != "return_indices"})


def _max_pool(
    builder: Builder,
    node: fx.Node,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Value:
    if set(dilation if isinstance(dilation, tuple | list) else [dilation]) != {1}:
        raise refuse(node, f"max pooling with dilation {dilation}", "use dilation=1")
    axes = _axes(builder, node)
    return _pooled(builder, node, SpikingMaxPool(kernel_size, stride, padding, ceil_mode, axes=axes))


def _pooled(builder: Builder, node: fx.Node, pool: SpikingMaxPool) -> Value:
    """A layer of max pooling, with ReLU before it: max(relu(x)) = relu(max(x))."""
    value, source = builder.value(node), node.args[0]
    if any(b.source == INPUT for b in value if not any(isinstance(op, WEIGHTED) for op in b.ops)):
        raise refuse(node, "max pooling of the image", "pool the images before they enter the network, or put a layer before it")
    value, dropouts = values.without_dropout(value)
    if not values.is_spikes(value, builder.shape(source)[0]):
        after = [rectifier_of(builder, user) for user in node.users]
        first = after[0] if after else None
        if first is None or not first.one_sided or any(other != first for other in after):
            raise refuse(node, "max pooling without ReLU", "put ReLU right before or right after it")
        value = builder.fire(source, value, first)  # type: ignore[arg-type]
    limits = {id(limit): limit for limit in (builder.ceilings.get(b.source) for b in value)}
    ceiling = next(iter(limits.values())) if len(limits) == 1 else None
    pooled: Value = (LinearBranch(builder.close(node, value, pool, ceiling)),)
    return values.append(pooled, SampleDropout(max(dropouts))) if dropouts else pooled


def _adaptive_max_pool(builder: Builder, node: fx.Node, *_: Any) -> Value:
    before, after = builder.shape(node.args[0])[1:], builder.shape(node)[1:]
    if any(b % a for a, b in zip(after, before)):
        raise refuse(node, f"adaptive max pooling from {before} to {after}", "all windows must have the same size")
    window = tuple(b // a for a, b in zip(after, before))
    return _pooled(builder, node, SpikingMaxPool(window, axes=len(window)))


# padding ------------------------------------------------------------------------------------------------------------------------


def pad_like(pad: Sequence[int], mode: str) -> nn.Module:
    """The padding of the last axes, a pair of numbers each from the last one on."""
    return PADS[mode][len(pad) // 2](tuple(pad))


def _pad(builder: Builder, node: fx.Node) -> Value:
    given = builder.arguments(node, "pad", "mode", "value")
    mode, number = given.get("mode", "constant"), given.get("value")
    return _padded(builder, node, list(given["pad"]), mode, float(number or 0))


def _constant_pad(builder: Builder, node: fx.Node, module: Any) -> Value:
    return _padded(builder, node, list(module.padding), "constant", float(module.value))


def _padded(builder: Builder, node: fx.Node, pad: list[int], mode: str, number: float) -> Value:
    """A border of one number is one of zeros around the value less that number, which is then added again."""
    axes = _axes(builder, node)
    of_positions, of_channels, of_batch = pad[: 2 * axes], pad[2 * axes : 2 * axes + 2] or [0, 0], pad[2 * axes + 2 :]
    if any(of_batch) or (any(of_channels) and (mode != "constant" or min(of_channels) < 0)):
        raise refuse(node, f"padding {tuple(pad)}, mode {mode!r}", "channels can only be padded with a number, and images not")
    value = builder.value(node)
    if number:
        value = values.shift(value, -number, builder.shape(node.args[0]), builder.like)
    if any(of_positions):
        value = values.append(value, pad_like(of_positions, mode))
    value = values.pad_channels(value, *of_channels)
    return values.shift(value, number, builder.shape(node), builder.like) if number else value


# interpolation ------------------------------------------------------------------------------------------------------------------


def _interpolate(builder: Builder, node: fx.Node) -> Value:
    names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
    given = {k: v for k, v in builder.arguments(node, *names).items() if v is not None}
    if given.pop("antialias", False):
        raise refuse(node, "interpolation with antialias=True", "leave antialias out, or resize the images first")
    for name in ("size", "scale_factor"):
        if isinstance(given.get(name), list):
            given[name] = tuple(given[name])
    return values.append(builder.value(node), nn.Upsample(**given))


def _upsample(builder: Builder, node: fx.Node, module: nn.Upsample) -> Value:
    names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")
    return values.append(builder.value(node), nn.Upsample(**{name: getattr(module, name) for name in names}))


MODULES: dict[type, Callable[[Builder, fx.Node, Any], Value]] = {
    **dict.fromkeys((*MEANS.values(), *ADAPTIVE.values(), *BORDERS), _by_channel),
    **dict.fromkeys(CONSTANT, _constant_pad),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _max_pool_module),
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), _adaptive_max_pool),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), _upsample),
}
FUNCTIONS: dict[str, Callable[[Builder, fx.Node], Value]] = {
    "mean": _mean,
    **dict.fromkeys((f"avg_pool{n}d" for n in (1, 2, 3)), _avg_pool),
    **dict.fromkeys((f"adaptive_avg_pool{n}d" for n in (1, 2, 3)), _adaptive_avg_pool),
    **dict.fromkeys((f"max_pool{n}d" for n in (1, 2, 3)), _functional_max_pool),
    **dict.fromkeys((f"adaptive_max_pool{n}d" for n in (1, 2, 3)), _adaptive_max_pool),
    "pad": _pad,
    "interpolate": _interpolate,
}
