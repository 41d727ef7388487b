"""One DIET-SNN training step (Rathi & Roy 2021): VGG9, direct input, few steps, thresholds and leaks trained; time and memory.

python benchmarks/diet.py --timesteps 5 --batch 32 --repeats 3 --out results/benchmarks/diet.json

All contenders have the same weights, thresholds, leaks and linear surrogate. "plain reference" is spikeprop without its engine.
The plain loop computes its first layer once, as the input stays the same. All print their loss: equal up to rounding.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import torch
from common import OURS, Result, in_own_process, measure, option_parser, parse, ratios, save, settings, table
from networks import IMAGE, random_images
from peers import FastSigmoidSpike, Forward, faster_layout, small_step, training_step
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop import LIF, VGG, Direct, SpikingNetwork, Triangle
from spikeprop.convert import to_spiking
from spikeprop.snn.engine.layerwise import LayerwiseRun
from spikeprop.snn.synapse import SampleDropout

REFERENCE, LOOP = "plain reference", "plain loop"
HEIGHT = 0.3
FIRING = 0.08  # spikes a neuron and step at which thresholds are aimed


def vgg9(seed: int) -> SpikingNetwork:
    """VGG9 with random weights, and thresholds at which neurons fire about as rarely as trained ones; no dropout."""
    torch.manual_seed(seed)
    ann = VGG(depth=9, input_shape=IMAGE, classes=10, dropout=0).eval()

    def neuron() -> LIF:
        return LIF(leak=1.0, v_init=0.5, surrogate=Triangle(height=HEIGHT), trainable=("threshold", "leak"))

    network = to_spiking(ann, neuron, Direct(), IMAGE).eval()
    with torch.no_grad():
        x = random_images(4)
        layers = LayerwiseRun(network, x, timesteps=20, encoded=lambda first, steps: x.unsqueeze(0))
        for name, neuron in network.neurons().items():
            mean = torch.stack([current.mean(0) for current in layers.currents(name)]).mean(0)
            neuron.set_threshold(mean.relu().mean() / FIRING)
            layers.fire(name)
            neuron.leak.fill_(0.98)
    network.set_dropout(0)
    return network


class LinearSpike(FastSigmoidSpike):
    """Heaviside forward, a triangle backward."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * (1 - x.abs()).clamp_(min=0) * HEIGHT


class PlainLoop(nn.Module):
    """A hand-written loop over time with one state tensor per layer; autograd does the rest."""

    def __init__(self, network: SpikingNetwork):
        super().__init__()
        layers = [layer for _, layer in network.named_layers()]
        self.synapses = nn.ModuleList(
            nn.Sequential(*(op for op in layer.synapses[0] if not isinstance(op, SampleDropout)))  # type: ignore[union-attr]
            for layer in layers
        )
        self.thetas = nn.ParameterList(neuron.v_threshold for neuron in network.neurons().values())
        self.leaks = nn.ParameterList(neuron.leak for neuron in network.neurons().values())

    def forward(self, image: Tensor, timesteps: int) -> Tensor:
        v: list[Any] = [0.5 * theta for theta in self.thetas] + [0.0]
        first = self.synapses[0](image)
        for _ in range(timesteps):
            x = first
            for i, (theta, leak) in enumerate(zip(self.thetas, self.leaks)):
                u = leak * v[i] + (self.synapses[i](x) if i else first)
                x = LinearSpike.apply(u / theta - 1)
                v[i] = u - theta * x.detach()
            v[-1] = v[-1] + self.synapses[-1](x)
        return v[-1]


def one_step(options: argparse.Namespace) -> Result:
    """Measure one contender's steps."""
    network, x = vgg9(options.seed).to(options.device).train(), random_images(options.batch, options.device)
    network.packed = options.only == OURS
    model: nn.Module = PlainLoop(network) if options.only == LOOP else network
    forward: Forward = model
    with torch.no_grad():
        loss = float(F.cross_entropy(forward(x, options.timesteps) / options.timesteps, torch.zeros(len(x), dtype=torch.long)))
    layout = None if options.only == OURS else faster_layout(model, lambda: training_step(model, forward, x, 1))
    rates: list[Tensor] = []
    with torch.no_grad():
        network(x, options.timesteps, observe=lambda name, spikes: rates.append(spikes.mean()))
    step = training_step(model, forward, x, options.timesteps)
    found = measure(step, options.repeats, prepare=lambda: small_step(model, forward, x), device=options.device)
    return {**found, "layout": layout, "loss": loss, "rate": float(torch.stack(rates[1:]).mean())}


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(option_parser(__doc__, [OURS, REFERENCE, LOOP], timesteps=5, batch=32, repeats=3), argv)
    if options.only:
        print(json.dumps(one_step(options)))
        return
    results = {name: in_own_process(__file__, name, settings(options)) for name in options.contenders}
    print(f"training step of a spiking VGG9, thresholds and leaks trained, T = {options.timesteps}, batch {options.batch}")
    print(table(results, {"loss": lambda r: f"{r['loss']:.6f}", "spikes": lambda r: f"{r['rate']:.3f}"}))
    save(__file__, options, results=results, ratios=ratios(results))


if __name__ == "__main__":
    main()
