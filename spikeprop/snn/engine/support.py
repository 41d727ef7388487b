"""The engine's door: what the engine can honour. Everything else runs on the plain reference, which calls every module.

The engine reads a network's weights, thresholds and settings and calls none of its modules but neurons for which it has no
kernels. So it takes networks of the modules that it knows, of exactly these classes (a subclass may compute anything; a
parametrised layer is one), with parameters as torch keeps them, without hooks and replaced methods. Of a neuron that defines
``step`` it tries a few steps: they must depend on the current, the state and its parameters alone, and on each sample for itself.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from spikeprop.snn.adaptive import ALIF
from spikeprop.snn.cuba import CubaLIF
from spikeprop.snn.dynamics import LayerDynamics, map_state
from spikeprop.snn.encoder import Encoder
from spikeprop.snn.engine.kernels import has_fast_kernels
from spikeprop.snn.gather import Gather, Shift
from spikeprop.snn.hooks import global_hooks, untouched
from spikeprop.snn.layer import INPUT, Layer, LayeredNetwork
from spikeprop.snn.neuron import PLIF, is_integrate_and_fire
from spikeprop.snn.pooling import SpikingMaxPool
from spikeprop.snn.signed import takes_back
from spikeprop.snn.synapse import WEIGHTED, ChannelPad, Gain, SampleDropout, Synapse

FLOATS = (torch.float32, torch.float64)
STATELESS = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ReflectionPad2d,
    nn.ReplicationPad2d, nn.CircularPad2d, nn.PixelShuffle, nn.Upsample, SampleDropout, Gain, ChannelPad, Gather, Shift,
)  # fmt: skip
FORWARDS: dict[type[nn.Module], Any] = {kind: kind.forward for kind in (*WEIGHTED, *STATELESS)}  # as they were at import
PARAMETERS = {"weight", "bias"}
MAX_POOLS: dict[Any, Any] = {kind: kind.forward for kind in (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)}
OURS = (ALIF, CubaLIF, PLIF)  # beside IF and LIF; functions of the sample's own current and state, subclasses may not be
_not_compiled: Any = torch.compiler.disable  # its own type knows no functions with arguments


def supports(network: LayeredNetwork, x_B: Tensor) -> bool:
    """Whether the engine can run this network on this input; if not, the plain reference does."""
    return bool(_knows(network, x_B))


@_not_compiled
def _knows(network: Any, x_B: Any) -> Any:
    if x_B.requires_grad or type(x_B) is not Tensor or x_B.dtype not in FLOATS or not has_fast_kernels(x_B.device):
        return False
    if global_hooks() or torch._C._len_torch_dispatch_stack() or _trained(network.encoder):
        return False
    parameters = list(network.parameters())
    if not parameters or any(p.dtype != x_B.dtype or p.device != x_B.device for p in parameters):
        return False
    shapes = network.known_current_shapes if _knows_shapes(network) else {}
    return bool(shapes) and all(_knows_layer(name, layer, shapes[name], x_B) for name, layer in network.named_layers())


def _trained(encoder: Encoder) -> bool:
    """Whether an encoder may have parameters, whose gradient passes through the first layer's input."""
    return any(isinstance(v, nn.Module) or (isinstance(v, Tensor) and v.requires_grad) for v in vars(encoder).values())


def _knows_layer(name: str, layer: Layer, shape: tuple[int, ...], x_B: Tensor) -> bool:
    if type(layer) is not Layer or not untouched(layer) or not (layer.reads_out or _knows_neuron(layer.dynamics, shape, x_B)):
        return False
    return _knows_feedback(name, layer, shape, x_B) and all(_knows_synapse(synapse) for synapse in layer.synapses)


def _knows_feedback(name: str, layer: Layer, shape: tuple[int, ...], x_B: Tensor) -> bool:
    """Whether a layer has no feedback, or that of known neurons to themselves through one fully connected layer."""
    branches = list(layer.feedback_branches())
    if not branches:
        return True
    kinds = [type(op) for op in branches[0][2]]
    itself = len(branches) == 1 and branches[0][1] == name and kinds == [nn.Linear]
    known = is_integrate_and_fire(layer.dynamics) or type(layer.dynamics) in (CubaLIF, ALIF)
    return itself and known and len(shape) == 1 and x_B.device.type == "cpu"


def _knows_neuron(neuron: LayerDynamics, shape: tuple[int, ...], x_B: Tensor) -> bool:
    kind = type(neuron)
    if kind.forward is not LayerDynamics.forward or not all(untouched(module) for module in neuron.modules()):
        return False
    held = (*neuron.buffers(), *vars(neuron).values())
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in held):  # not among the parameters
        return False
    if takes_back(neuron):  # dense payloads: with gradients plain torch took 0.7 of the engine's time at T = 2 to 8
        return not torch.is_grad_enabled()
    if kind is SpikingMaxPool:
        return type(neuron.window).forward is MAX_POOLS.get(type(neuron.window))  # type: ignore[attr-defined]
    if is_integrate_and_fire(neuron) or kind in OURS:
        return True
    return kind.run is LayerDynamics.run and _steps_alone(neuron, shape, x_B)


def _steps_alone(neuron: LayerDynamics, shape: tuple[int, ...], x_B: Tensor) -> bool:
    """Whether steps of a copy draw no random numbers, leave nothing on the module, and give each sample its own spikes and state.

    Their currents grow, so that neurons fire whatever their threshold, and what spikes do to the state is seen.
    """
    devices = [x_B.device] if x_B.is_cuda else []
    with torch.random.fork_rng(devices), torch.no_grad():
        try:
            neuron = copy.deepcopy(neuron)
        except RuntimeError:  # it holds a tensor of a graph
            return False
        currents = torch.randn(2, *shape, dtype=x_B.dtype, device=x_B.device)
        drawn = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
        held = [dict(vars(module)) for module in neuron.modules()]
        tensors = [(tensor, tensor._version) for tensor in (*neuron.parameters(), *neuron.buffers())]
        both, one = (_few_steps(neuron, some) for some in (currents, currents[:1]))
        again = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
    kept = all(
        vars(module).keys() == before.keys() and all(vars(module)[name] is value for name, value in before.items())
        for module, before in zip(neuron.modules(), held)
    )
    kept &= all(tensor._version == version for tensor, version in tensors)
    own = len(both) == len(one) and all(map(_same_sample, both, one))
    return kept and own and all(map(torch.equal, drawn, again))


def _few_steps(neuron: LayerDynamics, current: Tensor) -> list[Tensor]:
    """Spikes, and tensors of the state, of a few steps with more and more current."""
    found: list[Tensor] = []
    state = neuron.initial_state(current)
    for size in (1, 10, 100):
        spikes, state = neuron.stepped(current * size, state)
        found.append(spikes)
        map_state(lambda tensor: found.append(tensor) or tensor, state)
    return found


def _same_sample(both: Tensor, one: Tensor) -> bool:
    """Whether what was computed of two samples and of the first alone is the same for that one, up to rounding."""
    first = both[:1] if both.dim() and one.dim() and len(both) == 2 * len(one) else both
    if first.shape != one.shape or first.dtype != one.dtype:
        return False
    return (
        torch.allclose(first, one, rtol=1e-3, atol=1e-6, equal_nan=True) if one.is_floating_point() else torch.equal(first, one)
    )


def _knows_synapse(synapse: nn.Module) -> bool:
    return type(synapse) is Synapse and untouched(synapse) and all(knows_operation(op) for op in synapse.ops)


def knows_operation(op: nn.Module) -> bool:
    """Whether an operation does what its class says, with parameters of its own."""
    kind = type(op)
    if FORWARDS.get(kind) is not kind.forward or not untouched(op):
        return False
    if kind not in WEIGHTED:
        return True
    own = op._parameters
    return own.keys() == PARAMETERS and all(p is None or type(p) is nn.Parameter for p in own.values())


def _knows_shapes(network: LayeredNetwork) -> bool:
    """Samples of layers have an axis of channels; any number of axes of positions may follow."""
    shapes = network.shapes()
    layers = [shape for name, shape in shapes.items() if name != INPUT]
    return all(len(shape) >= 1 for shape in (*layers, *network.known_current_shapes.values()))
