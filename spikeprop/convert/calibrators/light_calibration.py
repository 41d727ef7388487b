"""Light calibration (Li et al. 2021, "A free lunch from ANN"): thresholds, biases and initial potentials."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from spikeprop.convert.calibrator import LayerData
from spikeprop.convert.calibrators.correction import SpikeCalibrator, correct_bias, rate_error
from spikeprop.snn import Neuron


@dataclass(frozen=True, kw_only=True)
class LightCalibration(SpikeCalibrator):
    """Thresholds of least error, then biases and initial potentials that compensate the mean error of the rates.

    For most conversions without training: the default from 16 different sums on that a neuron can send.

    Attributes:
        bias: correct biases, by channel.
        potential: correct initial potentials, by neuron.
    """

    bias: bool = True
    potential: bool = False

    def correct(self, data: LayerData) -> None:
        if not isinstance(data.layer.neuron, Neuron):
            return
        if self.bias:
            correct_bias(data)
        if self.potential:
            shift_potential(data.neuron, data.shard.mean(rate_error(data), 0), self.timesteps)


def shift_potential(neuron: Neuron, error: Tensor, timesteps: int) -> None:
    """Shift initial potentials so that the mean error of each neuron's rate is compensated within ``timesteps`` steps."""
    neuron.v_init = (neuron.v_init + timesteps * error.to(neuron.v_init) / neuron.spike_size).clamp(-1, 1)
