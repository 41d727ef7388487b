"""ANN-to-SNN conversion: ``convert`` and the threshold calibrators."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from spikeprop.convert.calibrate import ThresholdCalibrator, activation_scales, calibrated
from spikeprop.convert.calibrators.balancing import ThresholdBalancing
from spikeprop.convert.calibrators.correction import AdvancedCalibration, LightCalibration
from spikeprop.convert.calibrators.local import LocalThresholdBalancing, OffsetSpike
from spikeprop.convert.calibrators.statistics import LearnedCeiling, LeastError, MaxActivation, Percentile
from spikeprop.convert.graph import relu_activations, to_spiking
from spikeprop.convert.shard import CalibrationShard, own_images
from spikeprop.errors import ConversionError
from spikeprop.runtime.processes import ALONE, Processes
from spikeprop.snn import Direct, Encoder, Neuron, SpikingNetwork

__all__ = [
    "AdvancedCalibration",
    "CalibrationShard",
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
    "activation_scales",
    "convert",
    "relu_activations",
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
    processes: Processes = ALONE,
) -> SpikingNetwork:
    """Convert an ANN to a spiking network and calibrate its thresholds.

    Args:
        ann: the trained network; it is not changed, and the images go to its device.
        batches: calibration images (B, ...), alone or in (images, labels) pairs. Several processes give the same batches, and
            each takes its shard of them; beside the labels of a whole batch, the images may be that shard alone.
        neuron: prototype, copied for every layer.
        calibrator: sets the thresholds.
        encoder: from image to input; default ``Direct()``.
        processes: that convert together: all get the network that one process with all images gets. Maxima and percentiles of
            the same activations are the same numbers, means and sums differ by rounding, and so does what follows from them.

    Returns:
        the network, in evaluation mode, its thresholds in buffers.

    Raises:
        ConversionError: an operation that cannot be converted, no images or fewer than processes, a dead layer, or of several
            processes a calibrator that does not support them. All processes raise it.
    """
    x, shard = own_images(batches, processes)
    x = x.to(next((p.device for p in ann.parameters()), x.device))
    encoder = encoder if encoder is not None else Direct()
    _check(x, encoder, shard)
    network = to_spiking(ann, lambda: copy.deepcopy(neuron), encoder, tuple(x.shape[1:])).to(x).eval()
    calibrated(calibrator, network, x, shard)
    processes.broadcast((*network.parameters(), *network.buffers()))  # they may round in different ways
    return network


def _check(x: Tensor, encoder: Encoder, shard: CalibrationShard) -> None:
    """Look at all images before anything is made of them; what is wrong with one is told to all processes."""
    largest = float(shard.largest(x.abs().max()))  # NaN is above all
    if not math.isfinite(largest):
        raise ConversionError("the calibration images hold NaN or infinity; clean the data first")
    limit = encoder.limit
    if limit is not None and largest > limit * (1 + 1e-6) and shard.processes.rank == 0:
        warnings.warn(
            f"{type(encoder).__name__} saturates beyond {limit:g} but the images reach {largest:.3g}; "
            "normalise them to [-1, 1] (mean 0.5, std 0.5) or use Direct",
            stacklevel=4,
        )
