"""``evaluate``: a network over a complete data set, at several numbers of time steps, in one pass that can be resumed.

The batches are divided among the processes, and those in the journal are not predicted again. The predictions of a batch depend
only on the batch and the seed, so neither changes the result.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from torch import Tensor, nn

from spikeprop.evaluate.activity import ActivityMeter
from spikeprop.evaluate.journal import Journal
from spikeprop.evaluate.predictor import BatchPredictions, Predictor
from spikeprop.runtime.batches import Split
from spikeprop.runtime.heartbeat import tick
from spikeprop.runtime.processes import ALONE, Processes
from spikeprop.runtime.progress import bar
from spikeprop.runtime.signals import stop_if_requested

SAVE_EVERY = 5.0  # seconds; a killed process loses at most so much work, besides its current batch


def evaluate(
    network: nn.Module,
    split: Split,
    predictor: Predictor,
    *,
    journal: Journal | None = None,
    processes: Processes = ALONE,
    activity_images: int = 200,
    label: str | None = None,
    save_every: float = SAVE_EVERY,
) -> list[BatchPredictions]:
    """The predictions for all batches of a split, in order; on other ranks than 0, those of this process and of the journal.

    Args:
        network: spiking network, or an ANN.
        split: the images.
        predictor: which predictions.
        journal: open; holds finished batches and gets new ones. Several processes need one.
        processes: each predicts its own batches.
        activity_images: about so many images' activity is counted, in whole batches at even distances; 0 for none.
        label: text of the progress bar, None for no bar.
        save_every: seconds between two writes.

    Raises:
        EvaluationError: the network has another number of outputs than the predictor's ``classes``, or no sequence has so many
            steps as the predictor's largest number.
        ValueError: no images.
    """
    if len(split) == 0:
        raise ValueError("no images to evaluate on")
    network.eval()
    found = journal.read() if journal is not None else {}
    missing = [number for number in range(len(split)) if number not in found]
    processes.wait()  # all have read the same journal before anyone adds to it
    mine = processes.shard(missing)
    if mine:
        counted = _counted(len(split), split.batch_size, activity_images)
        meter = predictor.meter(network) if counted else None
        with bar(label if processes.rank == 0 else None, total=len(mine), leave=False) as shown:
            found |= _predict(network, split, predictor, mine, meter, counted, _Saver(journal, save_every), shown)
    processes.wait()
    if processes.rank == 0 and journal is not None:
        found = journal.read() if processes.count > 1 else found
        journal.finish([found[number] for number in sorted(found)])
    processes.wait()
    if processes.rank == 0:  # which holds all
        predictor.check_steps([*found.values()])
    return [found[number] for number in sorted(found)]


def _predict(
    network: nn.Module,
    split: Split,
    predictor: Predictor,
    numbers: Sequence[int],
    meter: ActivityMeter | None,
    counted: range,
    saver: _Saver,
    shown: Any,
) -> dict[int, BatchPredictions]:
    """The predictions for the batches of these numbers, one after the other."""
    predictions: dict[int, BatchPredictions] = {}
    started = time.monotonic()
    try:
        for number, x, y in _chosen(split, numbers):
            metered = meter if number in counted else None
            batch = predictor.predict(network, number, x, y, metered)
            if metered is not None:
                batch = replace(batch, counts=metered.take(), counted=len(y))
            now = time.monotonic()
            predictions[number], started = replace(batch, seconds=now - started), now
            saver.add(predictions[number])
            shown.update()
            tick()
            stop_if_requested()
    finally:  # after Ctrl-C too
        saver.save()
    return predictions


class _Saver:
    """Writes predictions to the journal every few seconds."""

    def __init__(self, journal: Journal | None, every: float):
        self.journal, self.every = journal, every
        self.waiting: list[BatchPredictions] = []
        self.last = time.monotonic()

    def add(self, batch: BatchPredictions) -> None:
        self.waiting.append(batch)
        if time.monotonic() - self.last >= self.every:
            self.save()

    def save(self) -> None:
        if self.journal is not None:
            self.journal.add(self.waiting)
        self.waiting, self.last = [], time.monotonic()


def _chosen(split: Split, numbers: Sequence[int]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(number, images, labels) of the batches of these ascending numbers; after a gap the split is read from the next one on."""
    first = 0
    while first < len(numbers):
        last = first
        while last + 1 < len(numbers) and numbers[last + 1] == numbers[last] + 1:
            last += 1
        run = numbers[first : last + 1]
        for number, (x, y) in zip(run, islice(split.epoch(0, run[0]), len(run))):
            yield number, x, y
        first = last + 1


def _counted(batches: int, batch_size: int, images: int) -> range:
    """The batches whose activity is counted, at even distances: about so many images, but at least one batch."""
    if images == 0:
        return range(0)
    return range(0, batches, max(1, batches * batch_size // max(images, batch_size)))
