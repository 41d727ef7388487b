"""Threshold balancing: a layer's threshold is found from the spikes below it, not from the ANN's activations.

theta = scale * max over time of the weighted input current, layers before it already spiking (Sengupta et al. 2019; Rathi et
al. 2020). Spike trains are kept, one bit a neuron a step, so the whole search costs two passes a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprop.convert.calibrate import ThresholdCalibrator, Units, check_percentile, check_steps, limited, positive, quantile
from spikeprop.seeding import seed_torch
from spikeprop.snn import Encoder, SpikingNetwork
from spikeprop.snn.neuron import SpikingMaxPool


@dataclass(frozen=True, kw_only=True)
class ThresholdBalancing(ThresholdCalibrator):
    """theta = scale * max over images, neurons and steps of the input current W*s of one step, in forward order.

    Each layer is measured on the spikes of layers that already have their threshold (Rathi et al. 2020). Their spike trains
    are kept, one bit a neuron a step, so the whole search costs two passes a layer. Neurons run without leak meanwhile.

    Differences from the authors' code: every layer of a residual network is balanced (theirs balances the first three), and
    the threshold that later layers see includes ``scale``, as it will when the network runs.

    Attributes:
        timesteps: length of the search in steps.
        scale: factor on every threshold; the paper's code has 0.7 for T > 100, smaller for fewer steps.
        percentile: 100 is the paper's maximum; DIET-SNN takes 99.7.
    """

    timesteps: int = 100
    scale: float = 1.0
    percentile: float = 100.0

    def __post_init__(self) -> None:
        check_percentile(self.percentile)
        check_steps(self.timesteps, "the search needs")
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale}; a factor on thresholds is positive")

    def calibrate(self, network: SpikingNetwork, x: Tensor) -> dict[str, Tensor]:
        from spikeprop.snn.stagewise import Stagewise  # here, since it brings Numba

        units = Units(network, x)
        stages = Stagewise(network, x, self.timesteps, EncodedInput(network.encoder, x))
        thresholds = {}
        for name, stage in network.each():
            units.fold(stage)
            if isinstance(stage.neuron, SpikingMaxPool):
                units.pass_on(name, stage)
            elif stage.neuron is not None:
                peak = max(_peak(current_KBSC, self.percentile / 100) for current_KBSC in stages.currents(name))
                worth = limited(stage, positive(name, peak) * self.scale * stage.scale.to(peak))
                thresholds[name] = units.settle(name, stage, worth)
            if stage.neuron is not None:
                stages.fire(name)
        return thresholds


class EncodedInput:
    """The encoder's output at any steps, drawn again (the same) when it is asked for again, rather than kept."""

    def __init__(self, encoder: Encoder, x: Tensor):
        self.encoder, self.x = encoder, x
        self.seed = int(torch.randint(2**62, ()))

    def __call__(self, first: int, steps: int) -> Tensor:
        """Steps first.. of the input, (steps or 1, B, ...)."""
        if self.encoder.constant:
            return self.encoder(self.x, 1)
        with torch.random.fork_rng(devices=[self.x.device] if self.x.is_cuda else []):
            return torch.cat([self._step(t) for t in range(first, first + steps)])

    def _step(self, t: int) -> Tensor:
        seed_torch(self.seed, t)
        return self.encoder(self.x, 1)


def _peak(current_KBSC: Tensor, q: float) -> Tensor:
    """The largest, over steps, of a step's quantile."""
    if q >= 1:
        return current_KBSC.max()
    return torch.stack([quantile(current_BSC.flatten(), q) for current_BSC in current_KBSC]).max()
