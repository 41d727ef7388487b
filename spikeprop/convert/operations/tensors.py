"""Arithmetic: additions and constant factors."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from spikeprop.convert import value as values
from spikeprop.convert.builder import Builder
from spikeprop.convert.trace import refuse
from spikeprop.convert.value import Value


def _add(builder: Builder, node: fx.Node, sign: int = 1) -> Value:
    """The first operand and ``sign * alpha`` times the second; either may be a number."""
    factor = sign * float(builder.arguments(node, "other").get("alpha", 1))
    numbers = _numbers(builder, node)
    if 1 in numbers:
        total = _shifted(builder, builder.value(node), node, factor * numbers[1])
    elif 0 in numbers:
        total = _shifted(builder, values.scale(builder.value(node, 1), factor), node, numbers[0])
    else:
        if any(builder.shape(operand) != builder.shape(node) for operand in [*node.args, *node.kwargs.values()][:2]):
            raise refuse(node, "a sum of two values of different shapes")  # functions.py expands them
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
    return values.shift(value, number, builder.shape(node), builder.like)


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


FUNCTIONS: dict[str, Callable[[Builder, fx.Node], Value]] = {
    **dict.fromkeys(("add", "iadd"), _add),
    **dict.fromkeys(("sub", "isub"), _subtract),
    **dict.fromkeys(("mul", "imul"), _multiply),
    **dict.fromkeys(("truediv", "itruediv", "div"), _divide),
    "neg": _negate,
}
