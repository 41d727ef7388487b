"""A recipe's spiking network trained on sequences, by spikeprop and by snnTorch: accuracy, seconds and memory, in one run.

Weights at the start, batches with their augmentation, optimiser, schedule, epochs and read-out are the recipe's and the same for
everyone; the test set is classified after the last epoch. Peers are written as their users would, with the usual surrogate of
their library: "snnTorch" advances all layers step by step, and its batch-norm has the statistics of one step; "snnTorch folded"
gives a layer all its steps at once, folded into the batch, so that its batch-norm is ours, over batch and time. snnTorch's Leaky
subtracts the threshold one step later, after the leak, so its spikes are not ours; those of "plain loop", a loop by hand over
folded layers with the recipe's own surrogate, are. ``--fold yes``: everyone trains without batch-norm, and starts with the
weights into which it was folded by the statistics of 100 recordings.

Processor time of one thread (``--clock cpu``, for a machine that others use too) or seconds on the wall, of forward, backward
and optimiser of all batches of an epoch; reading the data is a column of its own. Memory is of the training, data included.

python benchmarks/nmnist.py --epochs 2 --clock wall
python benchmarks/nmnist.py --out results/benchmarks/nmnist.json
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from common import OURS, Result, in_own_process, measure, option_parser, parse, ratios, save, settings, table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from spikeprop import LIF, SpikingNetwork
from spikeprop.experiment import SpikingTraining
from spikeprop.recipe import load_recipe
from spikeprop.snn import INPUT, Triangle
from spikeprop.snn.folding import folded
from spikeprop.snn.synapse import SampleDropout

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class _Spike(torch.autograd.Function):
    """1 above 0; backward a triangle of some height."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, height: float) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        ctx.height = height
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grads[0] * (1 - x.abs()).clamp(min=0) * ctx.height, None


class PlainNeuron(nn.Module):
    """``LIF`` that subtracts its threshold, by hand."""

    def __init__(self, lif: LIF):
        super().__init__()
        if not isinstance(lif.surrogate, Triangle) or lif.reset != "subtract":
            raise SystemExit("the plain loop has neurons with the surrogate Triangle and reset by subtraction: leave it out")
        self.theta, self.leak, self.height = float(lif.v_threshold), float(lif.leak), lif.surrogate.height

    def forward(self, current: Tensor, v: Any) -> tuple[Tensor, Any]:
        u = self.leak * v + current
        spikes = _Spike.apply(u / self.theta - 1, self.height)
        return spikes, u - self.theta * spikes.detach()


def leaky(lif: LIF) -> nn.Module:
    """snnTorch's neuron of these settings, with its default surrogate."""
    import snntorch

    return snntorch.Leaky(beta=float(lif.leak), threshold=float(lif.v_threshold), reset_mechanism=lif.reset)


class Steps(nn.Module):
    """All layers advance together, step by step."""

    def __init__(self, network: SpikingNetwork, neuron: Callable[[LIF], nn.Module]):
        super().__init__()
        ops, before = list[nn.Module](), INPUT
        for name, layer in network.named_layers():
            if layer.sources != (before,) or layer.feedback_sources:
                raise SystemExit(f"layer {name!r} reads {layer.sources}; the peers are chains, each layer reads the previous one")
            ((_, _, synapse),) = layer.branches()
            if any(isinstance(op, SampleDropout) for op in synapse):
                raise SystemExit(f"layer {name!r} has dropout; the peers' loops have none")
            ops += [*synapse, *([layer.neuron] if layer.neuron is not None else [])]
            before = name
        self.spiking = [isinstance(op, LIF) for op in ops]
        self.parts = nn.ModuleList(neuron(op) if isinstance(op, LIF) else copy.deepcopy(op) for op in ops)

    def forward(self, x_TB: Tensor) -> Tensor:
        states: list[Any] = [None] * len(self.parts)
        total: Any = 0
        for x in x_TB:
            for i, part in enumerate(self.parts):
                if self.spiking[i]:
                    x, states[i] = part(x, torch.zeros_like(x) if states[i] is None else states[i])
                else:
                    x = part(x)
            total = total + x
        return total


class Folded(Steps):
    """Layer by layer: what has no state computes all steps as one batch."""

    def forward(self, x_TB: Tensor) -> Tensor:
        steps, x = len(x_TB), x_TB.flatten(0, 1)
        for spiking, part in zip(self.spiking, self.parts):
            x = torch.cat(list(_fire(part, x.unflatten(0, (steps, -1))))) if spiking else part(x)
        return x.unflatten(0, (steps, -1)).sum(0)


def _fire(neuron: nn.Module, current_TB: Tensor) -> Iterator[Tensor]:
    v = torch.zeros_like(current_TB[0])
    for current in current_TB:
        spikes, v = neuron(current, v)
        yield spikes


PEERS: dict[str, tuple[type[Steps], Callable[[LIF], nn.Module]]] = {
    "plain loop": (Folded, PlainNeuron),
    "snnTorch": (Steps, leaky),
    "snnTorch folded": (Folded, leaky),
}


def without_batch_norm(network: SpikingNetwork, x: Tensor) -> SpikingNetwork:
    """The network with its batch-norm folded into weights, by the statistics of these sequences (B, T, ...)."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(x.transpose(0, 1))
    return folded(network.eval())


class Training:
    """A contender's network and its training, an epoch a call."""

    def __init__(self, recipe: SpikingTraining, contender: str, epochs: int, clock: Callable[[], float], fold: bool):
        self.data, self.epochs, self.clock = recipe.data.build(), epochs, clock
        torch.manual_seed(recipe.seed)
        network = recipe.build_network(self.data)
        if fold:
            network = without_batch_norm(network, next(self.data.train(100, recipe.seed).epoch(0))[0])
        self.network: nn.Module = network if contender == OURS else PEERS[contender][0](network, PEERS[contender][1])
        self.batches = self.data.train(recipe.train.batch_size, recipe.seed)
        self.optimizer = recipe.train.build_optimizer(self.network.parameters())
        self.lr, self.schedule = self.optimizer.param_groups[0]["lr"], recipe.train.schedule.build()
        self.losses, self.seconds, self.reading = list[float](), list[float](), list[float]()

    def step(self, x: Tensor, y: Tensor) -> float:
        """Forward, backward, optimiser."""
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.network(x.transpose(0, 1)), y)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def epoch(self) -> None:
        """Train an epoch; its seconds are those of the steps, apart from reading the data."""
        done, losses, seconds, begun = len(self.losses), list[float](), 0.0, self.clock()
        self.network.train()
        for x, y in self.batches.epoch(done):
            start = self.clock()
            progress = (done + len(losses) / len(self.batches)) / self.epochs
            self.optimizer.param_groups[0]["lr"] = self.lr * self.schedule(progress)
            losses.append(self.step(x, y))
            seconds += self.clock() - start
        self.losses.append(sum(losses) / len(losses))
        self.seconds.append(seconds)
        self.reading.append(self.clock() - begun - seconds)

    @torch.no_grad()
    def accuracy(self) -> float:
        """On the test set, in per cent."""
        self.network.eval()
        right = [self.network(x.transpose(0, 1)).argmax(1) == y for x, y in self.data.test(50).epoch(0)]
        return 100 * float(torch.cat(right).float().mean())


def train(options: argparse.Namespace) -> Result:
    """Train one contender in this process."""
    torch.set_num_threads(options.threads)
    recipe = load_recipe(options.recipe, [f"seed={options.seed}", *(options.set or [])]).experiment
    if not isinstance(recipe, SpikingTraining) or recipe.read != "sum":
        raise SystemExit(f"{options.recipe} is no recipe of SpikingTraining whose output is the sum over the steps")
    epochs, clock = options.epochs or recipe.train.epochs, CLOCKS[options.clock]

    def warm_up() -> None:
        few = Training(recipe, options.only, epochs, clock, options.fold == "yes")
        few.step(*(value[:1].repeat_interleave(2, 0) for value in next(few.batches.epoch(0))))

    training = Training(recipe, options.only, epochs, clock, options.fold == "yes")
    found = measure(training.epoch, epochs, prepare=warm_up, warm_ups=0)
    result = {"seconds": training.seconds, "median": statistics.median(training.seconds)}
    return {**found, **result, "reading": training.reading, "losses": training.losses, "accuracy": training.accuracy()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = option_parser(__doc__, [OURS, *PEERS], epochs=0, threads=os.cpu_count() or 1)
    parser.add_argument("--recipe", default="nmnist_cnn", help="of SpikingTraining on sequences; default nmnist_cnn")
    parser.add_argument("--set", nargs="+", metavar="KEY=VALUE", help="settings of the recipe to change")
    parser.add_argument("--fold", choices=["yes", "no"], default="no", help="train without batch-norm; default no")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="default wall")
    options = parse(parser, argv)
    if options.only:
        print(json.dumps(train(options)))
        return
    results = {name: in_own_process(__file__, name, settings(options)) for name in options.contenders}
    print(f"{options.recipe}, seconds an epoch ({options.clock}, {options.threads} threads), test accuracy after the last one")
    columns = {
        "data s": lambda r: f"{statistics.median(r['reading']):.3f}",
        "loss": lambda r: f"{r['losses'][-1]:.3f}",
        "accuracy": lambda r: f"{r['accuracy']:.1f} %",
    }
    print(table(results, columns))
    save(__file__, options, results=results, ratios=ratios(results))


if __name__ == "__main__":
    main()
