"""``DeferredMetrics``: the sums of an epoch's losses, read from the device as rarely as its speed demands."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from spikeprop.errors import LabelError, TrainingCollapsed
from spikeprop.learn.callback import TrainingState
from spikeprop.runtime.labels import IGNORED

READ_SECONDS = 1.0  # between two readings of the loss on CUDA, where steps are queued


class DeferredMetrics:
    """Losses and numbers of correct predictions that are still on the device, to be added to the epoch's sums.

    Reading a value waits until the device has computed it, so on CUDA many steps are read together; on the CPU each step is read
    immediately. ``fit`` reads all of them before it saves, so a loss that is not finite is found before any checkpoint.
    """

    def __init__(self, training: TrainingState, device: torch.device):
        self.training, self.seconds = training, _seconds_between_readings(device)
        self.steps: list[tuple[int, list[str], Tensor]] = []
        self.last = time.monotonic()

    def add(self, names: list[str], totals: Tensor) -> None:
        """Take a step's sums: (labels, correct predictions, loss, then one for each of ``names``), on the device."""
        self.steps.append((self.training.step, names, totals))
        if time.monotonic() - self.last >= self.seconds:
            self.read()

    def read(self) -> None:
        """Add all steps to the epoch's sums.

        Raises:
            TrainingCollapsed: a loss is not finite.
        """
        if not self.steps:
            return
        read = torch.stack([totals for _, _, totals in self.steps]).tolist()
        for (number, _, _), (seen, _, loss, *_) in zip(self.steps, read):
            if seen == 0:
                raise LabelError(
                    f"all labels of batch {number + 1} in epoch {self.training.epoch + 1} are {IGNORED} (no class), so it has no "
                    "loss: leave it out"
                )
            if not math.isfinite(loss):
                raise TrainingCollapsed(
                    f"the loss is {loss / seen} in epoch {self.training.epoch + 1}, batch {number + 1}: lower the learning rate "
                    "or clip the gradient (clip: 1.0); the last checkpoint is unchanged"
                )
        for (_, names, _), (seen, correct, loss, *own) in zip(self.steps, read):
            self.training.seen += round(seen)
            known = math.isfinite(correct) and self.training.correct is not None
            self.training.correct = (self.training.correct or 0) + round(correct) if known else None
            self.training.loss_sum += loss
            for name, value in zip(names, own, strict=True):
                self.training.sums[name] = self.training.sums.get(name, 0.0) + value
        self.steps.clear()
        self.last = time.monotonic()


def _seconds_between_readings(device: torch.device) -> float:
    return READ_SECONDS if device.type == "cuda" else 0.0
