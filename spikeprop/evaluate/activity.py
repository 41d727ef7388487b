"""Cost: the energy of a spiking network's activity, and the multiply-accumulates (MACs) of an ANN.

Spikes and synaptic operations are counted in ``snn/activity.py``. The energy is that of the arithmetic only, with the figures
that are common in the field: 32-bit floating point in 45 nm CMOS, 4.6 pJ a MAC (3.7 multiply + 0.9 add) and 0.9 pJ an addition
(Horowitz, ISSCC 2014, fig. 1.1.9). Input that is not spikes (direct coding) costs MACs at every step. So do the running means of
differential coding, where it is sent and where it is read.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from spikeprop.runtime.modes import evaluating
from spikeprop.snn import INPUT
from spikeprop.snn.activity import SpikeCounter

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
    """Multiply-accumulates of one image through an ANN's convolutions and matrix products, as modules or functions.

    Every product of matrices that PyTorch performs is counted, so those of attention too; places of padding are counted, biases
    and products number by number are not. Fused kernels, whose products are not seen one by one, are off while it counts.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    fused = torch.backends.mha.get_fastpath_enabled()
    libraries = (torch.backends.mkldnn, torch.backends.cudnn)
    used = [library.set_flags(_enabled=False)[0] for library in libraries]
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        counter = FlopCounterMode(display=False, custom_mapping=_flops_of_more())
        with evaluating(model), sdpa_kernel(SDPBackend.MATH), counter:
            model(torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for library, enabled in zip(libraries, used, strict=True):
            library.set_flags(_enabled=enabled)
    return counter.get_total_flops() // 2


def _flops_of_more() -> dict[Any, Any]:
    """Two operations a multiply-accumulate, from the operands' shapes, of products that PyTorch's own counter does not know."""
    aten, numbers = torch.ops.aten, math.prod
    return {
        aten.dot: lambda a, b, out_shape=None: 2 * a[0],
        aten.mv: lambda a, b, out_shape=None: 2 * numbers(a),
        aten.addmv: lambda c, a, b, out_shape=None, **scales: 2 * numbers(a),
        aten.addbmm: lambda c, a, b, out_shape=None, **scales: 2 * numbers(a) * b[-1],
        aten._trilinear: lambda a, b, c, *axes, out_shape=None: 2 * a[0] * numbers(b),  # nn.Bilinear's
    }
