"""A training step of a few time steps, on packed spikes in float32 and on floats in bfloat16: seconds and memory, in one run.

The network of the recipes cifar10_fast (random weights, or those of a run's ANN), converted for the number of steps.

python benchmarks/few_steps.py --timesteps 4 --batch 128 --repeats 5 --ann runs/cifar10_fast_stdb/ann.safetensors \
    --out results/benchmarks/few_steps.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from common import Result, in_own_process, measure, option_parser, parse, save, settings, table
from networks import random_images
from torch.nn import functional as F

import spikeprop as sp
from spikeprop.ann import FastCNN
from spikeprop.experiment.network_checkpoint import load_network

PACKED, FLOATS = "packed", "bfloat16"


def converted(options: argparse.Namespace) -> sp.SpikingNetwork:
    """As in cifar10_fast_stdb: least squares, one threshold a channel, which is trained."""
    torch.manual_seed(options.seed)
    ann = FastCNN(widths=(64, 256, 320)).eval() if options.ann is None else load_network(options.ann).network.eval()
    neuron = sp.IF(v_init=0.5, surrogate=sp.Triangle(height=0.3), trainable=("threshold",))
    return sp.convert(ann, [random_images(32)], neuron, calibrator=sp.LeastSquares(timesteps=options.timesteps)).train()


def one_step(options: argparse.Namespace) -> Result:
    """Measure the contender's steps."""
    network, x = converted(options), random_images(options.batch)
    y = torch.arange(len(x)) % 10

    def step(some: slice = slice(None)) -> None:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if options.only == FLOATS else nullcontext():
            scores = network(x[some], options.timesteps)
        F.cross_entropy(scores.float(), y[some]).backward()

    found = measure(step, options.repeats, prepare=lambda: step(slice(4)), device=options.device)
    return {**found, "images_a_second": options.batch / found["median"]}


def main(argv: Sequence[str] | None = None) -> None:
    parser = option_parser(__doc__, [PACKED, FLOATS], timesteps=4, batch=128, repeats=5)
    parser.add_argument("--ann", type=Path, help="checkpoint of a run's ANN; default random weights")
    options = parse(parser, argv)
    if options.only:
        print(json.dumps(one_step(options)))
        return
    results = {name: in_own_process(__file__, name, settings(options)) for name in options.contenders}
    print(f"training step of a spiking FastCNN, T = {options.timesteps}, batch {options.batch}")
    print(table(results, {"images/s": lambda r: f"{r['images_a_second']:.1f}"}))
    save(__file__, options, results=results)


if __name__ == "__main__":
    main()
