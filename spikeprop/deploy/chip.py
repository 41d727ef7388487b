"""What a NIR file's network takes on Loihi 2: its budget, and its activity on given inputs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from spikeprop_hardware import activity, budget, energy_joules, lay_out, read_nir


def chip_budget(file: Path, inputs: np.ndarray | None = None) -> dict[str, Any]:
    """What a NIR file's network takes on Loihi 2.

    Args:
        file: NIR file.
        inputs: what it reads, (B, T, ...), to count spikes and synaptic operations on.

    Returns:
        layers, cores, chips and problems; with inputs also activity (spikes and SynOps by layer, a sample) and energy_joules,
        an estimate with the first Loihi's figures.

    Raises:
        NirError: a file that is damaged, or a network that cannot be laid out.
        HardwareError: inputs of another shape.
    """
    network = lay_out(read_nir(file))
    found = asdict(budget(network))
    if inputs is None:
        return found
    active = activity(network, inputs)
    joules = energy_joules(network, active, inputs.shape[1])
    return found | {"activity": [asdict(layer) for layer in active], "energy_joules": joules}
