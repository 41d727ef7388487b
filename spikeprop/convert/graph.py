"""``to_spiking``: from an ANN to a spiking network with uncalibrated thresholds.

The ANN is traced by torch.fx (``convert/trace.py``). Linear operations, batch-norm included, become branches of synapses; each
ReLU, clipped, leaky or not, becomes neurons; max pooling becomes a layer of ``SpikingMaxPool``. Every operation is looked up in
the tables of ``convert/operations``; one that is in none of them raises ConversionError. The ANN itself is never changed.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, fx, nn

from spikeprop.convert.builder import Builder
from spikeprop.convert.guard import Converted, difference
from spikeprop.convert.operations import layers, tensors
from spikeprop.convert.operations.rectifiers import rectifier_of
from spikeprop.convert.trace import function_name, holds_tensors, refuse, trace
from spikeprop.convert.value import LinearBranch, Value
from spikeprop.errors import ConversionError
from spikeprop.snn import INPUT, Encoder, Neuron, SpikingNetwork

MODULES = layers.MODULES | tensors.MODULES
FUNCTIONS = layers.FUNCTIONS | tensors.FUNCTIONS


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
            dropout, flatten, additions and concatenations, as modules or functions.
        neuron: makes one layer of neurons.
        encoder: from image to input.
        input_shape: shape of one image.
        images: a few of them, to prove that the network computes what the ANN computes (``convert/guard.py``).

    Raises:
        ConversionError: names the node, the operation and what to do; or the first layer that computes something else.
    """
    builder, network = _built(trace(ann, input_shape), neuron, encoder, input_shape)
    if images is not None:
        found = difference(Converted(ann, builder, network), images, lambda g: _built(g, neuron, encoder, input_shape)[1])
        if found is not None:
            raise ConversionError(f"{type(ann).__name__} cannot be converted: {found}")
    return network


def _built(
    traced: fx.GraphModule, neuron: Callable[[], Neuron], encoder: Encoder, input_shape: tuple[int, ...]
) -> tuple[Builder, SpikingNetwork]:
    builder = Builder(traced, neuron)
    for node in builder.traced.graph.nodes:
        if node.op == "placeholder":
            builder.values[node] = (LinearBranch(INPUT),)
        elif node.op == "output":
            builder.close(node, builder.value(node), None)
        elif holds_tensors(builder.outline[node]) and node.op != "get_attr":
            builder.values[node] = _converted(builder, node)
    return builder, SpikingNetwork(builder.layers, encoder, input_shape).to(builder.dtype)


def _converted(builder: Builder, node: fx.Node) -> Value:
    rectifier = rectifier_of(builder, node)
    if rectifier is not None:
        return builder.changed(node, builder.fire(node, builder.value(node), rectifier))
    if node.op == "call_module":
        module = builder.modules[str(node.target)]
        kind = next((base for base in type(module).__mro__ if base in MODULES), None)
        if kind is None:
            raise refuse(node, type(module).__name__)
        return MODULES[kind](builder, node, module)
    name = function_name(node)
    if name not in FUNCTIONS:
        raise refuse(node, name)
    return FUNCTIONS[name](builder, node)
