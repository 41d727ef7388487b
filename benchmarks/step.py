"""One training step (forward, backward, Adam) of a spiking VGG5 compared with the peers: seconds and memory, in one run.

python benchmarks/step.py --timesteps 20 --batch 16 --repeats 5 --out results/benchmarks/step.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from common import OURS, Result, in_own_process, measure, option_parser, parse, ratios, save, settings, table
from networks import random_images, vgg5
from peers import PEERS, contender, faster_layout, small_step, training_step


def one_step(options: argparse.Namespace) -> Result:
    """Build the contender's network and measure its steps."""
    network = vgg5(options.seed).to(options.device).train()
    x = random_images(options.batch, options.device)
    model, forward = contender(options.only, network)
    step = training_step(model, forward, x, options.timesteps)
    layout = None
    if options.only != OURS:
        layout = faster_layout(model, lambda: training_step(model, forward, x, max(1, options.timesteps // 10)))
    found = measure(step, options.repeats, prepare=lambda: small_step(model, forward, x), device=options.device)
    return {**found, "layout": layout}


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(option_parser(__doc__, [OURS, *PEERS], timesteps=20, batch=16, repeats=5), argv)
    if options.only:
        print(json.dumps(one_step(options)))
        return
    results = {name: in_own_process(__file__, name, settings(options)) for name in options.contenders}
    print(f"training step of a spiking VGG5, T = {options.timesteps}, batch {options.batch}")
    print(table(results))
    save(__file__, options, results=results, ratios=ratios(results))


if __name__ == "__main__":
    main()
