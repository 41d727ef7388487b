"""What a NIR file's network takes on Loihi 2: its budget, and its activity on given inputs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import spikeprop_hardware as hardware


def chip_budget(file: Path, inputs: np.ndarray | None = None) -> dict[str, Any]:
    """What a NIR file's network takes on Loihi 2.

    Args:
        file: NIR file.
        inputs: what it reads, (B, T, ...), to count spikes and synaptic operations on.

    Returns:
        layers, cores, chips, problems and needs; with inputs also activity (spikes and SynOps by layer, a sample),
        energy_joules, an estimate with the first Loihi's figures, and energy_model, its name.

    Raises:
        NirError: a file that is damaged, or a network that cannot be laid out.
        HardwareError: inputs of another shape.
    """
    network = hardware.lay_out(hardware.read_nir(file))
    found = asdict(hardware.budget(network))
    if inputs is None:
        return found
    active = hardware.activity(network, inputs)
    joules = hardware.energy_joules(network, active, inputs.shape[1])
    return found | {
        "activity": [asdict(layer) for layer in active],
        "energy_joules": joules,
        "energy_model": hardware.ENERGY_MODEL,
    }
