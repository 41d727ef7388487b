"""Data-parallel training: weak and strong scaling with real processes, and a model of many devices.

python benchmarks/scaling.py --processes 1 2 --out results/benchmarks/scaling.json

Processes of one thread each train the same network over gloo with ``fit``, as started by torchrun: *strong* scaling divides a
batch of --batch images among them, *weak* scaling gives this number to each. One all-reduce of the gradient's size is also
measured.

The model of N devices is not a measurement. A ring all-reduce moves 2 (N - 1)/N V bytes over each device's link and takes 2 (N
- 1) messages; backpropagation hides all of it except for the last bucket if the backward pass (two thirds of the step) is long
enough, other rules hide nothing:

    t(N) = t_step + max(t_bucket, t_ring - 2/3 t_step),    t_ring = 2 (N - 1)/N V/B + 2 (N - 1) a

Efficiency is t_step / t(N) for a fixed batch per device. Bandwidth B, latency a and the time of a step are assumptions, and are
printed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from common import save
from torch import Tensor, nn

from spikeprop import IF, VGG, Direct, MaxActivation, convert, fit
from spikeprop.ann import CIFARResNet
from spikeprop.learn import BPTT, Backprop, LearningRule
from spikeprop.runtime.processes import ALONE, Processes

NETWORKS = ("ANN, ResNet-20", "SNN, VGG5")
BANDWIDTH, LATENCY = 25e9, 5e-6  # assumed: bytes/s of a 200 Gb/s link for each device, seconds a message
STEP_SECONDS = (0.05, 0.2)  # assumed: of forward and backward on one device
BUCKET = 25 * 2**20  # DistributedDataParallel's default, bytes


def main(argv: Sequence[str] | None = None) -> None:
    options = _options(argv)
    found: dict[str, Any] = {}
    for name in NETWORKS:
        runs = {world: _both(name, world, options) for world in options.processes}
        found[name] = {"processes": runs, "gradient_bytes": next(iter(runs.values()))["gradient_bytes"]}
        _show(name, found[name])
    modelled = {name: _modelled(one["gradient_bytes"]) for name, one in found.items()} | {"VGG16": _modelled(_vgg16_bytes())}
    _show_model(modelled)
    save(__file__, options, measured=found, modelled=modelled, assumed={"bandwidth": BANDWIDTH, "latency": LATENCY})


def _vgg16_bytes() -> int:
    """Of the gradient of the recipes' VGG16."""
    with torch.device("meta"):
        return 4 * sum(p.numel() for p in VGG(depth=16).parameters())


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    for name, default in {"batch": 32, "steps": 6, "timesteps": 10, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--out", type=Path)
    return parser.parse_args(argv)


def _network(name: str, options: argparse.Namespace) -> tuple[nn.Module, LearningRule]:
    torch.manual_seed(options.seed)
    if name.startswith("ANN"):
        return CIFARResNet(depth=20), Backprop()
    network = convert(VGG(depth=5), [torch.rand(8, 3, 32, 32)], IF(v_init=0.5), MaxActivation())
    network.encoder = Direct()
    return network, BPTT(timesteps=options.timesteps)


def _both(name: str, world: int, options: argparse.Namespace) -> dict[str, Any]:
    """Total images/s with the batch divided and with one batch per process; seconds of one all-reduce of the gradient."""
    with tempfile.TemporaryDirectory() as folder:
        if world == 1:
            _process(0, 1, name, options, folder)
        else:
            mp.spawn(_process, (world, name, options, folder), nprocs=world)
        return json.loads((Path(folder) / "0.json").read_text())


def _process(rank: int, world: int, name: str, options: argparse.Namespace, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    group = Processes(rank, world, rank) if world > 1 else ALONE
    rates: dict[str, Any] = {kind: _rate(name, size, group, options) for kind, size in _sizes(world, options).items()}
    parameters = sum(p.numel() for p in _network(name, options)[0].parameters() if p.requires_grad)
    rates |= {
        "gradient_bytes": 4 * parameters,
        "all_reduce_seconds": _all_reduce(parameters, options.steps) if world > 1 else 0.0,
    }
    (Path(folder) / f"{rank}.json").write_text(json.dumps(rates))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def _sizes(world: int, options: argparse.Namespace) -> dict[str, int]:
    return {"strong": options.batch, "weak": options.batch * world}


def _rate(name: str, batch: int, group: Processes, options: argparse.Namespace) -> float:
    model, rule = _network(name, options)
    batches: list[tuple[Tensor, Tensor]] = [(torch.rand(batch, 3, 32, 32), torch.arange(batch) % 10)] * options.steps
    history = fit(model, rule, batches, torch.optim.SGD(model.parameters(), lr=1e-3), epochs=2, processes=group)
    return options.steps * batch / history[1]["seconds"]  # the first epoch warms up


def _all_reduce(numbers: int, times: int) -> float:
    value = torch.ones(numbers)
    dist.all_reduce(value)
    dist.barrier()
    started = time.perf_counter()
    for _ in range(times):
        dist.all_reduce(value)
    return (time.perf_counter() - started) / times


def _modelled(size: int) -> dict[str, Any]:
    """Efficiency by seconds of a step and number of devices; bytes that each device sends for one step of 1,000."""
    counts = (8, 64, 1000)
    return {
        "bytes_sent_by_each_of_1000": round(2 * 999 / 1000 * size),
        "efficiency": {str(step): {n: round(_efficiency(size, step, n), 4) for n in counts} for step in STEP_SECONDS},
        "efficiency_without_overlap": {
            str(step): {n: round(_efficiency(size, step, n, overlap=False), 4) for n in counts} for step in STEP_SECONDS
        },
    }


def _efficiency(size: int, step: float, devices: int, *, overlap: bool = True) -> float:
    ring = 2 * (devices - 1) / devices * size / BANDWIDTH + 2 * (devices - 1) * LATENCY
    last = ring * min(1.0, BUCKET / size)
    return step / (step + (max(last, ring - 2 / 3 * step) if overlap else ring))


def _show(name: str, found: dict[str, Any]) -> None:
    print(f"\n{name}, gradient of {found['gradient_bytes'] / 1e6:.2f} MB   images/s (of one process)")
    one = next(iter(found["processes"].values()))
    for world, rates in found["processes"].items():
        kinds = "   ".join(f"{kind} {rates[kind]:8.1f} ({rates[kind] / one[kind]:.2f}x)" for kind in ("strong", "weak"))
        print(f"  {world} processes   {kinds}   all-reduce {1e3 * rates['all_reduce_seconds']:.2f} ms")


def _show_model(modelled: dict[str, Any]) -> None:
    link = f"{BANDWIDTH / 1e9:.0f} GB/s a device, {LATENCY * 1e6:.0f} us a message"
    print(f"\nmodel, not measured: {link}; efficiency with overlap (without)")
    for name, one in modelled.items():
        for step, by_count in one["efficiency"].items():
            bare = one["efficiency_without_overlap"][step]
            cells = "  ".join(f"{n}: {100 * e:.1f} % ({100 * bare[n]:.1f} %)" for n, e in by_count.items())
            print(f"  {name:<16} step of {step} s   {cells}")


if __name__ == "__main__":
    main()
