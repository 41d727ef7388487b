"""ANN-to-SNN conversion: ``convert`` and the threshold calibrators."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from spikeprop.convert.balancing import ThresholdBalancing
from spikeprop.convert.calibrate import ThresholdCalibrator, spike_worths
from spikeprop.convert.correction import AdvancedCalibration, LightCalibration
from spikeprop.convert.graph import relu_activations, to_spiking
from spikeprop.convert.local import LocalThresholdBalancing, OffsetSpike
from spikeprop.convert.statistics import LearnedCeiling, LeastError, MaxActivation, Percentile
from spikeprop.errors import ConversionError
from spikeprop.snn import Direct, Encoder, Neuron, SpikingNetwork

__all__ = [
    "AdvancedCalibration",
    "ConversionError",
    "LearnedCeiling",
    "LeastError",
    "LightCalibration",
    "LocalThresholdBalancing",
    "MaxActivation",
    "OffsetSpike",
    "Percentile",
    "ThresholdBalancing",
    "ThresholdCalibrator",
    "convert",
    "relu_activations",
    "spike_worths",
    "to_spiking",
]


@torch.no_grad()
def convert(
    ann: nn.Module,
    batches: Iterable[Tensor | tuple[Tensor, Tensor]],
    neuron: Neuron,
    calibrator: ThresholdCalibrator,
    *,
    encoder: Encoder | None = None,
) -> SpikingNetwork:
    """Convert an ANN to a spiking network and calibrate its thresholds.

    Args:
        ann: the trained network; it is not changed, and the images go to its device.
        batches: calibration images (B, ...), alone or in (images, labels) pairs.
        neuron: prototype, copied for every layer.
        calibrator: sets the thresholds.
        encoder: from image to input; default ``Direct()``.

    Returns:
        the network, in evaluation mode, its thresholds in buffers.

    Raises:
        ConversionError: an operation that cannot be converted, no images, or a dead layer.
    """
    images = [b if isinstance(b, Tensor) else b[0] for b in batches]
    if not images:
        raise ConversionError("no calibration images: pass at least one batch")
    x = torch.cat(images)
    x = x.to(next((p.device for p in ann.parameters()), x.device))
    if not torch.isfinite(x).all():
        raise ConversionError("the calibration images hold NaN or infinity; clean the data first")
    encoder = encoder if encoder is not None else Direct()
    limit = encoder.limit
    if limit is not None and float(x.abs().max()) > limit * (1 + 1e-6):
        warnings.warn(
            f"{type(encoder).__name__} saturates beyond {limit:g} but the images reach {float(x.abs().max()):.3g}; "
            "normalise them to [-1, 1] (mean 0.5, std 0.5) or use Direct",
            stacklevel=2,
        )
    network = to_spiking(ann, lambda: copy.deepcopy(neuron), encoder, tuple(x.shape[1:])).to(x).eval()
    calibrator.calibrate(network, x)
    return network
