"""``Builder``: the spiking layers made so far, and what the operations need to know about the traced graph.

Each traced value is a sum of branches (``convert/value.py``). A ReLU closes a layer: the branches become its synapses, and the
ReLU becomes its neurons. A clipped ReLU limits the activation scale (``Layer.ceiling``); a leaky one becomes two layers, one
for each sign.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn

from spikeprop.convert.forms import BatchAxes
from spikeprop.convert.trace import called_name, function_name, outlines, refuse
from spikeprop.convert.value import LinearBranch, Value, is_spikes, scale
from spikeprop.errors import ConversionError
from spikeprop.snn import INPUT, Gain, Layer, Neuron, Synapse
from spikeprop.snn.call import BatchAxis
from spikeprop.snn.differential import DifferentialIF
from spikeprop.snn.dynamics import LayerDynamics
from spikeprop.snn.layer import OUTPUT, is_layer_name
from spikeprop.snn.signed import GradedIF, takes_back

NEGATIVE = "_negative"  # name suffix of a layer for the negative side of an activation
IN_PLACE = ("iadd", "isub", "imul", "itruediv")
VIEWS = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten)  # modules whose output shares their input's memory in evaluation
VIEW_FUNCTIONS = ("flatten", "view", "reshape", "squeeze", "detach", "contiguous", "getitem", "dropout", "dropout2d",
                  "chunk", "split", "unsqueeze", "permute", "transpose", "expand", "unbind", "narrow", "select", "movedim",
                  "unflatten", "swapaxes")  # fmt: skip


@dataclass(frozen=True)
class Rectifier:
    """A ReLU or a variant of it: clip(z, 0, ceiling) - slope * clip(-z, 0, depth); None means no limit."""

    ceiling: float | Tensor | None = None
    slope: float | Tensor = 0.0
    depth: float | None = None

    @property
    def one_sided(self) -> bool:
        """Whether the output is never negative."""
        return not isinstance(self.slope, Tensor) and self.slope == 0


class Builder:
    """Collects the layers of the spiking network.

    Args:
        traced: the ANN's graph.
        neuron: makes one layer of neurons; None where they stand in the module (``convert/building.py``).
        feedback: by layer, (source, synapse) of what comes back to it one step later.

    Attributes:
        builds: the network is built of a module with neurons in it, and keeps its modules.
        calls: of layers whose neurons stand in the module, their path there and which of their calls it is.
        modules: of the traced network, by path.
        like: a tensor of the network's type, on its device.
        outline: result of each node: a tensor on the meta device, or a constant such as a size.
        forms: where the nodes' tensors have the batch, and the values of those that depend on no image.
        values: of the nodes that were converted: a ``Value``, or ``Parts`` where a node has several tensors.
        layers: that were made, by name.
        nodes: names of the nodes that they were made for, by layer.
        notes: what was left out, in words.
        skipped: names of nodes that were left out, as if they passed on their input.
        arithmetic: whether a layer computes a function (``convert/arithmetic.py``).
        encoders: values and their spikes, by source and operations, whose numbers no others get while the values are held.
    """

    def __init__(
        self,
        traced: fx.GraphModule,
        neuron: Callable[[], Neuron] | None,
        feedback: Mapping[str, Sequence[tuple[str, Synapse]]] | None = None,
    ):
        self.traced, self.builds, self.feedback = traced, neuron is None, dict(feedback or {})
        self.neuron: Callable[[], Neuron] = neuron if neuron is not None else _no_neuron
        self.calls: dict[str, tuple[str, int]] = {}
        self.modules = dict(traced.named_modules())
        self.like = next(traced.parameters(), torch.empty(0))
        self.dtype, self.device = self.like.dtype, self.like.device
        outlined = outlines(traced)
        self.outline, self.forms = outlined[0], BatchAxes(traced, outlined, self.device)
        self.order = {n: i for i, n in enumerate(traced.graph.nodes)}
        self.values: dict[fx.Node, Any] = {}
        self.layers: dict[str, Layer] = {}
        self.nodes: dict[str, str] = {}
        self.notes: list[str] = []
        self.skipped: set[str] = set()
        self.ceilings: dict[str, float | Tensor | None] = {}
        self.arithmetic = False
        self.encoders: dict[tuple[object, ...], tuple[Value, Value]] = {}

    # arguments of operations --------------------------------------------------------------------------------------------------

    def value(self, node: fx.Node, index: int = 0) -> Value:
        """The value that is a node's argument."""
        arguments = [*node.args, *node.kwargs.values()]
        return self.value_of(node, arguments[index] if index < len(arguments) else None)

    def value_of(self, node: fx.Node, argument: Any) -> Value:
        """The value of an argument."""
        if not isinstance(argument, fx.Node) or argument not in self.values:
            raise refuse(node, f"a constant operand ({argument!r})", "fold constants into a layer's bias")
        return self.values[argument]

    def shape(self, argument: Any) -> tuple[int, ...]:
        """Shape of one sample of a node's tensor."""
        outlined = self.outline[argument]
        assert isinstance(outlined, Tensor)
        form = self.forms.of(argument) if self.forms.depends(argument) else BatchAxis()
        return tuple(form.samples(outlined).shape[1:])

    def constant(self, argument: Any) -> Any:
        """An argument in which sizes that the network computes are numbers."""
        if isinstance(argument, fx.Node):
            return self.outline[argument]
        if isinstance(argument, tuple | list):
            return tuple(self.constant(a) for a in argument)
        if isinstance(argument, slice):
            return slice(self.constant(argument.start), self.constant(argument.stop), self.constant(argument.step))
        return argument

    def arguments(self, node: fx.Node, *names: str) -> dict[str, Any]:
        """A function's arguments after the first, by name."""
        given = {**dict(zip(names, node.args[1:])), **{k: v for k, v in node.kwargs.items() if k != "input"}}
        return {name: self.constant(argument) for name, argument in given.items()}

    def tensor(self, node: fx.Node, argument: Any) -> Tensor | None:
        """A tensor that depends on no image, such as a parameter, as an argument of a function."""
        if self.forms.depends(argument):
            raise refuse(node, "weights that are computed from the images", "use a layer with its own parameters")
        return self.forms.constant(argument)

    # operations in place -------------------------------------------------------------------------------------------------------

    def changed(self, node: fx.Node, result: Value) -> Value:
        """The result of an operation. If it works in place, later readers of its argument read the result too.

        Raises:
            ConversionError: the changed tensor is read later under another name (a view, or the output of Identity or Dropout).
        """
        argument = node.args[0] if node.args else None
        if not isinstance(argument, fx.Node) or not self._in_place(node):
            return result
        done = self.order[node]
        for other in (n for n in self.order if self.order[n] < done and n is not argument):
            if any(self.order[user] > done for user in other.users) and self._root(other) is self._root(argument):
                what = f"an in-place change of {other.name!r}, which is read later"
                raise refuse(node, what, "use the operation that returns a new tensor")
        self.values[argument] = result
        return result

    def copied(self, node: fx.Node) -> nn.Module:
        """The module that a node calls, which leaves its input as it is."""
        module = copy.deepcopy(self.modules[str(node.target)])
        if hasattr(module, "inplace"):
            vars(module)["inplace"] = False
        return module

    def changes(self, node: fx.Node) -> bool:
        """Whether a node's function changes its argument."""
        return node.op != "call_module" and self._in_place(node)

    def _in_place(self, node: fx.Node) -> bool:
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        name = called_name(node)
        named = node.op != "call_module" and (name.endswith("_") or name in IN_PLACE)
        return bool(named or getattr(module, "inplace", False) or node.kwargs.get("inplace"))

    def _root(self, node: fx.Node) -> fx.Node:
        """The node that made the tensor whose memory a node shares."""
        while node.args and isinstance(node.args[0], fx.Node) and self._shares(node):
            node = node.args[0]
        return node

    def _shares(self, node: fx.Node) -> bool:
        kind = type(self.modules[str(node.target)]) if node.op == "call_module" else None
        return kind in VIEWS or function_name(node) in VIEW_FUNCTIONS or self._in_place(node)

    # layers -------------------------------------------------------------------------------------------------------------------

    def fire(self, node: fx.Node, value: Value, rectifier: Rectifier, suffix: str = "") -> Value:
        """A layer of neurons for the rectified value; two layers if the rectifier has a negative side."""
        if not self.shape(node):
            raise refuse(node, "one number an image without an axis", "keep it: flatten(1), so that it has the shape (B, 1)")
        if rectifier.one_sided and self._is_rectified(value, rectifier, self.shape(node)[0]):
            return value
        positive: Value = (LinearBranch(self.close(node, value, self.rectifying(), rectifier.ceiling, suffix)),)
        if rectifier.one_sided:
            return positive
        mirrored = self.close(node, scale(value, -1.0), self.rectifying(), rectifier.depth, suffix + NEGATIVE)
        return (*positive, LinearBranch(mirrored, (Gain(-_by_channel(rectifier.slope, len(self.shape(node)))),)))

    def rectifying(self) -> Neuron:
        """A neuron that stands for a ReLU, whatever the prototype stands for."""
        neuron = self.neuron()
        if may_be_negative(neuron):
            neuron.rectify = True
        return neuron

    def _is_rectified(self, value: Value, rectifier: Rectifier, channels: int) -> bool:
        """Whether a value consists of spikes that are within the rectifier's limits already."""
        sources = [b.source for b in value]
        limits = [self.ceilings.get(source) for source in sources]
        if INPUT in sources or not is_spikes(value, channels) or any(self._both_signs(source) for source in sources):
            return False
        return rectifier.ceiling is None or all(_same(limit, rectifier.ceiling) for limit in limits)

    def _both_signs(self, source: str) -> bool:
        layer = self.layers.get(source)
        passed_on = layer is not None and layer.dynamics.passes_on and any(map(self._both_signs, layer.sources))
        return layer is None or layer.both_signs or passed_on

    def close(
        self,
        node: fx.Node,
        value: Value,
        neuron: LayerDynamics | None,
        ceiling: float | Tensor | None = None,
        suffix: str = "",
        label: str = "",
        back: nn.Module | None = None,
    ) -> str:
        """Make a layer of the value's branches; returns its name. ``back``: what its own spikes come back through."""
        labels = [] if neuron is not None and (neuron.passes_on or neuron.arithmetic) else [b.label for b in value if b.label]
        label = re.sub("[./]", "_", label or (labels[0] if labels else node.name)) + suffix
        name = self._free(label, {INPUT} if neuron is None else {INPUT, OUTPUT})
        # copies: two layers that read one value must not share its modules
        synapses = [(b.source, Synapse(op if b.kept else copy.deepcopy(op) for op in b.ops)) for b in value]
        limit = torch.as_tensor(ceiling, dtype=self.dtype).detach().clone() if ceiling is not None else None
        own = [(name, Synapse(operations(back)))] if back is not None else []
        self.layers[name] = Layer(synapses, neuron, limit, feedback=[*own, *self.feedback.get(name, ())])
        if any(isinstance(b.last, nn.Linear) for b in value):
            self.layers[name].channel_axis = -1
        self.ceilings[name], self.nodes[name] = ceiling, node.name
        return name

    def _free(self, label: str, reserved: set[str]) -> str:
        name, count = label, 2
        while name in self.layers or name in reserved or not is_layer_name(name):
            name, count = f"{label}_{count}", count + 1
        return name


def operations(module: nn.Module) -> Iterator[nn.Module]:
    """The operations of a synapse, in order, of a single one or an ``nn.Sequential``."""
    if isinstance(module, nn.Sequential):
        for inner in module:
            yield from operations(inner)
    else:
        yield module


def _no_neuron() -> Neuron:
    raise AssertionError("the neurons of this network stand in its module")


def refuse_unconvertible(neuron: Neuron) -> None:
    """Raise ConversionError for a neuron whose rate is no ReLU of its mean current."""
    if not neuron.convertible:
        raise ConversionError(
            f"neuron is {type(neuron).__name__}, whose rate is not that of a ReLU of its mean current, so thresholds cannot be "
            "calibrated for it: convert with IF, LIF, SignedIF or GradedIF; a network of such neurons is trained from scratch"
        )


def may_be_negative(neuron: LayerDynamics) -> TypeGuard[GradedIF]:
    """Whether a neuron stands for the identity where its ``rectify`` is False."""
    return takes_back(neuron) or type(neuron) is DifferentialIF


def _by_channel(slope: float | Tensor, axes: int) -> Tensor:
    """A slope, or one a channel, that multiplies (B, C, ...) of ``axes`` axes a sample."""
    slope = torch.as_tensor(slope, dtype=None if isinstance(slope, Tensor) else torch.float64).detach()
    return slope.reshape(-1, *(1,) * (axes - 1)) if slope.numel() > 1 else slope.reshape(())


def _same(one: float | Tensor | None, other: float | Tensor | None) -> bool:
    """Whether two ceilings are the same tensor (the value of a learnt one may change) or equal numbers."""
    return one is other or (isinstance(one, float | int) and isinstance(other, float | int) and one == other)
