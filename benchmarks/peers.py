"""The same spiking network in each library, written like its own tutorials: weights, thresholds and input are equal.

Integrate-and-fire neurons that subtract their threshold, in a chain of layers (convolution, linear, average pooling, flatten),
with accumulated output. Each peer has its fastest form with the same results. For a constant input, the plain loop stores the
current of its first layer; the libraries compute that layer at every step, as in their tutorials. Every contender has the usual
surrogate of its library: ours STDB, the others need the potential.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from common import OURS
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop import IF, SpikingNetwork
from spikeprop.snn import INPUT
from spikeprop.snn.synapse import SampleDropout

Forward = Callable[[Tensor, int], Tensor]


class NotComparable(ValueError):
    """A network that the peers do not support as they are written here."""


@dataclass(frozen=True)
class ChainLayer:
    """One layer: its synapse, its threshold (None: the accumulating output), its potential before the first step."""

    synapse: nn.Sequential
    theta: float | None
    start: float


def layers(network: SpikingNetwork) -> list[ChainLayer]:
    """The network as a chain of layers.

    Raises:
        NotComparable: the network is not such a chain; the message names the layer.
    """
    found: list[ChainLayer] = []
    before = INPUT
    for name, layer in network.named_layers():
        if layer.sources != (before,):
            raise NotComparable(
                f"layer {name!r} reads {layer.sources}; the peers' loops are chains, each layer reads the previous one"
            )
        ((_, _, synapse),) = layer.branches()
        ops = [op for op in synapse if not isinstance(op, SampleDropout)]
        if network.training and any(op.p > 0 for op in synapse if isinstance(op, SampleDropout)):
            raise NotComparable(f"layer {name!r} trains with dropout; the peers' loops have none")
        theta = _threshold(name, layer.neuron) if layer.neuron is not None else None
        start = float(layer.dynamics.head_start) * theta if theta is not None else 0.0
        found.append(ChainLayer(nn.Sequential(*ops), theta, start))
        before = name
    return found


def _threshold(name: str, neuron: nn.Module) -> float:
    if type(neuron) is not IF or neuron.reset != "subtract":
        raise NotComparable(f"layer {name!r} has {neuron}; the peers are built with IF neurons that subtract their threshold")
    if neuron.v_threshold.numel() != 1:
        raise NotComparable(f"layer {name!r} has {neuron.v_threshold.numel()} thresholds; the peers' neurons have one a layer")
    if neuron.v_init.numel() != 1 or neuron.v_init > 1:  # snnTorch would reset such a neuron before its first step
        raise NotComparable(f"layer {name!r} starts at v_init={float(neuron.v_init.max()):g}, above its threshold")
    return float(neuron.v_threshold)


class FastSigmoidSpike(torch.autograd.Function):
    """Heaviside forward, fast sigmoid (slope 25) backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] / (1 + 25 * x.abs()) ** 2


class PlainLoop(nn.Module):
    """A hand-written loop over time with one state tensor per layer."""

    def __init__(self, network: SpikingNetwork):
        super().__init__()
        self.layers = layers(network)
        self.synapses = nn.ModuleList(layer.synapse for layer in self.layers)
        self.constant = network.encoder.constant

    def forward(self, x_TB: Tensor) -> Tensor:
        v: list[Any] = [layer.start for layer in self.layers]
        first = self.synapses[0](x_TB[0]) if self.constant else None
        for x in x_TB:
            for i, layer in enumerate(self.layers):
                v[i] = v[i] + (first if first is not None and i == 0 else layer.synapse(x))
                if layer.theta is not None:
                    x = FastSigmoidSpike.apply(v[i] - layer.theta)
                    v[i] = v[i] - layer.theta * x.detach()
        return v[-1]


class SnnTorch(nn.Module):
    """Leaky with beta = 1. It subtracts the threshold at the next step, which gives the same spikes."""

    def __init__(self, network: SpikingNetwork):
        import snntorch
        from snntorch import surrogate

        super().__init__()
        self.layers = layers(network)
        self.synapses = nn.ModuleList(layer.synapse for layer in self.layers)
        spike = surrogate.fast_sigmoid(slope=25)
        self.neurons = nn.ModuleList(
            snntorch.Leaky(beta=1.0, threshold=layer.theta, spike_grad=spike, reset_mechanism="subtract")
            for layer in self.layers
            if layer.theta is not None
        )

    def forward(self, x_TB: Tensor) -> Tensor:
        memories: list[Any] = [None] * len(self.neurons)
        total: Any = 0
        for x in x_TB:
            for i, neuron in enumerate(self.neurons):
                current = self.synapses[i](x)
                if memories[i] is None:
                    memories[i] = torch.full_like(current, self.layers[i].start)
                x, memories[i] = neuron(current, memories[i])
            total = total + self.synapses[-1](x)
        return total


class Norse(nn.Module):
    """Its integrate-and-fire step with its own reset by subtraction, which its ``IAFCell`` does not offer, in its cell class."""

    def __init__(self, network: SpikingNetwork):
        from norse.torch import SequentialState
        from norse.torch.functional.iaf import IAFFeedForwardState, IAFParameters
        from norse.torch.functional.reset import reset_subtract
        from norse.torch.functional.threshold import threshold
        from norse.torch.module.snn import SNNCell

        def step(current: Tensor, state: Any, p: Any, dt: float) -> tuple[Tensor, Any]:
            v = state.v + current
            z = threshold(v - p.v_th, p.method, p.alpha)
            return z, IAFFeedForwardState(reset_subtract(z, v, p.v_reset, p.v_th))

        def cell(theta: float, start: float) -> nn.Module:
            initial: Any = lambda current: IAFFeedForwardState(torch.full_like(current, start))  # noqa: E731
            return SNNCell(step, initial, IAFParameters(v_th=torch.tensor(theta, device=device)))

        super().__init__()
        device = next(network.parameters()).device
        parts: list[nn.Module] = []
        for layer in layers(network):
            parts += layer.synapse
            if layer.theta is not None:
                parts.append(cell(layer.theta, layer.start))
        self.network = SequentialState(*parts)

    def forward(self, x_TB: Tensor) -> Tensor:
        state, total = None, 0
        for x in x_TB:
            y, state = self.network(x, state)
            total = total + y
        return total  # type: ignore[return-value]


class SpikingJelly(nn.Module):
    """Multi-step mode, layer by layer: the form its documents recommend for speed. It fires on >=, a difference at ties only."""

    mode = "m"

    def __init__(self, network: SpikingNetwork):
        from spikingjelly.activation_based import functional, layer, neuron, surrogate

        super().__init__()
        parts: list[nn.Module] = []
        for link in layers(network):
            parts.append(layer.SeqToANNContainer(*link.synapse) if self.mode == "m" else link.synapse)
            if link.theta is not None:
                spike = surrogate.ATan()
                node = neuron.IFNode(v_threshold=link.theta, v_reset=None, surrogate_function=spike, step_mode=self.mode)
                node.set_reset_value("v", link.start)
                parts.append(node)
        self.network = nn.Sequential(*parts)
        self._reset = functional.reset_net

    def forward(self, x_TB: Tensor) -> Tensor:
        self._reset(self.network)
        return self._run(x_TB)

    def _run(self, x_TB: Tensor) -> Tensor:
        return self.network(x_TB).sum(0)


class SpikingJellySteps(SpikingJelly):
    """Single-step mode: all layers advance together."""

    mode = "s"

    def _run(self, x_TB: Tensor) -> Tensor:
        total: Any = 0
        for x in x_TB:
            total = total + self.network(x)
        return total


PEERS: dict[str, type[nn.Module]] = {
    "plain loop": PlainLoop,
    "snnTorch": SnnTorch,
    "Norse": Norse,
    "SpikingJelly": SpikingJelly,
    "SpikingJelly s": SpikingJellySteps,
}


def contender(name: str, network: SpikingNetwork) -> tuple[nn.Module, Forward]:
    """A contender's module, and its accumulated output (B, K) for images (B, ...) and a number of steps; everyone encodes."""
    if name == OURS:
        return network, network
    model = PEERS[name](network)

    def forward(x: Tensor, timesteps: int) -> Tensor:
        return model(network.encoded(x, timesteps))

    return model, forward


def gradient_step(forward: Forward, x: Tensor, timesteps: int) -> None:
    """Forward and backward on images x, all of class 0."""
    F.cross_entropy(forward(x, timesteps) / timesteps, torch.zeros(len(x), dtype=torch.long, device=x.device)).backward()


def training_step(
    model: nn.Module, forward: Forward, x: Tensor, timesteps: int, before_adam: Callable[[], Any] = lambda: None
) -> Callable[[], None]:
    """A step of training on images x: forward, backward, Adam in torch's fused form, for every contender."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        gradient_step(forward, x, timesteps)
        before_adam()
        optimizer.step()

    return step


def small_step(model: nn.Module, forward: Forward, x: Tensor) -> None:
    """Forward and backward of one image, two steps: libraries and compiled kernels are loaded after it."""
    gradient_step(forward, x[:1], 2)
    model.zero_grad()


def faster_layout(model: nn.Module, make_run: Callable[[], Callable[[], Any]]) -> str:
    """Convert the model's weights to the layout in which a run is faster here; returns its name.

    make_run: makes what is timed, anew for each layout (a fused optimiser's state must lie as its parameters do).
    """
    seconds = {}
    for layout in (torch.channels_last, torch.contiguous_format):
        model.to(memory_format=layout)
        run = make_run()
        run()
        start = time.perf_counter()
        run()
        seconds[layout] = time.perf_counter() - start
    best = min(seconds, key=lambda layout: seconds[layout])
    model.to(memory_format=best)
    return str(best).removeprefix("torch.")
