"""One training step (forward, backward, Adam) of a spiking VGG5 against the peers: seconds and memory, in one run.

python benchmarks/step.py --timesteps 20 --batch 16 --repeats 5 --out results/step.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from common import OURS, in_own_process, machine, measure, table
from peers import PEERS, vgg5
from torch.nn import functional as F

from spikeprop.files import write_json


def one_step(contender: str, timesteps: int, batch: int, repeats: int, seed: int) -> dict[str, Any]:
    """Build the contender's network and measure its steps."""
    network = vgg5(seed)
    x, y = torch.rand(batch, 3, 32, 32) * 2 - 1, torch.randint(10, (batch,))
    if contender == OURS:
        model: torch.nn.Module = network.train()

        def forward() -> torch.Tensor:
            return network(x, timesteps)
    else:
        model = PEERS[contender](network).train()
        spikes = network.encoder(x, timesteps)

        def forward() -> torch.Tensor:
            return model(spikes)

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(forward() / timesteps, y).backward()
        optimizer.step()

    return measure(step, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("timesteps", 20), ("batch", 16), ("repeats", 5), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", choices=[OURS, *PEERS], help="measure one in this process and print JSON")
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("timesteps", "batch", "repeats", "seed")}
    if options.only:
        print(json.dumps(one_step(options.only, **settings)))
        return
    arguments = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    results = {name: in_own_process(__file__, name, arguments) for name in [*PEERS, OURS]}
    print(f"training step of a spiking VGG5, T = {options.timesteps}, batch {options.batch}")
    print(table(results))
    if options.out:
        write_json(options.out, {"benchmark": "step", "settings": settings, "machine": machine(), "results": results})


if __name__ == "__main__":
    main()
