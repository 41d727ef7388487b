"""Threshold balancing: a layer's threshold is found from the spikes below it, not from the ANN's activations.

theta = scale * max over time of the weighted input current, layers before it already spiking (Sengupta et al. 2019; Rathi et
al. 2020). Spike trains are kept, one bit a neuron a step, so the whole search costs two passes a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprop.convert.calibrate import ThresholdCalibrator, Units, check_percentile, check_steps, limited, positive
from spikeprop.convert.encoded import EncodedInput
from spikeprop.convert.part import WHOLE, Part
from spikeprop.snn import SpikingNetwork


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

    @property
    def joins(self) -> bool:
        return True

    def calibrate(self, network: SpikingNetwork, x: Tensor, part: Part = WHOLE) -> dict[str, Tensor]:
        from spikeprop.snn.engine.layerwise import LayerwiseRun  # here, since it brings Numba

        units, encoded = Units(network, x), EncodedInput(network.encoder, x, part)
        layers = LayerwiseRun(network, x, self.timesteps, encoded, part.most(len(x)))
        thresholds = {}
        for name, layer in network.named_layers():
            units.fold(layer)
            if layer.dynamics.passes_on:
                units.pass_on(name, layer)
            elif layer.neuron is not None:
                worth = limited(layer, positive(name, self._peak(layers.currents(name), part)) * self.scale * layer.scale.to(x))
                thresholds[name] = units.settle(name, layer, worth)
            if layer.neuron is not None:
                layers.fire(name)
        return thresholds

    def _peak(self, currents: Iterator[Tensor], part: Part) -> Tensor:
        """The largest, over steps, of a step's quantile."""
        if self.percentile == 100:
            return part.largest(torch.stack([current_KBSC.max() for current_KBSC in currents]).max())
        return torch.stack([part.quantile(some_KBSC.flatten(1), self.percentile / 100).max() for some_KBSC in currents]).max()
