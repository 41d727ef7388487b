"""``convert``: from a trained ANN and calibration images to a spiking network."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from spikeprop.convert.calibrator import ThresholdCalibrator, run_calibrator
from spikeprop.convert.graph import to_spiking
from spikeprop.convert.shard import CalibrationShard, shard_images
from spikeprop.errors import ConversionError
from spikeprop.runtime.processes import ALONE, Processes
from spikeprop.snn import Direct, Encoder, Neuron, SpikingNetwork


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
        ann: the trained network; it is not changed. Images are moved to its device.
        batches: calibration images (B, ...), alone or in (images, labels) pairs. With several processes all are given the
            same batches, and each takes its shard; beside the labels of a complete batch, the images may be this shard only.
        neuron: prototype, copied for every layer.
        calibrator: sets the thresholds.
        encoder: from image to input; default ``Direct()``.
        processes: that convert together: all get the network that one process with all images gets. Maxima and percentiles of
            the same activations are equal; means and sums, and what follows from them, differ by rounding.

    Returns:
        the network, in evaluation mode, its thresholds in buffers.

    Raises:
        ConversionError: an operation that cannot be converted, no images or fewer than processes, a dead layer, or several
            processes and a calibrator that does not support them. All processes raise it.
    """
    x, shard = shard_images(batches, processes)
    x = x.to(next((p.device for p in ann.parameters()), x.device))
    encoder = encoder if encoder is not None else Direct()
    _check(x, encoder, shard)
    network = to_spiking(ann, lambda: copy.deepcopy(neuron), encoder, tuple(x.shape[1:]), images=x).to(x).eval()
    run_calibrator(calibrator, network, x, shard)
    processes.broadcast((*network.parameters(), *network.buffers()))  # processes may round differently
    return network


def _check(x: Tensor, encoder: Encoder, shard: CalibrationShard) -> None:
    """Check the images; if one process has an invalid image, all processes raise."""
    largest = float(shard.largest(x.abs().max()))  # NaN is the largest
    if not math.isfinite(largest):
        raise ConversionError("the calibration images hold NaN or infinity; clean the data first")
    limit = encoder.limit
    if limit is not None and largest > limit * (1 + 1e-6) and shard.processes.rank == 0:
        warnings.warn(
            f"{type(encoder).__name__} saturates beyond {limit:g} but the images reach {largest:.3g}; "
            "normalise them to [-1, 1] (mean 0.5, std 0.5) or use Direct",
            stacklevel=4,
        )
