"""ANN-to-SNN conversion: ``convert`` and the threshold calibrators."""

from __future__ import annotations

from spikeprop.convert.activations import relu_activations
from spikeprop.convert.building import spiking
from spikeprop.convert.calibrator import LayerData, LayerwiseCalibrator, ThresholdCalibrator
from spikeprop.convert.calibrators.advanced_calibration import AdvancedCalibration
from spikeprop.convert.calibrators.learned_ceiling import LearnedCeiling
from spikeprop.convert.calibrators.least_error import LeastError
from spikeprop.convert.calibrators.least_squares import LeastSquares
from spikeprop.convert.calibrators.light_calibration import LightCalibration
from spikeprop.convert.calibrators.local_balancing import LocalThresholdBalancing
from spikeprop.convert.calibrators.offset_spike import OffsetSpike
from spikeprop.convert.calibrators.percentile import MaxActivation, Percentile
from spikeprop.convert.calibrators.threshold_balancing import ThresholdBalancing
from spikeprop.convert.calibrators.threshold_iteration import ThresholdIteration
from spikeprop.convert.conversion import convert
from spikeprop.convert.graph import to_spiking, uncalibrated
from spikeprop.convert.shard import CalibrationShard
from spikeprop.convert.units import activation_scales
from spikeprop.errors import ConversionError
from spikeprop.runtime.onnx_files import read_onnx as from_onnx

__all__ = [
    "AdvancedCalibration",
    "CalibrationShard",
    "ConversionError",
    "LayerData",
    "LayerwiseCalibrator",
    "LearnedCeiling",
    "LeastError",
    "LeastSquares",
    "LightCalibration",
    "LocalThresholdBalancing",
    "MaxActivation",
    "OffsetSpike",
    "Percentile",
    "ThresholdBalancing",
    "ThresholdCalibrator",
    "ThresholdIteration",
    "activation_scales",
    "convert",
    "from_onnx",
    "relu_activations",
    "spiking",
    "to_spiking",
    "uncalibrated",
]
