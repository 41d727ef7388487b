"""One training step of a layer of recurrent LIF neurons compared with the peers: seconds and memory, in one run.

    u[t] = leak v[t-1] + W_in x[t] + W o[t-1];   o[t] = u[t] > 1;   v[t] = u[t] - o[t];   y = mean over t of W_out o[t] + b

Input as a cochlea of 700 channels gives it (Cramer et al. 2020, "The Heidelberg Spiking Data Sets": about 8,000 events in a
second): 0 or 1, 1.1 % of values are 1, of generated data. Every contender starts with the same weights and has the usual
surrogate of its library, a fast sigmoid; ours STDB, or with ``--surrogate fast_sigmoid`` the same. snnTorch's RLeaky subtracts
the threshold one step later, after the leak, so its spikes are not ours; the plain loop's are.

python benchmarks/recurrent.py --repeats 3 --out results/benchmarks/recurrent.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import OURS, Result, in_own_process, measure, option_parser, parse, ratios, save, settings, table
from peers import FastSigmoidSpike
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop import LIF, Frames, SpikingNetwork
from spikeprop.snn import INPUT, STDB, FastSigmoid, Layer, Synapse

LEAK, CLASSES, EVENTS = 0.95, 20, 0.011
INPUT_STD, RECURRENT_STD = 0.12, 1.0  # the second over the root of the number of neurons: about 5 % of values are spikes
SURROGATES = {"stdb": STDB(beta=0.3), "fast_sigmoid": FastSigmoid()}


class Weights(nn.Module):
    """The three layers that every contender shares."""

    def __init__(self, options: argparse.Namespace):
        super().__init__()
        torch.manual_seed(options.seed)
        self.forwards = nn.Linear(options.channels, options.neurons, bias=False)
        self.back = nn.Linear(options.neurons, options.neurons, bias=False)
        self.readout = nn.Linear(options.neurons, CLASSES)
        nn.init.normal_(self.forwards.weight, std=INPUT_STD)
        nn.init.normal_(self.back.weight, std=RECURRENT_STD / options.neurons**0.5)


class PlainLoop(nn.Module):
    """Written by hand; the input's current is computed for all steps at once."""

    def __init__(self, weights: Weights):
        super().__init__()
        self.weights = weights

    def forward(self, x_TB: Tensor, count: Callable[[Tensor], None] = lambda _: None) -> Tensor:
        weights = self.weights
        v: Any = 0.0
        spikes: Any = x_TB.new_zeros(x_TB.shape[1], weights.back.out_features)
        total: Any = 0.0
        for current in weights.forwards(x_TB):
            u = LEAK * v + current + weights.back(spikes)
            spikes = FastSigmoidSpike.apply(u - 1)
            v = u - spikes.detach()
            total = total + weights.readout(spikes)
            count(spikes)
        return total / len(x_TB)


class SnnTorch(nn.Module):
    """RLeaky in a loop over time, as in its tutorials."""

    def __init__(self, weights: Weights):
        import snntorch
        from snntorch import surrogate

        super().__init__()
        self.weights, spike = weights, surrogate.fast_sigmoid(slope=25)
        neurons = weights.back.out_features
        self.layer = snntorch.RLeaky(beta=LEAK, linear_features=neurons, spike_grad=spike, reset_mechanism="subtract")
        self.layer.recurrent = weights.back

    def forward(self, x_TB: Tensor, count: Callable[[Tensor], None] = lambda _: None) -> Tensor:
        spikes, memory = self.layer.reset_mem()
        total: Any = 0.0
        for x in x_TB:
            spikes, memory = self.layer(self.weights.forwards(x), spikes, memory)
            total = total + self.weights.readout(spikes)
            count(spikes)
        return total / len(x_TB)


PEERS: dict[str, Callable[[Weights], nn.Module]] = {"plain loop": PlainLoop, "snnTorch": SnnTorch}


def ours(weights: Weights, surrogate: str) -> SpikingNetwork:
    """The same as a spiking network."""
    neurons = LIF(leak=LEAK, surrogate=SURROGATES[surrogate])
    layers = {
        "recurrent": Layer([(INPUT, Synapse([weights.forwards]))], neurons, feedback=[("recurrent", Synapse([weights.back]))]),
        "output": Layer([("recurrent", Synapse([weights.readout]))], None),
    }
    network = SpikingNetwork(layers, Frames(), (weights.forwards.in_features,))
    network.read = "mean"
    return network.train()


def one_step(options: argparse.Namespace) -> Result:
    """Build the contender and measure its steps; also the share of its neurons that fire in a step."""
    weights = Weights(options)
    model = ours(weights, options.surrogate) if options.only == OURS else PEERS[options.only](weights)
    x_TB = (torch.rand(options.timesteps, options.batch, options.channels) < EVENTS).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    classes = torch.arange(options.batch) % CLASSES

    def step(x_TB: Tensor = x_TB) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x_TB), classes).backward()
        optimizer.step()

    rates, few_TB = list[float](), x_TB[:100]
    with torch.no_grad():
        if isinstance(model, SpikingNetwork):
            for _ in model.unroll(few_TB, observe=lambda name, s: rates.append(float(s.mean())) if name != INPUT else None):
                pass
        else:
            model(few_TB, lambda spikes: rates.append(float(spikes.mean())))
    found = measure(step, options.repeats, prepare=lambda: step(x_TB[:10]), warm_ups=0)
    return {**found, "rate": sum(rates) / len(rates)}


def main(argv: Sequence[str] | None = None) -> None:
    sizes = {"timesteps": 1000, "batch": 64, "neurons": 1024, "channels": 700, "repeats": 3}
    parser = option_parser(__doc__, [OURS, *PEERS], **sizes)
    parser.add_argument("--surrogate", choices=list(SURROGATES), default="stdb", help="of ours; default stdb")
    options = parse(parser, argv)
    if options.only:
        print(json.dumps(one_step(options)))
        return
    results = {name: in_own_process(__file__, name, settings(options)) for name in options.contenders}
    print(f"training step of {options.neurons} recurrent LIF, T = {options.timesteps}, batch {options.batch}")
    print(table(results, {"rate": lambda r: f"{r['rate']:.3f}"}))
    save(__file__, options, results=results, ratios=ratios(results))


if __name__ == "__main__":
    main()
