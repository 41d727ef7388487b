"""The ANN's outputs as the readout of a spiking network: one tensor as it is, several flattened and concatenated."""

from __future__ import annotations

from dataclasses import is_dataclass
from math import prod
from typing import Any

from torch import Tensor, fx

from spikeprop.convert import value as values
from spikeprop.convert.builder import Builder
from spikeprop.convert.known import BATCH
from spikeprop.convert.trace import function_name, refuse
from spikeprop.convert.value import Value
from spikeprop.snn.gather import same_numbers
from spikeprop.snn.output_form import OutputForm, leaves, mapped


def read_out(builder: Builder, node: fx.Node) -> OutputForm | None:
    """Close the readout of what the graph returns; its form."""
    result = mapped(lambda leaf: _unfolded(builder, leaf), node.args[0])
    tensors = [leaf for _, leaf in leaves(result) if _shape(builder, leaf) is not None]
    if not tensors:
        raise refuse(node, "a result without tensors", "return the outputs (B, ...)")
    for tensor in tensors:
        if tensor not in builder.values:
            raise refuse(node, f"an output that is a constant ({tensor.name!r})", "return what depends on the images alone")
        if tuple(builder.outline[tensor].shape[:1]) != (BATCH,):  # type: ignore[union-attr]
            raise refuse(node, f"an output without the images' axis ({tensor.name!r})", "axis 0 of each output is the batch")
    form = OutputForm.of(result, lambda leaf: _shape(builder, leaf))
    flat = form is not None and any(part.first is not None for part in form.parts().values())
    value = _flat(builder, tensors) if flat else builder.values[tensors[0]]
    if not (len(value) == 1 and not value[0].ops and value[0].source in builder.layers and _reads_out(builder, value[0].source)):
        builder.close(node, value, None)
    return form


def _reads_out(builder: Builder, name: str) -> bool:
    """Whether the ANN ends in a layer that is a readout itself, an ``Integrator``."""
    return builder.layers[name].reads_out


def only_orders(builder: Builder, node: fx.Node) -> bool:
    """Whether a node is a softmax, or a sigmoid of one number, at the end of the ANN: it is left out, with a note.

    It does not change which output is largest, or on which side of the middle the number is. It stays where the outputs are
    several tensors, and a sigmoid where it is of several numbers: those may be read as the values that they are.
    """
    name = type(builder.modules[str(node.target)]).__name__ if node.op == "call_module" else function_name(node)
    sigmoid = name.lower() in ("sigmoid", "logsigmoid")
    if not sigmoid and name.lower().replace("_", "") not in ("softmax", "logsoftmax", "softmax2d"):
        return False
    (*_, end) = builder.order
    if set(node.users) != {end} or [leaf for _, leaf in leaves(end.args[0]) if isinstance(leaf, fx.Node)] != [node]:
        return False
    if sigmoid and prod(builder.shape(node)) != 1:
        return False
    if not sigmoid and name != "Softmax2d" and _softmax_axis(builder, node) != 1:
        return False
    builder.skipped.add(node.name)
    same = "the number is positive where it was above a half" if name == "sigmoid" else "the largest output stays the largest"
    builder.notes.append(
        f"the final {name} ({node.name!r}) is left out: {same}. For the ANN's own values apply it to network.estimate(output, T)"
    )
    return True


def _softmax_axis(builder: Builder, node: fx.Node) -> int:
    module = builder.modules[str(node.target)] if node.op == "call_module" else None
    dim = builder.arguments(node, "dim").get("dim") if module is None else module.dim
    return dim % (len(builder.shape(node)) + 1) if isinstance(dim, int) else 1


def _flat(builder: Builder, tensors: list[fx.Node]) -> Value:
    """Several values, each flattened, one after another."""
    parts = []
    for tensor in tensors:
        shape, value = builder.shape(tensor), builder.values[tensor]
        if len(shape) != 1:
            value = values.flatten(value) if shape else values.compose(value, same_numbers((1,)))
        parts.append((value, prod(shape)))
    return values.concatenate(parts)


def holds_fields(node: fx.Node) -> bool:
    """Whether a node makes an instance of a class of named fields, to be returned."""
    kind = node.target
    return isinstance(kind, type) and (is_dataclass(kind) or hasattr(kind, "_fields"))


def _unfolded(builder: Builder, leaf: Any) -> Any:
    """A node as the constant that it computes, or, of a class of named fields, as an instance that holds nodes."""
    if not isinstance(leaf, fx.Node) or isinstance(builder.outline[leaf], Tensor):
        return leaf
    if holds_fields(leaf):
        return leaf.target(*leaf.args, **leaf.kwargs)  # type: ignore[operator]
    return builder.outline[leaf]


def _shape(builder: Builder, leaf: Any) -> tuple[int, ...] | None:
    return builder.shape(leaf) if isinstance(leaf, fx.Node) else None
