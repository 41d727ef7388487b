"""From an ANN to a spiking graph: trace, fold batch-norm, put neurons at each ReLU, refuse the rest.

The ANN is traced by torch.fx. Each traced value is a sum of branches (``convert/value.py``); a ReLU closes a layer: its
branches become synapses and the ReLU becomes neurons. A clipped ReLU (ReLU6, Hardtanh, any module with a ``ceiling``) is a
layer whose neurons cannot stand for more; a leaky one is two layers, one for each sign. Max pooling is a layer of
``SpikingMaxPool``. Nothing is left out in silence: an operation outside the tables (here and in ``convert/operations.py``)
raises ConversionError. The ANN itself is never changed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from spikeprop.convert.value import Branch, Value, append, is_spikes, scale, without_dropout
from spikeprop.errors import ConversionError
from spikeprop.snn import INPUT, Encoder, Gain, Layer, Neuron, SampleDropout, SpikingNetwork, Synapse
from spikeprop.snn.dynamics import LayerDynamics
from spikeprop.snn.pooling import SpikingMaxPool

OUTPUT = "output"  # NIR's output node; no layer of neurons may take its name
NEGATIVE = "_negative"  # ends the name of a layer that stands for the negative side of an activation
BATCH = 7  # images of the outline, a number that tells the batch axis from others
IN_PLACE = ("iadd", "isub", "imul", "itruediv")
VIEWS = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten)  # modules that pass their input's tensor on, in evaluation
VIEW_FUNCTIONS = ("flatten", "view", "reshape", "squeeze", "detach", "contiguous", "getitem", "dropout", "dropout2d")
ADVICE = {
    "Sigmoid": "only ReLU and its kin have a firing-rate counterpart; train with ReLU",
    "GELU": "only ReLU and its kin have a firing-rate counterpart; train with ReLU",
    "SiLU": "only ReLU and its kin have a firing-rate counterpart; train with ReLU",
    "LayerNorm": "its statistics change with the input; train with BatchNorm2d, which folds into the weights",
}
OTHERWISE = "use Conv2d, Linear, BatchNorm, ReLU (clipped or leaky too), pooling, Dropout, Flatten, additions and concatenation"


@dataclass(frozen=True)
class Rectifier:
    """ReLU and its kin: clip(z, 0, ceiling) - slope * clip(-z, 0, depth); None stands for no limit."""

    ceiling: float | Tensor | None = None
    slope: float | Tensor = 0.0
    depth: float | None = None

    @property
    def one_sided(self) -> bool:
        """Whether nothing negative comes out."""
        return not isinstance(self.slope, Tensor) and self.slope == 0


class ReLUTracer(fx.Tracer):
    """A tracer that does not look into activations: a module with a ``ceiling`` is one."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (hasattr(m, "ceiling") and not any(m.children())) or super().is_leaf_module(m, module_qualified_name)


class Outline(fx.Interpreter):
    """Runs a traced network on the meta device, where tensors have shapes alone, and keeps what every node gives."""

    def __init__(self, traced: fx.GraphModule):
        super().__init__(copy.deepcopy(traced).to("meta"), garbage_collect_values=False)

    def run_node(self, n: fx.Node) -> Any:
        try:
            return super().run_node(n)
        except Exception as error:
            raise ConversionError(
                f"node {n.name!r} ({n.op} {n.target}) cannot run on images of the given shape: {error}"
            ) from error


def to_spiking(
    ann: nn.Module,
    neuron: Callable[[], Neuron],
    encoder: Encoder,
    input_shape: tuple[int, ...],
) -> SpikingNetwork:
    """The spiking network with the ANN's weights and uncalibrated thresholds.

    Args:
        ann: network of convolutions, linear layers, batch-norm, ReLU (clipped or leaky ones too), average and max pooling,
            dropout, flatten, additions and concatenations, as modules or functions.
        neuron: makes one layer of neurons.
        encoder: from image to input.
        input_shape: shape of one image.

    Raises:
        ConversionError: naming the node, the operation and what to do.
    """
    plain = _plain_copy(ann)
    try:
        traced = fx.GraphModule(plain, ReLUTracer().trace(plain))
    except Exception as error:
        raise ConversionError(
            f"torch.fx cannot trace {type(ann).__name__}: {error}. Remove control flow that depends on the data."
        ) from error
    return Builder(traced, neuron, input_shape).build(encoder)


def _plain_copy(ann: nn.Module) -> nn.Module:
    """A copy in evaluation mode, for the caller's modules stay as they are; parametrised tensors become plain parameters."""
    try:
        plain = copy.deepcopy(ann).eval()
    except RuntimeError as error:
        raise ConversionError(
            f"{type(ann).__name__} cannot be copied: {error}. Make pruning (prune.remove) and old-style weight or spectral norm "
            "(remove_weight_norm, remove_spectral_norm) permanent first."
        ) from error
    for module in list(plain.modules()):
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks):
            hooks.clear()  # what watches the ANN does not belong to the spiking network
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


class Builder:
    """Walks the traced graph and collects layers.

    Attributes:
        modules: of the traced network, by path.
        outline: what each node gives: a tensor on the meta device, or a constant such as a size.
    """

    def __init__(self, traced: fx.GraphModule, neuron: Callable[[], Neuron], input_shape: tuple[int, ...]):
        self.traced, self.neuron, self.input_shape = traced, neuron, input_shape
        self.modules = dict(traced.named_modules())
        like = next(traced.parameters(), torch.empty(0))
        self.dtype, self.device = like.dtype, like.device
        run = Outline(traced)
        inputs = [n for n in traced.graph.nodes if n.op == "placeholder"]
        if len(inputs) != 1:
            raise refuse(
                inputs[1] if inputs else next(iter(traced.graph.nodes)), f"{len(inputs)} inputs", "convert networks of one"
            )
        with torch.no_grad():
            run.run(torch.zeros(BATCH, *input_shape, device="meta", dtype=self.dtype))
        outlined = {n.name: result for n, result in run.env.items()}
        self.outline = {n: outlined.get(n.name) for n in traced.graph.nodes}
        self.order = {n: i for i, n in enumerate(traced.graph.nodes)}
        self.values: dict[fx.Node, Value] = {}
        self.layers: dict[str, Layer] = {}
        self.ceilings: dict[str, float | Tensor | None] = {}

    def build(self, encoder: Encoder) -> SpikingNetwork:
        """The network, layer by layer."""
        for node in self.traced.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = (Branch(INPUT),)
            elif node.op == "output":
                self._close(node, self.value(node), None)
            elif _holds_tensors(self.outline[node]) and node.op != "get_attr":
                self.values[node] = self._convert(node)
        return SpikingNetwork(self.layers, encoder, self.input_shape).to(self.dtype)

    def _convert(self, node: fx.Node) -> Value:
        from spikeprop.convert.operations import FUNCTIONS, MODULES

        rectifier = self.rectifier(node)
        if rectifier is not None:
            return self._rectify(node, rectifier)
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            kind = next((base for base in type(module).__mro__ if base in MODULES), None)
            if kind is None:
                raise refuse(node, type(module).__name__)
            return MODULES[kind](self, node, module)
        name = function_name(node)
        if name not in FUNCTIONS:
            raise refuse(node, name)
        return FUNCTIONS[name](self, node)

    def rectifier(self, node: fx.Node) -> Rectifier | None:
        """What a node is if it is ReLU or its kin, else None."""
        from spikeprop.convert.operations import RECTIFIERS, module_rectifier

        if node.op == "call_module":
            return module_rectifier(node, self.modules[str(node.target)])
        found = RECTIFIERS.get(function_name(node))
        return found(self, node) if found is not None else None

    # what operations are told -------------------------------------------------------------------------------------------------

    def value(self, node: fx.Node, index: int = 0) -> Value:
        """The value that is a node's argument."""
        arguments = [*node.args, *node.kwargs.values()]
        return self.value_of(node, arguments[index] if index < len(arguments) else None)

    def value_of(self, node: fx.Node, argument: Any) -> Value:
        """The value that an argument stands for."""
        if not isinstance(argument, fx.Node) or argument not in self.values:
            raise refuse(node, f"a constant operand ({argument!r})", "fold constants into a layer's bias")
        return self.values[argument]

    def shape(self, argument: Any) -> tuple[int, ...]:
        """Shape of one sample of a node's tensor."""
        outlined = self.outline[argument]
        assert isinstance(outlined, Tensor)
        return tuple(outlined.shape[1:])

    def constant(self, argument: Any) -> Any:
        """An argument in which sizes that were computed are numbers."""
        if isinstance(argument, fx.Node):
            return self.outline[argument]
        if isinstance(argument, tuple | list):
            return type(argument)(self.constant(a) for a in argument)
        return argument

    def arguments(self, node: fx.Node, *names: str) -> dict[str, Any]:
        """A function's arguments after the first, by name."""
        given = {**dict(zip(names, node.args[1:])), **{k: v for k, v in node.kwargs.items() if k != "input"}}
        return {name: self.constant(argument) for name, argument in given.items()}

    def tensor(self, node: fx.Node, argument: Any) -> Tensor | None:
        """A parameter that a function is given."""
        if argument is None:
            return None
        if not isinstance(argument, fx.Node) or argument.op != "get_attr":
            raise refuse(node, "weights that are computed", "use a layer with its own parameters")
        found: Any = self.traced
        for part in str(argument.target).split("."):
            found = getattr(found, part)
        return found

    # neurons ------------------------------------------------------------------------------------------------------------------

    def _rectify(self, node: fx.Node, rectifier: Rectifier) -> Value:
        return self.changed(node, self.fire(node, self.value(node), rectifier))

    def changed(self, node: fx.Node, result: Value) -> Value:
        """The result of an operation; done in place, it is what later readers of its argument read.

        Raises:
            ConversionError: another name of the changed tensor (a view, or what Identity and Dropout pass on) is read later.
        """
        argument = node.args[0] if node.args else None
        if not isinstance(argument, fx.Node) or not self._in_place(node):
            return result
        done = self.order[node]
        for other in (n for n in self.order if self.order[n] < done and n is not argument):
            if any(self.order[user] > done for user in other.users) and self._root(other) is self._root(argument):
                what = f"a change in place of what {other.name!r} holds and others read later"
                raise refuse(node, what, "use the operation that makes a new tensor")
        self.values[argument] = result
        return result

    def _in_place(self, node: fx.Node) -> bool:
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        name = _called(node)
        named = node.op != "call_module" and (name.endswith("_") or name in IN_PLACE)
        return bool(named or getattr(module, "inplace", False) or node.kwargs.get("inplace"))

    def _root(self, node: fx.Node) -> fx.Node:
        """The node whose tensor a node shares."""
        while node.args and isinstance(node.args[0], fx.Node) and self._shares(node):
            node = node.args[0]
        return node

    def _shares(self, node: fx.Node) -> bool:
        kind = type(self.modules[str(node.target)]) if node.op == "call_module" else None
        return kind in VIEWS or function_name(node) in VIEW_FUNCTIONS or self._in_place(node)

    def fire(self, node: fx.Node, value: Value, rectifier: Rectifier) -> Value:
        """A layer of neurons that stands for the rectified value; two where it has a negative side."""
        if rectifier.one_sided and self._already(value, rectifier, self.shape(node)[0]):
            return value
        positive: Value = (Branch(self._close(node, value, self.neuron(), rectifier.ceiling)),)
        if rectifier.one_sided:
            return positive
        mirrored = self._close(node, scale(value, -1.0), self.neuron(), rectifier.depth, suffix=NEGATIVE)
        return (*positive, Branch(mirrored, (Gain(-_by_channel(rectifier.slope, len(self.shape(node)))),)))

    def _already(self, value: Value, rectifier: Rectifier, channels: int) -> bool:
        """Whether a value is spikes that keep the rectifier's limits as they are."""
        sources = [b.source for b in value]
        limits = [self.ceilings.get(source) for source in sources]
        if INPUT in sources or not is_spikes(value, channels):
            return False
        return rectifier.ceiling is None or all(_same(limit, rectifier.ceiling) for limit in limits)

    def max_pool(self, node: fx.Node, pool: SpikingMaxPool) -> Value:
        """A layer of max pooling; ReLU comes before it, for the largest of the rectified is the rectified largest."""
        value, source = self.value(node), node.args[0]
        if any(b.source == INPUT for b in value if not any(isinstance(op, nn.Conv2d | nn.Linear) for op in b.ops)):
            raise refuse(
                node, "max pooling of the image", "pool the images before they enter the network, or put a layer before it"
            )
        value, dropouts = without_dropout(value)
        if not is_spikes(value, self.shape(source)[0]):
            after = [self.rectifier(user) for user in node.users]
            first = after[0] if after else None
            if first is None or not first.one_sided or any(other != first for other in after):
                raise refuse(node, "max pooling of what is not a ReLU's output", "put ReLU right before or right after it")
            value = self.fire(source, value, first)  # type: ignore[arg-type]
        limits = {id(self.ceilings.get(b.source)): self.ceilings.get(b.source) for b in value}
        pooled: Value = (Branch(self._close(node, value, pool, next(iter(limits.values())) if len(limits) == 1 else None)),)
        return append(pooled, SampleDropout(max(dropouts))) if dropouts else pooled

    def _close(
        self, node: fx.Node, value: Value, neuron: LayerDynamics | None, ceiling: float | Tensor | None = None, suffix: str = ""
    ) -> str:
        labels = [] if neuron is not None and neuron.passes_on else [b.label for b in value if b.label]
        label = (labels[0] if labels else node.name).replace(".", "_") + suffix
        name = self._free(label, {INPUT} if neuron is None else {INPUT, OUTPUT})
        # one deep copy of the whole: a value read by two layers must not share modules between them
        synapses = [(b.source, Synapse(copy.deepcopy(op) for op in b.ops)) for b in value]
        limit = torch.as_tensor(ceiling, dtype=self.dtype).detach().clone() if ceiling is not None else None
        self.layers[name] = Layer(synapses, neuron, limit)
        self.ceilings[name] = ceiling
        return name

    def _free(self, label: str, reserved: set[str]) -> str:
        name, count = label, 2
        while name in self.layers or name in reserved:
            name, count = f"{label}_{count}", count + 1
        return name


def _holds_tensors(result: Any) -> bool:
    """Whether a node gives a tensor, or several at once, rather than a size or another constant."""
    return isinstance(result, Tensor) or (isinstance(result, tuple | list) and any(isinstance(r, Tensor) for r in result))


def _by_channel(slope: float | Tensor, axes: int) -> Tensor:
    """A slope, or one a channel, that multiplies (B, C, ...) of ``axes`` axes a sample."""
    slope = torch.as_tensor(slope, dtype=None if isinstance(slope, Tensor) else torch.float64).detach()
    return slope.reshape(-1, *(1,) * (axes - 1)) if slope.numel() > 1 else slope.reshape(())


def function_name(node: fx.Node) -> str:
    """Name of the function or method that a node calls, without the mark of in-place."""
    return _called(node).rstrip("_")


def _called(node: fx.Node) -> str:
    target = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def refuse(node: fx.Node, what: str, advice: str | None = None) -> ConversionError:
    """The error that says which operation cannot be converted and what to do."""
    advice = advice or ADVICE.get(what, OTHERWISE)
    return ConversionError(f"cannot convert node {node.name!r} ({node.op} {node.target}): {what}; {advice}")


def currents(layer: Layer, values: dict[str, Tensor]) -> Tensor:
    """Input current (B, ...) of a layer for its sources' values (B, ...)."""
    return layer.current({source: values[source].unsqueeze(0) for source in layer.sources})[0]


def activations(network: SpikingNetwork, x: Tensor) -> Iterator[tuple[str, Layer, Tensor]]:
    """(name, layer, the ANN's activation (B, ...)) of an uncalibrated network, in order; what no later layer reads is let go.

    A layer may be changed once it has been given: its own activation is computed by then.
    """
    values = {INPUT: x}
    for name, layer in list(network.named_layers()):
        values[name] = layer.dynamics.activation(currents(layer, values), layer.ceiling)
        yield name, layer, values[name]
        forget(network, values, name)


def forget(network: SpikingNetwork, values: dict[str, Tensor], done: str) -> None:
    """Drop the values that no layer after ``done`` reads."""
    for name in values.keys() - network.read_after(done):
        del values[name]


def relu_activations(network: SpikingNetwork, x: Tensor) -> dict[str, Tensor]:
    """An uncalibrated network computed as the ANN it came from, each neuron a (clipped) ReLU: layer to activation (B, ...)."""
    return {name: activation for name, _, activation in activations(network, x)}


def _same(one: float | Tensor | None, other: float | Tensor | None) -> bool:
    """Whether two ceilings are one: the same tensor, for a learnt one's value may yet change, or equal numbers."""
    return one is other or (isinstance(one, float | int) and isinstance(other, float | int) and one == other)
