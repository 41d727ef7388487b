"""``simulate``: a NIR file and inputs in, every spike and output out, by way of Lava in its own environment."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import nir
import numpy as np

from spikeprop_hardware.environment import lava_python
from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.plan import make_plan


@dataclass(frozen=True)
class Simulation:
    """Result: ``spikes[node]`` (samples, steps, *shape) bool; ``output`` (samples, steps, classes), accumulated from the
    network's ``readout_from`` on."""

    spikes: dict[str, np.ndarray]
    output: np.ndarray


PATIENCE = 600.0
Steps = tuple[int, int]  # time steps done, all


def _silent(*_: object) -> None:
    return None


def simulate(
    network: str | Path,
    inputs: np.ndarray,
    *,
    notify: Callable[[str], None] = _silent,
    progress: Callable[[int, int], None] = _silent,
    patience: float = PATIENCE,
) -> Simulation:
    """Run a network on Lava.

    Args:
        network: NIR file.
        inputs: what the network reads at each step, (samples, steps, *shape); each sample starts from rest.
        notify: told once where the environment is made.
        progress: told (time steps done, all).
        patience: seconds without progress after which the simulation is ended, for Lava can hang.

    Raises:
        HardwareError: naming what is wrong with the network, the inputs or the environment; or Lava hangs.
    """
    plan = make_plan(nir.read(str(network)))  # refuses here, before an environment is made
    if inputs.ndim < 3 or inputs.shape[2:] != plan.input_shape or 0 in inputs.shape:
        raise HardwareError(f"inputs have shape {inputs.shape}; the network reads (samples, steps, {plan.input_shape})")
    if not np.isfinite(inputs).all():
        raise HardwareError("inputs hold NaN or infinity")
    python = lava_python(notify)
    with tempfile.TemporaryDirectory(prefix="spikeprop-lava-") as folder:
        here = Path(folder)
        shutil.copytree(Path(__file__).parent, here / "spikeprop_hardware", ignore=shutil.ignore_patterns("__pycache__"))
        np.savez(here / "inputs.npz", inputs=inputs)
        _run(python, here, Path(network).resolve(), progress, patience)
        with np.load(here / "result.npz") as file:
            output = file["output"]
            spikes = {
                p.name: np.unpackbits(file[f"spikes/{p.name}"], axis=-1, count=len(p.bias))
                .astype(bool)
                .reshape(*inputs.shape[:2], *p.shape)
                for p in plan.populations[:-1]
            }
    return Simulation(spikes, less_the_first(output, plan.readout_from))


def less_the_first(output: np.ndarray, delay: int) -> np.ndarray:
    """Accumulated outputs (samples, steps, classes), less the one after ``delay`` steps once more steps have passed."""
    if 0 < delay < output.shape[1]:
        output[:, delay:] -= output[:, delay - 1 : delay].copy()
    return output


def _run(python: Path, here: Path, network: Path, progress: Callable[[int, int], None], patience: float) -> None:
    """Run the worker; only this package is on its path, for the caller's libraries are of another Python."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYENV"))} | {"PYTHONPATH": str(here)}
    command = [str(python), "-m", "spikeprop_hardware.worker", str(network), "inputs.npz", "result.npz"]
    tail: deque[str] = deque(maxlen=30)
    worker = subprocess.Popen(
        command,
        cwd=here,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a process group of its own, so that Lava's own processes end with it
    )
    try:
        _follow(worker, tail, progress, patience)
    except (queue.Empty, subprocess.TimeoutExpired):
        raise HardwareError(f"Lava made no progress for {patience:g} s and was ended; it said last:\n{''.join(tail)}") from None
    finally:
        if worker.returncode is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
    if worker.returncode != 0 or not (here / "result.npz").exists():
        raise HardwareError(f"the Lava simulation failed (exit status {worker.returncode}):\n{''.join(tail)}")


def _follow(worker: subprocess.Popen[str], tail: deque[str], progress: Callable[[int, int], None], patience: float) -> None:
    """Pass on the worker's progress until it ends; queue.Empty or TimeoutExpired after ``patience`` seconds without any."""
    reports: queue.SimpleQueue[Steps | None] = queue.SimpleQueue()
    assert worker.stdout is not None
    threading.Thread(target=_listen, args=(worker.stdout, tail, reports), daemon=True).start()
    while (report := reports.get(timeout=patience)) is not None:
        progress(*report)
    worker.wait(timeout=patience)


def _listen(stdout: IO[str], tail: deque[str], reports: queue.SimpleQueue[Steps | None]) -> None:
    """Read to the end: "progress DONE ALL" goes to ``reports``, then None; all else to ``tail``."""
    with stdout:
        for line in stdout:
            words = line.split()
            if len(words) == 3 and words[0] == "progress":
                reports.put((int(words[1]), int(words[2])))
            else:
                tail.append(line)
    reports.put(None)
