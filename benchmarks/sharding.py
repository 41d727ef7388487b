"""Memory of training in several processes that each store all parameters, or a shard of them.

python benchmarks/sharding.py --steps 3 --out results/benchmarks/sharding.json

Real processes of one thread each, over gloo, train the same network on the same random images with ``fit`` and Adam:
torchvision's Wide ResNet-101-2 (125 million parameters) by backpropagation, and spikeprop's VGG16 (40 million), converted, by
BPTT. A process reports its peak resident memory from the end of the first step on, minus its memory before the network was
made, and the seconds of a step. malloc is configured to return large blocks when they are freed, so that a peak is the memory
in use. For P parameters of four bytes, a process with all of them stores 16 P bytes (weights, gradients, Adam's two moments)
and the buckets for communicating gradients; one of N with a shard stores 16 P/N bytes, and temporarily the weights and
gradients of the complete current block. A spiking network is one block.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import tempfile
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from common import save
from memory import GIVE_BACK
from torch import nn

from spikeprop import CNN, IF, VGG, Direct, MaxActivation, SpikingNetwork, convert, fit
from spikeprop.ann import TorchvisionModel
from spikeprop.learn import BPTT, Backprop, Callback, LearningRule, TrainingState, shard
from spikeprop.runtime.processes import ALONE, Processes

NETWORKS = ("ANN, Wide ResNet-101-2", "SNN, VGG16")
MIB = 2**20


class Watch(Callback):
    """Peak memory and times of the steps after the first."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step(self, training: TrainingState) -> None:
        if training.step == 1:
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Of a step."""
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)


def resident(kind: str) -> float:
    """MiB now ("RSS") or at most so far ("HWM")."""
    found = re.search(rf"Vm{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    for name, default in {"batch": 8, "steps": 4, "timesteps": 4, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--small", action="store_true", help="smaller networks, to see that it runs")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    found = {name: _measured(name, options) for name in NETWORKS}
    save(__file__, options, measured=found)


def _measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for world in options.processes:
        for sharded in (False, True) if world > 1 else (False,):
            rows.append({"processes": world, "sharded": sharded, **_together(name, world, sharded, options)})
            row = rows[-1]
            how = "a part each" if sharded else "all of it each"
            print(f"{name}, {world} processes, {how}: {row['peak_mib']:,.0f} MiB at most in one, {row['seconds']:.2f} s a step")
    parameters = sum(p.numel() for p in _network(name, options)[0].parameters())
    return {"parameters": parameters, "parameters_mib": 4 * parameters / MIB, "rows": rows}


def _together(name: str, world: int, sharded: bool, options: argparse.Namespace) -> dict[str, float]:
    """The largest peak of the processes, and the seconds of a step."""
    os.environ |= GIVE_BACK
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(partial(_process, name=name, world=world, sharded=sharded, options=options, folder=Path(folder)), nprocs=world)
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(world)]
    return {key: max(one[key] for one in found) for key in found[0]}


def _network(name: str, options: argparse.Namespace) -> tuple[nn.Module, LearningRule]:
    torch.manual_seed(options.seed)
    if name.startswith("ANN"):
        return TorchvisionModel(name="resnet18" if options.small else "wide_resnet101_2", classes=10), Backprop()
    return _spiking(VGG(depth=5 if options.small else 16)), BPTT(timesteps=options.timesteps)


def _tiny(name: str) -> tuple[nn.Module, LearningRule]:
    ann = CNN(input_shape=(3, 32, 32), classes=10, plan=[4, "A"], hidden=[8])
    return (ann, Backprop()) if name.startswith("ANN") else (_spiking(ann), BPTT(timesteps=2))


def _spiking(ann: nn.Module) -> SpikingNetwork:
    return convert(ann, [torch.rand(2, 3, 32, 32)], IF(v_init=0.5), MaxActivation(), encoder=Direct())


def _train(
    model: nn.Module, rule: LearningRule, group: Processes, sharded: bool, options: argparse.Namespace, watch: Watch
) -> None:
    if sharded:
        shard(model, group, torch.device("cpu"))
    batches = [(torch.rand(options.batch, 3, 32, 32), torch.arange(options.batch) % 10)] * options.steps
    fit(model, rule, batches, torch.optim.Adam(model.parameters(), lr=1e-5), epochs=1, processes=group, callbacks=[watch])


def _process(rank: int, name: str, world: int, sharded: bool, options: argparse.Namespace, folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    group = Processes(rank, world, rank) if world > 1 else ALONE
    _train(*_tiny(name), group, sharded, options, Watch())  # libraries and kernels are loaded
    gc.collect()
    idle, watch = resident("RSS"), Watch()
    _train(*_network(name, options), group, sharded, options, watch)
    found = {"peak_mib": resident("HWM") - idle, "seconds": watch.seconds}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
