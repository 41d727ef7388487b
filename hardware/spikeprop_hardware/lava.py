"""Lava in its own Python: the network and its inputs are written to a folder, ``worker`` reads them there and writes the result.

workers.py starts and follows it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from spikeprop_hardware.environment import lava_python
from spikeprop_hardware.errors import HardwareError
from spikeprop_hardware.integer import STATE_BITS, IntegerNetwork, save
from spikeprop_hardware.recording import SimulationResult
from spikeprop_hardware.workers import copy_package, run_worker

INSTEAD = "or take backend reference, which equals Lava and needs no process of its own; "


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
        copy_package(folder)
        if isinstance(network, IntegerNetwork):
            narrow = [p.name for p in network.populations if p.state_bits != STATE_BITS]
            if narrow:
                raise HardwareError(f"layers {', '.join(narrow)} have narrower state than Lava's 24 bits; use backend reference")
            file, data = folder / "network.npz", network.encode(inputs)
            save(network, file)
        else:
            file, data = network.resolve(), inputs.astype(np.float64)
        np.savez(folder / "inputs.npz", inputs=data, membranes=membranes)
        command = [str(python), "-m", "spikeprop_hardware.worker", str(file), "inputs.npz", "result.npz"]
        run_worker("Lava", command, folder, progress, patience, INSTEAD)
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
