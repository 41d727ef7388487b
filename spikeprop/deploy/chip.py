"""What a network takes on a chip: whether it fits, its budget, its activity on given inputs, and energies by model."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import spikeprop_hardware as hardware
from spikeprop_hardware.targets import target as found_target
from spikeprop_hardware.targets.energy import energy_table
from spikeprop_hardware.targets.fitting import fits

from spikeprop.deploy.reading import layer_names
from spikeprop.snn import SpikingNetwork
from spikeprop.snn.outline import outline


def chip_budget(
    file: Path, inputs: np.ndarray | None = None, *, network: SpikingNetwork | None = None, target: str = "loihi2"
) -> dict[str, Any]:
    """What a NIR file's network takes on a chip.

    Args:
        file: NIR file.
        inputs: what it reads, (B, T, ...), to count spikes and synaptic operations on.
        network: that the file holds, for what needs its operations: findings and energies.
        target: name of the chip.

    Returns:
        target, layers, cores, chips, problems and needs; with ``network`` also findings, everything that stands between it and
        the chip; with inputs activity (spikes and SynOps by layer, a sample) and, of both Loihis, energy_joules, an estimate with
        the first one's figures, and energy_model, its name; with both energy, the table of models, and what it says of the ANN.

    Raises:
        NirError: a file that is damaged, or a network that cannot be laid out.
        HardwareError: inputs of another shape, or a target that is none.
    """
    chip, graph = found_target(target), hardware.read_nir(file)
    laid_out = hardware.lay_out(graph)
    found: dict[str, Any] = {"target": chip.name, **asdict(hardware.budget(laid_out, chip))}
    outlined = None if network is None else outline(network)
    if outlined is not None:
        found["findings"] = [asdict(finding) for finding in fits(outlined, chip).findings]
    if inputs is None:
        return found
    active = hardware.activity(laid_out, inputs)
    found["activity"] = [asdict(layer) for layer in active]
    if "loihi1" in (chip.name, chip.priced_as):
        joules = hardware.energy_joules(laid_out, active, inputs.shape[1])
        found |= {"energy_joules": joules, "energy_model": hardware.ENERGY_MODEL}
    if outlined is not None and outlined.computable:
        names = {laid_out.input: outlined.input, **layer_names(graph)}
        named = [replace(layer, name=str(names.get(layer.name, layer.name))) for layer in active]
        found["energy"] = asdict(energy_table(outlined, named, inputs.shape[1], chip))
    return found
