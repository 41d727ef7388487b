"""Tracing: from an ANN to a torch.fx graph of plain modules, and the error that names what cannot be converted.

The ANN is copied first, so it is never changed. Activations are leaves of the trace: a module with a ``ceiling`` is one.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from spikeprop.errors import ConversionError

BATCH = 7  # images of the outline; an unusual number, so that the batch axis is recognised
ADVICE = {
    "Sigmoid": "only ReLU and its variants correspond to a firing rate; train with ReLU",
    "GELU": "only ReLU and its variants correspond to a firing rate; train with ReLU",
    "SiLU": "only ReLU and its variants correspond to a firing rate; train with ReLU",
    "LayerNorm": "its statistics change with the input; train with BatchNorm2d, which folds into the weights",
}
OTHERWISE = "use Conv2d, Linear, BatchNorm, ReLU (clipped or leaky too), pooling, Dropout, Flatten, additions and concatenation"


class ReLUTracer(fx.Tracer):
    """A tracer that keeps activations as they are: a module with a ``ceiling`` is one."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (hasattr(m, "ceiling") and not any(m.children())) or super().is_leaf_module(m, module_qualified_name)


class MetaInterpreter(fx.Interpreter):
    """Runs a traced network on the meta device, which computes shapes only, and keeps the result of every node."""

    def __init__(self, traced: fx.GraphModule):
        super().__init__(copy.deepcopy(traced).to("meta"), garbage_collect_values=False)

    def run_node(self, n: fx.Node) -> Any:
        try:
            return super().run_node(n)
        except Exception as error:
            raise ConversionError(
                f"node {n.name!r} ({n.op} {n.target}) cannot run on images of the given shape: {error}"
            ) from error


def trace(ann: nn.Module) -> fx.GraphModule:
    """The graph of a copy of the ANN in evaluation mode.

    Raises:
        ConversionError: the ANN cannot be copied or traced.
    """
    plain = _plain_copy(ann)
    try:
        return fx.GraphModule(plain, ReLUTracer().trace(plain))
    except Exception as error:
        raise ConversionError(
            f"torch.fx cannot trace {type(ann).__name__}: {error}. Remove control flow that depends on the data."
        ) from error


def outline(traced: fx.GraphModule, input_shape: tuple[int, ...], dtype: torch.dtype) -> dict[fx.Node, Any]:
    """The result of each node for a batch of images: a tensor on the meta device, or a constant such as a size.

    Raises:
        ConversionError: the network has not exactly one input, or cannot run on images of this shape.
    """
    run = MetaInterpreter(traced)
    inputs = [n for n in traced.graph.nodes if n.op == "placeholder"]
    if len(inputs) != 1:
        culprit = inputs[1] if inputs else next(iter(traced.graph.nodes))
        raise refuse(culprit, f"{len(inputs)} inputs", "convert a network with one input")
    with torch.no_grad():
        run.run(torch.zeros(BATCH, *input_shape, device="meta", dtype=dtype))
    results = {n.name: result for n, result in run.env.items()}
    return {n: results.get(n.name) for n in traced.graph.nodes}


def holds_tensors(result: Any) -> bool:
    """Whether the result of a node is a tensor or a sequence with tensors, rather than a size or another constant."""
    return isinstance(result, Tensor) or (isinstance(result, tuple | list) and any(isinstance(r, Tensor) for r in result))


def _plain_copy(ann: nn.Module) -> nn.Module:
    """A copy in evaluation mode, without hooks; parametrised tensors become plain parameters."""
    try:
        plain = copy.deepcopy(ann).eval()
    except RuntimeError as error:
        raise ConversionError(
            f"{type(ann).__name__} cannot be copied: {error}. Make pruning (prune.remove) and old-style weight or spectral norm "
            "(remove_weight_norm, remove_spectral_norm) permanent first."
        ) from error
    for module in list(plain.modules()):
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks):
            hooks.clear()  # they observe the ANN and do not belong to the spiking network
        if parametrize.is_parametrized(module):
            _remove_parametrizations(module)
    return plain


def _remove_parametrizations(module: nn.Module) -> None:
    # removal deletes properties from the module's class, which the caller's module has too: give the copy a class of its own
    shared: Any = type(module)
    own: Any = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    module.__class__ = own
    names = list(module.parametrizations)  # type: ignore[arg-type]
    with torch.enable_grad():  # without it torch leaves a tensor of several originals as a buffer
        for name in names:
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def function_name(node: fx.Node) -> str:
    """Name of the function or method that a node calls, without the underscore that marks in-place methods."""
    return called_name(node).rstrip("_")


def called_name(node: fx.Node) -> str:
    """Name of the function, method or module that a node calls."""
    target = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def refuse(node: fx.Node, what: str, advice: str | None = None) -> ConversionError:
    """The error that says which operation cannot be converted and what to do."""
    advice = advice or ADVICE.get(what, OTHERWISE)
    return ConversionError(f"cannot convert node {node.name!r} ({node.op} {node.target}): {what}; {advice}")
