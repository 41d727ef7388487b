"""Threshold balancing: a layer's threshold follows from the spikes below it, not from the ANN's activations.

theta = scale * max over time of the weighted input current, while the layers before it spike (Sengupta et al. 2019; Rathi et
al. 2020). Spike trains are kept, one bit a neuron a step, so the whole search costs two passes a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spikeprop.convert.calibrator import LayerData, LayerwiseCalibrator
from spikeprop.convert.shard import CalibrationShard
from spikeprop.convert.spikes import SpikeTrains, spike_trains
from spikeprop.runtime.checks import at_least_one, in_percent
from spikeprop.snn import SpikingNetwork


@dataclass(frozen=True, kw_only=True)
class ThresholdBalancing(LayerwiseCalibrator):
    """theta = scale * max over images, neurons and steps of the input current W*s of one step, in forward order.

    For conversion that is fine-tuned afterwards, as in the hybrid conversion.

    Each layer is measured on the spikes of layers that already have their threshold (Rathi et al. 2020). Neurons run without
    leak meanwhile.

    Differences from the authors' code: every layer of a residual network is balanced (theirs balances the first three), and
    the threshold that later layers see includes ``scale``, as it will when the network runs.

    Attributes:
        timesteps: length of the search in steps.
        scale: factor on every threshold; the paper's code has 0.7 for T > 100, smaller for fewer steps.
        percentile: 100 is the paper's maximum; DIET-SNN takes 99.7.
    """

    needs_activations: ClassVar[bool] = False

    timesteps: int = 100
    scale: float = 1.0
    percentile: float = 100.0

    def __post_init__(self) -> None:
        in_percent(self, "percentile")
        at_least_one(self, "timesteps")
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale}; a factor on thresholds is positive")

    @property
    def calibrated_for(self) -> None:
        """The largest current bounds a step's, whatever their number: ``timesteps`` is the length of the search."""
        return

    def spike_trains(self, network: SpikingNetwork, x: Tensor, shard: CalibrationShard) -> SpikeTrains:
        return spike_trains(network, x, self.timesteps, shard)

    def activation_scale(self, data: LayerData) -> Tensor:
        currents = data.spikes.currents(data.name)
        peak = self._peak((some.abs() for some in currents) if data.layer.both_signs else currents, data.shard)
        return data.limited(data.positive(peak) * self.scale * data.layer.scale.to(peak))

    def _peak(self, currents: Iterator[Tensor], shard: CalibrationShard) -> Tensor:
        """The largest, over steps, of a step's quantile."""
        if self.percentile == 100:
            return shard.largest(torch.stack([current_KBSC.max() for current_KBSC in currents]).max())
        return torch.stack([shard.quantile(some_KBSC.flatten(1), self.percentile / 100).max() for some_KBSC in currents]).max()
