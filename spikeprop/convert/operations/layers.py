"""Layers with weights of the ANN, as modules and as functions: convolutions, linear layers, batch-norm; and dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from spikeprop.convert import value as values
from spikeprop.convert.builder import Builder
from spikeprop.convert.operations.sampling import pad_like
from spikeprop.convert.trace import function_name, refuse
from spikeprop.convert.value import Value
from spikeprop.snn import SampleDropout
from spikeprop.snn.weights import conv_like

CONV = ("weight", "bias", "stride", "padding", "dilation", "groups")
TRANSPOSED = ("weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


def _linear(builder: Builder, node: fx.Node, layer: Any) -> Value:
    return _weighted(builder, node, layer, builder.value(node), str(node.target))


def _weighted(builder: Builder, node: fx.Node, layer: Any, value: Value, label: str) -> Value:
    axes = len(builder.shape(node.args[0]))
    if isinstance(layer, nn.Linear) and axes != 1:
        raise refuse(node, f"Linear on samples of {axes} axes", "flatten them first, or use a Conv2d with kernel 1")
    return values.append_weighted(value, layer, label, axes)


def _conv(builder: Builder, node: fx.Node, layer: Any) -> Value:
    value = builder.value(node)
    if layer.padding_mode != "zeros":  # the same as padding first
        pad = pad_like(layer._reversed_padding_repeated_twice, layer.padding_mode)
        value, layer = values.append(value, pad), _without_padding(layer)
    return _weighted(builder, node, layer, value, str(node.target))


def _without_padding(layer: Any) -> Any:
    plain = conv_like(
        layer.weight, layer.bias, transposed=False, stride=layer.stride, dilation=layer.dilation, groups=layer.groups
    )
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain


def _transposed(builder: Builder, node: fx.Node, layer: Any) -> Value:
    if len(node.args) > 1 or "output_size" in node.kwargs:
        size, plain = (list(builder.shape(n))[1:] for n in (node, node.args[0]))  # type: ignore[index]
        extra = [
            after - ((before - 1) * stride - 2 * pad + dilation * (kernel - 1) + 1)
            for after, before, stride, pad, dilation, kernel in zip(
                size, plain, layer.stride, layer.padding, layer.dilation, layer.kernel_size
            )
        ]
        layer = _with_output_padding(layer, tuple(extra))
    return _weighted(builder, node, layer, builder.value(node), str(node.target))


def _with_output_padding(layer: Any, extra: tuple[int, ...]) -> Any:
    settings = {name: getattr(layer, name) for name in ("stride", "padding", "groups", "dilation")}
    other = conv_like(layer.weight, layer.bias, transposed=True, output_padding=extra, **settings)
    other.weight, other.bias = layer.weight, layer.bias
    return other


def _functional_conv(builder: Builder, node: fx.Node) -> Value:
    transposed = "transpose" in function_name(node)
    given = {**dict(zip(TRANSPOSED if transposed else CONV, node.args[1:])), **node.kwargs}
    weight, bias = builder.tensor(node, given.pop("weight")), builder.tensor(node, given.pop("bias", None))
    assert weight is not None
    settings = {name: builder.constant(v) for name, v in given.items() if name != "input"}
    return _functional_weighted(builder, node, conv_like(weight, bias, transposed, **settings), weight, bias)


def _functional_linear(builder: Builder, node: fx.Node) -> Value:
    given = {**dict(zip(("weight", "bias"), node.args[1:])), **node.kwargs}
    weight, bias = builder.tensor(node, given["weight"]), builder.tensor(node, given.get("bias"))
    assert weight is not None
    layer = nn.Linear(weight.shape[1], len(weight), bias=bias is not None, device=weight.device, dtype=weight.dtype)
    return _functional_weighted(builder, node, layer, weight, bias)


def _functional_weighted(builder: Builder, node: fx.Node, layer: Any, weight: Tensor, bias: Tensor | None) -> Value:
    if builder.builds:
        if not isinstance(weight, nn.Parameter) or not isinstance(bias, nn.Parameter | None):
            raise refuse(node, "weights that are computed would not be trained", "use a layer with its own parameters")
        layer.weight, layer.bias = weight, bias
        return _weighted(builder, node, layer, builder.value(node), node.name)
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return _weighted(builder, node, layer, builder.value(node), node.name)


def _batch_norm(builder: Builder, node: fx.Node, norm: Any) -> Value:
    if norm.running_var is None:
        raise refuse(node, type(norm).__name__, "it keeps no running statistics; train it with track_running_stats=True")
    return _normalised(builder, node, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)


def _functional_batch_norm(builder: Builder, node: fx.Node) -> Value:
    names = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = {**dict(zip(names, node.args[1:])), **node.kwargs}
    mean, variance, weight, bias = (builder.tensor(node, given.get(name)) for name in names[:4])
    if mean is None or variance is None or builder.constant(given.get("training", False)):
        raise refuse(
            node, "batch_norm with the statistics of the batch", "give it running statistics, and training=self.training"
        )
    return _normalised(builder, node, mean, variance, weight, bias, float(builder.constant(given.get("eps", 1e-5))))


def _normalised(
    builder: Builder, node: fx.Node, mean_C: Tensor, variance_C: Tensor, weight_C: Any, bias_C: Any, eps: float
) -> Value:
    gain_C = (variance_C + eps).rsqrt()
    if weight_C is not None:
        gain_C = gain_C * weight_C
    shift_C = -mean_C * gain_C
    if bias_C is not None:
        shift_C = shift_C + bias_C
    return values.affine(builder.value(node), gain_C.detach(), shift_C.detach(), builder.shape(node)[1:])


def _dropout(builder: Builder, node: fx.Node, module: Any) -> Value:
    return values.append(builder.value(node), SampleDropout(module.p))


def _functional_dropout(builder: Builder, node: fx.Node) -> Value:
    return values.append(builder.value(node), SampleDropout(float(builder.arguments(node, "p").get("p", 0.5))))


MODULES: dict[type, Callable[[Builder, fx.Node, Any], Value]] = {
    nn.Linear: _linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), _batch_norm),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _batch_norm),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _dropout),
}
FUNCTIONS: dict[str, Callable[[Builder, fx.Node], Value]] = {
    **dict.fromkeys((f"conv{n}d" for n in (1, 2, 3)), _functional_conv),
    **dict.fromkeys((f"conv_transpose{n}d" for n in (1, 2, 3)), _functional_conv),
    "linear": _functional_linear,
    "batch_norm": _functional_batch_norm,
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d"), _functional_dropout),
}
