"""``to_spiking``: from an ANN to a spiking network with uncalibrated thresholds.

The ANN is traced by torch.fx (``convert/trace.py``). Linear operations, batch-norm included, become branches of synapses; each
ReLU, clipped, leaky or not, becomes neurons; max pooling becomes a layer of ``SpikingMaxPool``. Every operation is looked up in
the tables of ``convert/operations``; one that is in none of them raises ConversionError. The ANN itself is never changed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, fx, nn

from spikeprop.convert.arithmetic import encoded_operand, relayed
from spikeprop.convert.builder import Builder, refuse_unconvertible
from spikeprop.convert.guard import Converted, difference
from spikeprop.convert.operations import attention, functions, layers, sampling, shapes, standing, tensors
from spikeprop.convert.operations.functions import Parts
from spikeprop.convert.operations.rectifiers import rectifier_of
from spikeprop.convert.outputs import holds_fields, only_orders, read_out
from spikeprop.convert.trace import function_name, refuse, trace
from spikeprop.convert.value import LinearBranch, Value
from spikeprop.errors import ConversionError
from spikeprop.snn import IF, INPUT, Encoder, Neuron, SpikingNetwork, Synapse
from spikeprop.snn.advance import norm_in_loop
from spikeprop.snn.synapse import WEIGHTED

MODULES = layers.MODULES | sampling.MODULES | shapes.MODULES
FUNCTIONS = layers.FUNCTIONS | sampling.FUNCTIONS | shapes.FUNCTIONS | tensors.FUNCTIONS


def to_spiking(
    ann: nn.Module,
    neuron: Callable[[], Neuron],
    encoder: Encoder,
    input_shape: tuple[int, ...],
    *,
    images: Tensor | None = None,
) -> SpikingNetwork:
    """The spiking network with the ANN's weights and uncalibrated thresholds.

    Args:
        ann: network of convolutions, linear layers, batch-norm, ReLU (clipped or leaky ones too), average and max pooling,
            dropout, shapes, additions and concatenations, as modules or functions; what it returns is a tensor or a structure of
            tensors, which the spiking network's ``forward`` returns too.
        neuron: makes one layer of neurons.
        encoder: from image to input.
        input_shape: shape of one image.
        images: a few of them, to prove that the network computes what the ANN computes (``convert/guard.py``).

    Raises:
        ConversionError: names the node, the operation and what to do; or the first layer that computes something else.
    """
    refuse_unconvertible(neuron())
    builder, network = built(trace(ann, input_shape), neuron, encoder, input_shape)
    if images is not None:
        found = difference(Converted(ann, builder, network), images, lambda g: built(g, neuron, encoder, input_shape)[1])
        if found is not None:
            raise ConversionError(f"{type(ann).__name__} cannot be converted: {found}")
    return network


def uncalibrated(network: SpikingNetwork, ann: nn.Module, x: Tensor, *, prove: bool = False) -> SpikingNetwork:
    """What ``ann`` was before its conversion to ``network`` was calibrated: the same layers, in the ANN's own units.

    Args:
        network: converted from ``ann``; its kind of neuron says which layers there are.
        ann: the trained network.
        x: images (B, ...), for shape, type and device.
        prove: whether the graph is compared with the module on a few of them.

    Raises:
        ConversionError: as ``to_spiking``.
    """
    prototype = next(iter(network.neurons().values()), IF())
    images = x[:8] if prove else None
    found = to_spiking(ann, lambda: copy.deepcopy(prototype), network.encoder, tuple(x.shape[1:]), images=images)
    return found.to(x).eval()


def built(
    traced: fx.GraphModule,
    neuron: Callable[[], Neuron] | None,
    encoder: Encoder,
    input_shape: tuple[int, ...],
    feedback: Mapping[str, Sequence[tuple[str, Synapse]]] | None = None,
) -> tuple[Builder, SpikingNetwork]:
    """The spiking network of a graph.

    Args:
        traced: the graph.
        neuron: makes one layer of neurons; None if they stand in the module.
        encoder: from image to input.
        input_shape: shape of one image.
        feedback: by layer, (source, synapse) of what comes back to it one step later.
    """
    builder, form = Builder(traced, neuron, feedback), None
    read = _read(builder)
    for node in builder.traced.graph.nodes:
        if node.op == "placeholder":
            builder.values[node] = (LinearBranch(INPUT, kept=builder.builds),)
        elif node.op == "output":
            form = read_out(builder, node)
        elif builder.forms.depends(node) and node in read and not holds_fields(node):
            builder.values[node] = _relayed(builder, node, _converted(builder, node))
    wrong = norm_in_loop(builder.layers)
    if wrong is not None:
        raise ConversionError(wrong)
    network = SpikingNetwork(builder.layers, encoder, input_shape).to(builder.dtype)
    network.output_form, network.notes = form, builder.notes
    return builder, network


def _read(builder: Builder) -> set[fx.Node]:
    """The nodes whose results, or changes of their arguments, are read."""
    read: set[fx.Node] = set()
    for node in reversed(builder.traced.graph.nodes):
        if node.op == "output" or node in read or builder.changes(node):
            read |= {node, *node.all_input_nodes}
    return read


def _relayed(builder: Builder, node: fx.Node, value: Value | Parts) -> Value | Parts:
    if builder.builds:
        return standing.once(builder, node, value)
    readers = [user for user in node.users if builder.forms.depends(user) or user.op == "output"]
    if isinstance(value, Parts) or all(function_name(user) in functions.SHAPES for user in readers):
        return value
    return relayed(builder, node, value, len(readers))


def _converted(builder: Builder, node: fx.Node) -> Value | Parts:
    """By the tables of layers and tensors, for which the batch is the first axis; or else as any function."""
    if builder.builds:
        found = standing.converted(builder, node)
        if found is not None:
            return found
    elif only_orders(builder, node):
        return builder.value(node)
    refusal = None
    if builder.forms.plain(node) and not any(isinstance(builder.values.get(n), Parts) for n in node.all_input_nodes):
        try:
            found = _by_table(builder, node)
            if found is not None:
                return found
        except ConversionError as error:
            refusal = error
    try:
        value = _any(builder, node)
    except ConversionError as error:
        raise (refusal or error) from None
    if value is None:
        raise refusal or refuse(node, _called(builder, node))
    return value if isinstance(value, Parts) else builder.changed(node, value)


def _any(builder: Builder, node: fx.Node) -> Value | Parts | None:
    if not builder.forms.plain(node):
        rectifier = rectifier_of(builder, node)
        if rectifier is not None and not isinstance(rectifier.slope, Tensor):
            return builder.fire(node, builder.value(node), rectifier)
    if node.op == "call_module":
        module = builder.modules[str(node.target)]
        if isinstance(module, nn.MultiheadAttention):
            return attention.multihead(builder, node, module)
    elif function_name(node) in attention.FUNCTIONS:
        found = attention.FUNCTIONS[function_name(node)](builder, node)
        if found is not None:
            return found
    return functions.converted(builder, node)


def _called(builder: Builder, node: fx.Node) -> str:
    return type(builder.modules[str(node.target)]).__name__ if node.op == "call_module" else function_name(node)


def _by_table(builder: Builder, node: fx.Node) -> Value | None:
    rectifier = rectifier_of(builder, node)
    if rectifier is not None:
        operands = (*node.args, *node.kwargs.values())
        rectified = next((a for a in operands if isinstance(a, fx.Node) and a in builder.values), None)  # maximum(0, x)
        return builder.changed(node, builder.fire(node, builder.value_of(node, rectified), rectifier))
    if node.op == "call_module":
        module = builder.modules[str(node.target)]
        kind = next((base for base in type(module).__mro__ if base in MODULES), None)
        if kind is None:
            return None
        if isinstance(module, WEIGHTED):
            with encoded_operand(builder, node):
                return MODULES[kind](builder, node, module)
        return MODULES[kind](builder, node, module)
    name = function_name(node)
    if name not in FUNCTIONS:
        return None
    if name == "linear" or name.startswith("conv"):
        with encoded_operand(builder, node):
            return FUNCTIONS[name](builder, node)
    return FUNCTIONS[name](builder, node)
