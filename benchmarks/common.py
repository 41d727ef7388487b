"""Shared code of the benchmarks: options, one process per contender (for separate memory), medians, the table, the JSON."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from spikeprop.runtime.files import write_json

OURS = "spikeprop"
Result = dict[str, Any]
Results = dict[str, Result | None]  # None: not installed
PARENT_ONLY = ("only", "contenders", "out", "plot")  # options that are not passed to a contender's process


def option_parser(description: str | None, contenders: Sequence[str], **whole_numbers: int) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark, and integers with their defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {**whole_numbers, "seed": 0}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--device", default="cpu", help="default cpu")
    parser.add_argument("--contenders", nargs="+", choices=contenders, default=list(contenders), help="default all")
    parser.add_argument("--only", choices=contenders, help="measure one in this process and print JSON")
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options; torch uses one thread per core."""
    torch.set_num_threads(os.cpu_count() or 1)
    return parser.parse_args(argv)


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """The options that define the measurement, as JSON values."""
    found = {name: value for name, value in vars(options).items() if name not in PARENT_ONLY}
    return {name: str(value) if isinstance(value, Path) else value for name, value in found.items()}


def in_own_process(
    script: str, contender: str, given: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> Result | None:
    """The JSON on the last line of ``script --only contender`` with these settings; None if the contender is not installed."""
    command = [sys.executable, script, "--only", contender]
    for name, value in given.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            command += [f"--{name.replace('_', '-')}", *map(str, values)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})})
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if "ModuleNotFoundError" in done.stderr:
        return None
    raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")


def measure(
    action: Callable[[], Any],
    repeats: int,
    *,
    prepare: Callable[[], Any] | None = None,
    warm_ups: int = 1,
    device: str = "cpu",
) -> Result:
    """Seconds of each repeat after the warm-ups, and their peak memory above the idle memory.

    Args:
        action: the measured function.
        repeats: number of timed calls.
        prepare: a small form of the action that loads libraries and compiled kernels before memory is measured.
        warm_ups: number of calls that are not timed.
        device: "cpu": memory of the process; "cuda": memory of torch's tensors on the device.
    """
    cuda = torch.device(device).type == "cuda"
    synchronize = torch.cuda.synchronize if cuda else lambda: None
    if prepare is not None:
        prepare()
    synchronize()
    idle = _held_mib(cuda)
    _reset_peak(cuda)
    for _ in range(warm_ups):
        action()
    seconds = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        action()
        synchronize()
        seconds.append(time.perf_counter() - start)
    peak = peak_mib(device) - idle
    return {"seconds": seconds, "median": statistics.median(seconds), "idle_mib": idle, "peak_mib": peak}


def _resident_mib(field: str) -> float:
    """VmRSS (now) or VmHWM (the highest since it was reset) of this process, MiB; Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this benchmark needs Linux")


def _held_mib(cuda: bool) -> float:
    if cuda:
        return torch.cuda.memory_allocated() / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # returns free memory to the system
    return _resident_mib("VmRSS")


def _reset_peak(cuda: bool) -> None:
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib(device: str) -> float:
    """Peak memory since the start of the measurement, MiB."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.device(device).type == "cuda" else _resident_mib("VmHWM")


def machine() -> dict[str, Any]:
    """Processor, cores, threads, versions and commit of this run."""
    versions = {}
    for name in ("torch", "spikeprop", "snntorch", "norse", "spikingjelly", "numpy", "numba", "xad"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    here = Path(__file__).parent
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=here)
    return {
        "cpu": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": git.stdout.strip(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def ratios(results: Results) -> dict[str, float]:
    """Best peer / ours in median time and in peak memory; empty if either is missing."""
    ours, peers = results.get(OURS), [r for name, r in results.items() if r is not None and name != OURS]
    if ours is None or not peers:
        return {}
    return {
        "time": min(r["median"] for r in peers) / ours["median"],
        "memory": min(r["peak_mib"] for r in peers) / ours["peak_mib"],
    }


def table(results: Results, columns: Mapping[str, Callable[[Result], str]] | None = None) -> str:
    """Median, best, peak and further columns of each contender, and the ratios of the best peer to ours."""
    shown = {
        "median s": lambda r: f"{r['median']:.3f}",
        "best s": lambda r: f"{min(r['seconds']):.3f}",
        "peak MiB": lambda r: f"{r['peak_mib']:.0f}",
        **(columns or {}),
    }
    lines = [f"{'':<15}" + "".join(f"{title:>12}" for title in shown)]
    for name, result in results.items():
        cells = [text(result) for text in shown.values()] if result is not None else ["absent"]
        lines.append(f"{name:<15}" + "".join(f"{cell:>12}" for cell in cells))
    found = ", ".join(f"{what} {ratio:.2f}" for what, ratio in ratios(results).items())
    return "\n".join([*lines, f"best peer / {OURS}: {found}"] if found else lines)


def save(script: str, options: argparse.Namespace, **found: Any) -> None:
    """Write results, settings and machine to ``--out`` if it is given."""
    if options.out:
        about = {"benchmark": Path(script).stem, "settings": settings(options), "machine": machine()}
        write_json(options.out, {**about, **found})
