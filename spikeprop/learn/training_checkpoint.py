"""``TrainingCheckpoint``: saves a training within an epoch, and resumes it at the same step.

It holds the network, the optimiser, the position with the epoch's sums, and the tensors of the rule and of the callbacks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from spikeprop.errors import CheckpointError, TrainingCollapsed
from spikeprop.learn.callback import Callback, TrainingState
from spikeprop.learn.checkpoint import Checkpoint, has_checkpoint, load_latest, load_model, load_optimizer, save_checkpoint
from spikeprop.learn.distributed.sharding import is_sharded, local_shard
from spikeprop.learn.rule import LearningRule
from spikeprop.runtime.processes import Processes

POSITION = ("epoch", "step", "loss_sum", "correct", "seen", "history", "sums")  # fields of TrainingState
SETTINGS = ("steps_per_epoch", "epochs")  # those that must be the same on a resume


class TrainingCheckpoint:
    """The checkpoint of one training.

    Args:
        path: the file; None for a training that is not saved.
        seconds: between two checkpoints within an epoch.
        training: what is saved and resumed.
        rule, callbacks: whose tensors are saved too.
        processes: that train together; rank 0 writes.
    """

    def __init__(
        self,
        path: Path | None,
        seconds: float,
        training: TrainingState,
        rule: LearningRule,
        callbacks: Sequence[Callback],
        processes: Processes,
    ):
        self.path, self.seconds, self.training = path, seconds, training
        self.rule, self.callbacks, self.processes = rule, callbacks, processes
        self.saved_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is older than ``seconds``."""
        return self.path is not None and time.monotonic() - self.saved_at > self.seconds

    def save(self) -> None:
        """Write the checkpoint, if there is a path; of a sharded network every process calls this and sends its shards.

        Raises:
            TrainingCollapsed: a parameter is not finite; the checkpoint before stays.
        """
        if self.path is None:
            return
        training, writes = self.training, self.processes.rank == 0
        broken = [name for name, p in training.model.named_parameters() if not torch.isfinite(local_shard(p)).all()]
        if broken:  # the loss can be finite and its gradient not; every later resume would start from these values
            raise TrainingCollapsed(
                f"{broken[0]} is not finite after epoch {training.epoch + 1}, batch {training.step}: lower the learning rate or "
                "clip the gradient (clip: 1.0); the last checkpoint is unchanged"
            )
        if writes or is_sharded(training.model):
            described = {"training": {name: getattr(training, name) for name in (*POSITION, *SETTINGS)}}
            others = {"rule": self.rule.state_dict(), **{name: c.state_dict() for name, c in self._named_callbacks()}}
            save_checkpoint(self.path, training.model, described, training.optimizer, others, keep_previous=True, writes=writes)
        self.saved_at = time.monotonic()

    def resume(self) -> None:
        """Continue from the file, if it exists.

        Raises:
            CheckpointError: it belongs to another network, rule, list of callbacks or number of batches.
        """
        if self.path is None or not has_checkpoint(self.path):
            return
        saved = load_latest(self.path)
        if "training" not in saved.description:
            raise CheckpointError(f"{saved.path} holds a network and not a training's progress; name another file")
        position = saved.description["training"]
        for name in SETTINGS:
            if position[name] != getattr(self.training, name):
                raise CheckpointError(
                    f"{self.path} is of a run with {name}={position[name]}, this one has {getattr(self.training, name)}; "
                    "use another --out folder, or the same recipe"
                )
        load_model(self.training.model, saved)
        self._resume_others(saved)  # before the optimiser, which would report another rule as a wrong number of parameters
        load_optimizer(self.training.optimizer, saved)
        for name in POSITION:
            setattr(self.training, name, position[name])

    def _resume_others(self, saved: Checkpoint) -> None:
        own, names = saved.section("rule"), set(self.rule.state_dict())
        if set(own) != names:
            raise CheckpointError(
                f"{saved.path} is of a run with another learning rule: the rule's own tensors differ in "
                f"{', '.join(sorted(names ^ set(own))[:4])}; use another --out folder, or the same recipe"
            )
        self.rule.load_state_dict(own)
        kept = {".".join(name.split(".")[:2]) for name in saved.section("callback")}
        missing = kept - {name.removeprefix("callback.") for name, _ in self._named_callbacks()}
        if missing:
            raise CheckpointError(
                f"{saved.path} holds the state of callbacks that this run does not have in this order "
                f"({', '.join(sorted(missing))}); use another --out folder, or the same recipe"
            )
        for name, callback in self._named_callbacks():
            callback.load_state_dict(saved.section(name))

    def _named_callbacks(self) -> list[tuple[str, Callback]]:
        """Each callback, and the prefix of its tensors: its place in the list and its class."""
        return [(f"callback.{i}.{type(c).__name__}", c) for i, c in enumerate(self.callbacks)]
