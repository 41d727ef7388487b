"""From an ANN to a spiking graph: trace, fold batch-norm, put a neuron at each ReLU, refuse the rest.

The ANN is traced by torch.fx. Each traced value is a sum of branches, a branch being a source (the image or an
earlier layer of neurons) and the chain of linear operations applied to it. A ReLU closes a stage: its branches become
synapses and the ReLU becomes neurons. Batch-norm is folded into the layer before it (Rueckauer et al. 2017, sec.
2.3). Nothing is left out in silence: an operation outside the two tables below raises ConversionError. The ANN itself
is never changed.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from spikeprop.errors import ConversionError
from spikeprop.snn import INPUT, Encoder, Neuron, SampleDropout, SpikingNetwork, Stage, Synapse

POOLING = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
LINEAR = (nn.Conv2d, nn.Linear, nn.Flatten, *POOLING)
DROPOUT = (nn.Dropout, nn.Dropout2d)
OUTPUT = "output"  # NIR's output node; no layer of neurons may take its name
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d)
ADVICE = {
    "MaxPool2d": "spikes have no maximum; train with AvgPool2d instead",
    "max_pool2d": "spikes have no maximum; train with avg_pool2d instead",
    "Sigmoid": "only ReLU has a firing-rate counterpart; train with ReLU",
    "GELU": "only ReLU has a firing-rate counterpart; train with ReLU",
    "LeakyReLU": "negative rates cannot be fired; train with ReLU",
    "cat": "concatenation is not supported; add the branches instead",
    "view": "write torch.flatten(x, 1), which says what is meant",
    "reshape": "write torch.flatten(x, 1), which says what is meant",
    "size": "write torch.flatten(x, 1) rather than x.view(x.size(0), -1)",
    "LayerNorm": "its statistics change with the input; train with BatchNorm2d, which folds into the weights",
}


@dataclass(frozen=True)
class Branch:
    """Linear operations applied to one source's spikes."""

    source: str
    ops: tuple[nn.Module, ...] = ()
    label: str = ""  # path of the last layer with weights, which names the stage

    def then(self, op: nn.Module, label: str = "") -> Branch:
        return Branch(self.source, (*self.ops, op), label or self.label)


Value = tuple[Branch, ...]


def to_spiking(
    ann: nn.Module,
    neuron: Callable[[], Neuron],
    encoder: Encoder,
    input_shape: tuple[int, ...],
) -> SpikingNetwork:
    """The spiking network with the ANN's weights and uncalibrated thresholds.

    Args:
        ann: network of convolutions, linear layers, ReLU, average pooling, dropout, batch-norm, flatten and additions.
        neuron: makes one layer of neurons.
        encoder: from image to input.
        input_shape: shape of one image.

    Raises:
        ConversionError: naming the node, the operation and what to do.
    """
    try:
        traced = fx.symbolic_trace(_plain_copy(ann))
    except Exception as error:
        raise ConversionError(
            f"torch.fx cannot trace {type(ann).__name__}: {error}. Remove control flow that depends on the data."
        ) from error
    return _Builder(traced, neuron).build(encoder, input_shape)


def _plain_copy(ann: nn.Module) -> nn.Module:
    """A copy in evaluation mode, for the caller's modules stay as they are; parametrised tensors become plain parameters."""
    plain = copy.deepcopy(ann).eval()
    for module in list(plain.modules()):
        if parametrize.is_parametrized(module):
            _remove_parametrizations(module)
    return plain


def _remove_parametrizations(module: nn.Module) -> None:
    # removal deletes properties from the module's class, which deepcopy shares with the caller's module: take a class of its own
    shared: Any = type(module)
    own: Any = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    module.__class__ = own
    names = list(module.parametrizations)  # type: ignore[arg-type]
    with torch.enable_grad():  # without it torch leaves a tensor of several originals as a buffer
        for name in names:
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)


class _Builder:
    """Walks the traced graph and collects stages."""

    def __init__(self, traced: fx.GraphModule, neuron: Callable[[], Neuron]):
        self.modules = dict(traced.named_modules())
        self.graph = traced.graph
        self.neuron = neuron
        self.values: dict[fx.Node, Value] = {}
        self.stages: dict[str, Stage] = {}

    def build(self, encoder: Encoder, input_shape: tuple[int, ...]) -> SpikingNetwork:
        for node in self.graph.nodes:
            if node.op == "placeholder":
                if INPUT in {b.source for v in self.values.values() for b in v}:
                    raise _refuse(node, "a second input", "convert networks of one input")
                self.values[node] = (Branch(INPUT),)
            elif node.op == "output":
                self._close(node, self._value(node.args, node), output=True)
            else:
                self.values[node] = self._convert(node)
        return SpikingNetwork(self.stages, encoder, input_shape)

    def _convert(self, node: fx.Node) -> Value:
        if node.op == "call_module":
            return self._convert_module(node, self.modules[str(node.target)])
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        handler = FUNCTIONS.get(str(name).rstrip("_"))
        if node.op == "get_attr" or handler is None:
            raise _refuse(node, str(name))
        return handler(self, node)

    def _convert_module(self, node: fx.Node, module: nn.Module) -> Value:
        if isinstance(module, nn.ReLU):
            return self.relu(node)
        value = self._value(node.args, node)
        if isinstance(module, nn.Identity):
            return value
        if isinstance(module, DROPOUT):
            return self._append(node, value, SampleDropout(module.p))
        if isinstance(module, BATCH_NORM):
            return self._fold(node, value, module)
        if isinstance(module, LINEAR):
            if isinstance(module, nn.Flatten):
                _check_flatten(node, module.start_dim, module.end_dim)
            _check_padding(node, module)
            return self._append(node, value, copy.deepcopy(module), str(node.target))
        raise _refuse(node, type(module).__name__)

    def _value(self, arguments: Any, node: fx.Node, index: int = 0) -> Value:
        argument = arguments[index]
        if not isinstance(argument, fx.Node):
            raise _refuse(node, f"a constant operand ({argument!r})", "fold constants into a layer's bias")
        return self.values[argument]

    def _append(self, node: fx.Node, value: Value, op: nn.Module, label: str = "") -> Value:
        weighted = isinstance(op, nn.Conv2d | nn.Linear)
        if len(value) > 1 and (weighted or isinstance(op, SampleDropout)):
            raise _refuse(
                node, f"{type(op).__name__} on a sum of {len(value)} branches", "put a ReLU between the addition and this layer"
            )
        return tuple(branch.then(copy.deepcopy(op), label if weighted else "") for branch in value)

    def _fold(self, node: fx.Node, value: Value, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> Value:
        last = value[0].ops[-1] if len(value) == 1 and value[0].ops else None
        if not isinstance(last, nn.Conv2d | nn.Linear):
            raise _refuse(node, type(norm).__name__, "batch-norm folds into the Conv2d or Linear right before it; move it there")
        if norm.running_var is None:
            raise _refuse(node, type(norm).__name__, "it keeps no running statistics; train it with track_running_stats=True")
        fused = fuse_conv_bn_eval(last, norm) if isinstance(last, nn.Conv2d) else fuse_linear_bn_eval(last, norm)  # type: ignore[arg-type]
        if fused.bias is not None:  # torch freezes the bias of a layer that had none
            fused.bias.requires_grad_(fused.weight.requires_grad)
        return (Branch(value[0].source, (*value[0].ops[:-1], fused), value[0].label),)

    # what the tables call -----------------------------------------------------------------------------------------------------

    def relu(self, node: fx.Node) -> Value:
        name = self._close(node, self._value(node.args, node))
        return (Branch(name),)

    def add(self, node: fx.Node) -> Value:
        if node.kwargs.get("alpha", 1) != 1:
            raise _refuse(node, "add with alpha", "scale the branch in a layer")
        return self._value(node.args, node) + self._value(node.args, node, 1)

    def flatten(self, node: fx.Node) -> Value:
        start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
        end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
        _check_flatten(node, start, end)
        return self._append(node, self._value(node.args, node), nn.Flatten())

    def pool(self, node: fx.Node) -> Value:
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        settings: dict[str, Any] = {**dict(zip(names, node.args[1:])), **node.kwargs}
        return self._append(node, self._value(node.args, node), nn.AvgPool2d(**settings))

    def adaptive_pool(self, node: fx.Node) -> Value:
        size: Any = node.args[1] if len(node.args) > 1 else node.kwargs["output_size"]
        return self._append(node, self._value(node.args, node), nn.AdaptiveAvgPool2d(size))

    def dropout(self, node: fx.Node) -> Value:
        p: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
        return self._append(node, self._value(node.args, node), SampleDropout(float(p)))

    def _close(self, node: fx.Node, value: Value, output: bool = False) -> str:
        if output and any(not branch.ops for branch in value):
            raise _refuse(node, "an output right after ReLU", "end with a Linear layer: its currents are the class scores")
        if not any(isinstance(op, nn.Conv2d | nn.Linear) for branch in value for op in branch.ops):
            raise _refuse(node, "a ReLU with no weighted layer before it", "remove it")
        name = self._name(value, {INPUT} if output else {INPUT, OUTPUT})
        # deep copies: a value read by two layers must not share modules between them, nor with the ANN
        synapses = [(b.source, Synapse(copy.deepcopy(op) for op in b.ops)) for b in value]
        self.stages[name] = Stage(synapses, None if output else self.neuron())
        return name

    def _name(self, value: Value, reserved: set[str]) -> str:
        label = next(branch.label for branch in value if branch.label).replace(".", "_")
        name, count = label, 2
        while name in self.stages or name in reserved:
            name, count = f"{label}_{count}", count + 1
        return name


FUNCTIONS: dict[str, Callable[[_Builder, fx.Node], Value]] = {
    F.relu.__name__: _Builder.relu,
    torch.relu.__name__: _Builder.relu,
    operator.add.__name__: _Builder.add,
    operator.iadd.__name__: _Builder.add,
    torch.flatten.__name__: _Builder.flatten,
    F.avg_pool2d.__name__: _Builder.pool,
    F.adaptive_avg_pool2d.__name__: _Builder.adaptive_pool,
    F.dropout.__name__: _Builder.dropout,
}


def _check_flatten(node: fx.Node, start: Any, end: Any) -> None:
    if (start, end) != (1, -1):
        raise _refuse(node, f"flatten from axis {start} to {end}", "flatten from axis 1 to -1: the batch axis alone stays")


def _check_padding(node: fx.Node, module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        raise _refuse(node, f"Conv2d with padding_mode={module.padding_mode!r}", "use padding_mode='zeros'")


def _refuse(node: fx.Node, what: str, advice: str | None = None) -> ConversionError:
    advice = advice or ADVICE.get(what, "use Conv2d, Linear, ReLU, AvgPool2d, BatchNorm, Dropout, Flatten and additions")
    return ConversionError(f"cannot convert node {node.name!r} ({node.op} {node.target}): {what}; {advice}")


def relu_activations(network: SpikingNetwork, x: Tensor) -> dict[str, Tensor]:
    """The network computed as the ANN it came from: each neuron a ReLU. Stage name to activation (B, ...)."""
    values = {INPUT: x.unsqueeze(0)}
    for name, stage in network.each():
        total = torch.stack([synapse(values[source]) for _, source, synapse in stage.branches()]).sum(0)
        values[name] = total if stage.neuron is None else torch.relu(total)
    return {name: value[0] for name, value in values.items() if name != INPUT}
