"""ReLU and its variants: which modules and functions of the ANN become neurons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from spikeprop.convert.builder import Builder, Rectifier
from spikeprop.convert.trace import function_name, refuse


def rectifier_of(builder: Builder, node: fx.Node) -> Rectifier | None:
    """The rectifier that a node computes, or None for any other operation."""
    if node.op == "call_module":
        return _module_rectifier(node, builder.modules[str(node.target)])
    found = RECTIFIERS.get(function_name(node))
    return found(builder, node) if found is not None else None


def _module_rectifier(node: fx.Node, module: nn.Module) -> Rectifier | None:
    """A module as a rectifier, or None."""
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return _hardtanh(node, module.min_val, module.max_val)
    if hasattr(module, "ceiling"):
        return Rectifier(ceiling=module.ceiling)  # type: ignore[arg-type]
    if isinstance(module, nn.LeakyReLU):
        return Rectifier(slope=module.negative_slope)
    if isinstance(module, nn.RReLU):  # drawn in training only
        return Rectifier(slope=(module.lower + module.upper) / 2)
    if isinstance(module, nn.Threshold):
        return _threshold(node, module.threshold, module.value)
    if isinstance(module, nn.PReLU):
        return Rectifier(slope=module.weight)
    return Rectifier() if type(module) is nn.ReLU else None


def _hardtanh(node: fx.Node, low: Any, high: Any) -> Rectifier:
    low, high = 0.0 if low is None else float(low), None if high is None else float(high)
    if low > 0 or (high is not None and high <= 0):
        raise refuse(
            node, f"clipping to [{low}, {high}]", "the interval must contain 0, since a neuron that does not fire has the rate 0"
        )
    return Rectifier(ceiling=high) if low == 0 else Rectifier(ceiling=high, slope=1.0, depth=-low)


def _clamp(builder: Builder, node: fx.Node) -> Rectifier:
    given = builder.arguments(node, "min", "max")
    if given.get("min") is None:
        raise refuse(node, "clamp without a lower limit", "give min=0")
    return _hardtanh(node, given["min"], given.get("max"))


def _clamp_min(builder: Builder, node: fx.Node) -> Rectifier:
    return _hardtanh(node, builder.arguments(node, "min").get("min"), None)


def _threshold(node: fx.Node, threshold: float, value: float) -> Rectifier:
    if threshold or value:
        raise refuse(node, f"a threshold at {threshold}, below which the value is {value}", "only Threshold(0, 0) is a ReLU")
    return Rectifier()


def _functional_threshold(builder: Builder, node: fx.Node) -> Rectifier:
    given = builder.arguments(node, "threshold", "value")
    return _threshold(node, given["threshold"], given["value"])


def _maximum(builder: Builder, node: fx.Node) -> Rectifier:
    """The larger one of a value and 0."""
    operands = [*node.args, *node.kwargs.values()][:2]
    zeros = [i for i, operand in enumerate(operands) if _is_zero(builder, operand)]
    if len(operands) != 2 or len(zeros) != 1:
        raise refuse(node, "the larger one of two values", "only the larger one of a value and 0, which is a ReLU, converts")
    return Rectifier()


def _is_zero(builder: Builder, operand: Any) -> bool:
    if not isinstance(operand, fx.Node):
        return isinstance(operand, int | float) and operand == 0
    if operand.op == "get_attr":
        constant = builder.tensor(operand, operand)
        return constant is not None and not bool(constant.any())
    return function_name(operand) in ZEROS


def _functional_prelu(builder: Builder, node: fx.Node) -> Rectifier:
    weight = builder.tensor(node, node.args[1] if len(node.args) > 1 else node.kwargs.get("weight"))
    assert weight is not None
    return Rectifier(slope=weight)


def _functional_rrelu(builder: Builder, node: fx.Node) -> Rectifier:
    given = builder.arguments(node, "lower", "upper")
    return Rectifier(slope=(float(given.get("lower", 1 / 8)) + float(given.get("upper", 1 / 3))) / 2)


def _functional_hardtanh(builder: Builder, node: fx.Node) -> Rectifier:
    given = builder.arguments(node, "min_val", "max_val")
    return _hardtanh(node, given.get("min_val", -1.0), given.get("max_val", 1.0))


def _leaky(builder: Builder, node: fx.Node) -> Rectifier:
    return Rectifier(slope=float(builder.arguments(node, "negative_slope").get("negative_slope", 0.01)))


ZEROS = ("zeros_like", "new_zeros", "zeros")  # functions whose results are constants of zeros
RECTIFIERS: dict[str, Callable[[Builder, fx.Node], Rectifier]] = {
    "relu": lambda builder, node: Rectifier(),
    "relu6": lambda builder, node: Rectifier(ceiling=6.0),
    "clamp": _clamp,
    "clip": _clamp,
    "hardtanh": _functional_hardtanh,
    "leaky_relu": _leaky,
    "prelu": _functional_prelu,
    "rrelu": _functional_rrelu,
    "clamp_min": _clamp_min,
    **dict.fromkeys(("threshold", "_threshold"), _functional_threshold),  # torch has two names for it
    "maximum": _maximum,
}
