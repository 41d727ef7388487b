"""``fit``: the one training loop, for ANN and SNN alike.

The loop owns optimiser, schedule, clipping and checkpoints; the rule owns gradients. Randomness (torch's, numpy's and Python's)
is seeded anew at every step from (seed, epoch, step), so a run that was killed and resumed in the middle of an epoch ends
with the same weights as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from spikeprop.errors import CheckpointError, TrainingCollapsed
from spikeprop.learn.callback import Callback, TrainingState
from spikeprop.learn.checkpoint import Checkpoint, has_checkpoint, load_latest, load_model, load_optimizer, save_checkpoint
from spikeprop.learn.distributed.data_parallel import DataParallel
from spikeprop.learn.distributed.sharding import check_shardable, clip_gradients, is_sharded, local_shard
from spikeprop.learn.rule import LearningRule
from spikeprop.learn.schedule import Constant, Schedule
from spikeprop.runtime.batches import Batch, Batches, Shardable
from spikeprop.runtime.processes import ALONE, Processes
from spikeprop.runtime.seeding import seed_everything

POSITION = ("epoch", "step", "loss_sum", "correct", "seen", "history", "sums")  # of a training, in its checkpoint
READ_SECONDS = 1.0  # between readings of the loss on a device that computes ahead of us


@runtime_checkable
class Constrained(Protocol):
    """A module with parameters that must stay in a range, which an optimiser's step does not know."""

    def project_parameters(self) -> None: ...


class _Replayed:
    """An ordinary sized iterable of batches as ``Batches``: earlier batches of a resumed epoch are read and dropped.

    What it draws from global generators (a DataLoader's order, augmentation) depends on epoch and batch alone.
    """

    def __init__(self, batches: Iterable[Batch], seed: int):
        self.batches, self.seed = batches, seed

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        seed_everything(self.seed, epoch, 0, 0)
        batches = iter(self.batches)
        for number in range(len(self)):
            seed_everything(self.seed, epoch, number, 1)
            batch = next(batches, None)
            if batch is None:
                return
            if number >= start:
                yield batch


@dataclass(frozen=True)
class LoopSettings:
    """What stays the same over all steps."""

    rule: LearningRule
    schedule: Schedule
    seed: int
    clip: float | None
    autocast: torch.dtype | None
    device: torch.device
    callbacks: Sequence[Callback]
    checkpoint: Path | None
    checkpoint_seconds: float
    constrained: Sequence[Constrained]
    saves: _Saves
    parallel: DataParallel


@dataclass(frozen=True)
class _Saves:
    """Whose state a checkpoint holds beside the network's and the optimiser's."""

    rule: LearningRule
    callbacks: Sequence[Callback]

    def state(self) -> dict[str, dict[str, Tensor]]:
        return {"rule": self.rule.state_dict(), **{name: c.state_dict() for name, c in self._named()}}

    def resume(self, saved: Checkpoint) -> None:
        own, names = saved.section("rule"), set(self.rule.state_dict())
        if set(own) != names:
            raise CheckpointError(
                f"{saved.path} is of a run with another learning rule: the rule's own tensors differ in "
                f"{', '.join(sorted(names ^ set(own))[:4])}; use another --out folder, or the same recipe"
            )
        self.rule.load_state_dict(own)
        kept = {".".join(name.split(".")[:2]) for name in saved.section("callback")}
        present = {name.removeprefix("callback.") for name, _ in self._named()}
        if not kept <= present:
            missing = ", ".join(sorted(kept - present))
            raise CheckpointError(
                f"{saved.path} holds the state of callbacks that this run has not in this order ({missing}); "
                "use another --out folder, or the same recipe"
            )
        for name, callback in self._named():
            callback.load_state_dict(saved.section(name))

    def _named(self) -> list[tuple[str, Callback]]:
        """Each callback and what its state is kept under: its place and its class."""
        return [(f"callback.{i}.{type(c).__name__}", c) for i, c in enumerate(self.callbacks)]


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
    autocast: torch.dtype | None = None,
    processes: Processes = ALONE,
) -> list[dict[str, Any]]:
    """Train ``model`` in place and leave it in evaluation mode.

    After every step each module's ``project_parameters()`` is called, where it has one: it puts back what must stay in a range,
    as thresholds do.

    Args:
        model: network that ``rule`` can train, whole or spread over the processes by ``shard``; batches go to its device.
        rule: fills ``.grad``; one with parameters of its own has been prepared, and the optimiser holds them
            (``rule.param_groups``).
        batches: (images, labels) batches; ``Batches`` resume without rereading, any sized iterable works.
        optimizer: over the model's parameters; its learning rate is the base that ``schedule`` multiplies.
        epochs: passes over ``batches``.
        schedule: factor on the learning rate; default constant.
        seed: seeds the global generators of torch, numpy and Python at every step.
        clip: largest gradient norm, or None.
        callbacks: hooks.
        checkpoint: file to resume from if it exists, and to keep up to date: each epoch, every ``checkpoint_seconds``, where a
            signal asks to stop, and where reading a batch fails. The one before it is kept beside it.
        checkpoint_seconds: seconds between checkpoints within an epoch.
        autocast: lower precision of convolutions and linear layers (torch.autocast; the loss is not scaled), or None.
        processes: that train together, each its share of every batch; rank 0 writes the checkpoint. All give the same arguments.

    Returns:
        one dict an epoch: epoch, loss, accuracy (percent), lr, seconds.

    Raises:
        ValueError: no batches, an optimiser without the rule's own parameters, or a sharded network and a rule or callback that
            needs it whole.
        TrainingCollapsed: a loss, or a weight at a checkpoint, that is not finite.
        CheckpointError: ``checkpoint`` belongs to another network or another number of batches.
        Stopped: a signal asked to, within ``spikeprop.runtime.signals.deferred_signals``.
    """
    source = batches if isinstance(batches, Batches) else _Replayed(batches, seed)
    if processes.count > 1 and isinstance(batches, Shardable):
        source = batches.shard(processes)
    training = TrainingState(model, optimizer, epochs, len(source))
    if training.steps_per_epoch == 0:
        raise ValueError("no batches to train on")
    _check_optimizer(rule, optimizer)
    if is_sharded(model):
        check_shardable(rule, callbacks, optimizer)
        if processes.count == 1:
            raise ValueError("the network is sharded over processes: give fit the same processes, whose gradients it sums")
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    saves = _Saves(rule, callbacks)
    if checkpoint is not None and has_checkpoint(checkpoint):
        _resume(training, checkpoint, saves)
    device = next(model.parameters()).device
    constrained = [module for module in model.modules() if isinstance(module, Constrained)]
    schedule, parallel = schedule or Constant(), DataParallel(processes, model, rule)
    settings = LoopSettings(
        rule, schedule, seed, clip, autocast, device, callbacks, checkpoint, checkpoint_seconds, constrained, saves, parallel
    )
    _set_mode(model, rule, True)
    for callback in callbacks:
        callback.on_start(training)
    try:
        with parallel.training():
            while training.epoch < epochs:
                _run_epoch(training, source, settings)
    finally:
        for callback in callbacks:
            callback.on_end(training)
        _set_mode(model, rule, False)
    return training.history


def _run_epoch(training: TrainingState, batches: Batches, settings: LoopSettings) -> None:
    started = saved = time.monotonic()
    deferred = DeferredMetrics(training, settings.device)
    for x, y in _read(training, batches, settings, deferred):
        seed_everything(settings.seed, training.epoch, training.step, *_own_number(settings.parallel.processes))
        _set_lr(training, settings.schedule)
        settings.parallel.request_save(_overdue(saved, settings))
        _one_step(
            training, settings, x.to(settings.device, non_blocking=True), y.to(settings.device, non_blocking=True), deferred
        )
        for callback in settings.callbacks:
            callback.on_step(training)
        due = settings.parallel.stop_requested() or settings.parallel.save_due(_overdue(saved, settings))
        if due and training.step < training.steps_per_epoch:
            if settings.checkpoint is not None:
                deferred.read()
                _save(training, settings.checkpoint, settings.saves, settings.parallel.processes)
                saved = time.monotonic()
            settings.parallel.stop_if_requested()
    deferred.read()
    lr = training.optimizer.param_groups[0]["lr"]
    metrics = {**training.metrics, "lr": lr, "seconds": round(time.monotonic() - started, 2)}
    for callback in settings.callbacks:
        callback.on_epoch(training, metrics)
    training.history.append(metrics)
    training.epoch, training.step = training.epoch + 1, 0
    training.loss_sum, training.correct, training.seen, training.sums = 0.0, 0, 0, {}
    if settings.checkpoint is not None:
        _save(training, settings.checkpoint, settings.saves, settings.parallel.processes)
    if training.epoch < training.epochs:  # else the training is whole, and its caller saves it
        settings.parallel.stop_if_requested()


def _overdue(saved: float, settings: LoopSettings) -> bool:
    return time.monotonic() - saved > settings.checkpoint_seconds


def _read(training: TrainingState, batches: Batches, settings: LoopSettings, deferred: DeferredMetrics) -> Iterator[Batch]:
    """The rest of an epoch's batches; where reading one fails, what is trained so far is saved before the error goes on."""
    try:
        yield from batches.epoch(training.epoch, training.step)
    except Exception:
        alone = not settings.parallel.sharded  # else the others would have to give their parts, and they do not know
        if settings.checkpoint is not None and training.step > 0 and alone:
            with suppress(Exception):  # the first error is the one to know
                deferred.read()
                _save(training, settings.checkpoint, settings.saves, settings.parallel.processes)
        raise


def _one_step(training: TrainingState, settings: LoopSettings, x: Tensor, y: Tensor, deferred: DeferredMetrics) -> None:
    training.optimizer.zero_grad(set_to_none=True)
    x, y = settings.parallel.shard(x, y)
    with nullcontext() if settings.autocast is None else torch.autocast(settings.device.type, settings.autocast):
        result = settings.rule.step(
            settings.parallel.wrapped, x, y
        )  # its backward pass recomputes, so it too runs under autocast
    deferred.add(*_totals(result, y, settings.parallel))
    for callback in settings.callbacks:
        callback.on_gradient(training)
    if settings.clip is not None:
        clip = clip_gradients if settings.parallel.sharded else nn.utils.clip_grad_norm_
        clip([*training.model.parameters(), *settings.rule.parameters()], settings.clip)
    training.optimizer.step()
    for module in settings.constrained:
        module.project_parameters()
    training.step += 1


class DeferredMetrics:
    """Losses and hits that are still on the device: reading one waits for it, so on CUDA many are read at once.

    On the CPU each is read as it comes. A loss that is not finite is found before anything is saved.
    """

    def __init__(self, training: TrainingState, device: torch.device):
        self.training, self.patience = training, _patience(device)
        self.steps: list[tuple[int, list[str], Tensor]] = []
        self.last = time.monotonic()

    def add(self, names: list[str], totals: Tensor) -> None:
        self.steps.append((self.training.step, names, totals))
        if time.monotonic() - self.last >= self.patience:
            self.read()

    def read(self) -> None:
        """Add what has come to the epoch's sums."""
        if not self.steps:
            return
        read = torch.stack([totals for _, _, totals in self.steps]).tolist()
        for (number, _, _), (seen, _, loss, *_) in zip(self.steps, read):
            if not math.isfinite(loss):
                raise TrainingCollapsed(
                    f"the loss is {loss / seen} in epoch {self.training.epoch + 1}, batch {number + 1}: lower the learning rate "
                    "or clip the gradient (clip: 1.0); the last checkpoint is untouched"
                )
        for (_, names, _), (seen, hits, loss, *own) in zip(self.steps, read):
            self.training.seen += round(seen)
            self.training.correct += round(hits)
            self.training.loss_sum += loss
            for name, value in zip(names, own, strict=True):
                self.training.sums[name] = self.training.sums.get(name, 0.0) + value
        self.steps.clear()
        self.last = time.monotonic()


def _totals(result: dict[str, Tensor], y: Tensor, parallel: DataParallel) -> tuple[list[str], Tensor]:
    """Names of the rule's own scalars, and over the whole batch: labels, hits, sum of the loss, sums of those scalars."""
    names = sorted(set(result) - {"loss", "scores"})
    hits = (result["scores"].argmax(1) == y).sum()
    means = torch.stack([result[name].detach().double() for name in ("loss", *names)])
    size = torch.full_like(means[0], y.numel())  # filled on the device: a copy to it would wait
    return names, parallel.reduce(torch.cat([torch.stack([size, hits.double()]), means * size]))


def _own_number(processes: Processes) -> tuple[int, ...]:
    """Position of this process's random draws, beside the step's; rank 0 draws as one process alone would."""
    return (processes.rank,) if processes.rank else ()


def _patience(device: torch.device) -> float:
    return READ_SECONDS if device.type == "cuda" else 0.0


def _set_lr(training: TrainingState, schedule: Schedule) -> None:
    done = training.epoch * training.steps_per_epoch + training.step
    factor = schedule(done / (training.epochs * training.steps_per_epoch))
    for group in training.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def _check_optimizer(rule: LearningRule, optimizer: torch.optim.Optimizer) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = sum(id(p) not in held for p in rule.parameters() if p.requires_grad)
    if missing:
        raise ValueError(
            f"the optimiser lacks {missing} parameters of {type(rule).__name__}'s own: "
            "call rule.prepare(model, x), then make it of rule.param_groups(model)"
        )


def _set_mode(model: nn.Module, rule: LearningRule, training: bool) -> None:
    model.train(training)
    rule.own.train(training)


def _save(training: TrainingState, path: Path, saves: _Saves, processes: Processes) -> None:
    broken = [name for name, p in training.model.named_parameters() if not torch.isfinite(local_shard(p)).all()]
    if broken:  # a finite loss may have had a gradient that was not; saved, it would be taken up for good
        raise TrainingCollapsed(
            f"{broken[0]} is not finite after epoch {training.epoch + 1}, batch {training.step}: lower the learning rate or "
            "clip the gradient (clip: 1.0); the last checkpoint is untouched"
        )
    writes = not processes.rank
    if not writes and not is_sharded(training.model):
        return
    described = {"training": {name: getattr(training, name) for name in (*POSITION, "steps_per_epoch", "epochs")}}
    save_checkpoint(path, training.model, described, training.optimizer, saves.state(), keep_previous=True, writes=writes)


def _resume(training: TrainingState, path: Path, saves: _Saves) -> None:
    saved = load_latest(path)
    if "training" not in saved.description:
        raise CheckpointError(f"{saved.path} holds a network and not a training's progress; delete it, or name another file")
    position = {"sums": {}, **saved.description["training"]}  # older checkpoints have no sums
    for name in ("steps_per_epoch", "epochs"):
        if position[name] != getattr(training, name):
            raise CheckpointError(
                f"{path} is of a run with {name}={position[name]}, this one has {getattr(training, name)}; "
                "use another --out folder, or the same recipe"
            )
    load_model(training.model, saved)
    saves.resume(saved)  # names another rule, which the optimiser would only notice by its number of parameters
    load_optimizer(training.optimizer, saved)
    for name in POSITION:
        setattr(training, name, position[name])
