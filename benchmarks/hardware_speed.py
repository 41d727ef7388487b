"""Simulation of the exported network: samples/s of the reference simulator and of Lava's CPU simulation, in one run.

python benchmarks/hardware_speed.py --checkpoint runs/RECIPE/converted.safetensors --out results/benchmarks/hardware_speed.json
python benchmarks/hardware_speed.py --checkpoint zoo:cifar10-fast-graded --timesteps 4 --images 10000 --lava 0 --threads 2

The second, a complete test set in integers, leaves Lava out (--lava 0), which would take hours; "all" is then the time of
everything: quantising, preparing the simulator (its loops are compiled before, once for a machine) and simulating.

Without a checkpoint the network is a small CNN with random weights. Both simulate the same integers (or floats) on the same
encoded inputs, and their spikes are compared. Lava's time is the time for ``--lava`` + 1 samples minus the time for one sample,
so that its start-up of several seconds does not count (use enough samples: the difference of two times is noisy on a busy
machine). The reference simulates ``--images`` samples with a prepared network, as for a complete test set.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import parse, save
from spikeprop_hardware import HardwareError, Recording, Simulator, lay_out, quantize, read_nir, simulate

from spikeprop import CNN, IF, Direct, MaxActivation, convert
from spikeprop.deploy import encoded, export
from spikeprop.experiment.simulation_input import open_simulation_input
from spikeprop.runtime.seeding import seed_torch

SHAPE = (1, 8, 8)


def prepare(options: argparse.Namespace, file: Path) -> np.ndarray:
    """Write the network to ``file``; returns the encoded inputs (images, T, ...)."""
    seed_torch(options.seed)
    if options.checkpoint is None:
        network = convert(CNN(input_shape=SHAPE, classes=10, plan=[16, "A"]), [torch.rand(16, *SHAPE)], IF(), MaxActivation())
        network.encoder = Direct()
        export(network, file)
        return encoded(network, torch.rand(options.images, *SHAPE), options.timesteps)
    with open_simulation_input(options.checkpoint) as found:
        given = found.with_options(timesteps=options.timesteps, root=options.root)
        images, _ = given.images(options.images)
        export(given.network, file)
        return encoded(given.network, images, options.timesteps)


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


def compare(options: argparse.Namespace, file: Path, inputs: np.ndarray) -> dict[str, Any]:
    """Samples/s of both, the ratio, and whether every spike is equal."""
    graph, fixed = read_nir(file), options.precision == "fixed"
    limit = float(np.abs(inputs[:, :1] if inputs.strides[1] == 0 else inputs).max())
    quantising, made = timed(
        lambda: quantize(graph, input_limit=limit, timesteps=inputs.shape[1]).network if fixed else lay_out(graph)
    )
    preparing, simulator = timed(lambda: Simulator(made, threads=options.threads))
    simulator.run(inputs[:1])  # compiles the loops
    seconds = [timed(lambda: simulator.run(inputs, record=False))[0] for _ in range(options.repeats)]

    alone = {"quantising": quantising, "preparing": preparing, "all": quantising + preparing + statistics.median(seconds)}
    if options.lava == 0:
        rate = len(inputs) / statistics.median(seconds)
        return {"samples_per_s": {"spikeprop": rate}, "ratio": None, "seconds": {"spikeprop": seconds, **alone}}

    def lava(samples: int) -> Any:
        source: Any = made if fixed else file
        return simulate(source, inputs[:samples], precision=options.precision, record=Recording())

    lava(1)  # makes the environment where there is none
    start_up, _ = timed(lambda: lava(1))
    together, theirs = timed(lambda: lava(1 + options.lava))
    ours = simulator.run(inputs[: 1 + options.lava])
    equal = all(np.array_equal(ours.spikes[n].reshape(train.shape), train) for n, train in theirs.spikes.items())
    rates = {"spikeprop": len(inputs) / statistics.median(seconds), "Lava": options.lava / (together - start_up)}
    return {
        "samples_per_s": rates,
        "ratio": rates["spikeprop"] / rates["Lava"],
        "seconds": {"spikeprop": seconds, **alone, "Lava, one sample": start_up, f"Lava, {1 + options.lava} samples": together},
        "spikes_equal": equal,
        "spikes": int(sum(ours.counts.values())),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"timesteps": 10, "images": 200, "lava": 8, "repeats": 3, "threads": 1, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    parser.add_argument("--checkpoint", type=Path, help="finetuned or converted.safetensors of a run")
    parser.add_argument("--precision", choices=["float", "fixed"], default="fixed", help="default fixed")
    parser.add_argument("--root", help="folder of the data; default $SPIKEPROP_DATA")
    options = parse(parser, argv)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.nir"
        inputs = prepare(options, file)
        try:
            found = compare(options, file, inputs)
        except HardwareError as error:
            parser.error(str(error))
    shown = options.checkpoint or "a small CNN with random weights"
    print(f"simulation of {shown}, T = {options.timesteps}, {options.precision}, {options.threads} thread(s) of ours")
    for name, rate in found["samples_per_s"].items():
        print(f"  {name:<10} {rate:>10.2f} samples/s")
    print(", ".join(f"{name} {found['seconds'][name]:.1f} s" for name in ("quantising", "preparing", "all")))
    if found["ratio"] is not None:
        equal = "all equal" if found["spikes_equal"] else "NOT equal"
        print(f"  ratio      {found['ratio']:>10.1f}   spikes {equal} ({found['spikes']:,})")
    save(__file__, options, results=found, ratios={} if found["ratio"] is None else {"time": found["ratio"]})


if __name__ == "__main__":
    main()
