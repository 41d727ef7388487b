"""The machine, in a process of its own like every part: the process that runs the parts never touches CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.common import machine
from benchmarks.gpu.parts import Context


def run(context: Context) -> Iterator[dict[str, Any]]:
    """One record."""
    found = machine()
    for name in ("triton", "cupy-cuda13x", "cupy-cuda12x", "torchvision"):
        try:
            found["versions"][name] = version(name)
        except PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["cuda"] = {
            "runtime": torch.version.cuda,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": properties.total_memory / 2**30,
        }
    yield found
