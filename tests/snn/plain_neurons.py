"""An independent witness: networks of every spiking neuron as plain loops over time, differentiated by autograd alone."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from spikeprop.snn import (
    ALIF,
    LIF,
    PLIF,
    STDB,
    ATan,
    CubaLIF,
    Direct,
    FastSigmoid,
    Layer,
    MultiGaussian,
    Neuron,
    Sigmoid,
    SpikingNetwork,
    Surrogate,
    Synapse,
    Triangle,
)

SURROGATES = (STDB(), STDB(alpha=0.7, beta=0.3), Triangle(height=0.8), ATan(), FastSigmoid(slope=4.0), Sigmoid(), MultiGaussian())


class _Step(torch.autograd.Function):
    """The textbook spike: a step forward, a given slope backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * ctx.saved_tensors[0], None


def plain_spikes(neuron: Neuron, currents: Tensor, surrogate: Surrogate) -> Tensor:
    """Spikes (T, ...) for currents (T, ...), from the definitions in the neurons' papers."""
    theta, zero = neuron.v_threshold, torch.zeros_like(currents[0])
    v, i, a, last, sent = neuron.v_init * theta + zero, zero, zero, torch.full_like(zero, -torch.inf), []
    for t, current in enumerate(currents):
        raised = theta
        if isinstance(neuron, CubaLIF):
            i = i * neuron.synaptic_leak + current
            u = v * neuron.leak + i
        elif isinstance(neuron, PLIF):
            share = 1 / (1 + torch.exp(-neuron.w))
            u = v - share * v + (share * current if neuron.decay_input else current)
        else:
            u = v * neuron.leak + current
        if isinstance(neuron, ALIF):
            raised = theta + neuron.adaptation * a
        last = torch.where(u.detach() > raised.detach(), float(t), last)
        x = (u - raised) / theta
        o = _Step.apply(x, surrogate(x.detach(), t - last))
        assert isinstance(o, Tensor)
        fixed = o.detach()
        v = u * (1 - fixed) if neuron.reset == "zero" else u - theta * fixed
        if isinstance(neuron, ALIF):
            a = neuron.adaptation_leak * a + o
        sent.append(o)
    return torch.stack(sent)


def plain_output(network: SpikingNetwork, x_B: Tensor, timesteps: int) -> Tensor:
    """What a network of layers one after another gives, its input repeated."""
    value = x_B.expand(timesteps, *x_B.shape)
    for _, layer in network.named_layers():
        for op in layer.synapses[0].ops:  # type: ignore[union-attr]
            value = torch.stack([op(one) for one in value])
        if layer.neuron is not None:
            assert isinstance(layer.neuron, Neuron)
            value = plain_spikes(layer.neuron, value, layer.neuron.surrogate)
    return value.sum(0)


def random_neuron(rng: random.Random) -> Neuron:
    """A neuron of any kind with random settings, of which a random few are trained."""
    kind: Any = rng.choice((LIF, CubaLIF, ALIF, PLIF, CubaLIF, ALIF))
    settings: dict[str, Any] = {}
    if kind is PLIF:
        settings = {"tau": rng.uniform(1.1, 4.0), "decay_input": rng.random() < 0.5}
    else:
        settings = {"leak": rng.uniform(0.3, 1.0)}
    if kind is CubaLIF:
        settings["synaptic_leak"] = rng.uniform(0.0, 0.9)
    if kind is ALIF:
        settings |= {"adaptation": rng.uniform(0.0, 1.0), "adaptation_leak": rng.uniform(0.3, 1.0)}
    names = ["threshold", "leak", *(name for name in settings if name in ("synaptic_leak", "adaptation", "adaptation_leak"))]
    settings |= {
        "v_threshold": rng.uniform(0.4, 1.2),
        "v_init": rng.choice((0.0, 0.3)),
        "reset": rng.choice(("subtract", "zero")),
        "surrogate": rng.choice(SURROGATES),
        "trainable": tuple(name for name in names if rng.random() < 0.4),
    }
    neuron: Neuron = kind(**settings)
    return neuron


def random_network(seed: int) -> tuple[SpikingNetwork, Tensor, int]:
    """A network of a few layers, an input and a number of steps, in double precision."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    sizes = [rng.randint(2, 40) for _ in range(rng.choice((2, 3)))]
    layers, before, source = {}, 5, "input"
    for number, size in enumerate(sizes):
        neuron = random_neuron(rng)
        if rng.random() < 0.5:
            neuron.set_threshold(torch.rand(size) * 0.8 + 0.4)
        for factor in neuron.factors:
            if rng.random() < 0.3:
                neuron.set_factor(factor, torch.rand(size))
        layers[f"n{number}"] = Layer([(source, Synapse([nn.Linear(before, size)]))], neuron)
        before, source = size, f"n{number}"
    layers["out"] = Layer([(source, Synapse([nn.Linear(before, 3)]))], None)
    network = SpikingNetwork(layers, Direct(), (5,)).double()
    with torch.no_grad():
        for p in network.parameters():
            if p.dim() == 2:
                p.mul_(3)
    return network, torch.randn(3, 5).double() * 2, rng.choice((1, 3, 7, 8, 11))


def gradients(network: SpikingNetwork, output: Tensor) -> dict[str, Tensor]:
    """Of every parameter that has one, for a loss that weighs the outputs."""
    network.zero_grad()
    (output * torch.linspace(-1, 2, output.numel()).view_as(output)).sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
