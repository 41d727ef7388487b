"""Tracing: from an ANN to a torch.fx graph of plain modules, and the error that names what cannot be converted.

The ANN is copied first (``convert/plain.py``), so it is never changed. Activations are leaves of the trace: a module with a
``ceiling`` is one.
"""

from __future__ import annotations

import copy
from keyword import iskeyword
from typing import Any

import torch
from torch import Tensor, fx, nn

from spikeprop.convert.plain import check_finite, plain_copy
from spikeprop.errors import ConversionError
from spikeprop.runtime.tracing import OwnTracer

BATCH, OTHER_BATCH = 7, 10  # images of the outlines; unusual numbers, so that the batch axis is recognised
OTHERWISE = "use convolutions, Linear, BatchNorm, activations, pooling, attention, and operations on single tensors"


class ReLUTracer(OwnTracer):
    """A tracer that keeps activations as they are: a module with a ``ceiling`` is one."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (hasattr(m, "ceiling") and not any(m.children())) or super().is_leaf_module(m, module_qualified_name)


class MetaInterpreter(fx.Interpreter):
    """Runs a traced network on the meta device, which computes shapes only, and keeps the result of every node."""

    def __init__(self, traced: fx.GraphModule, shape: tuple[int, ...]):
        super().__init__(copy.deepcopy(traced).to("meta"), garbage_collect_values=False)
        self.shape = shape

    def run_node(self, n: fx.Node) -> Any:
        try:
            return super().run_node(n)
        except Exception as error:
            raise ConversionError(
                f"node {n.name!r} ({n.op} {n.target}) cannot run on images of the given shape, {self.shape}: {error}"
            ) from error


def trace(ann: nn.Module) -> fx.GraphModule:
    """The graph of a copy of the ANN in evaluation mode.

    Raises:
        ConversionError: the ANN cannot be copied or traced, or a weight is not finite.
    """
    plain = plain_copy(ann)
    try:
        traced = fx.GraphModule(plain, ReLUTracer().trace(plain))
    except Exception as error:
        words = [path for path, _ in plain.named_modules() if any(map(iskeyword, path.split(".")))]
        if words and isinstance(error, SyntaxError):
            raise ConversionError(f"{words[0]!r} has a name of Python's own, which torch.fx cannot write; rename it") from error
        raise ConversionError(
            f"torch.fx cannot trace {type(ann).__name__}: {error}. Remove control flow that depends on the data."
        ) from error
    check_finite((*traced.named_parameters(), *traced.named_buffers()))
    return traced


def outline(traced: fx.GraphModule, input_shape: tuple[int, ...], dtype: torch.dtype, batch: int = BATCH) -> dict[fx.Node, Any]:
    """The result of each node for a batch of images: a tensor on the meta device, or a constant such as a size.

    Raises:
        ConversionError: the network has not exactly one input, or cannot run on images of this shape.
    """
    run = MetaInterpreter(traced, input_shape)
    inputs = [n for n in traced.graph.nodes if n.op == "placeholder"]
    if len(inputs) != 1:
        culprit = inputs[1] if inputs else next(iter(traced.graph.nodes))
        raise refuse(culprit, f"{len(inputs)} inputs", "convert a network with one input")
    with torch.no_grad():
        run.run(torch.zeros(batch, *input_shape, device="meta", dtype=dtype))
    results = {n.name: result for n, result in run.env.items()}
    return {n: results.get(n.name) for n in traced.graph.nodes}


def holds_tensors(result: Any) -> bool:
    """Whether the result of a node is a tensor or a sequence with tensors, rather than a size or another constant."""
    return isinstance(result, Tensor) or (isinstance(result, tuple | list) and any(isinstance(r, Tensor) for r in result))


def function_name(node: fx.Node) -> str:
    """Name of the function or method that a node calls, without the underscore that marks in-place methods."""
    return called_name(node).rstrip("_")


def called_name(node: fx.Node) -> str:
    """Name of the function, method or module that a node calls."""
    target = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def refuse(node: fx.Node, what: str, advice: str | None = None) -> ConversionError:
    """The error that says which operation cannot be converted and what to do."""
    advice = advice or OTHERWISE
    return ConversionError(f"cannot convert node {node.name!r} ({node.op} {_called(node)}): {what}; {advice}")


def _called(node: fx.Node) -> str:
    """What a node calls, without the address of a function."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
