"""``Callback``: hooks of the training loop, for what observes or adjusts a training but does not compute gradients."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spikeprop.errors import TrainingCollapsed
from spikeprop.learn.schedule import Constant, Schedule
from spikeprop.runtime.batches import Batches
from spikeprop.runtime.files import append_line, write_text
from spikeprop.runtime.progress import bar


@dataclass
class TrainingState:
    """The state of a training, as callbacks see it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    epochs: int
    steps_per_epoch: int
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int | None = 0  # None for regression, whose predictions are not right or wrong
    seen: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    batches: Batches | None = None  # this process's, for callbacks that read data
    schedule: Schedule = field(default_factory=Constant)
    relearns: int | None = None  # an epoch that begins with weights that a callback has drawn anew, and so at chance

    @property
    def steps_done(self) -> int:
        """Steps since the beginning of the training."""
        return self.epoch * self.steps_per_epoch + self.step

    @property
    def steps(self) -> int:
        """Steps of the complete training."""
        return self.epochs * self.steps_per_epoch

    @property
    def metrics(self) -> dict[str, Any]:
        """Running means of the current epoch, with the rule's own scalars; accuracy in percent, None for regression."""
        seen = max(self.seen, 1)
        own = {name: total / seen for name, total in self.sums.items()}
        accuracy = None if self.correct is None else 100 * self.correct / seen
        return {"epoch": self.epoch, "loss": self.loss_sum / seen, "accuracy": accuracy, **own}


class Callback:
    """Hooks of the loop; each does nothing unless overridden.

    A callback whose behaviour depends on more than ``training`` and its settings returns that as tensors from ``state_dict``;
    the loop's checkpoints save and resume them.
    """

    needs_complete_parameters: ClassVar[bool] = False  # it reads complete tensors, which a sharded network does not have

    def param_groups(self, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The groups of which the optimiser will be made; the callback may split them.

        Factors on the stage's learning rate and weight decay are ``lr_factor`` and ``weight_decay_factor`` in a group.
        """
        return groups

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors to resume with, by name."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the tensors of ``state_dict``; before ``on_start``, and only on a resume."""

    def on_start(self, training: TrainingState) -> None:
        """Before the first step of this process, after a resume."""

    def on_gradient(self, training: TrainingState) -> None:
        """After the rule has filled the gradients and the schedule has set the rates; before clipping and the step."""

    def on_step(self, training: TrainingState) -> None:
        """After each optimiser step."""

    def on_epoch(self, training: TrainingState, metrics: dict[str, Any]) -> None:
        """After each epoch, before its checkpoint."""

    def on_end(self, training: TrainingState) -> None:
        """After the last epoch, or when an error ends the loop."""


class ProgressBar(Callback):
    """A bar over all steps, with the remaining time, loss and accuracy.

    Args:
        label: text before the bar; None for no bar.
    """

    def __init__(self, label: str | None):
        self.label = label

    def on_start(self, training: TrainingState) -> None:
        self.bar = bar(self.label, total=training.steps, initial=training.steps_done)

    def on_step(self, training: TrainingState) -> None:
        metrics = training.metrics
        text = f"epoch {training.epoch + 1}/{training.epochs} loss {metrics['loss']:.3f}"
        if metrics["accuracy"] is not None:
            text += f" acc {metrics['accuracy']:.2f} %"
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update()

    def on_end(self, training: TrainingState) -> None:
        self.bar.close()


class MetricsLog(Callback):
    """Appends one JSON line an epoch; a resume first drops the lines of epochs that will run again.

    Args:
        path: of the file.
        stage: its name in each line.
        measure: further metrics of the epoch that has ended, such as an accuracy on other images; they join the epoch's own.
    """

    def __init__(self, path: Path, stage: str, measure: Callable[[TrainingState], dict[str, Any]] | None = None):
        self.path, self.stage, self.measure = path, stage, measure

    def on_start(self, training: TrainingState) -> None:
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.exists() else []
        kept = [line for line in lines if not self._runs_again(line, training.epoch)]
        write_text(self.path, "".join(f"{line}\n" for line in kept))

    def _runs_again(self, line: str, epoch: int) -> bool:
        try:
            entry = json.loads(line)
            return bool(entry["stage"] == self.stage and entry["epoch"] >= epoch)
        except (ValueError, LookupError, TypeError):  # half a line, from a killed run
            return True

    def on_epoch(self, training: TrainingState, metrics: dict[str, Any]) -> None:
        metrics |= self.measure(training) if self.measure is not None else {}
        append_line(self.path, json.dumps({"stage": self.stage, **metrics}))


class CollapseGuard(Callback):
    """Stops a training whose accuracy over an epoch is under chance, with advice; not in an epoch after an announced reset.

    Args:
        classes: number of classes; chance is 1/classes.
        least: epochs with fewer images are not judged.
    """

    def __init__(self, classes: int, least: int = 500):
        self.chance, self.least = 100 / classes, least

    def on_epoch(self, training: TrainingState, metrics: dict[str, Any]) -> None:
        accuracy = metrics["accuracy"]
        if training.relearns == training.epoch:
            return
        if accuracy is not None and training.seen >= self.least and accuracy < self.chance:
            raise TrainingCollapsed(
                f"training collapsed: {accuracy:.2f} % in epoch {training.epoch + 1} is under chance "
                f"({self.chance:.2f} %). Lower the learning rate, use the Triangle surrogate (STDB can be unstable), "
                "or raise the number of steps; check the converted accuracy first"
            )
