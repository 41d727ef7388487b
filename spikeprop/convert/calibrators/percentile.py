"""The largest activation as scale (Diehl et al. 2015), and a percentile (Rueckauer et al. 2017; by channel, Kim et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from spikeprop.convert.calibrator import LayerData, LayerwiseCalibrator
from spikeprop.convert.calibrators.rows import Per, from_rows, rows
from spikeprop.runtime.checks import in_percent


@dataclass(frozen=True, kw_only=True)
class Percentile(LayerwiseCalibrator):
    """S = the given percentile of the activations over images and neurons.

    For long simulations of networks with a few very large activations, which it clips.

    By layer, Rueckauer et al. 2017; by channel, Kim et al. 2020 (Spiking-YOLO).

    Attributes:
        percentile: in (0, 100].
        per: one threshold a layer, or one a channel.
    """

    percentile: float = 99.9
    per: Per = "layer"

    def __post_init__(self) -> None:
        in_percent(self, "percentile")

    def activation_scale(self, data: LayerData) -> Tensor:
        scale_R = data.shard.quantile(rows(data.size, self.per, data.axis), self.percentile / 100)
        return data.limited(data.positive(from_rows(scale_R, self.per, data.activation, data.axis)))


@dataclass(frozen=True, kw_only=True)
class MaxActivation(LayerwiseCalibrator):
    """S = the largest activation (Diehl et al. 2015).

    For long simulations, of hundreds of steps: nothing is clipped.

    Attributes:
        per: one threshold a layer, or one a channel.
    """

    per: Per = "layer"

    def activation_scale(self, data: LayerData) -> Tensor:
        return Percentile(percentile=100.0, per=self.per).activation_scale(data)
