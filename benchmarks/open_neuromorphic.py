"""The Open Neuromorphic benchmark: one linear layer of n neurons, LIF, T = 500, forward and backward, and the peers.

python benchmarks/open_neuromorphic.py --sizes 4096 8192 16384 --out results/benchmarks/open_neuromorphic.json

Input (T, 16, n) from a normal distribution, loss = sum of all spikes (open-neuromorphic.org, "SNN library benchmarks"). Three
flaws of the original are corrected: each timing synchronises the device, all libraries compute 500 steps, and their neurons are
the same, u = 0.9 v + I, a spike if u > 1, then v = 0, which all libraries support. Each library has its usual surrogate. Every
peer multiplies by its weights once for all steps, then runs its neurons, which is fastest, and sums its spikes. Our network
must end in an accumulating layer, so ours ends in a linear layer n -> 1 of constant ones, whose sum over time is the same loss;
the peers do not need this work. The prepared input is a sequence; no contender copies it. The column "spikes" shows the
loss: it is the same except for a few spikes that rounding moves. The column "products s" is the time of the two dense products
alone (currents; the weights' gradient), which are most of everyone's: input and gradients are dense, so no exact way is faster.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from common import OURS, Result, Results, in_own_process, measure, option_parser, parse, ratios, save, settings, table
from peers import FastSigmoidSpike
from torch import Tensor, nn

from spikeprop import LIF, STDB, Frames, SpikingNetwork
from spikeprop.snn import INPUT, Layer, Synapse

LEAK, THETA = 0.9, 1.0
ROWS = 1024  # of a product at once
COLUMNS: dict[str, Callable[[Result], str]] = {
    "spikes": lambda r: f"{r['spikes']:.0f}",
    "products s": lambda r: "" if r["products"] is None else f"{r['products']:.3f}",
}
Loss = Callable[[Tensor], Tensor]


def ours(linear: nn.Linear) -> Loss:
    """A SpikingNetwork whose output layer adds up the spikes."""
    adder = nn.Linear(linear.out_features, 1, bias=False).requires_grad_(False)
    nn.init.ones_(adder.weight)
    neuron = LIF(v_threshold=THETA, leak=LEAK, reset="zero", surrogate=STDB())
    layers = {
        "hidden": Layer([(INPUT, Synapse([linear]))], neuron),
        "output": Layer([("hidden", Synapse([adder]))], None),
    }
    network = SpikingNetwork(layers, Frames(), (linear.in_features,)).to(linear.weight.device)

    def loss(x_TBN: Tensor) -> Tensor:
        return network(x_TBN).sum()

    return loss


def plain(linear: nn.Linear) -> Loss:
    """A loop over time by hand."""

    def loss(x_TBN: Tensor) -> Tensor:
        v, spikes = torch.zeros_like(x_TBN[0]), []
        for current in linear(x_TBN):
            u = LEAK * v + current
            spike = FastSigmoidSpike.apply(u - THETA)
            v = u * (1 - spike.detach())
            spikes.append(spike)
        return torch.stack(spikes).sum()

    return loss


def snntorch(linear: nn.Linear) -> Loss:
    """Leaky, reset to zero."""
    from snntorch import Leaky, surrogate

    spike_grad = surrogate.fast_sigmoid(slope=25)
    neuron = Leaky(beta=LEAK, threshold=THETA, spike_grad=spike_grad, reset_mechanism="zero").to(linear.weight.device)

    def loss(x_TBN: Tensor) -> Tensor:
        memory, spikes = torch.zeros_like(x_TBN[0]), []
        for current in linear(x_TBN):
            spike, memory = neuron(current, memory)
            spikes.append(spike)
        return torch.stack(spikes).sum()

    return loss


def norse(linear: nn.Linear, *, compiled: bool = False) -> Loss:
    """LIFBoxCell, which scales its current by dt/tau = 1 - leak; so the threshold is scaled by that."""
    from norse.torch import LIFBoxCell, LIFBoxFeedForwardState, LIFBoxParameters

    scale, device = 1 - LEAK, linear.weight.device
    p = LIFBoxParameters(
        tau_mem_inv=torch.tensor(scale / 0.001, device=device),
        v_leak=torch.tensor(0.0, device=device),
        v_th=torch.tensor(scale * THETA, device=device),
        v_reset=torch.tensor(0.0, device=device),
    )
    cell: Callable[..., tuple[Tensor, LIFBoxFeedForwardState]] = LIFBoxCell(p, dt=0.001)
    if compiled:
        cell = torch.compile(cell)

    def loss(x_TBN: Tensor) -> Tensor:
        state, spikes = LIFBoxFeedForwardState(torch.zeros_like(x_TBN[0])), []
        for current in linear(x_TBN):
            spike, state = cell(current, state)
            spikes.append(spike)
        return torch.stack(spikes).sum()

    return loss


def norse_compiled(linear: nn.Linear) -> Loss:
    """The same, its step compiled by torch."""
    return norse(linear, compiled=True)


def spikingjelly(linear: nn.Linear) -> Loss:
    """LIFNode in multi-step mode, hard reset; SpikingJelly picks its fastest kernel for the device by itself."""
    from spikingjelly.activation_based import functional, neuron, surrogate

    node = neuron.LIFNode(
        tau=1 / (1 - LEAK),
        decay_input=False,
        v_threshold=THETA,
        v_reset=0.0,
        surrogate_function=surrogate.ATan(),
        step_mode="m",
    )

    def loss(x_TBN: Tensor) -> Tensor:
        functional.reset_net(node)
        return node(linear(x_TBN)).sum()

    return loss


CONTENDERS: dict[str, Callable[[nn.Linear], Loss]] = {
    OURS: ours,
    "plain loop": plain,
    "snnTorch": snntorch,
    "Norse": norse,
    "Norse compiled": norse_compiled,
    "SpikingJelly": spikingjelly,
}


@torch.no_grad()
def products_alone(linear: nn.Linear, input_TBN: Tensor) -> float:
    """Seconds of the two dense products, of the currents and of the weights' gradient: nobody does the exact thing in less."""
    grad, rows = torch.zeros_like(linear.weight), input_TBN.flatten(0, 1)
    start = time.perf_counter()
    for part in rows.split(ROWS):
        grad.addmm_(linear(part).T, part)
    if grad.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def one_size(options: argparse.Namespace) -> Result:
    """Measure one contender with n neurons."""
    (n,) = options.sizes
    torch.manual_seed(options.seed)
    linear = nn.Linear(n, n).to(options.device)
    input_TBN = torch.randn(options.timesteps, options.batch, n, device=options.device)
    loss_of = CONTENDERS[options.only](linear)
    losses: list[Tensor] = []

    def run(x_TBN: Tensor) -> None:
        linear.zero_grad()
        loss = loss_of(x_TBN)
        loss.backward()
        losses[:] = [loss.detach()]

    found = measure(partial(run, input_TBN), options.repeats, prepare=partial(run, input_TBN[:2]), device=options.device)
    floor = products_alone(linear, input_TBN) if options.only == OURS else None
    return {**found, "spikes": float(losses[0]), "products": floor}


def main(argv: Sequence[str] | None = None) -> None:
    parser = option_parser(__doc__, list(CONTENDERS), timesteps=500, batch=16, repeats=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024], help="numbers of neurons n")
    options = parse(parser, argv)
    if options.only:
        print(json.dumps(one_size(options)))
        return
    sizes: dict[int, Results] = {}
    for n in options.sizes:
        given = {**settings(options), "sizes": [n]}
        sizes[n] = {name: in_own_process(__file__, name, given) for name in options.contenders}
        print(f"linear {n} -> {n} and LIF, T = {options.timesteps}, batch {options.batch}, forward and backward")
        print(table(sizes[n], COLUMNS))
    save(__file__, options, results=sizes, ratios={n: ratios(results) for n, results in sizes.items()})


if __name__ == "__main__":
    main()
