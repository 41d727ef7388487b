"""``fit``: the one training loop, for ANN and SNN alike.

The loop owns optimiser, schedule, clipping and checkpoints; the rule owns gradients. Randomness is seeded anew at
every step from (seed, epoch, step), so a run that was killed and resumed in the middle of an epoch ends with the same
weights as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from spikeprop.errors import CheckpointError, TrainingCollapsed
from spikeprop.learn.callback import Callback, Training
from spikeprop.learn.checkpoint import load_checkpoint, load_model, load_optimizer, save_checkpoint
from spikeprop.learn.rule import LearningRule
from spikeprop.learn.schedule import Constant, Schedule
from spikeprop.seeding import seed_torch

Batch = tuple[Tensor, Tensor]


@runtime_checkable
class Batches(Protocol):
    """Batches that can start anywhere: ``epoch(e, start)`` yields the batches of epoch e from number ``start`` on."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...


class _Replayed:
    """An ordinary sized iterable of batches as ``Batches``: earlier batches of a resumed epoch are read and dropped."""

    def __init__(self, batches: Iterable[Batch]):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        return islice(iter(self.batches), start, None)


def fit(
    model: nn.Module,
    rule: LearningRule,
    batches: Batches | Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    schedule: Schedule | None = None,
    seed: int = 0,
    clip: float | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
) -> list[dict[str, Any]]:
    """Train ``model`` in place and leave it in evaluation mode.

    Args:
        model: network that ``rule`` can train.
        rule: fills ``.grad``.
        batches: (images, labels) batches; ``Batches`` resume without rereading, any sized iterable works.
        optimizer: over the model's parameters; its learning rate is the base that ``schedule`` multiplies.
        epochs: passes over ``batches``.
        schedule: factor on the learning rate; default constant.
        seed: seeds torch's global generators at every step.
        clip: largest gradient norm, or None.
        callbacks: hooks.
        checkpoint: file to resume from if it exists, and to keep up to date: each epoch and every ``checkpoint_seconds``.
        checkpoint_seconds: seconds between checkpoints within an epoch.

    Returns:
        one dict an epoch: epoch, loss, accuracy (percent), lr, seconds.

    Raises:
        TrainingCollapsed: a loss that is not finite.
        CheckpointError: ``checkpoint`` belongs to another network or another number of batches.
    """
    source = batches if isinstance(batches, Batches) else _Replayed(batches)
    training = Training(model, optimizer, epochs, len(source))
    if training.steps_per_epoch == 0:
        raise ValueError("no batches to train on")
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    if checkpoint is not None and checkpoint.exists():
        _resume(training, checkpoint)
    schedule = schedule if schedule is not None else Constant()
    model.train()
    for callback in callbacks:
        callback.on_start(training)
    try:
        while training.epoch < epochs:
            _run_epoch(training, rule, source, schedule, seed, clip, callbacks, checkpoint, checkpoint_seconds)
    finally:
        for callback in callbacks:
            callback.on_end(training)
        model.eval()
    return training.history


def _run_epoch(
    training: Training,
    rule: LearningRule,
    batches: Batches,
    schedule: Schedule,
    seed: int,
    clip: float | None,
    callbacks: Sequence[Callback],
    checkpoint: Path | None,
    checkpoint_seconds: float,
) -> None:
    started = saved = time.monotonic()
    for x, y in batches.epoch(training.epoch, training.step):
        seed_torch(seed, training.epoch, training.step)
        _set_lr(training, schedule)
        _one_step(training, rule, x, y, clip)
        for callback in callbacks:
            callback.on_step(training)
        if checkpoint and training.step < training.steps_per_epoch and time.monotonic() - saved > checkpoint_seconds:
            _save(training, checkpoint)
            saved = time.monotonic()
    lr = training.optimizer.param_groups[0]["lr"]
    metrics = {**training.metrics, "lr": lr, "seconds": round(time.monotonic() - started, 2)}
    for callback in callbacks:
        callback.on_epoch(training, metrics)
    training.history.append(metrics)
    training.epoch, training.step = training.epoch + 1, 0
    training.loss_sum, training.correct, training.seen = 0.0, 0, 0
    if checkpoint is not None:
        _save(training, checkpoint)


def _one_step(training: Training, rule: LearningRule, x: Tensor, y: Tensor, clip: float | None) -> None:
    training.optimizer.zero_grad(set_to_none=True)
    result = rule.step(training.model, x, y)
    loss = float(result["loss"])
    if loss != loss or loss in (float("inf"), float("-inf")):
        raise TrainingCollapsed(
            f"the loss is {loss} in epoch {training.epoch + 1}, batch {training.step + 1}: lower the learning rate "
            "or clip the gradient (clip: 1.0); the last checkpoint is untouched"
        )
    if clip is not None:
        nn.utils.clip_grad_norm_(training.model.parameters(), clip)
    training.optimizer.step()
    training.step += 1
    training.loss_sum += loss * len(y)
    training.correct += int((result["scores"].argmax(1) == y).sum())
    training.seen += len(y)


def _set_lr(training: Training, schedule: Schedule) -> None:
    done = training.epoch * training.steps_per_epoch + training.step
    factor = schedule(done / (training.epochs * training.steps_per_epoch))
    for group in training.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def _save(training: Training, path: Path) -> None:
    names = ("epoch", "step", "loss_sum", "correct", "seen", "history", "steps_per_epoch", "epochs")
    save_checkpoint(path, training.model, {"training": {n: getattr(training, n) for n in names}}, training.optimizer)


def _resume(training: Training, path: Path) -> None:
    saved = load_checkpoint(path)
    position = saved.description["training"]
    for name in ("steps_per_epoch", "epochs"):
        if position[name] != getattr(training, name):
            raise CheckpointError(
                f"{path} is of a run with {name}={position[name]}, this one has {getattr(training, name)}; "
                "use another --out folder, or the same recipe"
            )
    load_model(training.model, saved)
    load_optimizer(training.optimizer, saved)
    for name in ("epoch", "step", "loss_sum", "correct", "seen", "history"):
        setattr(training, name, position[name])
