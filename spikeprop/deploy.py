"""Deployment: write a network as NIR, run the file on Lava, and compare every spike with PyTorch's.

PyTorch runs in float64, as Lava does, on the very inputs that Lava is given: the encoder draws once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor

from spikeprop.errors import HardwareError
from spikeprop.files import write_atomically
from spikeprop.nir import to_nir
from spikeprop.progress import bar
from spikeprop.snn import INPUT, SpikingNetwork


def export(network: SpikingNetwork, path: Path) -> None:
    """Write the network to a NIR file, atomically."""
    graph = to_nir(network)
    write_atomically(path, lambda temporary: nir.write(str(temporary), graph))


@torch.no_grad()
def record(network: SpikingNetwork, images: Tensor, timesteps: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Every spike of a simulation in float64.

    Args:
        network: left as it is; a float64 copy runs.
        images: (B, ...).
        timesteps: steps.

    Returns:
        by layer, and "input" for what the encoder made: (B, T, ...) float64; and the accumulated output (B, T, K).
    """
    trains: dict[str, list[Tensor]] = {}

    def observe(name: str, spikes_TB: Tensor) -> None:
        trains.setdefault(name, []).append(spikes_TB.clone())

    exact = copy.deepcopy(network).cpu().double().eval()
    outputs = list(exact.unroll(images.cpu().double(), timesteps, chunk=1, observe=observe))
    spikes = {name: torch.cat(steps).transpose(0, 1).numpy() for name, steps in trains.items()}
    return spikes, torch.cat(outputs).transpose(0, 1).numpy()


def compare_on_lava(
    network: SpikingNetwork, file: Path, images: Tensor, labels: Tensor, timesteps: int, notify: Callable[[str], None]
) -> dict[str, Any]:
    """Run a NIR file on Lava and compare with the network it was written from.

    Returns:
        samples, agreement (percent of equal predictions), spikes_equal (every train of every layer), spikes (how many were
        compared), mismatches by layer, output_error (largest absolute difference), accuracy of both on these images.

    Raises:
        HardwareError: spikeprop-hardware or Python 3.10 is missing, or Lava failed.
    """
    try:
        import spikeprop_hardware
    except ImportError as error:
        raise HardwareError(
            "the simulation needs the package spikeprop-hardware; install it (in a checkout: pip install ./hardware), or "
            "leave the stage out with simulate.samples=0"
        ) from error
    ours, output = record(network, images, timesteps)
    inputs = ours.pop(INPUT)
    with bar("simulate on Lava", unit="step") as shown:

        def progress(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        try:
            lava = spikeprop_hardware.simulate(file, inputs, notify=notify, progress=progress)
        except spikeprop_hardware.HardwareError as error:
            raise HardwareError(str(error)) from error
    return _compare(ours, output, lava.spikes, lava.output, labels.numpy())


def _compare(
    ours: dict[str, np.ndarray],
    output: np.ndarray,
    theirs: dict[str, np.ndarray],
    their_output: np.ndarray,
    labels: np.ndarray,
) -> dict[str, Any]:
    mismatches = {name: int((train.astype(bool) != theirs[name]).sum()) for name, train in ours.items()}
    mine, lava = output[:, -1].argmax(1), their_output[:, -1].argmax(1)
    return {
        "samples": len(labels),
        "timesteps": output.shape[1],
        "agreement": 100 * float((mine == lava).mean()),
        "spikes_equal": not any(mismatches.values()),
        "spikes": int(sum(train.sum() for train in ours.values())),
        "mismatches": mismatches,
        "output_error": float(np.abs(output - their_output).max()),
        "accuracy": {"pytorch": 100 * float((mine == labels).mean()), "lava": 100 * float((lava == labels).mean())},
    }
