"""``folded``: an equal network without what training needs alone, of weights, gains, pooling and neurons.

In evaluation mode batch-norm is an affine map of each channel,

    y = g x + (b - g m),   g = w / sqrt(s2 + eps),

and becomes part of the layer with weights right before it: W' = g W, b' = g b + (b - g m); elsewhere a layer of its own, of one
weight a channel. A sum that was kept for several readers (``Relay``) becomes part of each of them: its paths, followed by a copy
of what the reader does with it, constants on the first path alone. Max pooling of each step's spikes becomes a neuron without
memory behind their mean. What is left runs on the packed engine, on a chip, and in a NIR file.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from spikeprop.errors import SimulationError
from spikeprop.snn import weights
from spikeprop.snn.arithmetic import Relay
from spikeprop.snn.gather import Shift
from spikeprop.snn.hooks import global_hooks, untouched
from spikeprop.snn.layer import INPUT, Layer
from spikeprop.snn.neuron import LIF, Neuron
from spikeprop.snn.normalisation import NORMS, TemporalBatchNorm, takes_statistics
from spikeprop.snn.pooling import StepMaxPool
from spikeprop.snn.synapse import WEIGHTED, ChannelPad, Synapse

Network = TypeVar("Network", bound=nn.Module)  # a SpikingNetwork, which asks this module how to run
Path = tuple[str, list[nn.Module]]  # source and operations
MEANS: dict[type, tuple[int, Any]] = {  # axes of positions, and the mean of the same windows
    nn.MaxPool1d: (1, nn.AvgPool1d),
    nn.MaxPool2d: (2, nn.AvgPool2d),
    nn.MaxPool3d: (3, nn.AvgPool3d),
}


def needs_folding(network: nn.Module) -> bool:
    """Whether a network holds what ``folded`` replaces."""
    return any(isinstance(module, (*NORMS, Relay, StepMaxPool)) for module in network.modules())


def evaluated(network: Network) -> Network:
    """The network that computes, faster, what this one computes in evaluation mode without gradients: folded, if it can be.

    Sums that are kept for several readers are no reason by themselves: without them each reader would compute its own.
    """
    faster = any(isinstance(module, (*NORMS, StepMaxPool)) for module in network.modules())
    if not faster or global_hooks() or not all(untouched(module) for module in network.modules()):
        return network
    if takes_statistics(network) is not None:  # a batch-norm was put into training mode by itself
        return network
    if any(p.dtype not in (torch.float32, torch.float64) for p in network.parameters()):  # rounding would move spikes
        return network
    try:
        return folded(network)
    except SimulationError:  # another factor at each step
        return network


@torch.no_grad()
def folded(network: Network) -> Network:
    """A network, in evaluation mode, that sends and returns what this one does in evaluation mode, with weights of its own.

    Args:
        network: left as it is. One without batch-norm and the like is copied.

    Raises:
        SimulationError: a ``TemporalBatchNorm`` whose factors differ, or a batch-norm without running statistics.
    """
    found: Any = copy.deepcopy(network)
    shapes, relays, layers = found.shapes(), dict[str, list[Path]](), dict[str, Layer]()
    for name, layer in found.named_layers():
        paths = _paths(layer.branches(), relays, shapes)
        if isinstance(layer.neuron, Relay):
            relays[name] = paths
            continue
        dynamics = layer.neuron
        if isinstance(dynamics, StepMaxPool) and _sends_ones(layer, layers):
            paths, dynamics = _pooled(paths, dynamics, next(network.parameters(), torch.empty(0)))
        layers[name] = _with(layer, paths, dynamics, shapes)
    found.layers = nn.ModuleDict(layers)
    found._check_order()
    return found.eval()


def _paths(branches: Iterable[tuple[int, str, Synapse]], relays: dict[str, list[Path]], shapes: dict[str, Any]) -> list[Path]:
    """What a layer reads, without batch-norm and without relays."""
    found: list[Path] = []
    for _, source, synapse in branches:
        own = _without_norms(list(synapse), shapes[source])
        inner = relays.get(source)
        if inner is None:
            found.append((source, own))
            continue
        for i, (origin, ops) in enumerate(inner):
            found.append((origin, _joined(copy.deepcopy(ops), copy.deepcopy(own) if i == 0 else _without_constants(own))))
    return found


def _with(layer: Layer, paths: list[Path], dynamics: Any, shapes: dict[str, Any]) -> Layer:
    """The layer with other paths and dynamics; batch-norm of what comes back is folded too."""
    feedback = [(s, Synapse(_without_norms(list(synapse), shapes[s]))) for _, s, synapse in layer.feedback_branches()]
    synapses = [(source, Synapse(ops)) for source, ops in paths]
    made = Layer(synapses, dynamics, layer.ceiling, feedback=feedback)
    made.scale, made.channel_axis, made.may_rest = layer.scale, layer.channel_axis, layer.may_rest
    return made


# batch-norm ---------------------------------------------------------------------------------------------------------------------


def _without_norms(ops: list[nn.Module], shape: tuple[int, ...]) -> list[nn.Module]:
    """Operations on samples of ``shape``, batch-norm folded."""
    found: list[nn.Module] = []
    for op in ops:
        if not isinstance(op, NORMS):
            found.append(op)
            continue
        gain_C, shift_C = _affine(op)
        axes = _axes(found, shape)
        if found and weights.by_channel(found[-1], axes):
            found[-1] = _scaled(found[-1], gain_C, shift_C)
        else:
            found.append(weights.diagonal(gain_C, axes, bias=True))
            found[-1].bias = nn.Parameter(shift_C)
    return found


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Gain and shift of each channel."""
    if norm.running_mean is None or norm.running_var is None:
        raise SimulationError(f"a {type(norm).__name__} without running statistics cannot be folded into weights")
    gain_C = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    shift_C = (0 if norm.bias is None else norm.bias) - norm.running_mean * gain_C
    if isinstance(norm, TemporalBatchNorm):
        first = norm.factors[0]
        if bool((norm.factors != first).any()):
            factors = ", ".join(f"{float(f):.3g}" for f in norm.factors)
            raise SimulationError(
                f"a TemporalBatchNorm has another factor at each step ({factors}), which no weight that stays the same is equal "
                "to: keep its factors equal (norm.factors.requires_grad_(False)), or use ThresholdBatchNorm"
            )
        gain_C, shift_C = first * gain_C, first * shift_C
    return gain_C.detach().clone(), shift_C.detach().clone()


def _axes(ops: list[nn.Module], shape: tuple[int, ...]) -> int:
    """Axes of positions of what the operations make of samples of ``shape``."""
    like = next((t for op in ops for t in (*op.parameters(), *op.buffers()) if t.is_floating_point()), torch.empty(0))
    x = torch.zeros(1, *shape, dtype=like.dtype, device=like.device)
    for op in ops:
        x = op(x)
    return x.dim() - 2


def _scaled(layer: Any, gain_C: Tensor, shift_C: Tensor) -> nn.Module:
    layer = copy.deepcopy(layer)  # which others may share
    weights.scale_outputs(layer, gain_C)
    layer.bias = nn.Parameter(shift_C if layer.bias is None else layer.bias.detach() * gain_C + shift_C)
    return layer


# sums ---------------------------------------------------------------------------------------------------------------------------


def _without_constants(ops: list[nn.Module]) -> list[nn.Module]:
    """A copy without biases, for all paths of a sum but the first."""
    found: list[Any] = [copy.deepcopy(op) for op in ops if not isinstance(op, Shift)]
    for op in found:
        if isinstance(op, WEIGHTED):
            op.register_parameter("bias", None)
    return found


def _joined(first: list[nn.Module], then: list[nn.Module]) -> list[nn.Module]:
    """One path after another; a layer that reads channels reads only those that a place among others fills."""
    place, layer = (first[-1] if first else None), (then[0] if then else None)
    if not isinstance(place, ChannelPad) or not isinstance(layer, WEIGHTED) or getattr(layer, "groups", 1) != 1:
        return [*first, *then]
    weights.read_only(layer, slice(place.before, weights.input_count(layer) - place.after))
    return [*first[:-1], *then]


# max pooling --------------------------------------------------------------------------------------------------------------------


def _sends_ones(layer: Layer, layers: dict[str, Layer]) -> bool:
    """Whether what a layer reads is the spikes of a layer of neurons that send 0 and 1."""
    (_, source, synapse), *others = layer.branches()
    if others or len(synapse.ops) or source == INPUT or source not in layers:
        return False
    dynamics = layers[source].dynamics
    ours = isinstance(dynamics, Neuron) and type(dynamics).__module__.startswith("spikeprop.snn.")
    return ours and not dynamics.signed and dynamics.payload == 1


def _pooled(paths: list[Path], pool: StepMaxPool, like: Tensor) -> tuple[list[Path], LIF]:
    """A mean and neurons without memory, which fire where it is above that of half a spike."""
    window: Any = pool.window
    sizes = window.kernel_size
    axes, mean_of = MEANS[type(window)]
    count = prod(sizes) if isinstance(sizes, tuple | list) else sizes**axes
    mean = mean_of(sizes, window.stride, window.padding, ceil_mode=window.ceil_mode)
    neuron = LIF(v_threshold=0.5 / count, leak=0.0, reset="zero").to(like)
    return [(source, [*ops, mean]) for source, ops in paths], neuron
