"""Cost: the energy of a spiking network's activity, and the multiply-accumulates (MACs) of an ANN.

Spikes and synaptic operations are counted in ``snn/activity.py``. The energy is that of the arithmetic only, with the figures
that are common in the field: 32-bit floating point in 45 nm CMOS, 4.6 pJ a MAC (3.7 multiply + 0.9 add) and 0.9 pJ an addition
(Horowitz, ISSCC 2014, fig. 1.1.9). Input that is not spikes (direct coding) costs MACs at every step. So do the running means of
differential coding, where it is sent and where it is read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spikeprop.snn import INPUT
from spikeprop.snn.activity import SpikeCounter
from spikeprop.snn.synapse import TRANSPOSED, WEIGHTED

ENERGY_MODEL = "arithmetic, 45 nm"  # its name in every table and picture
CONSTANTS = "45 nm, 4.6 pJ a MAC, 0.9 pJ an addition (Horowitz 2014)"
MAC_JOULES = 4.6e-12
ADD_JOULES = 0.9e-12


class ActivityMeter(SpikeCounter):
    """A ``SpikeCounter`` that knows what spikes cost."""

    def energy(self, timesteps: int | None = None) -> float:
        """Joules an image: additions for spikes, MACs for input that is not spikes."""
        synops = self.synops(timesteps)
        price = ADD_JOULES if self.network.encoder.spikes else MAC_JOULES
        means = self.running_means() * (self.timesteps if timesteps is None else timesteps) * MAC_JOULES
        return synops.pop(INPUT) * price + sum(synops.values()) * ADD_JOULES + means

    def running_means(self) -> int:
        """Numbers beside potentials that change in every step: differential coding keeps them at senders and at readers."""
        dynamics, shapes = self.network.dynamics(), self.network.shapes()
        found = 0
        for name, layer in self.network.named_layers():
            sends = layer.dynamics.differential
            reads = any(source != INPUT and dynamics[source].differential for source in layer.sources)
            found += (sends + reads) * torch.Size(shapes[name]).numel()
        return found


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's parameters; the CPU if it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@torch.no_grad()
def count_macs(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one image through an ANN's convolutions and linear layers (padding counted, biases not)."""
    total = 0

    def count(module: nn.Module, given: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(module, TRANSPOSED):  # each input is multiplied by all its weights
            total += given[0][0].numel() * module.weight[0].numel()
        elif isinstance(module, WEIGHTED):
            total += output[0].numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in model.modules()]
    training = model.training
    try:
        device = next(model.parameters()).device
        model.eval()(torch.zeros(1, *input_shape, device=device))
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    return total
