"""The same spiking VGG5 in each library, written as its own tutorials write one: weights, thresholds and input are equal.

conv 3-64, pool, 64-128, 128-128, pool, fc 8192-1024-10; integrate-and-fire, accumulated output; input spikes (T, B, 3, 32, 32).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spikeprop import CNN, IF, STDB, Poisson, SpikingNetwork, ThresholdBalancing, convert

PLAN = [64, "A", 128, 128, "A"]
Forward = Callable[[Tensor], Tensor]


def vgg5(seed: int) -> SpikingNetwork:
    """Our network: random weights, thresholds balanced on random images."""
    torch.manual_seed(seed)
    ann = CNN(input_shape=(3, 32, 32), classes=10, plan=PLAN, hidden=[1024])
    images = torch.rand(16, 3, 32, 32) * 2 - 1
    return convert(ann, [images], IF(surrogate=STDB()), ThresholdBalancing(timesteps=50), encoder=Poisson())


def layers(network: SpikingNetwork) -> list[tuple[list[nn.Module], float | None]]:
    """(synapse, threshold) of each stage; the output stage has no threshold."""
    found: list[tuple[list[nn.Module], float | None]] = []
    for _, stage in network.each():
        (branch,) = stage.branches()
        theta = float(stage.neuron.v_threshold) if stage.neuron is not None else None
        found.append((list(branch[2]), theta))
    return found


class _FastSigmoidSpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] / (1 + 25 * x.abs()) ** 2


class PlainLoop(nn.Module):
    """What a user writes by hand: a loop over time, one tensor of state a layer."""

    def __init__(self, network: SpikingNetwork):
        super().__init__()
        self.synapses = nn.ModuleList(nn.Sequential(*ops) for ops, _ in layers(network))
        self.thetas = [theta for _, theta in layers(network)]

    def forward(self, x_TB: Tensor) -> Tensor:
        v: list[Any] = [0.0] * len(self.synapses)
        for x in x_TB:
            for i, (synapse, theta) in enumerate(zip(self.synapses, self.thetas)):
                v[i] = v[i] + synapse(x)
                if theta is not None:
                    x = _FastSigmoidSpike.apply(v[i] / theta - 1)
                    v[i] = v[i] - theta * x.detach()
        return v[-1]


class SnnTorch(nn.Module):
    def __init__(self, network: SpikingNetwork):
        import snntorch
        from snntorch import surrogate

        super().__init__()
        self.synapses = nn.ModuleList(nn.Sequential(*ops) for ops, _ in layers(network))
        self.neurons = nn.ModuleList(
            snntorch.Leaky(beta=1.0, threshold=theta, spike_grad=surrogate.fast_sigmoid(slope=25), reset_mechanism="subtract")
            for _, theta in layers(network)
            if theta is not None
        )

    def forward(self, x_TB: Tensor) -> Tensor:
        memories: list[Any] = [neuron.init_leaky() for neuron in self.neurons]  # type: ignore[operator]
        total: Any = 0
        for x in x_TB:
            for i, neuron in enumerate(self.neurons):
                x, memories[i] = neuron(self.synapses[i](x), memories[i])
            total = total + self.synapses[-1](x)
        return total


class Norse(nn.Module):
    def __init__(self, network: SpikingNetwork):
        import norse.torch as norse

        super().__init__()
        parts: list[nn.Module] = []
        for ops, theta in layers(network):
            parts += ops
            if theta is not None:
                p = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(1000.0), v_th=torch.tensor(theta))
                parts.append(norse.LIFBoxCell(p))
        self.network = norse.SequentialState(*parts)

    def forward(self, x_TB: Tensor) -> Tensor:
        state, total = None, torch.zeros(())
        for x in x_TB:
            y, state = self.network(x, state)
            total = total + y
        return total


class SpikingJelly(nn.Module):
    """Multi-step mode, layer by layer: the form its documents recommend for speed."""

    def __init__(self, network: SpikingNetwork):
        from spikingjelly.activation_based import functional, layer, neuron, surrogate

        super().__init__()
        parts: list[nn.Module] = []
        for ops, theta in layers(network):
            parts.append(layer.SeqToANNContainer(*ops))
            if theta is not None:
                parts.append(neuron.IFNode(v_threshold=theta, v_reset=None, surrogate_function=surrogate.ATan(), step_mode="m"))
        self.network = nn.Sequential(*parts)
        self._reset = functional.reset_net

    def forward(self, x_TB: Tensor) -> Tensor:
        self._reset(self.network)
        return self.network(x_TB).sum(0)


PEERS: dict[str, type[nn.Module]] = {"plain loop": PlainLoop, "snnTorch": SnnTorch, "Norse": Norse, "SpikingJelly": SpikingJelly}
