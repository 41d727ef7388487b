"""Model-parallel training: interlocking backpropagation with one process per segment, and the schedules of PyTorch.

python benchmarks/interlocking.py --processes 2 4 --steps 4 --out results/benchmarks/interlocking.json

The network is the paper's ResNet-32 at --width; each process has one thread and one segment, over gloo. Throughput is images
per second of --steps batches after one warm-up batch, with the same random images for all; idle is the fraction of time that a
segment waits for a neighbour (only ours; PyTorch's schedules do not report it). If there are fewer cores than processes, they
share them, so real processes cannot be faster than one: the possible speed with one device per segment is *simulated* from
segment times measured in one process. Peers: torch.distributed.pipelining.
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

from spikeprop.plugins.interlocking import BasicResNet, ConvHead, Interlocking, SegmentProcess
from spikeprop.plugins.interlocking.schedule import measure_times, simulate

REACHES: dict[str, int | None] = {"local": 1, "pairwise": 2, "3-wise": 3, "global": None}
PEERS = ("GPipe", "1F1B")


def main(argv: Sequence[str] | None = None) -> None:
    options = _options(argv)
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for world in options.processes:
        real = {name: _in_processes(name, world, options) for name in (*REACHES, *PEERS)}
        found[str(world)] = {"processes": real, "simulated": _simulated(world, options)}
        _show(world, found[str(world)])
    save(__file__, options, stages=found)  # the key of the files in results/


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    for name, default in {"width": 16, "batch": 32, "microbatches": 4, "steps": 4, "size": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--out", type=Path)
    return parser.parse_args(argv)


def _network(options: argparse.Namespace) -> tuple[BasicResNet, Tensor, Tensor]:
    torch.manual_seed(0)
    model = BasicResNet(input_shape=(3, options.size, options.size), width=options.width).train()
    return model, torch.rand(options.batch, 3, options.size, options.size), torch.arange(options.batch) % 10


def _rule(name: str, world: int, options: argparse.Namespace, model: nn.Module, x: Tensor) -> Interlocking:
    head = ConvHead(widths=[2 * options.width, options.width])
    rule = Interlocking(cuts=world, reach=REACHES.get(name), head=head, microbatches=options.microbatches)
    torch.manual_seed(1)
    rule.prepare(model, x)
    return rule


# processes --------------------------------------------------------------------------------------------------------------------


def _in_processes(name: str, world: int, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_process, (name, world, options, folder), nprocs=world)
        results = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(world)]
    seconds = max(one["seconds"] for one in results)
    return {"images_per_second": options.batch * options.steps / seconds, "idle": [one["idle"] for one in results]}


def _process(rank: int, name: str, world: int, options: argparse.Namespace, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the peers' own
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    model, x, y = _network(options)
    rule = _rule(name, world, options, model, x)
    run = _peer(name, rank, world, options, rule, model) if name in PEERS else _ours(rule, model, x)
    run(x, y, 1)
    dist.barrier()
    started = time.perf_counter()
    idle = run(x, y, options.steps)
    seconds = time.perf_counter() - started
    dist.barrier()
    (Path(folder) / f"{rank}.json").write_text(json.dumps({"seconds": seconds, "idle": idle}))
    dist.destroy_process_group()


def _ours(rule: Interlocking, model: nn.Module, x: Tensor) -> Any:
    process = SegmentProcess(model, rule, x)
    optimizer = torch.optim.SGD(process.parameters(), lr=0.01)

    def run(x: Tensor, y: Tensor, steps: int) -> float:
        process.clock.busy = process.clock.idle = 0.0
        process.train([(x, y)] * steps, optimizer)
        return process.clock.idle_share

    return run


def _peer(name: str, rank: int, world: int, options: argparse.Namespace, rule: Interlocking, model: nn.Module) -> Any:
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

    module = rule.graph(model).segments[rank].module
    segment = PipelineStage(module, rank, world, torch.device("cpu"))
    kind = ScheduleGPipe if name == "GPipe" else Schedule1F1B
    schedule = kind(segment, options.microbatches, loss_fn=nn.functional.cross_entropy)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)

    def run(x: Tensor, y: Tensor, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            given: Any = {"target": y} if rank == world - 1 else {}
            schedule.step(*([x] if rank == 0 else []), **given)
            optimizer.step()

    return run


# simulation -------------------------------------------------------------------------------------------------------------------


def _simulated(world: int, options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    model, x, y = _network(options)
    size = options.batch // options.microbatches
    for name in (*REACHES, *PEERS):
        rule = _rule(name, world, options, model, x)
        times = measure_times(rule, model, x[:size], y[:size])
        places = rule.places(rule.graph(model))
        result = simulate(times, places, options.microbatches, options.steps, all_forward_first=name == "GPipe")
        found[name] = {"images_per_second": options.batch * options.steps / result.seconds, "idle": result.idle}
    return found


def _show(world: int, found: dict[str, Any]) -> None:
    print(f"\n{world} segments{'':<12}processes, images/s   idle by segment          simulated, images/s   idle by segment")
    for name, real in found["processes"].items():
        simulated = found["simulated"][name]
        print(f"{name:<20} {real['images_per_second']:>18.1f}   {_shares(real['idle']):<22} "
              f"{simulated['images_per_second']:>19.1f}   {_shares(simulated['idle'])}")  # fmt: skip


def _shares(idle: list[float | None]) -> str:
    return " ".join("  -" if share is None else f"{100 * share:2.0f}%" for share in idle)


if __name__ == "__main__":
    main()
