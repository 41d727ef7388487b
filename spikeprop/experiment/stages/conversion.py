"""The stage ``convert``: the trained ANN becomes a spiking network, and its thresholds are calibrated."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch import Tensor

from spikeprop.convert import ThresholdCalibrator, convert
from spikeprop.experiment.stages.stage import PipelineRun
from spikeprop.runtime.batches import Shardable, Split
from spikeprop.runtime.processes import ALONE, Processes
from spikeprop.runtime.seeding import seed_torch

LARGEST_BATCH = 256  # calibration images at once


def convert_ann(run: PipelineRun) -> dict[str, Any]:
    """Convert the ANN; the checkpoint is ``converted.safetensors``. The result holds the thresholds.

    Where the calibrator cannot work distributed, or there are fewer images than processes, rank 0 converts alone.
    """
    settings, found = run.settings.convert, {}
    calibrator = settings.calibrator.build()
    if calibrator.supports_distributed and settings.images >= run.processes.count:
        return _convert(run, calibrator, run.processes)
    run.processes.on_rank_zero(lambda: found.update(_convert(run, calibrator, ALONE)))
    return found


def _convert(run: PipelineRun, calibrator: ThresholdCalibrator, processes: Processes) -> dict[str, Any]:
    settings = run.settings.convert
    ann = run.load("ann").to(run.device)
    seed_torch(run.settings.seed, 2)
    images, neuron, encoder = calibration_images(run, processes), settings.neuron.build(), settings.encoder.build()
    network = convert(ann, images, neuron, calibrator, encoder=encoder, processes=processes)
    why = settings.describe_choice()["why"]
    for note in [*([why] if why else []), *network.notes]:
        run.context.notify(note)
    run.save(network, "converted")
    return {"thresholds": {name: float(d.spike_size.max()) for name, d in network.dynamics().items()}}


def calibration_images(run: PipelineRun, processes: Processes) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of training images; each process reads its own examples of a batch where the data can do it.

    The last batch may be shorter than the data's; it is read complete by all processes.
    """
    images = run.settings.convert.images
    split: Split = run.data.train(min(images, LARGEST_BATCH), run.settings.seed + 3)
    own = split.shard(processes) if processes.count > 1 and isinstance(split, Shardable) else split
    batches, left = divmod(images, split.batch_size)
    yield from islice(own.epoch(0), batches)
    for x, y in islice(split.epoch(0, batches), int(left > 0)):
        yield x[:left], y[:left]
