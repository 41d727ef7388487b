"""Threshold balancing: our single search over stored spike trains, compared with its definition, which reruns the network.

python benchmarks/balance.py --timesteps 100 --images 32 --out results/benchmarks/balance.json

VGG16 with random weights, random images, Poisson input. The definition (Sengupta et al. 2019, Rathi et al. 2020): for each
layer in order, run the network from the input to this layer for T steps with the thresholds of earlier layers set; the
threshold is the largest input current. That is O(L^2) layer passes for L layers, ours needs O(L). Both use the same spikes of
the encoder, so thresholds must agree, with ``--dtype float64`` to many digits. In float32, another order of summation may move
a spike, and one spike more or less changes the largest current of a deep layer, on which few spikes act, by one weight, which
is some percent.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence

import torch
from common import OURS, Result, in_own_process, measure, option_parser, parse, ratios, save, settings, table
from networks import DEPTHS, random_images, vgg
from peers import layers
from torch import Tensor

from spikeprop import ThresholdBalancing
from spikeprop.convert.encoded import EncodedInput
from spikeprop.snn import SpikingNetwork

DEFINITION = "definition"


def ours(network: SpikingNetwork, x: Tensor, timesteps: int) -> dict[str, float]:
    """``ThresholdBalancing``."""
    return {name: float(theta) for name, theta in ThresholdBalancing(timesteps=timesteps).calibrate(network, x).items()}


def definition(network: SpikingNetwork, x: Tensor, timesteps: int) -> dict[str, float]:
    """The definition, written plainly."""
    encoded = EncodedInput(network.encoder, x, timesteps)
    synapses = [layer.synapse for layer in layers(network)]
    thetas: list[float] = []
    for measured in range(len(synapses) - 1):
        peaks = []
        v = [torch.zeros(())] * measured
        for t in range(timesteps):
            (spikes,) = encoded(t, 1)
            for i, theta in enumerate(thetas):
                u = v[i] + synapses[i](spikes)
                spikes = (u > theta).to(u)
                v[i] = u - theta * spikes
            peaks.append(synapses[measured](spikes).max())
        thetas.append(float(torch.stack(peaks).max()))
    return dict(zip(network.neurons(), thetas))


CONTENDERS: dict[str, Callable[[SpikingNetwork, Tensor, int], dict[str, float]]] = {OURS: ours, DEFINITION: definition}


@torch.no_grad()
def search(options: argparse.Namespace) -> Result:
    """Measure one search; libraries are loaded before."""
    kind, balance = {"device": options.device, "dtype": getattr(torch, options.dtype)}, CONTENDERS[options.only]
    network = vgg(options.network, options.seed).to(**kind)
    x = random_images(options.images).to(**kind)
    thresholds: dict[str, float] = {}

    def action() -> None:
        torch.manual_seed(options.seed + 1)
        thresholds.update(balance(network, x, options.timesteps))

    found = measure(action, options.repeats, prepare=lambda: network(x[:1], 2), warm_ups=0, device=options.device)
    return {**found, "thresholds": thresholds}


def difference(first: dict[str, float], second: dict[str, float]) -> float:
    """Largest relative difference of two searches' thresholds."""
    return max(abs(first[name] - second[name]) / second[name] for name in second)


def main(argv: Sequence[str] | None = None) -> None:
    parser = option_parser(__doc__, list(CONTENDERS), timesteps=100, images=32, repeats=1)
    parser.add_argument("--network", choices=list(DEPTHS), default="vgg16", help="default vgg16")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="default float32")
    options = parse(parser, argv)
    if options.only:
        print(json.dumps(search(options)))
        return
    results = {name: in_own_process(__file__, name, settings(options)) for name in options.contenders}
    print(f"threshold balancing of {options.network}, T = {options.timesteps}, {options.images} images")
    print(table(results))
    both = [result["thresholds"] for result in results.values() if result is not None]
    largest = difference(*both) if len(both) == 2 else None
    if largest is not None:
        print(f"largest relative difference of thresholds {largest:.2g}")
    save(__file__, options, results=results, ratios=ratios(results), largest_difference=largest)


if __name__ == "__main__":
    main()
