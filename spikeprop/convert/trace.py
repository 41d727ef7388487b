"""Tracing: from an ANN to a torch.fx graph of plain modules, and the error that names what cannot be converted.

The ANN is copied first (``convert/plain.py``), so it is never changed. Activations are leaves of the trace: a module with a
``ceiling`` is one.
"""

from __future__ import annotations

from keyword import iskeyword
from typing import Any

import torch
from torch import fx, nn

from spikeprop.convert.exported import ExportTracer, export
from spikeprop.convert.known import KnownTracer
from spikeprop.convert.place import place_of_error, told
from spikeprop.convert.plain import check_finite, plain_copy
from spikeprop.errors import ConversionError
from spikeprop.snn import LayerDynamics
from spikeprop.snn.in_place import Recurrent
from spikeprop.snn.normalisation import OWN_NORMS

OTHERWISE = "use convolutions, Linear, BatchNorm, activations, pooling, attention, and operations on single tensors"


COMPOSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.TransformerDecoder, nn.TransformerDecoderLayer)  # torch's own
MARKS = (LayerDynamics, Recurrent, *OWN_NORMS)  # nodes of the graph, whatever package they are from
WINDOWS = {"kernel_size", "stride", "padding", "dilation", "output_size", "output_padding"}


class ReLUTracer(KnownTracer):
    """A tracer that keeps activations as they are: a module with a ``ceiling`` is one."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is a node of the graph."""
        if isinstance(m, COMPOSED):
            return False
        if isinstance(m, MARKS):
            return True
        return (hasattr(m, "ceiling") and not any(m.children())) or super().is_leaf_module(m, module_qualified_name)


def trace(ann: nn.Module, input_shape: tuple[int, ...], *, training: bool = False) -> fx.GraphModule:
    """The graph of a copy of the ANN; each node's ``meta`` has its ``outlines`` and its ``place`` in the code.

    Args:
        ann: the network.
        input_shape: shape of one image.
        training: trace what it does in training mode, not in evaluation mode.

    Raises:
        ConversionError: the ANN cannot be copied or traced, has not exactly one input, or cannot run on images of this shape; or
            a weight is not finite.
    """
    plain = _with_tuples(plain_copy(ann)).train(training)
    like = next(plain.parameters(), torch.empty(0))
    settings = (input_shape, like.dtype, like.device)
    try:
        traced = fx.GraphModule(plain, ReLUTracer(*settings).trace(plain))
    except (ConversionError, AssertionError) as error:
        raise _untraceable(ann, error) from error
    except Exception as error:
        words = [path for path, _ in plain.named_modules() if any(map(iskeyword, path.split(".")))]
        if words and isinstance(error, SyntaxError):
            raise ConversionError(f"{words[0]!r} has a name of Python's own, which torch.fx cannot write; rename it") from error
        exported = export(_with_tuples(plain_copy(ann)), *settings)  # a copy again: the trace may have written into the first one
        if exported is None:
            raise _untraceable(ann, error) from error
        try:
            traced = fx.GraphModule(exported, ExportTracer(*settings).trace(exported))
        except Exception:  # the reason why the network's own code could not be traced says more
            raise _untraceable(ann, error) from error
    check_finite((*traced.named_parameters(), *traced.named_buffers()))
    return traced


def _with_tuples(plain: nn.Module) -> nn.Module:
    """Windows and strides that are lists become tuples, which all readers of modules take."""
    for module in plain.modules():
        for name in WINDOWS & vars(module).keys():
            if isinstance(getattr(module, name), list | torch.Size):
                setattr(module, name, tuple(getattr(module, name)))
    return plain


def _untraceable(ann: nn.Module, error: Exception) -> ConversionError:
    what = str(error) if isinstance(error, ConversionError) else f"{type(error).__name__}: {error}".rstrip(": ")
    if "not installed as a submodule" in what:
        what = f"{what}; keep layers and neurons in nn.ModuleList or nn.ModuleDict, not in a plain list"
    return ConversionError(f"{type(ann).__name__} cannot be traced: {what}{told(place_of_error(error))}")


def outlines(traced: fx.GraphModule) -> tuple[dict[fx.Node, Any], dict[fx.Node, Any]]:
    """The results of each node for ``BATCH`` and ``OTHER_BATCH`` images: tensors on the meta device, or numbers that differ."""
    known = {node: node.meta.get("outlines", (None, None)) for node in traced.graph.nodes}
    return {node: both[0] for node, both in known.items()}, {node: both[1] for node, both in known.items()}


def function_name(node: fx.Node) -> str:
    """Name of the function or method that a node calls, without the underscore that marks in-place methods."""
    return called_name(node).rstrip("_")


def called_name(node: fx.Node) -> str:
    """Name of the function, method or module that a node calls."""
    target = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def refuse(node: fx.Node, what: str, advice: str | None = None) -> ConversionError:
    """The error that says which operation cannot be converted and what to do."""
    where = told(node.meta.get("place"))
    advice = advice or OTHERWISE
    return ConversionError(f"cannot convert node {node.name!r} ({node.op} {_called(node)}){where}: {what}; {advice}")


def _called(node: fx.Node) -> str:
    """What a node calls, without the address of a function."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
