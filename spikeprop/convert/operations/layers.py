"""Layers of the ANN, as modules and as functions: convolutions, linear layers, batch-norm, pooling and dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from spikeprop.convert import value as values
from spikeprop.convert.builder import Builder
from spikeprop.convert.operations.rectifiers import rectifier_of
from spikeprop.convert.trace import refuse
from spikeprop.convert.value import LinearBranch, Value
from spikeprop.snn import INPUT, SampleDropout
from spikeprop.snn.pooling import SpikingMaxPool


def _weighted(builder: Builder, node: fx.Node, layer: Any) -> Value:
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        raise refuse(node, f"Conv2d with padding_mode={layer.padding_mode!r}", "use padding_mode='zeros'")
    _check_linear(builder, node, layer)
    return values.append_weighted(builder.value(node), layer, str(node.target))


def _check_linear(builder: Builder, node: fx.Node, layer: nn.Module) -> None:
    axes = len(builder.shape(node.args[0]))
    if isinstance(layer, nn.Linear) and axes != 1:
        raise refuse(node, f"Linear on samples of {axes} axes", "flatten them first, or use a Conv2d with kernel 1")


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


def _by_channel(builder: Builder, node: fx.Node, module: nn.Module) -> Value:
    return values.append(builder.value(node), module)


def _avg_pool(builder: Builder, node: fx.Node) -> Value:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    return values.append(builder.value(node), nn.AvgPool2d(**builder.arguments(node, *names)))


def _adaptive_avg_pool(builder: Builder, node: fx.Node) -> Value:
    return values.append(builder.value(node), nn.AdaptiveAvgPool2d(builder.arguments(node, "output_size")["output_size"]))


def _mean(builder: Builder, node: fx.Node) -> Value:
    given = builder.arguments(node, "dim", "keepdim")
    axes = given.get("dim")
    found = {a % 4 for a in (axes if isinstance(axes, tuple | list) else [axes]) if isinstance(a, int)}
    if len(builder.shape(node.args[0])) != 3 or found != {2, 3}:
        raise refuse(node, f"a mean over {axes}", "only the mean over all positions, mean((2, 3)), converts")
    value = values.append(builder.value(node), nn.AdaptiveAvgPool2d(1))
    return value if given.get("keepdim") else values.flatten(value)


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
    if dilation not in (1, (1, 1)):
        raise refuse(node, f"max pooling with dilation {dilation}", "use dilation=1")
    return _pooled(builder, node, SpikingMaxPool(kernel_size, stride, padding, ceil_mode))


def _pooled(builder: Builder, node: fx.Node, pool: SpikingMaxPool) -> Value:
    """A layer of max pooling, with ReLU before it: max(relu(x)) = relu(max(x))."""
    value, source = builder.value(node), node.args[0]
    if any(b.source == INPUT for b in value if not any(isinstance(op, nn.Conv2d | nn.Linear) for op in b.ops)):
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
    return _pooled(builder, node, SpikingMaxPool((before[0] // after[0], before[1] // after[1])))


def _dropout(builder: Builder, node: fx.Node, module: Any) -> Value:
    return values.append(builder.value(node), SampleDropout(module.p))


def _functional_dropout(builder: Builder, node: fx.Node) -> Value:
    return values.append(builder.value(node), SampleDropout(float(builder.arguments(node, "p").get("p", 0.5))))


MODULES: dict[type, Callable[[Builder, fx.Node, Any], Value]] = {
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
}
FUNCTIONS: dict[str, Callable[[Builder, fx.Node], Value]] = {
    "conv2d": _functional_conv,
    "linear": _functional_linear,
    "mean": _mean,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive_avg_pool,
    "max_pool2d": _functional_max_pool,
    "adaptive_max_pool2d": _adaptive_max_pool,
    **dict.fromkeys(("dropout", "dropout2d"), _functional_dropout),
}
