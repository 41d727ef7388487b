"""A vendor's simulator in an environment of its own: jobs are arrays in one file, and so are their results.

A job is what one of the modules ``*_worker`` needs to simulate a network on some samples. Many jobs share a process, for starting
one takes longer than most of them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spikeprop_hardware.errors import HardwareError

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Rounding:
    """What a chip's integers do to one layer, as ``quantization.LayerReport`` says it.

    Attributes:
        name: of the layer.
        weights: how many there are.
        weight_error: root mean square of (rounded - weight) over that of the weights.
        saturated: of them, those clipped at the ends of the range.
        bits: that mantissas take.
    """

    name: str
    weights: int
    weight_error: float
    saturated: int
    bits: int


def rounding(name: str, wanted: np.ndarray, held: np.ndarray, largest: int) -> Rounding:
    """Of a layer's weights, none of which is clipped.

    Args:
        wanted, held: weights and what stands for them, one by one.
        largest: mantissa, as a size.
    """
    energy = float((wanted**2).sum())
    error = float(((held - wanted) ** 2).sum() / energy) ** 0.5 if energy else 0.0
    return Rounding(name, len(wanted), error, 0, int(largest).bit_length() + 1)


def refuse(layer: str, unable: Mapping[str, bool]) -> None:
    """Raise HardwareError with the first of the messages that is so of a layer."""
    wrong = next((what for what, is_so in unable.items() if is_so), None)
    if wrong:
        raise HardwareError(f"layer {layer!r} {wrong}")


def run_jobs(environment: object, worker: str, jobs: Sequence[Arrays], notify: Callable[[str], None]) -> list[Arrays]:
    """Run jobs in a vendor's environment.

    Args:
        environment: an ``Environment``, which is made where it is missing.
        worker: name of a module of this package, which calls ``serve``.
        jobs: whose arrays have names without a slash at the start.
        notify: called with a message when the environment is made.

    Raises:
        SimulatorMissing: the environment cannot be made.
        HardwareError: the simulator failed.
    """
    from spikeprop_hardware.environment import Environment
    from spikeprop_hardware.workers import PATIENCE, copy_package, run_worker

    assert isinstance(environment, Environment)
    python = environment.python(notify)
    with tempfile.TemporaryDirectory(prefix="spikeprop-vendor-") as temporary:
        folder = Path(temporary)
        copy_package(folder)
        _write(folder / "jobs.npz", jobs)
        command = [str(python), "-m", f"spikeprop_hardware.vendors.{worker}"]
        run_worker(environment.title, command, folder, lambda *_: None, PATIENCE)
        return _read(folder / "result.npz")


def serve(simulate: Callable[[Arrays], Arrays]) -> None:
    """In the vendor's environment: run ``simulate`` on each job of jobs.npz, and write result.npz."""
    jobs = _read(Path("jobs.npz"))
    results = []
    for done, job in enumerate(jobs, 1):
        results.append(simulate(job))
        sys.stdout.write(f"progress {done} {len(jobs)}\n")
        sys.stdout.flush()
    _write(Path("result.npz"), results)


def _write(path: Path, jobs: Sequence[Arrays]) -> None:
    arrays: Any = {f"{i}/{key}": value for i, job in enumerate(jobs) for key, value in job.items()}
    np.savez(path, jobs=len(jobs), **arrays)


def _read(path: Path) -> list[Arrays]:
    jobs: list[Arrays]
    with np.load(path) as file:
        jobs = [{} for _ in range(int(file["jobs"]))]
        for name in file.files:
            number, slash, key = name.partition("/")
            if slash:
                jobs[int(number)][key] = file[name]
    return jobs
