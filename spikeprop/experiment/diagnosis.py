"""``explain_conversion``: from a converted network and its ANN to the reasons for what accuracy it loses."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeprop.convert import uncalibrated
from spikeprop.errors import CheckpointError, EvaluationError
from spikeprop.evaluate import ConversionDiagnosis, diagnose
from spikeprop.experiment.network_checkpoint import data_component, find_checkpoints, load_network, load_spiking
from spikeprop.experiment.zoo import CARD, located, shown
from spikeprop.runtime.given import read_batches
from spikeprop.snn import SpikingNetwork

USUAL = (4, 8)  # numbers of steps of a network that was calibrated for none
MOST_IMAGES = 256  # activations of all layers are kept for them


def explain_conversion(
    network: SpikingNetwork, ann: nn.Module, images: Any, timesteps: Sequence[int] | None = None, *, output: str | None = None
) -> ConversionDiagnosis:
    """Which layers of a converted network lose how much against the ANN, why, and what to do; print the result to read it.

    Args:
        network: converted from ``ann`` and not fine-tuned.
        ann: the trained network.
        images: as ``convert`` takes them, some 100; of more than 256 the first 256. No labels are needed.
        timesteps: numbers of steps; None for the one that the network was calibrated for, else 4 and 8.
        output: of an ANN that returns several tensors the one whose predictions are compared, by the keys, fields and numbers
            on the way to it, joined by dots.

    Raises:
        EvaluationError: not a spiking network, one of another ANN (which several images show), or no such output.
        ConversionError: the ANN cannot be traced.
        DataError: what was passed as images cannot be read as such.
        ValueError: no images, or timesteps below 1.
    """
    if not isinstance(network, SpikingNetwork):
        raise EvaluationError(f"{type(network).__name__} is not a spiking network; pass the converted network, then its ANN")
    x = _first(images).to(next(network.parameters()))
    if timesteps is None:
        timesteps = USUAL if network.calibrated_for is None else (network.calibrated_for,)
    return diagnose(network, uncalibrated(network, ann, x, prove=True), x, timesteps, output)


def _first(images: Any) -> Tensor:
    found, count = [], 0
    for x, _ in read_batches(images, split="train"):
        found.append(x[: MOST_IMAGES - count])
        count += len(found[-1])
        if count == MOST_IMAGES:
            break
    if not count:
        raise ValueError("no images to compare on")
    return torch.cat(found)


def explain_run(folder: Path, timesteps: Sequence[int], samples: int, trusted: Collection[str] = ()) -> ConversionDiagnosis:
    """The same for a run folder's converted network, on images of the run's test data.

    Args:
        folder: of a run that has converted its ANN.
        timesteps: numbers of steps; none for the recipe's.
        samples: test images.
        trusted: packages that the checkpoints may have imported.

    Raises:
        CheckpointError: no such folder, or one without the two networks.
    """
    folder = located(folder)
    if (folder / CARD).is_file():
        raise CheckpointError(
            f"{shown(folder)} holds one network, and a diagnosis needs the ANN as well as the converted network: "
            f"`spikeprop convert {shown(folder)}` makes a folder with both, if it is an ANN"
        )
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no run folder; a diagnosis needs the ANN as well as the converted network")
    ann_file, converted_file = find_checkpoints(folder, ["ann", "converted"])
    ann, converted = load_network(ann_file, trusted), load_spiking(converted_file, trusted)
    data = data_component(converted.data, converted.trusted).build()
    images = next(data.test(samples).epoch(0))[0]
    return explain_conversion(converted.network, ann.network, images, list(timesteps) or [converted.timesteps or 1])
