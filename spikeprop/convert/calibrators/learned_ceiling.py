"""The ceiling that the ANN learned as scale: TCL (Ho & Chang 2021) and QCFS (Bu et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from spikeprop.convert.calibrator import LayerData, LayerwiseCalibrator
from spikeprop.errors import ConversionError


@dataclass(frozen=True, kw_only=True)
class LearnedCeiling(LayerwiseCalibrator):
    """S = the value at which the ANN clips the activation: learned by the ANN (QCFS, TCL), or fixed (ReLU6).

    For ANNs that clip their activations: trained with QCFS or TCL, or with ReLU6.

    For QCFS the neurons start at half their threshold (v_init 0.5), as Bu et al. 2022 derive.
    """

    def activation_scale(self, data: LayerData) -> Tensor:
        if data.layer.ceiling is None:
            raise ConversionError(
                f"layer {data.name!r} comes from a ReLU without a ceiling; train the ANN with QCFS or ClippedReLU activations, "
                "or choose another calibrator"
            )
        return data.positive(data.layer.ceiling.to(data.activation))
