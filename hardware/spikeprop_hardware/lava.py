"""Lava in its own Python: the network and its inputs are written to a folder, ``worker`` reads them there and writes the result.

Only a copy of this package is on the worker's path, for the caller's libraries are of another Python.
"""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from spikeprop_hardware.environment import lava_python
from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.integer import STATE_BITS, IntegerNetwork, save
from spikeprop_hardware.recording import SimulationResult

Steps = tuple[int, int]  # time steps done, all


def run_lava(
    network: Path | IntegerNetwork,
    inputs: np.ndarray,
    *,
    membranes: bool,
    notify: Callable[[str], None],
    progress: Callable[[int, int], None],
    patience: float,
) -> SimulationResult:
    """Run a network on Lava's CPU simulation.

    Args:
        network: NIR file, or integers.
        inputs: (samples, steps, *shape).
        membranes: record potentials.
        notify, progress, patience: as of ``simulate``.

    Returns:
        flat arrays (samples, steps, neurons).

    Raises:
        HardwareError: there is no Python 3.10 or no Lava, the simulation failed, or made no progress.
    """
    python = lava_python(notify)
    with tempfile.TemporaryDirectory(prefix="spikeprop-lava-") as temporary:
        folder = Path(temporary)
        shutil.copytree(Path(__file__).parent, folder / "spikeprop_hardware", ignore=shutil.ignore_patterns("__pycache__"))
        if isinstance(network, IntegerNetwork):
            narrow = [p.name for p in network.populations if p.state_bits != STATE_BITS]
            if narrow:
                raise HardwareError(f"layers {', '.join(narrow)} have narrower state than Lava's 24 bits; use backend reference")
            file, data = folder / "network.npz", network.encode(inputs)
            save(network, file)
        else:
            file, data = network.resolve(), inputs.astype(np.float64)
        np.savez(folder / "inputs.npz", inputs=data, membranes=membranes)
        _run_worker(python, folder, file, progress, patience)
        with np.load(folder / "result.npz") as found:
            arrays = {name: found[name] for name in found.files}
    sizes = dict(zip(arrays["names"].tolist(), arrays["sizes"].tolist()))
    spikes = {name: _train(arrays[f"spikes/{name}"], size) for name, size in sizes.items()}
    potentials = {name: arrays[f"membranes/{name}"] for name in sizes if membranes}
    counts = {name: int(np.count_nonzero(train)) for name, train in spikes.items()}
    clipped = dict(zip(arrays["clipped"].tolist(), arrays["times"].tolist()))
    return SimulationResult(spikes, arrays["output"], potentials, counts, clipped)


def _train(written: np.ndarray, count: int) -> np.ndarray:
    """Spikes (samples, steps, neurons): bool where the worker wrote bits, else int8."""
    return np.unpackbits(written, axis=-1, count=count).astype(bool) if written.dtype == np.uint8 else written


def _run_worker(python: Path, folder: Path, network: Path, progress: Callable[[int, int], None], patience: float) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYENV"))} | {"PYTHONPATH": str(folder)}
    command = [str(python), "-m", "spikeprop_hardware.worker", str(network), "inputs.npz", "result.npz"]
    tail: deque[str] = deque(maxlen=30)
    reached: list[Steps] = []
    worker = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a process group of its own, so that Lava's own processes end with it
    )
    try:
        _follow(worker, tail, reached, progress, patience)
    except (queue.Empty, subprocess.TimeoutExpired):
        where = f"after step {reached[-1][0]} of {reached[-1][1]}" if reached else "before its first step"
        raise HardwareError(
            f"Lava's worker (process {worker.pid}) made no progress for {patience:g} s {where} and was ended: run it again, on a "
            "machine that is less busy if there is one; or take backend reference, which equals Lava and needs no process of its "
            f"own; or, where a slice of this run may take so long, a longer patience. Its last output:\n{''.join(tail) or 'none'}"
        ) from None
    finally:
        if worker.returncode is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
    if worker.returncode != 0 or not (folder / "result.npz").exists():
        raise HardwareError(f"the Lava simulation failed (exit status {worker.returncode}):\n{''.join(tail)}")


def _follow(
    worker: subprocess.Popen[str],
    tail: deque[str],
    reached: list[Steps],
    progress: Callable[[int, int], None],
    patience: float,
) -> None:
    """Pass on the worker's progress until it ends, each in ``reached`` too; queue.Empty or TimeoutExpired after ``patience``
    seconds without any."""
    reports: queue.SimpleQueue[Steps | None] = queue.SimpleQueue()
    assert worker.stdout is not None
    threading.Thread(target=_listen, args=(worker.stdout, tail, reports), daemon=True).start()
    while (report := reports.get(timeout=patience)) is not None:
        reached.append(report)
        progress(*report)
    worker.wait(timeout=patience)


def _listen(stdout: IO[str], tail: deque[str], reports: queue.SimpleQueue[Steps | None]) -> None:
    """Read to the end: "progress DONE ALL" goes to ``reports``, then None; every other line to ``tail``."""
    with stdout:
        for line in stdout:
            words = line.split()
            if len(words) == 3 and words[0] == "progress":
                reports.put((int(words[1]), int(words[2])))
            else:
                tail.append(line)
    reports.put(None)
