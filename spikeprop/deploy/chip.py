"""What a network takes on a chip: whether it fits, its budget, its activity on given inputs, and energies by model.

Shapes alone give the budget, and PyTorch's spikes the activity, so that no matrix is written out."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from spikeprop_hardware.chip import activity_of
from spikeprop_hardware.targets import target as found_target
from spikeprop_hardware.targets.energy import energy_table
from spikeprop_hardware.targets.fitting import fits
from torch import Tensor

from spikeprop.errors import HardwareError
from spikeprop.snn import Frames, SpikingNetwork
from spikeprop.snn.outline import outline


def chip_budget(network: SpikingNetwork, inputs: np.ndarray | None = None, target: str = "loihi2") -> dict[str, Any]:
    """What a network takes on a chip.

    Args:
        network: left as it is.
        inputs: what it reads, (B, T, ...), to count spikes and synaptic operations on.
        target: name of the chip.

    Returns:
        target, layers, cores, chips, problems, needs, and findings, everything that stands between the network and the chip; with
        inputs activity (spikes and SynOps by layer, a sample) and energy, the table of models, and what it says of the ANN.

    Raises:
        HardwareError: a layer whose synapses cannot be counted, naming it; inputs of another shape, or a target that is none.
    """
    chip, outlined = found_target(target), outline(network)
    fit = fits(outlined, chip)
    if fit.budget is None:
        uncounted = [p.name for p in outlined.populations if any(c.matrix is None for c in p.connections)]
        raise HardwareError(
            f"layers {', '.join(uncounted)} compute what no file of a chip holds, so their synapses cannot be counted; spikeprop "
            f"check --target {chip.name} says what to put in their place"
        )
    found: dict[str, Any] = {"target": chip.name, **asdict(fit.budget), "findings": [asdict(f) for f in fit.findings]}
    if inputs is None:
        return found
    active = activity_of(outlined, _spikes(network, inputs), len(inputs))
    found["activity"] = [asdict(layer) for layer in active]
    return found | {"energy": asdict(energy_table(outlined, active, inputs.shape[1], chip))}


@torch.no_grad()
def _spikes(network: SpikingNetwork, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """How often each neuron, and each input, sends something other than 0, in all samples and steps."""
    if inputs.shape[2:] != network.input_shape or 0 in inputs.shape:
        raise HardwareError(f"inputs have shape {inputs.shape}; the network reads (samples, steps, {network.input_shape})")
    plain, counts = copy.deepcopy(network).cpu().double().eval(), dict[str, np.ndarray]()
    plain.encoder = Frames()  # the inputs are encoded

    def observe(name: str, spikes_TB: Tensor) -> None:
        counts[name] = counts.get(name, 0) + np.count_nonzero(spikes_TB.numpy(), axis=(0, 1)).ravel()

    for _ in plain.unroll(torch.from_numpy(inputs.swapaxes(0, 1).astype(np.float64)), chunk=1, observe=observe):
        pass
    return counts
