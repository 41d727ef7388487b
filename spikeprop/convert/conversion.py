"""``convert``: from a trained ANN and calibration images to a spiking network."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from spikeprop.convert.calibrator import ThresholdCalibrator, run_calibrator
from spikeprop.convert.choice import ENOUGH, Choice, choose
from spikeprop.convert.compared import Compared
from spikeprop.convert.graph import to_spiking
from spikeprop.convert.shard import CalibrationShard, shard_images
from spikeprop.errors import ConversionError
from spikeprop.runtime.processes import ALONE, Processes
from spikeprop.snn import DifferentialIF, Direct, Encoder, Neuron, SpikingNetwork
from spikeprop.snn.differential import send_differences
from spikeprop.snn.encoder import warn_of_saturation


@torch.inference_mode(False)  # or the network could not be trained
@torch.no_grad()
def convert(
    ann: nn.Module,
    batches: Any,
    neuron: Neuron | None = None,
    calibrator: ThresholdCalibrator | None = None,
    *,
    timesteps: int | None = None,
    binary: bool = False,
    encoder: Encoder | None = None,
    processes: Processes = ALONE,
) -> SpikingNetwork:
    """Convert an ANN to a spiking network and calibrate its thresholds.

    ``convert(ann, images, timesteps=8)`` is enough: it chooses the neuron and the calibrator for that many steps, takes more
    levels where predictions on the calibration images then differ from the ANN's, and says all of that in the network's
    ``notes`` (``convert/choice.py``).

    Args:
        ann: the trained network; it is not changed, but must not run in another thread meanwhile. Images go to its device.
        batches: calibration images (B, ...): a tensor, a list or DataLoader of tensors, (images, labels) pairs or dictionaries, a
            data set, or a split. With several processes all are given the same batches, and each takes its shard; beside the
            labels of a complete batch, the images may be this shard only.
        neuron: prototype, copied for every layer; None for the choice.
        calibrator: sets the thresholds; None for the choice.
        timesteps: T that the network is to run for; needed where neuron or calibrator is left to the choice, unless the
            calibrator has it.
        binary: choose a neuron whose spikes have one bit and a sign.
        encoder: from image to input; default ``Direct()``.
        processes: that convert together: all get the network that one process with all images gets. Maxima and percentiles of
            the same activations are equal; means and sums, and what follows from them, differ by rounding.

    Returns:
        the network, in evaluation mode, its thresholds in buffers.

    Raises:
        ConversionError: an operation that cannot be converted, an ANN that computes what its layers do not show (hooks, for
            example), weights that are not finite, no images or fewer than processes, a dead layer, several processes and a
            calibrator that does not support them, or no number of steps to choose by. All processes raise it.
        DataError: what was passed as images cannot be read as such.
    """
    _check_arguments(ann, neuron, calibrator, encoder)
    chosen = choose(neuron, calibrator, timesteps, binary=binary)
    x, shard = shard_images(batches, processes)
    like = next((p for p in ann.parameters() if p.is_floating_point()), x)
    x = x.to(like.device, like.dtype if like.dtype in (torch.float32, torch.float64) else x.dtype)
    encoder = encoder if encoder is not None else Direct()
    _check(x, encoder, shard)
    working = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x  # half precision is too coarse for thresholds
    network, notes = _calibrated(ann, chosen, encoder, x, working, shard)
    network.notes += notes
    network.calibrated_for = chosen.calibrator.calibrated_for
    network.to(x.dtype)
    processes.broadcast((*network.parameters(), *network.buffers()))  # processes may round differently
    return network


def _calibrated(
    ann: nn.Module, chosen: Choice, encoder: Encoder, x: Tensor, working: Tensor, shard: CalibrationShard
) -> tuple[SpikingNetwork, list[str]]:
    """The network with thresholds, with more levels where the choice left them open and too few predict as the ANN; and notes."""
    notes, found = [chosen.why] if chosen.why else [], []
    compared: Compared | None = None
    while True:
        neuron = chosen.neuron.plain() if isinstance(chosen.neuron, DifferentialIF) else chosen.neuron
        network = _converted(ann, neuron, encoder, x, shard).to(working).eval()
        if compared is None and chosen.why and isinstance(encoder, Direct):
            compared = Compared.of(network, working, shard)
        run_calibrator(chosen.calibrator, network, working, shard)
        if isinstance(chosen.neuron, DifferentialIF):
            send_differences(network)
        if compared is None or chosen.timesteps is None:
            return network, notes
        agreement = compared.agreement(network, chosen.timesteps, shard)
        found.append(f"{100 * agreement:.1f} %" + (f" with {chosen.neuron.payload_bits} levels" if found else ""))
        finer = chosen.finer(agreement)
        if finer is None:
            little = "; take more steps" if agreement < ENOUGH else ""
            text = f"predicts as the ANN for {', and for '.join(found)}, of {compared.count} calibration images{little}"
            return network, [*notes, text]
        if finer.why != chosen.why:
            notes.append(finer.why)
        chosen = finer


def _converted(ann: nn.Module, neuron: Neuron, encoder: Encoder, x: Tensor, shard: CalibrationShard) -> SpikingNetwork:
    """The uncalibrated network, proved on a few images; if one process cannot make it, all processes raise."""
    network, error = None, None
    try:
        network = to_spiking(ann, lambda: copy.deepcopy(neuron), encoder, tuple(x.shape[1:]), images=x)
    except ConversionError as found:
        error = found
    failed = bool(shard.largest(x.new_tensor(float(network is None))))
    if network is None or failed:
        raise error or ConversionError("another process cannot convert the ANN on its calibration images")
    return network


def _check_arguments(ann: Any, neuron: Any, calibrator: Any, encoder: Any) -> None:
    """Each argument is an instance of its class."""
    expected = (("ann", ann, nn.Module, "a trained module"), ("neuron", neuron, Neuron, "a neuron such as IF()"),
                ("calibrator", calibrator, ThresholdCalibrator, "a calibrator such as MaxActivation()"),
                ("encoder", encoder, Encoder, "an encoder such as Direct()"))  # fmt: skip
    for name, given, kind, what in expected:
        if isinstance(given, kind) or (name != "ann" and given is None):
            continue
        if isinstance(given, type):
            raise ConversionError(f"{name} is the class {given.__name__}; pass an instance, {given.__name__}()")
        raise ConversionError(f"{name} is a {type(given).__name__}; pass {what}")
    if isinstance(ann, SpikingNetwork):
        raise ConversionError("ann is a SpikingNetwork already; pass the ANN")
    empty = next((name for name, tensor in (*ann.named_parameters(), *ann.named_buffers()) if tensor.is_meta), None)
    if empty is not None:
        raise ConversionError(
            f"{empty!r} is on the meta device, which holds shapes without values; make the ANN on the CPU, or load its weights: "
            "ann.to_empty(device='cpu'), then ann.load_state_dict(...)"
        )


def _check(x: Tensor, encoder: Encoder, shard: CalibrationShard) -> None:
    """Check the images; if one process has an invalid image, all processes raise."""
    largest = float(shard.largest(x.abs().max()))  # NaN is the largest
    if not math.isfinite(largest):
        raise ConversionError("the calibration images hold NaN or infinity; clean the data first")
    if not encoder.stills:
        raise ConversionError(f"{type(encoder).__name__} reads sequences, and a conversion is for still samples: use Direct()")
    if shard.processes.rank == 0:
        warn_of_saturation(encoder, largest)
