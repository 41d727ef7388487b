"""``simulate``: a NIR file and inputs in, every spike and output out, by way of Lava in its own environment or of the reference
simulator here; in floating point or in the chip's integers."""

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, get_args

import numpy as np

from spikeprop_hardware.environment import lava_python
from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.integer import IntegerNetwork, IntegerPopulation, save
from spikeprop_hardware.plan import Plan, make_plan
from spikeprop_hardware.quantize import quantize_plan
from spikeprop_hardware.reading import read_graph
from spikeprop_hardware.reference import Simulator


@dataclass(frozen=True)
class Simulation:
    """Result.

    Attributes:
        spikes: by node, (samples, steps, *shape) bool; empty where they were not to be recorded.
        output: (samples, steps, classes), accumulated from the network's ``readout_from`` on, in real units in either precision.
        membranes: by node, (samples, steps, *shape): potentials after each step's reset, with fixed precision in the chip's
            integers; of max pooling, a window's largest count; empty unless asked for.
        counts: spikes by node, over all samples and steps.
    """

    spikes: dict[str, np.ndarray]
    output: np.ndarray
    membranes: dict[str, np.ndarray] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a simulation keeps: every spike (bytes: samples * steps * neurons), every potential (slow on Lava)."""

    spikes: bool = True
    membranes: bool = False


PATIENCE = 600.0
Backend = Literal["lava", "reference"]
Precision = Literal["float", "fixed"]
Steps = tuple[int, int]  # time steps done, all
Network = Plan | IntegerNetwork
Source = str | Path | IntegerNetwork | Simulator


def _silent(*_: object) -> None:
    return None


def simulate(
    network: Source,
    inputs: np.ndarray,
    *,
    backend: Backend = "lava",
    precision: Precision = "float",
    record: Recording = Recording(),
    notify: Callable[[str], None] = _silent,
    progress: Callable[[int, int], None] = _silent,
    patience: float = PATIENCE,
) -> Simulation:
    """Run a network.

    Args:
        network: NIR file; what ``quantize`` made (precision is then "fixed"); or, for the reference, a ``Simulator`` of either,
            which is ready and can be used for many inputs.
        inputs: what the network reads at each step, (samples, steps, *shape); each sample starts from rest. A constant input
            may be ``np.broadcast_to`` over the steps.
        backend: "lava", Lava's CPU simulation in its own Python 3.10, or "reference", the batched simulator of reference.py.
        precision: "float" or "fixed": the chip's integers, which a NIR file is quantised to for inputs of this size.
        record: what to keep.
        notify: told once where Lava's environment is made.
        progress: told (time steps done, all).
        patience: seconds without progress after which Lava is ended, for it can hang.

    Raises:
        HardwareError: naming what is wrong with the network, the inputs or the environment; or Lava hangs.
    """
    if isinstance(network, Simulator) and (backend != "reference" or network.fixed != (precision == "fixed")):
        raise HardwareError(f"a Simulator runs on the reference, this one with precision {'fixed' if network.fixed else 'float'}")
    if backend not in get_args(Backend) or precision not in get_args(Precision):
        raise HardwareError(f"backend {backend!r} with precision {precision!r}: there are lava, reference; and float, fixed")
    plan = _network(network, inputs, precision)  # refuses here, before an environment is made
    if backend == "reference":
        simulator = network if isinstance(network, Simulator) else Simulator(plan)
        result = simulator.run(inputs, record=record.spikes, membranes=record.membranes, progress=progress)
        return _simulation(plan, inputs, result.spikes, result.output, result.membranes, result.counts)
    python = lava_python(notify)
    with tempfile.TemporaryDirectory(prefix="spikeprop-lava-") as folder:
        here = Path(folder)
        shutil.copytree(Path(__file__).parent, here / "spikeprop_hardware", ignore=shutil.ignore_patterns("__pycache__"))
        if isinstance(plan, IntegerNetwork):
            file = here / "network.npz"
            save(plan, file)
            data = plan.encode(inputs)
        else:
            assert isinstance(network, str | Path)
            file, data = Path(network).resolve(), inputs.astype(np.float64)
        np.savez(here / "inputs.npz", inputs=data, membranes=record.membranes)
        _run(python, here, file, progress, patience)
        with np.load(here / "result.npz") as found:
            arrays = {name: found[name] for name in found.files}
    spikes = {p.name: _trains(arrays, p.name, len(p.bias)) for p in plan.populations[:-1]}
    membranes = {p.name: arrays[f"membranes/{p.name}"] for p in plan.populations[:-1] if record.membranes}
    counts = {name: int(np.count_nonzero(train)) for name, train in spikes.items()}
    return _simulation(plan, inputs, spikes if record.spikes else {}, arrays["output"], membranes, counts)


def _network(network: Source, inputs: np.ndarray, precision: Precision) -> Network:
    """The network laid out, or quantised; inputs that do not fit it are refused."""
    shown = inputs[:, :1] if inputs.ndim > 1 and inputs.strides[1] == 0 else inputs
    made = network.network if isinstance(network, Simulator) else network
    plan = make_plan(read_graph(made)) if isinstance(made, str | Path) else made
    if isinstance(plan, IntegerNetwork) and precision != "fixed":
        raise HardwareError("this network is in integers; simulate it with precision fixed")
    if inputs.ndim < 3 or inputs.shape[2:] != plan.input_shape or 0 in inputs.shape:
        raise HardwareError(f"inputs have shape {inputs.shape}; the network reads (samples, steps, {plan.input_shape})")
    if not np.isfinite(shown).all():
        raise HardwareError("inputs hold NaN or infinity")
    if precision == "fixed" and isinstance(plan, Plan):
        return quantize_plan(plan, float(np.abs(shown).max())).network
    return plan


def _trains(arrays: dict[str, np.ndarray], name: str, count: int) -> np.ndarray:
    """Spikes (samples, steps, neurons): bool, or int8 where the worker wrote spikes that were taken back."""
    fired = _bits(arrays[f"spikes/{name}"], count)
    back = arrays.get(f"back/{name}")
    return fired if back is None else fired.astype(np.int8) - _bits(back, count)


def _bits(packed: np.ndarray, count: int) -> np.ndarray:
    return np.unpackbits(packed, axis=-1, count=count).astype(bool)


def _simulation(
    plan: Network,
    inputs: np.ndarray,
    spikes: dict[str, np.ndarray],
    output: np.ndarray,
    membranes: dict[str, np.ndarray],
    counts: dict[str, int],
) -> Simulation:
    """Flat arrays in the populations' shapes, the output in real units and from ``readout_from`` on."""
    shapes = {p.name: (*inputs.shape[:2], *p.shape) for p in plan.populations[:-1]}
    last = plan.populations[-1]
    output = less_the_first(output, plan.readout_from)
    return Simulation(
        {name: train.reshape(shapes[name]) for name, train in spikes.items()},
        output * last.unit if isinstance(last, IntegerPopulation) else output,
        {name: trace.reshape(shapes[name]) for name, trace in membranes.items()},
        counts,
    )


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
