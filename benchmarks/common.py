"""What the benchmarks share: a process for each contender (its memory is its own), medians, the table, the JSON with machine."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

OURS = "spikeprop"


def resident_mib(field: str) -> float:
    """VmRSS (now) or VmHWM (the highest since ``reset_peak``) of this process, MiB; Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this benchmark needs Linux")


def reset_peak() -> None:
    """Start VmHWM anew from the present size."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(action: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Seconds of each repeat after one warm-up, and the peak memory above what was resident before the first."""
    reset_peak()
    idle = resident_mib("VmRSS")
    action()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "median": statistics.median(seconds), "peak_mib": resident_mib("VmHWM") - idle}


def in_own_process(script: str, contender: str, arguments: list[str]) -> dict[str, Any] | None:
    """Run ``script --only contender`` and return the JSON on its last line; None where the contender is not installed."""
    command = [sys.executable, script, "--only", contender, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if "ModuleNotFoundError" in done.stderr:
        return None
    raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")


def machine() -> dict[str, Any]:
    """Processor, cores, versions and commit of this run."""
    versions = {}
    for name in ("torch", "spikeprop", "snntorch", "norse", "spikingjelly", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    here = Path(__file__).parent
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=here)
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": git.stdout.strip(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def table(results: dict[str, dict[str, Any] | None]) -> str:
    """Median, best and peak of each contender, and the ratio of the best peer to ours."""
    lines = [f"{'':<14}{'median s':>10}{'best s':>10}{'peak MiB':>10}"]
    for name, result in results.items():
        if result is None:
            lines.append(f"{name:<14}{'not installed':>30}")
        else:
            lines.append(f"{name:<14}{result['median']:>10.3f}{min(result['seconds']):>10.3f}{result['peak_mib']:>10.0f}")
    peers = [r for name, r in results.items() if r is not None and name != OURS]
    ours = results.get(OURS)
    if ours is not None and peers:
        time_ratio = min(r["median"] for r in peers) / ours["median"]
        memory_ratio = min(r["peak_mib"] for r in peers) / ours["peak_mib"]
        lines.append(f"best peer / {OURS}: time {time_ratio:.2f}, memory {memory_ratio:.2f}")
    return "\n".join(lines)
