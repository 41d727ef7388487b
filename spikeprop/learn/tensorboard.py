"""Scalars for TensorBoard, if it is installed: metrics of a training by epoch, and other values by any step.

TensorBoard is imported only when a run starts. Each stage has its own folder; a resume purges the scalars of the epochs that run
again.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spikeprop.learn.callback import Callback, TrainingState


def tensorboard_installed() -> bool:
    """Whether scalars can be written here."""
    try:
        importlib.import_module("torch.utils.tensorboard")
    except ImportError:  # absent, or incompatible with its dependencies: the run continues without it
        return False
    return True


class TensorBoardLog(Callback):
    """Writes an epoch's metrics (loss, accuracy, learning rate and the rule's own scalars) as scalars.

    Args:
        folder: for TensorBoard's files, of this stage only.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def on_start(self, training: TrainingState) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder), purge_step=training.epoch)

    def on_epoch(self, training: TrainingState, metrics: dict[str, Any]) -> None:
        for name, value in metrics.items():
            if name != "epoch" and value is not None:
                self.writer.add_scalar(name, value, metrics["epoch"])

    def on_end(self, training: TrainingState) -> None:
        self.writer.close()


def write_scalars(folder: Path, scalars: Mapping[str, Mapping[int, float]]) -> None:
    """Write scalars, by name and step, and replace the content of ``folder``."""
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as writer:
        for name, by_step in scalars.items():
            for step, value in by_step.items():
                writer.add_scalar(name, value, step)
