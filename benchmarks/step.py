"""One training step (forward, backward, Adam) of a spiking network compared with the peers: seconds and memory, in one run.

A VGG5 with random weights, its thresholds balanced or all equal; or a small CNN that is trained first, in minutes.

python benchmarks/step.py --timesteps 20 --batch 16 --repeats 5 --out results/benchmarks/step.json
python benchmarks/step.py --network fashion --timesteps 10 --batch 64 --repeats 5
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from common import OURS, Result, in_own_process, measure, option_parser, parse, ratios, save, settings, table
from networks import CACHE, TRAINED, random_images, trained, trained_images, vgg5
from peers import PEERS, contender, faster_layout, small_step, training_step

from spikeprop import SpikingNetwork


def one_step(options: argparse.Namespace) -> Result:
    """Build the contender's network and measure its steps."""
    network, x = _network_and_images(options)
    model, forward = contender(options.only, network)
    step = training_step(model, forward, x, options.timesteps)
    layout = None
    if options.only != OURS:
        layout = faster_layout(model, lambda: training_step(model, forward, x, max(1, options.timesteps // 10)))
    found = measure(step, options.repeats, prepare=lambda: small_step(model, forward, x), device=options.device)
    return {**found, "layout": layout}


def _network_and_images(options: argparse.Namespace) -> tuple[SpikingNetwork, torch.Tensor]:
    if options.network == "vgg5":
        network, x = vgg5(options.seed), random_images(options.batch)
    else:
        network = trained(options.network, options.seed, options.cache)
        x = trained_images(options.network, options.batch)
    if options.threshold is not None:
        for neuron in network.neurons().values():
            neuron.set_threshold(torch.tensor(options.threshold))
    return network.to(options.device).train(), x.to(options.device)


def main(argv: Sequence[str] | None = None) -> None:
    parser = option_parser(__doc__, [OURS, *PEERS], timesteps=20, batch=16, repeats=5)
    parser.add_argument("--network", choices=["vgg5", *TRAINED], default="vgg5", help="default vgg5")
    parser.add_argument("--threshold", type=float, help="of all neurons; default what calibration found")
    parser.add_argument("--cache", type=Path, help=f"folder of trained networks, default {CACHE}")
    options = parse(parser, argv)
    if options.only:
        print(json.dumps(one_step(options)))
        return
    if options.network in TRAINED:
        trained(options.network, options.seed, options.cache)  # once, before the contenders' processes
    results = {name: in_own_process(__file__, name, settings(options)) for name in options.contenders}
    print(f"training step of a spiking {options.network}, T = {options.timesteps}, batch {options.batch}")
    print(table(results))
    save(__file__, options, results=results, ratios=ratios(results))


if __name__ == "__main__":
    main()
